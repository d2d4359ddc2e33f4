"""Location transparency: tells, asks and watches that leave for, or come from, other members.

Owns the asks that wait for another member and the watches over members; used by ActorSystem and TransportActor. Must
never trust a frame for more than its sender's key proves, and never let an ask wait on a member that is gone.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import TYPE_CHECKING, Any, Protocol

from incus_actors import errors
from incus_actors.actors import ref as refs
from incus_actors.actors.mailbox import Letter
from incus_actors.actors.messages import MessageError, Terminated, UnknownTagError, decode_message, encode_message
from incus_actors.actors.ref import ActorDeadError, ActorRef, AskError, MailboxFullError
from incus_actors.errors import ApiError, ClientError, MemberError
from incus_actors.transport.codec import CodecError
from incus_actors.transport.frames import MAX_ASK_MS, ActorFrame, FrameKind, decode_error, encode_error

if TYPE_CHECKING:
    from incus_actors.actors.system import ActorSystem

log = logging.getLogger(__name__)

MAX_REASON = 512  #: characters of the reason in a Terminated that travels


class RemoteSender(Protocol):
    """How a frame gets to another member; TransportActor implements it over the bulk lane."""

    def send_frame(self, member: int, frame: ActorFrame) -> str:
        """Queue a frame, without waiting. Return "", or why not: remote_down, remote_full, too_large."""


def _error_classes() -> dict[str, type[ApiError]]:
    return {
        name: value
        for module in (errors, refs)
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, ApiError)
    }


_ERRORS = _error_classes()


class Remoting:
    """The far side of references, for one ActorSystem."""

    def __init__(self, system: ActorSystem) -> None:
        self._system = system
        self.sender: RemoteSender | None = None
        self._numbers = itertools.count(1)
        self._asks: dict[int, tuple[int, asyncio.Future[object]]] = {}
        self._watched: set[tuple[str, str, int]] = set()  # watcher here, path, member

    # -- going out -------------------------------------------------------------------------------------------------

    def tell(self, ref: ActorRef, message: object) -> None:
        """Send and forget; what can't be sent is a dead letter. Raises TypeError if it can't travel at all."""
        tag, body = encode_message(message)
        reason = self._send(ref, FrameKind.TELL, tag=tag, body=body)
        if reason:
            self._system.dead_letters.add(ref.path, ref.member or 0, message, reason)

    async def ask(self, ref: ActorRef, message: object, *, deadline_s: float) -> Any:
        """See ActorRef.ask. Raises TypeError if the message can't travel."""
        tag, body = encode_message(message)
        number = next(self._numbers)
        reply: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._asks[number] = (ref.member or 0, reply)
        try:
            deadline_ms = max(1, min(MAX_ASK_MS, round(deadline_s * 1000)))
            reason = self._send(ref, FrameKind.ASK, correlation=number, deadline_ms=deadline_ms, tag=tag, body=body)
            if reason:
                self._system.dead_letters.add(ref.path, ref.member or 0, message, reason)
                error = ActorDeadError if reason == "remote_down" else MailboxFullError
                raise error(f"{ref!r}: {reason}")
            return await self._system.answer(reply, ref, deadline_s)
        finally:
            self._asks.pop(number, None)
            if reply.done() and not reply.cancelled():
                reply.exception()  # a late failure is nobody's business any more

    def watch(self, watcher: str, ref: ActorRef) -> None:
        """Ask the other member to tell of the end of an actor there; an unreachable member counts as its end."""
        self._watched.add((watcher, ref.path, ref.member or 0))
        if self._send(ref, FrameKind.WATCH, source=watcher):
            self._unreachable(watcher, ref.path, ref.member or 0)

    def unwatch(self, watcher: str, ref: ActorRef) -> None:
        """Take it back."""
        self._watched.discard((watcher, ref.path, ref.member or 0))
        self._send(ref, FrameKind.UNWATCH, source=watcher)

    def terminated(self, watcher: str, member: int, notice: Terminated) -> None:
        """Tell a watcher on another member. If that member can't be reached, it concludes the same by itself."""
        body = notice.reason.encode()[:MAX_REASON]
        self._send(self._system.ref(watcher, member), FrameKind.TERMINATED, source=notice.path, body=body)

    def _send(
        self,
        ref: ActorRef,
        kind: FrameKind,
        *,
        source: str = "",
        correlation: int = 0,
        deadline_ms: int = 0,
        tag: str = "",
        body: bytes = b"",
    ) -> str:
        if self.sender is None:
            return "remote_down"
        frame = ActorFrame(kind, source, ref.path, correlation, deadline_ms, tag, body)
        return self.sender.send_frame(ref.member or 0, frame)

    # -- coming in -------------------------------------------------------------------------------------------------

    def receive(self, member: int, frame: ActorFrame) -> None:
        """Handle a frame from `member`, whose key proved that it is from there."""
        match frame.kind:
            case FrameKind.TELL | FrameKind.ASK:
                self._deliver(member, frame)
            case FrameKind.REPLY | FrameKind.ERROR:
                self._answered(member, frame)
            case FrameKind.WATCH:
                self._system.add_watcher(frame.target, frame.source, member)
            case FrameKind.UNWATCH:
                self._system.remove_watcher(frame.target, frame.source, member)
            case FrameKind.TERMINATED:
                key = (frame.target, frame.source, member)
                if key in self._watched:
                    self._watched.discard(key)
                    reason = frame.body.decode(errors="replace")
                    self._system.notify(frame.target, 0, Terminated(frame.source, member, reason))

    def _deliver(self, member: int, frame: ActorFrame) -> None:
        asked = frame.kind is FrameKind.ASK
        try:
            message = decode_message(frame.tag, frame.body)
        except MessageError as error:
            reason = "unknown_tag" if isinstance(error, UnknownTagError) else "malformed"
            self._system.dead_letters.add(frame.target, member, None, reason)
            if asked:
                self._reply_error(member, frame, errors.BadRequestError(str(error)[:MAX_REASON]))
            return
        letter = Letter(message, sender_member=member)
        if asked:
            loop = asyncio.get_running_loop()
            letter.deadline = loop.time() + frame.deadline_ms / 1000
            letter.reply = loop.create_future()
            letter.reply.add_done_callback(lambda done: self._reply(member, frame, done))
        reason = self._system.deliver(frame.target, letter)
        if reason:
            self._system.dead_letters.add(frame.target, 0, message, reason)
            if letter.reply is not None:
                refused = MailboxFullError if reason == "mailbox_full" else ActorDeadError
                letter.reply.set_exception(refused(f"{frame.target}: {reason}"))

    def _reply(self, member: int, frame: ActorFrame, done: asyncio.Future[object]) -> None:
        if done.cancelled():
            return
        error = done.exception()
        if error is None:
            try:
                tag, body = encode_message(done.result())
            except TypeError as wrong:
                log.error("the answer of %s can't travel: %s", frame.target, wrong)
                error = MemberError(f"the answer of {frame.target} can't travel")
            else:
                reply = ActorFrame(FrameKind.REPLY, "", "", frame.correlation, 0, tag, body)
                reason = self._post(member, reply)
                if reason != "too_large":
                    return
                error = MemberError(f"the answer of {frame.target} is too large")
        if not isinstance(error, ApiError):
            error = ActorDeadError(f"{frame.target} failed")
        self._reply_error(member, frame, error)

    def _reply_error(self, member: int, frame: ActorFrame, error: ApiError) -> None:
        body = encode_error(type(error).__name__, error.status, str(error), error.remedy)
        self._post(member, ActorFrame(FrameKind.ERROR, "", "", frame.correlation, 0, "", body))

    def _post(self, member: int, frame: ActorFrame) -> str:
        reason = "remote_down" if self.sender is None else self.sender.send_frame(member, frame)
        if reason and reason != "too_large":
            self._system.dead_letters.add("", member, None, reason)
        return reason

    def _answered(self, member: int, frame: ActorFrame) -> None:
        asked, reply = self._asks.get(frame.correlation, (0, None))
        if reply is None or asked != member or reply.done():
            return  # too late, or not theirs to answer
        try:
            if frame.kind is FrameKind.REPLY:
                reply.set_result(decode_message(frame.tag, frame.body))
            else:
                reply.set_exception(_error_of(frame.body))
        except (MessageError, CodecError) as error:
            self._system.dead_letters.add("", member, None, "malformed")
            reply.set_exception(AskError(f"member {member} sent a malformed answer: {error}"))

    # -- members ---------------------------------------------------------------------------------------------------

    def member_down(self, member: int) -> None:
        """The link to a member is gone: its answers will not come, what is watched there is out of sight."""
        for asked, reply in tuple(self._asks.values()):
            if asked == member and not reply.done():
                reply.set_exception(ActorDeadError(f"member {member} can't be reached"))
        self.link_remade(member)

    def link_remade(self, member: int) -> None:
        """The link broke and is back: a notice may have been lost, so no watch over it can be relied on."""
        for watcher, path, watched in tuple(self._watched):
            if watched == member:
                self._unreachable(watcher, path, member)

    def _unreachable(self, watcher: str, path: str, member: int) -> None:
        self._watched.discard((watcher, path, member))
        self._system.notify(watcher, 0, Terminated(path, member, "unreachable"))

    def close(self) -> None:
        """Fail what still waits."""
        for _, reply in tuple(self._asks.values()):
            if not reply.done():
                reply.set_exception(ActorDeadError("this member stops"))


def _error_of(body: bytes) -> ApiError:
    found = decode_error(body)
    cls = _ERRORS.get(found.name) or (ClientError if found.status < 500 else MemberError)
    return cls(found.text, status=found.status, remedy=found.remedy)
