"""What a state file says of itself: where it is in the log, and what is switched on in it.

Owns the tables that no entry may touch (`_raft`, `_sessions`, `_features`) and how they are read; written by apply.py alone, in
the same SQLite transaction as the effects that they speak of. Must never create anything by looking.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Final

from incus_actors.model.features import supported_with, too_new_text

SUPPORTED_HERE: Final = supported_with(sqlite3.sqlite_version_info)  #: the highest feature level, on this SQLite
_EMPTY: Final = b"\0" * 8
TABLES: Final = """
CREATE TABLE IF NOT EXISTS _raft (
    id INTEGER PRIMARY KEY CHECK (id = 1), applied_index INTEGER NOT NULL, applied_term INTEGER NOT NULL,
    applied_chain BLOB NOT NULL, digest BLOB NOT NULL, timestamp_ms INTEGER NOT NULL, horizon_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS _sessions (
    proposal_id BLOB PRIMARY KEY, idx INTEGER NOT NULL, ts INTEGER NOT NULL, result BLOB NOT NULL
) STRICT, WITHOUT ROWID;
"""
#: Made by the first FEATURE entry and not before: until then an older release may open the file, and hashes the same.
FEATURE_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS _features (id INTEGER PRIMARY KEY CHECK (id = 1), level INTEGER NOT NULL) STRICT"
)


class ApplyError(Exception):
    """Applying can't go on: the state or the log is not what it must be. Stop the process."""


class UnknownEntryKindError(ApplyError):
    """An entry of a newer release: upgrade this member (CONSENSUS 3.13)."""


class FeatureTooNewError(ApplyError):
    """The cluster uses what this release does not know: upgrade this member (CONSENSUS 3.13)."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where the state is: the `_raft` row. `horizon_ms`: proposals made up to then are forgotten."""

    index: int = 0
    term: int = 0
    chain: bytes = _EMPTY
    digest: bytes = _EMPTY
    timestamp_ms: int = 0
    horizon_ms: int = 0


def read_position(connection: sqlite3.Connection) -> Position:
    """Return the position that a state file has, or the start if it has none."""
    row = connection.execute(
        "SELECT applied_index, applied_term, applied_chain, digest, timestamp_ms, horizon_ms FROM _raft"
    ).fetchone()
    return Position(*tuple(row)) if row else Position()


def read_level(connection: sqlite3.Connection) -> int:
    """Return the feature level that a state has switched on, 0 for none."""
    there = connection.execute("SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = '_features'")
    if not there.fetchone()[0]:
        return 0
    row = connection.execute("SELECT level FROM _features").fetchone()
    if row is None or not isinstance(row[0], int):
        raise sqlite3.DatabaseError("the feature level of the state can't be read")
    return row[0]


def check_level(level: int, supported: int = SUPPORTED_HERE) -> None:
    """Raise FeatureTooNewError if this release can't go on with a state of that level."""
    if level > supported:
        raise FeatureTooNewError(too_new_text(level, supported))
