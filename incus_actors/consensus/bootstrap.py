"""Makes the first log.db of a member: a standalone server, or a joiner that waits to be told (CONSENSUS 3.13).

Owns creation and replacement of a database directory; called by the daemon at first start and when a standalone
server joins a cluster. Must never touch a directory that has a log: a member's promises are in it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from incus_actors.consensus import log_format as fmt
from incus_actors.consensus.configuration import encode_configuration
from incus_actors.consensus.log_files import LogError, LogLockedError, lock, sync_directory
from incus_actors.consensus.types import (
    GENESIS_CHAIN,
    Configuration,
    Entry,
    EntryKind,
    HardState,
    Member,
    MemberId,
    Role,
    SnapshotMark,
    chain_hash,
)
from incus_actors.consensus.witness import Witness

_OURS = frozenset(
    {
        fmt.LOG_NAME,
        fmt.WITNESS_NAME,
        fmt.LOCK_NAME,
        fmt.SUSPECT_NAME,
        fmt.STATE_SUSPECT_NAME,
        fmt.REWRITTEN_NAME,
        fmt.AMNESIA_NAME,
        fmt.SUPERSEDED_NAME,
        fmt.BALLAST_NAME,
    }
)


class NotEmptyError(LogError):
    """There is a database already."""


def exists(directory: Path) -> bool:
    """Whether the directory holds a member's log (after finishing a replacement that was cut short)."""
    finish_replacement(directory)
    return (directory / fmt.LOG_NAME).exists()


def create_standalone(directory: Path, *, address: str, cluster_id: bytes | None = None) -> None:
    """Create the log of a one-voter cluster: member 1, epoch 1, its configuration at index 1 of term 1.

    `directory` is `$INCUS_DIR/database`. Raises NotEmptyError, OSError, sqlite3.Error.
    """
    configuration = Configuration((Member(1, address, Role.VOTER),))
    body = encode_configuration(configuration)
    stamp = time.time_ns() // 1_000_000
    chain = chain_hash(GENESIS_CHAIN, 1, EntryKind.CONFIG, stamp, b"", body)
    entry = Entry(1, 1, EntryKind.CONFIG, stamp, b"", body, chain)
    mark = SnapshotMark(0, 0, GENESIS_CHAIN, Configuration(()), 0)
    identity: dict[str, int | bytes] = {"cluster_id": cluster_id or secrets.token_bytes(16), "epoch": 1, "member_id": 1}
    _create(directory, identity, HardState(1, 0), mark, (entry,))


def create_joiner(
    directory: Path, *, cluster_id: bytes, epoch: int, member_id: MemberId, configuration: Configuration
) -> None:
    """Create an empty log that knows the cluster: `configuration` has the others as peers, and this member is no
    voter until the leader says so. Raises NotEmptyError, ValueError, OSError, sqlite3.Error."""
    if member_id in configuration.voters():
        raise ValueError(f"member {member_id} must not join as a voter: it has promised nothing yet")
    if len(cluster_id) != 16:
        raise ValueError("a cluster id has 16 bytes")
    mark = SnapshotMark(0, 0, GENESIS_CHAIN, configuration, 0)
    identity: dict[str, int | bytes] = {"cluster_id": cluster_id, "epoch": epoch, "member_id": member_id}
    _create(directory, identity, HardState(0, 0), mark, ())


def _create(
    directory: Path,
    identity: Mapping[str, int | bytes],
    hard: HardState,
    mark: SnapshotMark,
    entries: tuple[Entry, ...],
) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = lock(directory)
    try:
        _refuse_used(directory)
        witness = Witness(directory / fmt.WITNESS_NAME)  # first: a log without a witness counts as damaged
        witness.write(0, GENESIS_CHAIN, HardState(), 0, sync=True)
        witness.close()
        connection = fmt.open_connection(directory / fmt.LOG_NAME)
        try:
            connection.execute("BEGIN IMMEDIATE")
            fmt.create_tables(connection)
            fmt.write_meta(connection, {"format": fmt.FORMAT, "state_gen": 1, "commit": 0, **identity})
            fmt.write_meta(connection, fmt.mark_values(mark))
            fmt.write_hard(connection, hard)
            fmt.insert_entries(connection, entries)
            connection.execute("COMMIT")
        finally:
            connection.close()
        sync_directory(directory)
        sync_directory(directory.parent)
    finally:
        os.close(descriptor)


def _refuse_used(directory: Path) -> None:
    """Raise NotEmptyError if there is a log; sweep what a creation that was cut short has left."""
    if (directory / fmt.LOG_NAME).exists():
        connection = fmt.open_connection(directory / fmt.LOG_NAME)
        try:
            complete = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone()
        finally:
            connection.close()
        if complete:
            raise NotEmptyError(f"There is a database in {directory} already")
        for name in (fmt.LOG_NAME, fmt.LOG_NAME + "-wal", fmt.LOG_NAME + "-shm"):
            (directory / name).unlink(missing_ok=True)
    if any(directory.glob("global-*.db")):
        raise NotEmptyError(f"There is a state file in {directory}, but no log: this member has lost its log")


def replace_database(
    directory: Path, *, cluster_id: bytes, epoch: int, member_id: MemberId, configuration: Configuration
) -> Path:
    """Put a joiner's database in the place of this (stopped) one; return where the old one was moved.

    A crash at any point leaves the old database or the new one: the rename to `<directory>.new` decides, and
    `finish_replacement` completes it. Files that are not the log's or the state's are copied over. Raises
    LogLockedError while the database is in use, OSError, sqlite3.Error.
    """
    finish_replacement(directory)
    descriptor = lock(directory)
    try:
        building = directory.with_name(directory.name + ".tmp")
        shutil.rmtree(building, ignore_errors=True)
        create_joiner(building, cluster_id=cluster_id, epoch=epoch, member_id=member_id, configuration=configuration)
        for path in directory.iterdir():
            if path.is_file() and not _is_ours(path.name):
                shutil.copy2(path, building / path.name)
                with (building / path.name).open("rb") as copy:
                    os.fsync(copy.fileno())
        sync_directory(building)
        building.rename(directory.with_name(directory.name + ".new"))
        sync_directory(directory.parent)
    finally:
        os.close(descriptor)
    aside = finish_replacement(directory)
    if aside is None:
        raise LogLockedError(f"The new database beside {directory} has gone")
    return aside


def _is_ours(name: str) -> bool:
    base = name.removesuffix("-wal").removesuffix("-shm")
    return base in _OURS or base.startswith(("global-", "snap-"))


def finish_replacement(directory: Path) -> Path | None:
    """Complete a replacement whose new database is ready; return where the old one is, None if there was nothing
    to do. Called before every start."""
    ready = directory.with_name(directory.name + ".new")
    if not ready.exists():
        return None
    aside = directory.with_name(f"{directory.name}.old-{time.time_ns() // 1_000_000}")
    if directory.exists():
        directory.rename(aside)
    ready.rename(directory)
    sync_directory(directory.parent)
    return aside
