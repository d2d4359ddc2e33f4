"""The control lane as the consensus driver sees it; transport/control_lane.py implements it over ZeroMQ.

Owns only the protocol. Lossy, reordering across peers, at most once: nothing here promises delivery.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from incus_actors.consensus.messages import Envelope
from incus_actors.consensus.types import Member, MemberId


class LaneListener(Protocol):
    """What the driver wants to be told, always on the consensus loop."""

    def on_message(self, envelope: Envelope) -> None:
        """A decoded message from an allowed key that belongs to `envelope.source`."""

    def on_link_up(self, peer: MemberId) -> None:
        """Both directions work."""

    def on_link_down(self, peer: MemberId, evidence: str) -> None:
        """Both directions broke; "E2" or "E1" as in CONSENSUS 3.7, grace already waited."""


class RaftLane(Protocol):
    """Sends envelopes to peers; never blocks; drops and counts when a queue is full."""

    async def start(self, listener: LaneListener) -> None:
        """Bind and begin to dial."""

    def set_peers(self, members: Iterable[Member], own_id: MemberId) -> None:
        """Dial these, drop every other; the allowlist becomes exactly their keys, at once."""

    def send(self, envelope: Envelope, *, bulk: bool = False) -> None:
        """Queue one message for `envelope.destination`."""

    def drain(self) -> None:
        """Deliver everything that waits in sockets and monitors, before the driver decides on a timeout."""

    def links(self) -> frozenset[MemberId]:
        """Peers whose links are up."""

    def refusing(self) -> frozenset[MemberId]:
        """Peers that have refused our key when we last dialled them: we are no member to them."""

    async def close(self) -> None:
        """Release sockets without lingering."""


LaneFactory = Callable[[], RaftLane]
