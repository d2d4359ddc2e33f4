"""The bulk lane: actor messages, and Raft messages too large for the control lane, on the main event loop.

Owns its own mesh (same keys and members as the control lane); TransportActor drives it. Must never delay a heartbeat,
which is why it is not the control lane, and never queue without bound.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from incus_actors.consensus.messages import Envelope
from incus_actors.consensus.types import Member, MemberId
from incus_actors.transport.codec import BULK_MAX, CodecError, encode
from incus_actors.transport.control_lane import KIND_RAFT, checked_envelope, targets_of
from incus_actors.transport.frames import ActorFrame, decode_frame, encode_frame
from incus_actors.transport.keys import CurveKeys
from incus_actors.transport.mesh import Mesh
from incus_actors.transport.options import LaneOptions

log = logging.getLogger(__name__)

KIND_ACTOR = 2
HANDED_OVER_MAX = 64  #: Raft messages on their way from the consensus thread; more are dropped (Raft repairs that)

BULK_OPTIONS = LaneOptions("bulk", BULK_MAX, silent_ms=20_000)

_REASONS = {"": "", "down": "remote_down", "full": "remote_full", "too_large": "too_large"}


class BulkListener(Protocol):
    """What the owner of the lane is told, on the main loop."""

    def on_actor_frame(self, member: MemberId, frame: ActorFrame) -> None:
        """A frame that this member sent."""

    def on_link_up(self, member: MemberId) -> None:
        """Both directions work; again without a down: the link was remade and something may have been lost."""

    def on_link_down(self, member: MemberId, evidence: str) -> None:
        """The member can't be reached any more."""


class BulkLane:
    """See the module. `deliver_raft` takes Raft envelopes that came in, on the main loop, and must not block: give it
    `ControlLane.receive_bulk`."""

    def __init__(
        self,
        keys: CurveKeys,
        bind_host: str | None,
        port: int = 0,
        *,
        deliver_raft: Callable[[Envelope], None] | None = None,
        options: LaneOptions = BULK_OPTIONS,
    ) -> None:
        self.deliver_raft = deliver_raft
        self._mesh = Mesh(keys, options, self)
        self._bind = (bind_host, port)
        self._limit = options.max_bytes
        self._listener: BulkListener | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handed_over = 0

    @property
    def bound_port(self) -> int:
        """The port it listens on; 0 before `start`."""
        return self._mesh.bound_port

    async def start(self, listener: BulkListener) -> None:
        """Bind and dial on the running loop. Raises OSError if the port is taken."""
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._mesh.start(*self._bind)

    def rebind(self, host: str, port: int = 0, *, keep: bool = False) -> int:
        """Listen elsewhere from now on. Returns the port. `keep`: see Mesh. Raises OSError."""
        return self._mesh.rebind(host, port, keep=keep)

    def release(self) -> None:
        """Listen no more where `rebind` has kept us listening."""
        self._mesh.release()

    def unbind(self) -> None:
        """Listen nowhere (a standalone server again)."""
        self._mesh.unbind()

    def set_peers(self, members: Iterable[Member], own_id: MemberId) -> None:
        """Have links to exactly these; the key of any other is cut off at once."""
        self._mesh.set_peers(targets_of(members, own_id, self._mesh.tally, lambda a: a.bulk_port))

    def links(self) -> frozenset[MemberId]:
        """Return the members whose links are up."""
        return self._mesh.links()

    def send_frame(self, member: MemberId, frame: ActorFrame) -> str:
        """Queue an actor frame. Returns "", "remote_down", "remote_full" or "too_large"."""
        return _REASONS[self._mesh.send(member, KIND_ACTOR, encode_frame(frame))]

    def send_raft(self, envelope: Envelope) -> None:
        """Queue a Raft envelope, dropped and counted if there is no room. Call it from the consensus thread."""
        loop = self._loop
        if loop is None or loop.is_closed() or self._handed_over >= HANDED_OVER_MAX:
            self._mesh.tally.add("raft_dropped")
            return
        self._handed_over += 1
        loop.call_soon_threadsafe(self._send_raft, envelope)

    def _send_raft(self, envelope: Envelope) -> None:
        self._handed_over -= 1
        if self._loop is not None:
            self._mesh.send(envelope.destination, KIND_RAFT, encode(envelope))

    async def close(self) -> None:
        """Release sockets without lingering."""
        self._listener = None
        self._loop = None
        await self._mesh.close()

    def counters(self) -> dict[str, int]:
        """Return what was sent, received, dropped and why."""
        return self._mesh.tally.snapshot()

    # -- MeshListener ----------------------------------------------------------------------------------------------

    def on_frame(self, member: int, kind: int, data: bytes) -> None:
        """See MeshListener."""
        if kind == KIND_RAFT:
            envelope = checked_envelope(member, data, self._limit, self._mesh.tally)
            if envelope is not None and self.deliver_raft is not None:
                self.deliver_raft(envelope)
        elif kind == KIND_ACTOR:
            try:
                frame = decode_frame(data)
            except CodecError as error:
                self._mesh.tally.note("malformed", f"member {member}: {error}")
                return
            if self._listener is not None:
                self._listener.on_actor_frame(member, frame)
        else:
            self._mesh.tally.note("unknown_kind", f"kind {kind} from member {member}")

    def on_up(self, member: int) -> None:
        """See MeshListener."""
        if self._listener is not None:
            self._listener.on_link_up(member)

    def on_down(self, member: int, evidence: str) -> None:
        """See MeshListener."""
        if self._listener is not None:
            self._listener.on_link_down(member, evidence)
