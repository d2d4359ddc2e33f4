"""Ids of proposals: 16 bytes that begin with the time, like a UUID version 7.

Owns their making. The time lets every replica refuse a retry of something so old that its answer is forgotten
(CONSENSUS 3.11); nothing else may read meaning into an id.
"""

from __future__ import annotations

import secrets


class ProposalIds:
    """Makes ids that no other process makes: 44 random bits of this one, then a counter."""

    def __init__(self) -> None:
        bits = secrets.randbits(44)
        self._process = (0x7000 | bits >> 32).to_bytes(2, "big") + (0x80000000 | bits & 0x3FFFFFFF).to_bytes(4, "big")
        self._counter = 0

    def new(self, wall_ms: int) -> bytes:
        """Return a fresh id made at `wall_ms`."""
        self._counter = (self._counter + 1) & 0xFFFFFFFF
        return (wall_ms & 0xFFFFFFFFFFFF).to_bytes(6, "big") + self._process + self._counter.to_bytes(4, "big")


def made_at_ms(proposal_id: bytes) -> int:
    """Return the time in an id, in milliseconds since 1970."""
    return int.from_bytes(proposal_id[:6], "big")
