"""Events of every member reach the websockets of every member, none lost and none twice (CONTRACT 3.3, 16.1).

Owns the numbered ring of this member's events, the place reached in every other member's, and the operations that
are known to run elsewhere: when their member dies, their watchers are told. Members talk through EventRelayActor. It
must never hold up who publishes, nor believe that an operation elsewhere goes on for ever.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from incus_actors.actors.actor import Actor
from incus_actors.actors.messages import Terminated, remote_message
from incus_actors.actors.ref import AskError
from incus_actors.errors import ApiError
from incus_actors.gateway.events import Event, EventHub, timestamp
from incus_actors.gateway.operations import EVERYTHING, FAILURE, SUCCESS, Operations, Scope

if TYPE_CHECKING:
    from incus_actors.actors.system import ActorSystem

_log = logging.getLogger(__name__)

RING_EVENTS = 2048
RING_BYTES = 4 << 20
BATCH_BYTES = 128 << 10
FLUSH_S = 0.002  #: events made together travel together
MARK_S = 1.0  #: how often members say how far they are: the last event of a burst may be the lost one
ASK_S = 2.0
GRACE_S = 5.0  #: how long a member may be silent before its operations are given up


@remote_message("gateway.event")
class RelayedEvent(msgspec.Struct, frozen=True, array_like=True):
    """One event as it travels; see gateway.events.Event."""

    kind: str
    project: str | None
    encoded: bytes
    time_ns: int
    operation_id: str
    final: bool


@remote_message("gateway.events")
class EventBatch(msgspec.Struct, frozen=True, array_like=True):
    """Events `first`, `first` + 1, ... of the process that drew `epoch`. Also the answer to EventReplay."""

    epoch: int
    first: int
    events: tuple[RelayedEvent, ...]


@remote_message("gateway.event-mark")
class EventMark(msgspec.Struct, frozen=True, array_like=True):
    """I have published up to `last`."""

    epoch: int
    last: int


@remote_message("gateway.event-replay")
class EventReplay(msgspec.Struct, frozen=True, array_like=True):
    """Give me the events from `first` on that are not older than `since_ns`. Answered by one EventBatch."""

    first: int
    since_ns: int


@remote_message("gateway.operations")
class OperationsQuery(msgspec.Struct, frozen=True, array_like=True):
    """Which operations do you have? Answered by the JSON of a list. See gateway.operations.Scope."""

    projects: tuple[str, ...] | None = None
    strict: bool = False


@dataclass(frozen=True, slots=True)
class _Tick:
    """Time to say how far we are."""


@dataclass(slots=True)
class _Origin:
    """How far we are with one other member."""

    epoch: int = 0  #: 0: never heard of
    next: int = 1
    last_known: int = 0
    first_contact: bool = True
    catching_up: bool = False
    silent_since: float | None = None
    watched: bool = False
    running: dict[str, bytes] = field(default_factory=dict)  #: operation id → its last event


class EventRelay:
    """The state of the relay; one per daemon, it survives a restart of its actor.

    `members()` gives id → name of every other member, empty while standalone.
    """

    def __init__(
        self,
        hub: EventHub,
        operations: Operations,
        *,
        system: ActorSystem,
        members: Callable[[], dict[int, str]],
        path: str = "events",
    ) -> None:
        self._hub = hub
        self._operations = operations
        self._system = system
        self.members = members
        self._path = path
        self.epoch = secrets.randbits(62) | 1
        self.last = 0
        self._ring: deque[RelayedEvent] = deque()
        self._ring_bytes = 0
        self._unsent: list[RelayedEvent] = []
        self._origins: dict[int, _Origin] = {}
        hub.tap(self._published)

    # -- our events -------------------------------------------------------------------------------------------------

    def _published(self, event: Event) -> None:
        relayed = RelayedEvent(event.kind, event.project, event.encoded, event.time_ns, event.operation_id, event.final)
        self.last += 1
        self._ring.append(relayed)
        self._ring_bytes += len(relayed.encoded)
        while len(self._ring) > RING_EVENTS or (self._ring_bytes > RING_BYTES and len(self._ring) > 1):
            self._ring_bytes -= len(self._ring.popleft().encoded)
        if not self._unsent:
            asyncio.get_running_loop().call_later(FLUSH_S, self.flush)
        self._unsent.append(relayed)

    def flush(self) -> None:
        """Send what waits."""
        first = self.last - len(self._unsent) + 1
        members = self.members()
        while self._unsent:
            part = _part(self._unsent)
            del self._unsent[: len(part)]
            batch = EventBatch(self.epoch, first, tuple(part))
            first += len(part)
            for member in members:
                self._system.ref(self._path, member).tell(batch)

    def replay(self, query: EventReplay) -> EventBatch:
        """Return what is left in the ring of that; no events means that there are no more."""
        oldest = self.last - len(self._ring) + 1
        first = max(query.first, oldest)
        wanted = list(self._ring)[first - oldest :]
        while wanted and wanted[0].time_ns < query.since_ns:
            del wanted[0]
            first += 1
        return EventBatch(self.epoch, first, tuple(_part(wanted)))

    def local_operations(self, query: OperationsQuery) -> bytes:
        """Answer OperationsQuery."""
        projects = None if query.projects is None else frozenset(query.projects)
        return msgspec.json.encode(self._operations.local(Scope(projects, query.strict)))

    # -- other members' events ------------------------------------------------------------------------------------

    def origin(self, member: int) -> _Origin:
        """Return what we know of `member`."""
        return self._origins.setdefault(member, _Origin())

    def accept(self, member: int, batch: EventBatch) -> bool:
        """Deliver what is new in `batch`; return whether something before or behind it is missing."""
        origin = self.origin(member)
        origin.silent_since = None
        if self._new_epoch(member, origin, batch.epoch):
            return True
        end = batch.first + len(batch.events)
        origin.last_known = max(origin.last_known, end - 1)
        if batch.first <= origin.next:
            for event in batch.events[origin.next - batch.first :]:
                origin.next += 1
                self._deliver(origin, event)
        return origin.next <= origin.last_known

    def marked(self, member: int, mark: EventMark) -> bool:
        """Note how far `member` is; return whether we miss something."""
        origin = self.origin(member)
        origin.silent_since = None
        if self._new_epoch(member, origin, mark.epoch):
            return True
        origin.last_known = max(origin.last_known, mark.last)
        return origin.next <= origin.last_known

    def _new_epoch(self, member: int, origin: _Origin, epoch: int) -> bool:
        if origin.epoch == epoch:
            return False
        if origin.epoch:
            self.give_up(member, "was restarted")
        origin.epoch, origin.next, origin.last_known = epoch, 1, 0
        return True

    def _deliver(self, origin: _Origin, event: RelayedEvent) -> None:
        if event.operation_id:
            if event.final:
                origin.running.pop(event.operation_id, None)
            else:
                origin.running[event.operation_id] = event.encoded
        self._hub.deliver(
            Event(event.kind, event.project, event.encoded, event.time_ns, event.operation_id, event.final)
        )

    async def catch_up(self, member: int) -> None:
        """Fetch what we miss of `member`, if that isn't under way already."""
        origin = self.origin(member)
        if origin.catching_up:
            return
        origin.catching_up = True
        try:
            while True:
                # only at first: later a member whose clock is behind ours must not lose anything
                query = EventReplay(origin.next, self._hub.started_ns if origin.first_contact else 0)
                batch = await self._system.ref(self._path, member).ask(query, deadline_s=ASK_S)
                if not isinstance(batch, EventBatch):
                    raise TypeError(f"member {member} answered a replay with {type(batch).__name__}")
                if not self._new_epoch(member, origin, batch.epoch) and batch.first > origin.next:
                    await self._skip(member, origin, batch.first)
                self.accept(member, batch)
                if not batch.events:
                    origin.first_contact = False
                    origin.next = max(origin.next, origin.last_known + 1)  # older than our start: nobody missed them
                    return
        except AskError as error:
            _log.info("events of member %s: %s", member, error)
        finally:
            origin.catching_up = False

    async def _skip(self, member: int, origin: _Origin, first: int) -> None:
        """Events before `first` are gone (or older than we are): see from the list which operations have ended."""
        origin.next = first
        if not origin.running:
            return
        found = await self._ask_operations(member, EVERYTHING)
        if found is None:
            return
        by_id = {o["id"]: o for o in found}
        for operation_id, encoded in list(origin.running.items()):
            current = by_id.get(operation_id)
            if current is None:
                self._end(origin, operation_id, encoded, "Its result was lost on the way: look for yourself")
            elif current["status_code"] >= SUCCESS:
                self._end(origin, operation_id, encoded, "", current)

    # -- members that are gone -----------------------------------------------------------------------------------

    def silent(self, member: int) -> None:
        """Called when `member` can't be reached: its operations are given up after a while."""
        origin = self.origin(member)
        origin.watched = False
        if origin.silent_since is None:
            origin.silent_since = time.monotonic()

    def overdue(self) -> None:
        """Give up operations of members that have been silent for too long, or are members no more."""
        known = self.members()
        now = time.monotonic()
        for member, origin in list(self._origins.items()):
            if member not in known:
                self.give_up(member, "is no member any more")
                del self._origins[member]
            elif origin.silent_since is not None and now - origin.silent_since > GRACE_S:
                self.give_up(member, "can't be reached")

    def give_up(self, member: int, why: str) -> None:
        """Tell the watchers here that the operations of `member` failed."""
        origin = self.origin(member)
        name = self.members().get(member, str(member))
        for operation_id, encoded in list(origin.running.items()):
            self._end(origin, operation_id, encoded, f'Member "{name}" {why}: the operation may have been interrupted')

    def _end(
        self, origin: _Origin, operation_id: str, encoded: bytes, err: str, metadata: dict[str, Any] | None = None
    ) -> None:
        origin.running.pop(operation_id, None)
        now_ns = time.time_ns()
        body = msgspec.json.decode(encoded)
        if metadata is None:
            changes = {"status": "Failure", "status_code": FAILURE, "err": err, "may_cancel": False}
            metadata = {**body["metadata"], **changes, "updated_at": timestamp(now_ns)}
        body["metadata"], body["timestamp"] = metadata, timestamp(now_ns)
        self._hub.deliver(
            Event("operation", body.get("project"), msgspec.json.encode(body), now_ns, operation_id, final=True)
        )

    # -- operation lists -------------------------------------------------------------------------------------------

    async def operations_elsewhere(self, scope: Scope) -> list[dict[str, Any]]:
        """Return the operations of all members that answer within a second (`Operations.elsewhere`)."""
        answers = await asyncio.gather(*(self._ask_operations(member, scope) for member in self.members()))
        return [operation for answer in answers if answer is not None for operation in answer]

    async def _ask_operations(self, member: int, scope: Scope) -> list[dict[str, Any]] | None:
        query = OperationsQuery(None if scope.projects is None else tuple(sorted(scope.projects)), scope.strict)
        try:
            raw = await self._system.ref(self._path, member).ask(query, deadline_s=1.0)
            return msgspec.json.decode(raw, type=list[dict[str, Any]])
        except (ApiError, msgspec.DecodeError, TypeError) as error:
            _log.info("operations of member %s: %s", member, error)
            return None


