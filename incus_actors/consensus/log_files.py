"""What the log's files are opened and read with: the lock of the directory, verified entries, and what goes wrong.

Owns the errors of the log. Used by log_store.py and by those who prepare its directory (bootstrap.py, recovery.py); must
never hand out an entry whose chained hash does not match.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from pathlib import Path

from incus_actors.consensus import log_format as fmt
from incus_actors.consensus.configuration import decode_configuration
from incus_actors.consensus.types import Entry, EntryKind, Index, SnapshotMark, chain_hash


class LogError(Exception):
    """log.db can't be used."""


class LogLockedError(LogError):
    """Another daemon has this directory."""


class LogDamagedError(LogError):
    """log.db is not what it must be; never start a voter on it."""


class AmnesiaError(LogDamagedError):
    """This member has forgotten something it promised: its id is burnt (CONSENSUS 3.5)."""


class LogFullError(LogError):
    """No space: rolled back cleanly, the same write may be tried again."""


class LogIOError(LogError):
    """A write or fsync failed: nothing that was not confirmed can be trusted. Fail-stop."""


def sync_directory(path: Path) -> None:
    """Make names created in or removed from a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(directory: Path) -> int:
    """Return a descriptor that holds the directory until it is closed. Raises LogLockedError."""
    descriptor = os.open(directory / fmt.LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(descriptor)
        raise LogLockedError(f"The database in {directory} is in use by another daemon") from exc
    return descriptor


def read_entries(connection: sqlite3.Connection, snapshot: SnapshotMark) -> tuple[Entry, ...]:
    """Read the log behind a snapshot, checking that nothing is missing, changed or out of place. Raises AmnesiaError."""
    entries: list[Entry] = []
    index, chain, term = snapshot.index, snapshot.chain, snapshot.term
    rows = connection.execute("SELECT idx, term, kind, ts, pid, body, chain FROM entries ORDER BY idx")
    configs: dict[Index, bytes] = dict(connection.execute("SELECT idx, body FROM configs").fetchall())
    for row in rows:
        try:
            entry = Entry(row[0], row[1], EntryKind(row[2]), *row[3:])
            expected = chain_hash(chain, entry.term, entry.kind, entry.timestamp_ms, entry.proposal_id, entry.body)
        except (ValueError, TypeError, AttributeError, OverflowError) as exc:
            raise AmnesiaError(f"log entry {row[0]} is damaged: {exc}") from exc
        if entry.index != index + 1:
            raise AmnesiaError(f"log entry {index + 1} is missing")
        if entry.chain != expected or entry.term < term:
            raise AmnesiaError(f"log entry {entry.index} is damaged: its chained hash does not match")
        if entry.kind is EntryKind.CONFIG:
            if configs.pop(entry.index, None) != entry.body:
                raise AmnesiaError(f"configuration {entry.index} is recorded differently in log.db")
            decode_configuration(entry.body)
        entries.append(entry)
        index, chain, term = entry.index, entry.chain, entry.term
    if any(found > snapshot.index for found in configs):
        raise AmnesiaError("log.db records configurations that are not in the log")
    return tuple(entries)
