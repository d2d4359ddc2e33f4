"""Looking at a member's database while its daemon is stopped, and making a cluster work again (CONSENSUS 3.13).

Owns what the recovery commands do to `$INCUS_DIR/database`; cli/admin_cluster.py asks the questions. Whatever it
changes it has copied first, it begins a new epoch, so that members of the old one are refused and can't diverge, and
it must never delete anything that the database holds.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from incus_actors.consensus import log_format as fmt
from incus_actors.consensus.bootstrap import finish_replacement
from incus_actors.consensus.configuration import decode_configuration, encode_configuration, invalid_members
from incus_actors.consensus.log_files import LogDamagedError, LogError, lock, sync_directory
from incus_actors.consensus.log_store import LogStore
from incus_actors.consensus.types import (
    NOBODY,
    Configuration,
    Entry,
    EntryKind,
    HardState,
    Index,
    Member,
    MemberId,
    Role,
    SnapshotMark,
    Term,
    chain_hash,
)
from incus_actors.consensus.witness import Testimony, read_testimony
from incus_actors.model.transaction import Transaction
from incus_actors.state.codec import encode_transaction
from incus_actors.state.position import Position, read_position

TERM_JUMP = 1000
EPOCH_TERMS = 1 << 20  #: real terms of an edited epoch begin at epoch * this, above every forced entry's


class RecoveryError(LogError):
    """It can't be done; the text says why, and nothing was changed."""


@dataclass(frozen=True, slots=True)
class Overview:
    """What a database says of itself."""

    member_id: MemberId
    cluster_id: bytes
    epoch: int
    term: Term
    last_index: Index
    last_term: Term
    commit: Index  #: at least so much was committed
    configuration: Configuration
    configuration_index: Index
    state_path: Path
    damage: str = ""  #: why it must not be trusted: it has forgotten what it promised


def overview(directory: Path) -> Overview:
    """Return what is in `directory` without changing it; a daemon may be running on it.

    Raises RecoveryError if there is no database or it can't be read.
    """
    path = directory / fmt.LOG_NAME
    if not path.exists():
        raise RecoveryError(f"There is no database in {directory}")
    try:
        seen = read_testimony(directory / fmt.WITNESS_NAME)  # before the log, which may go on meanwhile
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5.0)
        try:
            found = _overview(directory, connection)
        finally:
            connection.close()
        return replace(found, damage=_damage(directory, found, seen))
    except (OSError, sqlite3.Error, KeyError, TypeError, ValueError) as exc:
        hopeless = isinstance(exc, sqlite3.Error) and fmt.is_damage(exc, opening=True)
        raise RecoveryError(f"{path} can't be read: {exc}{_nothing_left(directory) if hopeless else ''}") from exc


def _damage(directory: Path, found: Overview, seen: Testimony | None) -> str:
    """Return what the next start would find, as far as one look shows it."""
    marker = directory / fmt.AMNESIA_NAME
    if marker.exists():
        return marker.read_text().strip() or "unknown"
    if seen is not None and seen.index > found.last_index:
        return f"the log ends at {found.last_index}, but {seen.index} was durable once"
    return ""


def _overview(directory: Path, connection: sqlite3.Connection) -> Overview:
    connection.execute("BEGIN")
    meta = fmt.read_meta(connection)
    mark = fmt.mark_from(meta)
    term = int(connection.execute("SELECT term FROM hard").fetchone()[0])
    last = connection.execute("SELECT idx, term FROM entries ORDER BY idx DESC LIMIT 1").fetchone()
    found = connection.execute("SELECT idx, body FROM configs ORDER BY idx DESC LIMIT 1").fetchone()
    return Overview(
        member_id=fmt.int_of(meta["member_id"]),
        cluster_id=fmt.bytes_of(meta["cluster_id"]),
        epoch=fmt.int_of(meta["epoch"]),
        term=term,
        last_index=last[0] if last else mark.index,
        last_term=last[1] if last else mark.term,
        commit=max(fmt.int_of(meta.get("commit", 0)), mark.index),
        configuration=decode_configuration(found[1]) if found else mark.configuration,
        configuration_index=found[0] if found else mark.configuration_index,
        state_path=directory / fmt.state_name(fmt.int_of(meta["state_gen"])),
    )


