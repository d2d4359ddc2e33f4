"""A lane for a member that has no peers.

Owns NoLane, used by a standalone server; real links are transport/control_lane.py. Must never hide that a message
had nowhere to go: it is counted.
"""

from __future__ import annotations

from collections.abc import Iterable

from incus_actors.consensus.lane import LaneListener
from incus_actors.consensus.messages import Envelope
from incus_actors.consensus.types import Member, MemberId


class NoLane:
    """Reaches nobody and listens nowhere."""

    def __init__(self) -> None:
        self.dropped = 0

    async def start(self, listener: LaneListener) -> None:
        """Nothing to bind: `listener` will never hear anything."""

    def set_peers(self, members: Iterable[Member], own_id: MemberId) -> None:
        """Nothing to dial."""

    def send(self, envelope: Envelope, *, bulk: bool = False) -> None:
        """Drop and count."""
        self.dropped += 1

    def drain(self) -> None:
        """Nothing waits."""

    def links(self) -> frozenset[MemberId]:
        """No peer."""
        return frozenset()

    def refusing(self) -> frozenset[MemberId]:
        """No peer."""
        return frozenset()

    async def close(self) -> None:
        """Nothing to release."""
