"""Configurations as bytes: the body of CONFIG entries, and what log.db keeps about a snapshot.

Owns the encoding and the validity rules; used by membership.py, the log store and the simulator. It must stay
readable for ever: an old log is decoded by new code, so fields may be added but never change their meaning.
"""

from __future__ import annotations

import json
from typing import Any

from incus_actors.consensus.types import Configuration, Member, Role


def encode_configuration(configuration: Configuration) -> bytes:
    """Return the canonical bytes of a configuration: equal configurations give equal bytes."""
    document = {
        "old": [_encode_member(member) for member in configuration.old],
        "new": None if configuration.new is None else [_encode_member(member) for member in configuration.new],
        "removed": list(configuration.removed),
    }
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


def decode_configuration(body: bytes) -> Configuration:
    """Return the configuration in `body`. Raises ValueError for anything that `encode_configuration` did not make."""
    try:
        document = json.loads(body)
        new = document["new"]
        configuration = Configuration(
            old=_decode_members(document["old"]),
            new=None if new is None else _decode_members(new),
            removed=tuple(int(member) for member in document.get("removed", ())),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"not a configuration: {error!r}") from error
    for half in (configuration.old, configuration.new):
        reason = "" if half is None else invalid_members(half)
        if reason:
            raise ValueError(f"not a configuration: {reason}")
    return configuration


def invalid_members(members: tuple[Member, ...]) -> str:
    """Return why `members` cannot be (half of) a configuration, or an empty string when they can."""
    ids = [member.id for member in members]
    if ids != sorted(set(ids)):
        return "members must be sorted by id and unique"
    if ids and ids[0] <= 0:
        return "member ids are positive"
    if not any(member.role is Role.VOTER for member in members):
        return "there must be at least one voter"
    return ""


def _encode_member(member: Member) -> list[Any]:
    return [member.id, member.address, member.role.value, member.domain]


def _decode_members(rows: list[list[Any]]) -> tuple[Member, ...]:
    return tuple(Member(int(row[0]), str(row[1]), Role(row[2]), str(row[3])) for row in rows)
