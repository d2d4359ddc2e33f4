"""The tables of log.db and how consensus' nouns look in them.

Owns the schema of CONSENSUS 3.3 and the encoding of single rows; used by log_store.py and bootstrap.py. Must never
decide anything: whether what it read can be trusted is the store's question.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path

from incus_actors.consensus.configuration import decode_configuration, encode_configuration
from incus_actors.consensus.types import Configuration, Entry, EntryKind, HardState, Index, Member, Role, SnapshotMark

FORMAT = 1
LOG_NAME = "log.db"
WITNESS_NAME = "tail.wit"
LOCK_NAME = "log.lock"
SUSPECT_NAME = "log.suspect"  #: written at an I/O error: rewrite the log before trusting it
STATE_SUSPECT_NAME = "state.suspect"  #: the state file failed its check: build it again from the log
REWRITTEN_NAME = "log.rewritten"  #: when the log was last rewritten after an I/O error
AMNESIA_NAME = "amnesia"  #: this member id may never vote or acknowledge again
SUPERSEDED_NAME = "superseded"  #: the cluster was recovered without this member: serve nothing, say so
BALLAST_NAME = "ballast"  #: given up when the disk is full, so that votes can still be written

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID;
CREATE TABLE hard (id INTEGER PRIMARY KEY CHECK (id = 1), term INTEGER, vote INTEGER, crc INTEGER);
CREATE TABLE entries (
    idx INTEGER PRIMARY KEY, term INTEGER, kind INTEGER, ts INTEGER, pid BLOB, body BLOB, chain BLOB
);
CREATE TABLE configs (idx INTEGER PRIMARY KEY, term INTEGER, body BLOB);
"""

_UNSEALED = frozenset({"commit", "seal"})


def state_name(generation: int) -> str:
    """Return the file name of a generation of the state."""
    return f"global-{generation}.db"


def open_connection(path: Path) -> sqlite3.Connection:
    """Open log.db for its one writer. Raises sqlite3.Error."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=64, timeout=0.0)
    connection.execute("PRAGMA page_size=4096")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute(f"PRAGMA journal_size_limit={32 << 20}")
    return connection


def is_damage(error: Exception, *, opening: bool = False) -> bool:
    """Whether SQLite says that a file is not the database it was: no trouble of the disk that may pass.

    `opening`: only our own fixed statements were run, so that one which is wrong (a column has gone) and text that is
    none (no code) say the same.
    """
    if isinstance(error, UnicodeDecodeError):
        return opening  # SQLite has quoted the file in its message
    if not isinstance(error, sqlite3.Error):
        return False
    code = getattr(error, "sqlite_errorcode", None)
    if code is None or code & 0xFF == sqlite3.SQLITE_ERROR:
        return opening
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def hard_crc(hard: HardState) -> int:
    """Return the checksum that makes a damaged vote visible."""
    return zlib.crc32(f"{hard.term}:{hard.vote}".encode())


def write_hard(connection: sqlite3.Connection, hard: HardState) -> None:
    """Store term and vote."""
    connection.execute("INSERT OR REPLACE INTO hard VALUES (1, ?, ?, ?)", (hard.term, hard.vote, hard_crc(hard)))


def write_meta(connection: sqlite3.Connection, values: Mapping[str, int | bytes]) -> None:
    """Store some values of `meta`, and seal them; inside the caller's transaction."""
    connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(values.items()))
    seal_meta(connection)


def write_commit(connection: sqlite3.Connection, commit: Index) -> None:
    """Store the commit index. It goes along with every write and promises nothing, so the seal leaves it out."""
    connection.execute("INSERT OR REPLACE INTO meta VALUES ('commit', ?)", (commit,))


def meta_seal(meta: Mapping[str, int | bytes]) -> bytes:
    """Return the checksum that makes a damaged identity, epoch or mark visible."""
    covered = sorted((key, value) for key, value in meta.items() if key not in _UNSEALED)
    return blake2b(repr(covered).encode(), digest_size=8).digest()


def seal_meta(connection: sqlite3.Connection) -> None:
    """Store the checksum of what `meta` has now."""
    connection.execute("INSERT OR REPLACE INTO meta VALUES ('seal', ?)", (meta_seal(read_meta(connection)),))


def read_meta(connection: sqlite3.Connection) -> dict[str, int | bytes]:
    """Return all of `meta`."""
    return dict(connection.execute("SELECT key, value FROM meta").fetchall())


def mark_values(mark: SnapshotMark) -> dict[str, int | bytes]:
    """Return a snapshot mark as values of `meta`."""
    empty = not mark.configuration.old
    return {
        "snap_idx": mark.index,
        "snap_term": mark.term,
        "snap_chain": mark.chain,
        "snap_config": b"" if empty else encode_configuration(mark.configuration),
        "snap_config_idx": mark.configuration_index,
    }


def mark_from(meta: Mapping[str, int | bytes]) -> SnapshotMark:
    """Return the snapshot mark in `meta`. Raises KeyError, TypeError or ValueError if it isn't there."""
    body = bytes_of(meta["snap_config"])
    return SnapshotMark(
        int_of(meta["snap_idx"]),
        int_of(meta["snap_term"]),
        bytes_of(meta["snap_chain"]),
        decode_configuration(body) if body else Configuration(()),
        int_of(meta["snap_config_idx"]),
    )


def former_value(members: Iterable[Member]) -> bytes:
    """Return members of an earlier epoch as a value of `meta`."""
    return json.dumps([[member.id, member.address] for member in members]).encode()


def former_from(meta: Mapping[str, int | bytes]) -> tuple[Member, ...]:
    """Return the members of an earlier epoch in `meta`. Raises TypeError or ValueError if they can't be read."""
    rows = json.loads(bytes_of(meta.get("former", b"[]")))
    return tuple(Member(int(row[0]), str(row[1]), Role.SPARE) for row in rows)


def int_of(value: int | bytes) -> int:
    """Return a number of `meta`. Raises TypeError for anything else."""
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is not a number")
    return value


def bytes_of(value: int | bytes) -> bytes:
    """Return bytes of `meta`. Raises TypeError for anything else."""
    if not isinstance(value, bytes):
        raise TypeError(f"{value!r} is not bytes")
    return value


def insert_entries(connection: sqlite3.Connection, entries: Iterable[Entry]) -> None:
    """Append entries; configurations go to their own table too."""
    rows = [(e.index, e.term, int(e.kind), e.timestamp_ms, e.proposal_id, e.body, e.chain) for e in entries]
    connection.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    for index, term, kind, _, _, body, _ in rows:
        if kind == EntryKind.CONFIG:
            connection.execute("INSERT OR REPLACE INTO configs VALUES (?, ?, ?)", (index, term, body))


def create_tables(connection: sqlite3.Connection) -> None:
    """Make the tables, inside the caller's transaction."""
    for statement in _TABLES.split(";"):
        if statement.strip():
            connection.execute(statement)