def member_rows(state_path: Path) -> dict[MemberId, tuple[str, str]]:
    """Return id → (name, https address) of the members that a state file knows; empty if it can't tell."""
    if not state_path.exists():
        return {}
    connection = sqlite3.connect(f"file:{state_path}?mode=ro", uri=True, timeout=5.0)
    try:
        rows = connection.execute("SELECT id, name, address FROM nodes ORDER BY id").fetchall()
    except sqlite3.Error:
        return {}
    finally:
        connection.close()
    return {row[0]: (str(row[1]), str(row[2])) for row in rows}


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was done: where the copy is, and how the database goes on."""

    backup: Path
    epoch: int
    term: Term
    last_index: Index


def recover(directory: Path, *, accept_damage: bool = False) -> Recovered:
    """Make this member the only one of its cluster: a new epoch, `term += 1000`, a forced configuration.

    Everything in the log stays (also what was perhaps never committed), nothing in the state is deleted. Members of
    the old epoch are remembered so that they can be told. `accept_damage`: also if this member has forgotten the end
    of its log; what was lost is lost then. Raises RecoveryError, LogError, OSError, sqlite3.Error.
    """

    def force(store: LogStore) -> None:
        configuration = _last_configuration(store)
        own = configuration.members().get(store.member_id)
        if own is None:
            raise RecoveryError(
                f"This server (member {store.member_id}) is not in the configuration of its own database any more: "
                "it was removed or replaced, and must not be recovered from"
            )
        former = tuple(m for m in configuration.members().values() if m.id != own.id)
        target = Configuration(
            (replace(own, role=Role.VOTER),),
            None,
            tuple(sorted({m.id for m in former}.union(configuration.removed))),
        )
        term = max(store.hard.term, store.last_term) + TERM_JUMP
        known = {m.id: m for m in (*store.former, *former)}
        store.begin_epoch(
            store.epoch + 1,
            HardState(term, NOBODY),
            _entries(store, term, _forced(target), None),
            tuple(known.values()),
        )

    return _change(directory, force, accept_damage=accept_damage)


def reconfigure(directory: Path, target: tuple[Member, ...], renames: Transaction | None) -> Recovered:
    """Give the cluster other roles or addresses; to be repeated with the same `target` on every member.

    `renames` goes into the log with it (addresses in the tables). What is forced follows from the end of each log
    alone and keeps the order of logs, so members that were given the same `target` agree, and the one whose log is
    most complete still wins. Raises as `recover`.
    """
    invalid = invalid_members(target)
    if invalid:
        raise RecoveryError(invalid)

    def force(store: LogStore) -> None:
        configuration = _last_configuration(store)
        epoch = store.epoch + 1
        term = store.last_term + TERM_JUMP
        if term >= epoch * EPOCH_TERMS:
            raise RecoveryError(f"The log is in term {store.last_term}, too late for an edit in epoch {epoch}")
        body = _forced(Configuration(target, None, configuration.removed))
        hard = HardState(max(store.hard.term + TERM_JUMP, epoch * EPOCH_TERMS), NOBODY)
        store.begin_epoch(epoch, hard, _entries(store, term, body, renames), store.former)

    return _change(directory, force, accept_damage=False)


def give_up(directory: Path, reason: str) -> None:
    """Have the next start join the cluster again under a new id: whatever this database promised is void.

    Raises LogLockedError while a daemon runs, OSError.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    held = lock(directory)
    try:
        (directory / fmt.AMNESIA_NAME).write_text(f"{reason}\n")
        sync_directory(directory)
    finally:
        os.close(held)


def _last_configuration(store: LogStore) -> Configuration:
    return store.configuration_at(store.last_index)[1]


