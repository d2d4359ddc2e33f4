"""The control lane: Raft messages between members, on the event loop of the consensus thread.

Implements `consensus.lane.RaftLane` over `mesh.py`; the consensus runtime makes it through a LaneFactory. What is too
large for it goes out through a hand-over to the bulk lane. Must never let a member speak in another's name.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import TypeVar

from incus_actors.consensus.lane import LaneListener
from incus_actors.consensus.messages import Envelope
from incus_actors.consensus.types import Member, MemberId
from incus_actors.transport.address import AddressError, PeerAddress, parse_address
from incus_actors.transport.codec import CONTROL_MAX, CodecError, VersionError, decode, encode
from incus_actors.transport.keys import CurveKeys
from incus_actors.transport.mesh import REMOVED, Mesh, Target
from incus_actors.transport.options import LaneOptions
from incus_actors.transport.tally import Tally

T = TypeVar("T")

log = logging.getLogger(__name__)

KIND_RAFT = 1

CONTROL_OPTIONS = LaneOptions("control", CONTROL_MAX)


class ControlLane:
    """Sends and receives Raft envelopes. Everything but `counters` and `receive_bulk` belongs to the consensus loop.

    `bind_host` None: listen nowhere until `rebind` (a standalone server). `bulk`: called with envelopes that were sent with bulk=True (snapshot chunks), on the consensus loop; it must hand
    them to the bulk lane without waiting. Without it they go over this lane.
    """

    def __init__(
        self,
        keys: CurveKeys,
        bind_host: str | None,
        port: int = 0,
        *,
        bulk: Callable[[Envelope], None] | None = None,
        options: LaneOptions = CONTROL_OPTIONS,
    ) -> None:
        self.bulk = bulk
        self._mesh = Mesh(keys, options, self)
        self._bind = (bind_host, port)
        self._listener: LaneListener | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def bound_port(self) -> int:
        """The port it listens on; 0 before `start`."""
        return self._mesh.bound_port

    async def start(self, listener: LaneListener) -> None:
        """Bind and dial. Raises OSError if the port is taken."""
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._mesh.start(*self._bind)

    def rebind(self, host: str, port: int = 0, *, keep: bool = False) -> int:
        """Listen elsewhere from now on Returns the port. `keep`: see Mesh. Raises OSError."""
        return self._mesh.rebind(host, port, keep=keep)

    def release(self) -> None:
        """Listen no more where `rebind` has kept us listening."""
        self._mesh.release()

    def unbind(self) -> None:
        """Listen nowhere (a standalone server again)."""
        self._mesh.unbind()

    def set_peers(self, members: Iterable[Member], own_id: MemberId) -> None:
        """See RaftLane. A member whose address is not understood is left out, counted and logged."""
        self._mesh.set_peers(targets_of(members, own_id, self._mesh.tally, lambda a: a.control_port))

    def send(self, envelope: Envelope, *, bulk: bool = False) -> None:
        """See RaftLane."""
        if bulk and self.bulk is not None:
            self.bulk(envelope)
        else:
            self._mesh.send(envelope.destination, KIND_RAFT, encode(envelope))

    def drain(self) -> None:
        """See RaftLane."""
        self._mesh.drain()

    def links(self) -> frozenset[MemberId]:
        """See RaftLane."""
        return self._mesh.links()

    def refusing(self) -> frozenset[MemberId]:
        """See RaftLane."""
        return self._mesh.refusing()

    async def close(self) -> None:
        """See RaftLane."""
        self._listener = None
        self._loop = None
        await self._mesh.close()

    async def on_own_loop(self, change: Callable[[], T]) -> T:
        """Run `change` on the consensus loop, from any other loop; returns what it returns, raises what it raises."""
        loop = self._loop
        if loop is None:
            raise RuntimeError("the lane is not started")

        async def call() -> T:
            return change()

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call(), loop))

    def counters(self) -> dict[str, int]:
        """Return what was sent, received, dropped and why. Any thread."""
        return self._mesh.tally.snapshot()

    def receive_bulk(self, envelope: Envelope) -> None:
        """Take in an envelope that came by the bulk lane (its source is proven). Any thread."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._hand_over, envelope)

    def _hand_over(self, envelope: Envelope) -> None:
        if self._listener is not None:
            self._listener.on_message(envelope)

    # -- MeshListener ----------------------------------------------------------------------------------------------

    def on_frame(self, member: int, kind: int, data: bytes) -> None:
        """See MeshListener."""
        if kind != KIND_RAFT:
            self._mesh.tally.note("unknown_kind", f"kind {kind} from member {member}")
            return
        envelope = checked_envelope(member, data, CONTROL_MAX, self._mesh.tally)
        if envelope is not None and self._listener is not None:
            self._listener.on_message(envelope)

    def on_up(self, member: int) -> None:
        """See MeshListener."""
        if self._listener is not None:
            self._listener.on_link_up(member)

    def on_down(self, member: int, evidence: str) -> None:
        """See MeshListener."""
        if self._listener is not None and evidence != REMOVED:  # our own doing is no evidence of anything
            self._listener.on_link_down(member, evidence)


def targets_of(
    members: Iterable[Member], own_id: MemberId, tally: Tally, port: Callable[[PeerAddress], int]
) -> dict[int, Target]:
    """Return where to dial everyone but this member."""
    targets: dict[int, Target] = {}
    for member in members:
        if member.id == own_id:
            continue
        try:
            address = parse_address(member.address)
        except AddressError as error:
            tally.note("bad_address", f"member {member.id}: {error}")
            continue
        targets[member.id] = (address.host, port(address), address.public_key)
    return targets


def checked_envelope(member: int, data: bytes, limit: int, tally: Tally) -> Envelope | None:
    """Return the envelope of a frame, or None (counted) if it is malformed or speaks in another member's name."""
    try:
        envelope = decode(data, limit=limit)
    except VersionError as error:
        tally.note("unknown_version", f"member {member}: {error}")
        return None
    except CodecError as error:
        tally.note("malformed", f"member {member}: {error}")
        return None
    if envelope.source != member:
        tally.note("wrong_source", f"member {member} claims to be member {envelope.source}")
        return None
    return envelope
