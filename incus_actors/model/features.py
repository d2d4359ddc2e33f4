"""Feature levels: what a release can do that an older one could not apply, and since when a cluster may use it.

Owns the list of levels and the body of FEATURE entries, which switch one on for good (CONSENSUS 3.13); used by the core
(may this be proposed?), by state/apply.py (is it known here?) and by whoever makes something that an older release
would not understand. Must never change what a level means: logs and state files outlive releases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SCHEMA_BEFORE_FEATURES: Final = 3  #: what a database has in which no level was ever switched on
_BODY_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class Feature:
    """One level; it includes all below. `schema`: which version of the database may be migrated to once it is on.
    `sqlite`: the least version that can apply what it allows (CONSENSUS 3.11, 6)."""

    level: int
    name: str
    schema: int
    sqlite: tuple[int, int, int]


#: In order, without gaps. A new one goes to the end; what it gates asks for the level of the state, never for ours.
FEATURES: Final = (
    Feature(1, "migrations wait for every member", schema=3, sqlite=(3, 37, 0)),
    Feature(2, "entries name the schema that they need", schema=3, sqlite=(3, 37, 0)),
)
ENTRIES_NAME_THEIR_SCHEMA: Final = 2
SUPPORTED: Final = FEATURES[-1].level  #: by this release, on a SQLite that is new enough


class FeatureBodyError(ValueError):
    """The body of a FEATURE entry can't be read."""


def supported_with(sqlite_version: tuple[int, ...]) -> int:
    """Return the highest level that this release can apply with that SQLite; 0 if none."""
    level = 0
    for feature in FEATURES:
        if sqlite_version < feature.sqlite:
            break
        level = feature.level
    return level


def schema_at(level: int) -> int:
    """Return the version up to which the schema may be migrated at a level. Raises ValueError for an unknown one."""
    if not 0 <= level <= SUPPORTED:
        raise ValueError(f"feature level {level} is not known here, {SUPPORTED} is the highest")
    return SCHEMA_BEFORE_FEATURES if level == 0 else FEATURES[level - 1].schema


def too_new_text(level: int, supported: int) -> str:
    """Return what to do about a database that uses more than this release knows."""
    return (
        f"The cluster uses feature level {level}, this release knows {supported}: "
        "upgrade incus_actors on this server to the release of the other members"
    )


def encode_level(level: int) -> bytes:
    """Return the body of a FEATURE entry."""
    return level.to_bytes(_BODY_BYTES, "big")


def decode_level(body: bytes) -> int:
    """Return the level of a FEATURE entry, at least 1. Raises FeatureBodyError."""
    level = int.from_bytes(body, "big")
    if len(body) != _BODY_BYTES or level < 1:
        raise FeatureBodyError("a FEATURE entry is one level of four bytes, from 1")
    return level
