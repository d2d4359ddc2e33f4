"""Start-up of a member's disks: every check of CONSENSUS 3.5, and what may be mended (3.4).

Owns the order of the checks and the markers that earlier runs left; called by engine.py before anything runs. Must
never let a member serve under an id that may have forgotten a promise: that raises AmnesiaError, now and for ever.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from incus_actors.clock import is_recent
from incus_actors.consensus import log_format as fmt
from incus_actors.consensus.log_files import (
    AmnesiaError,
    LogDamagedError,
    LogError,
    LogFullError,
    LogLockedError,
    sync_directory,
)
from incus_actors.consensus.log_store import LogStore
from incus_actors.consensus.snapshot_files import remove_database, sweep
from incus_actors.consensus.types import DurableState
from incus_actors.state.apply import Applier

log = logging.getLogger(__name__)

STATE_SUSPECT_NAME = fmt.STATE_SUSPECT_NAME
REWRITTEN_NAME = fmt.REWRITTEN_NAME
STAY_DOWN_S = 600.0
BALLAST_BYTES = 16 << 20
BALLAST_NEEDS_KIB = 1 << 20
FULL_BYTES = 128 << 10  #: SQLite needs 32 KiB beside a database to open it, and says "I/O error" without


@dataclass(frozen=True, slots=True)
class Opened:
    """The disks of a member, verified and locked."""

    store: LogStore
    applier: Applier
    durable: DurableState
    state_path: Path


def open_member(directory: Path) -> Opened:
    """Open log and state. Raises LogLockedError, LogDamagedError, AmnesiaError, LogFullError, ApplyError,
    sqlite3.Error, OSError."""
    marker = directory / fmt.AMNESIA_NAME
    if marker.exists():
        raise AmnesiaError(marker.read_text().strip())
    try:
        return _open_with_ballast(directory)
    except AmnesiaError as exc:
        marker.write_text(f"{exc}\n")
        sync_directory(directory)
        raise


def _open_with_ballast(directory: Path) -> Opened:
    """Open; without space for the files that SQLite makes beside a database, give up the ballast and try again."""
    try:
        return _open(directory)
    except (LogError, sqlite3.Error, OSError) as exc:
        if isinstance(exc, (AmnesiaError, LogLockedError)) or not _is_full(directory):
            raise
        ballast = directory / fmt.BALLAST_NAME
        if not ballast.exists():
            raise LogFullError(f"The disk of {directory} is full: {exc}") from exc
        log.warning("the disk of %s is full: its ballast is given up", directory)
        ballast.unlink()
    return _open(directory)


def _is_full(directory: Path) -> bool:
    space = os.statvfs(directory)
    return space.f_bavail * space.f_frsize < FULL_BYTES


def _open(directory: Path) -> Opened:
    rewrite_if_suspect(directory)
    store = LogStore(directory)
    try:
        return _with_state(directory, store)
    except BaseException:
        store.close()
        raise


def _with_state(directory: Path, store: LogStore) -> Opened:
    path = directory / fmt.state_name(store.generation)
    _discard_if_suspect(directory, path, store)
    if store.snapshot.index > 0 and not path.exists():
        raise AmnesiaError(f"the state file {path.name} is missing, and the log begins after {store.snapshot.index}")
    sweep(directory, store.generation)
    applier = _open_state(directory, path, store)
    try:
        return Opened(store, applier, store.durable_state(applier.position.index), path)
    except BaseException:
        applier.close()
        raise


def _open_state(directory: Path, path: Path, store: LogStore) -> Applier:
    """Open the state file; one that can't be read is discarded as one that failed its check is, and begun anew."""
    try:
        return Applier(path)
    except (sqlite3.Error, UnicodeDecodeError) as exc:
        if not fmt.is_damage(exc, opening=True):
            raise
        mark_state_suspect(directory, f"{path.name} can't be opened: {exc}")
    _discard_if_suspect(directory, path, store)
    return Applier(path)


def _discard_if_suspect(directory: Path, path: Path, store: LogStore) -> None:
    """A damaged state is built again if the log still has everything; otherwise this member has lost data."""
    marker = directory / STATE_SUSPECT_NAME
    if not marker.exists():
        return
    if store.snapshot.index > 0:
        raise AmnesiaError(f"the state file {path.name} is damaged: {marker.read_text().strip()}")
    log.warning("the state file %s was damaged: it is built again from the log", path.name)
    remove_database(path)
    marker.unlink()


def rewrite_if_suspect(directory: Path) -> bool:
    """After a failed write: verify the log, write it to a new file and use that one; return whether it was done.

    Reading again what is there proves nothing: the page cache can hold bytes that the disk doesn't. Raises as
    LogStore does, and LogDamagedError if the disk failed twice within ten minutes.
    """
    marker, done = directory / fmt.SUSPECT_NAME, directory / REWRITTEN_NAME
    if not marker.exists():
        return False
    if done.exists() and is_recent(done.stat().st_mtime, STAY_DOWN_S):
        raise LogDamagedError(
            f"The disk of {directory} failed twice within ten minutes ({marker.read_text().strip()}). "
            f"Check the disk; remove {done} to try again now"
        )
    fresh = directory / (fmt.LOG_NAME + ".new")
    remove_database(fresh)
    store = LogStore(directory)
    try:
        store.copy_to(fresh)
    finally:
        store.close()
    wal = directory / (fmt.LOG_NAME + "-wal")
    if wal.exists() and wal.stat().st_size:
        raise LogDamagedError(f"{wal} could not be merged into log.db")
    fresh.rename(directory / fmt.LOG_NAME)
    done.touch()
    sync_directory(directory)
    marker.unlink()
    sync_directory(directory)
    log.warning("log.db was rewritten after an error of the disk")
    return True


def superseded(directory: Path) -> str:
    """Return why this member must not serve although its database is sound; nothing if it may."""
    marker = directory / fmt.SUPERSEDED_NAME
    return marker.read_text().strip() if marker.exists() else ""


def check_state(path: Path) -> str:
    """Return what is wrong with a state file in use, or nothing. Reads all of it: not on a loop."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        found = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.DatabaseError as exc:
        found = str(exc)
    finally:
        connection.close()
    return "" if found == "ok" else found


def mark_state_suspect(directory: Path, reason: str) -> None:
    """Leave word for the next start. Raises OSError."""
    with (directory / STATE_SUSPECT_NAME).open("w") as file:
        file.write(f"{reason}\n")
        file.flush()
        os.fsync(file.fileno())


def lay_ballast(directory: Path) -> None:
    """Set space aside that is given up when the disk is full, so that votes and configurations can still be written
    (CONSENSUS 3.4). Does nothing where space is short or can't be set aside."""
    path = directory / fmt.BALLAST_NAME
    space = os.statvfs(directory)
    if path.exists() or space.f_bavail * space.f_frsize // 1024 < BALLAST_NEEDS_KIB:
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, BALLAST_BYTES)
    except OSError as exc:
        log.info("no ballast in %s: %s", directory, exc)
        path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