def _forced(configuration: Configuration) -> bytes:
    """The body of a configuration that no leader decided on; decoders skip the mark."""
    body = encode_configuration(configuration)
    return b'{"forced":true,' + body[1:]


def _entries(store: LogStore, term: Term, body: bytes, renames: Transaction | None) -> tuple[Entry, ...]:
    """The forced entries: made from the end of the log only, so that equal logs get equal ones."""
    bodies = [(EntryKind.CONFIG, body)]
    if renames is not None:
        bodies.append((EntryKind.SQL, encode_transaction(renames)))
    chain, index = store.last_chain, store.last_index
    stamp = store.entries[-1].timestamp_ms if store.entries else _position(store).timestamp_ms
    entries: list[Entry] = []
    for kind, content in bodies:
        index, stamp = index + 1, stamp + 1
        chain = chain_hash(chain, term, kind, stamp, b"", content)
        entries.append(Entry(index, term, kind, stamp, b"", content, chain))
    return tuple(entries)


def _position(store: LogStore) -> Position:
    """Where the state file is; the start if there is none yet."""
    path = store.directory / fmt.state_name(store.generation)
    if not path.exists():
        return Position()
    connection = sqlite3.connect(path)
    try:
        return read_position(connection)
    except sqlite3.OperationalError:  # killed before its first entry
        return Position()
    finally:
        connection.close()


def _change(directory: Path, force: Callable[[LogStore], None], *, accept_damage: bool) -> Recovered:
    finish_replacement(directory)
    if not (directory / fmt.LOG_NAME).exists():
        raise RecoveryError(f"There is no database in {directory}")
    if (directory / fmt.AMNESIA_NAME).exists() and not accept_damage:
        reason = (directory / fmt.AMNESIA_NAME).read_text().strip()
        raise RecoveryError(_damaged(reason))
    saved = _backup(directory)
    try:
        store = LogStore(directory, check_witness=not accept_damage)
    except LogDamagedError as exc:
        shutil.rmtree(saved)
        raise RecoveryError(f"{exc}{_nothing_left(directory)}" if accept_damage else _damaged(str(exc))) from exc
    try:
        if accept_damage:
            _catch_up_with_state(store)
        force(store)
        done = Recovered(saved, store.epoch, store.hard.term, store.last_index)
    except RecoveryError:
        shutil.rmtree(saved)
        raise
    finally:
        store.close()
    (directory / fmt.AMNESIA_NAME).unlink(missing_ok=True)
    sync_directory(directory)
    return done


def _nothing_left(directory: Path) -> str:
    return f". Nothing can be made of this log: restore a copy of {directory}, or recover another member"


def _damaged(reason: str) -> str:
    return (
        f"This server has forgotten writes that it had acknowledged ({reason}). Recover from another member if any "
        "is left; if there is none, repeat this with --accept-data-loss"
    )


def _catch_up_with_state(store: LogStore) -> None:
    """The log lost its end, but the state file may still have it: go on from there."""
    position = _position(store)
    if position.index > store.last_index:
        decided, configuration = store.configuration_at(store.last_index)
        mark = SnapshotMark(position.index, position.term, position.chain, configuration, decided)
        store.install(mark, store.generation, keep_suffix=False)
        store.entries = ()


def _backup(directory: Path) -> Path:
    """Copy the database beside itself, durably. Raises LogLockedError while a daemon has it, OSError."""
    held = lock(directory)
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    target: Path | None = None
    try:
        # Made by mkdtemp: a name of its own, so that no earlier copy is ever written over or removed below.
        target = Path(tempfile.mkdtemp(prefix=f"{directory.name}.backup-{stamp}-", dir=directory.parent))
        ignored = shutil.ignore_patterns(fmt.LOCK_NAME, fmt.BALLAST_NAME, "snap-*")
        shutil.copytree(directory, target, ignore=ignored, dirs_exist_ok=True)
        for path in target.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_directory(target)
        sync_directory(target.parent)
    except BaseException:
        if target is not None:
            shutil.rmtree(target, ignore_errors=True)
        raise
    finally:
        os.close(held)
    return target
