"""Ids of proposals: 16 bytes that begin with the time, like a UUID version 7.

Owns their making. The time lets every replica refuse a retry of something so old that its answer is forgotten
(CONSENSUS 3.11); nothing else may read meaning into an id.
"""

from __future__ import annotations

import secrets


def new_proposal_id(wall_ms: int) -> bytes:
    """Return a fresh id made at `wall_ms`."""
    rest = bytearray(secrets.token_bytes(10))
    rest[0] = 0x70 | (rest[0] & 0x0F)
    rest[2] = 0x80 | (rest[2] & 0x3F)
    return (wall_ms & 0xFFFFFFFFFFFF).to_bytes(6, "big") + bytes(rest)


def made_at_ms(proposal_id: bytes) -> int:
    """Return the time in an id, in milliseconds since 1970."""
    return int.from_bytes(proposal_id[:6], "big")