def _part(events: list[RelayedEvent]) -> list[RelayedEvent]:
    """Return the beginning of `events` that fits into one message (at least one)."""
    size = 0
    for count, event in enumerate(events):
        size += len(event.encoded) + 256
        if count and size > BATCH_BYTES:
            return events[:count]
    return list(events)


class EventRelayActor(Actor):
    """The relay's mailbox on this member, at the same path everywhere."""

    mailbox_limit: ClassVar[int] = 4096

    def __init__(self, relay: EventRelay) -> None:
        self._relay = relay

    async def started(self) -> None:
        """Begin to mark, and to watch the others."""
        for member in self._relay.members():
            self._relay.origin(member).watched = False
        self.context.tell_every(MARK_S, _Tick())

    async def stopped(self, reason: str) -> None:
        """The last events, ends of operations above all, must still leave."""
        self._relay.flush()

    async def receive(self, message: object) -> object:
        """Handle a batch, a mark, a question, the end of a peer, or a tick."""
        member = self.context.sender_member
        match message:
            case EventBatch():
                self._follow(member, self._relay.accept(member, message))
            case EventMark():
                self._follow(member, self._relay.marked(member, message))
            case EventReplay():
                return self._relay.replay(message)
            case OperationsQuery():
                return self._relay.local_operations(message)
            case Terminated():
                self._relay.silent(message.member)
            case _Tick():
                self._tick()
            case _:
                return self.unhandled(message)
        return None

    def _follow(self, member: int, behind: bool) -> None:
        if behind and not self._relay.origin(member).catching_up:
            self.context.run(self._relay.catch_up(member), name=f"events of member {member}")

    def _tick(self) -> None:
        self._relay.overdue()
        mark = EventMark(self._relay.epoch, self._relay.last)
        for member in self._relay.members():
            ref = self.context.system.ref(self.context.path, member)
            origin = self._relay.origin(member)
            if not origin.watched and origin.silent_since is None:
                origin.watched = True
                self.context.watch(ref)
            ref.tell(mark)
