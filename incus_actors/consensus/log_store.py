"""The durable half of consensus: log.db and its witness (CONSENSUS 3.3-3.5).

Owns the exclusive lock on the directory, the start-up checks and every write to log.db; used from one thread at a
time (log_thread.py). Must never report a write that is not durable, and never repair a log by leaving entries out.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from incus_actors.consensus import log_format as fmt
from incus_actors.consensus.configuration import decode_configuration
from incus_actors.consensus.effects import WriteLog
from incus_actors.consensus.log_files import (
    AmnesiaError,
    LogDamagedError,
    LogError,
    LogFullError,
    LogIOError,
    lock,
    read_entries,
)
from incus_actors.consensus.types import (
    Configuration,
    DurableState,
    Entry,
    HardState,
    Index,
    Member,
    SnapshotMark,
)
from incus_actors.consensus.witness import Witness, is_no_space
from incus_actors.model.features import supported_with


@dataclass(slots=True)
class _Tail:
    """The end of the log as log.db has it."""

    index: Index
    chain: bytes


class LogStore:
    """An open, verified log. The constructor raises LogLockedError, LogDamagedError and AmnesiaError.

    `check_witness=False` opens one that has forgotten its end or itself, for recovery only.
    """

    def __init__(self, directory: Path, *, check_witness: bool = True) -> None:
        self.directory = directory
        path = directory / fmt.LOG_NAME
        if not path.exists():
            raise LogDamagedError(f"There is no database in {directory}")
        self._lock = lock(directory)
        self._connection: sqlite3.Connection | None = None
        self._witness: Witness | None = None
        self.failed = False
        try:
            witness_exists = (directory / fmt.WITNESS_NAME).exists()
            self._connection = fmt.open_connection(path)
            self._witness = Witness(directory / fmt.WITNESS_NAME)
            self._load(check_seal=check_witness)
            if check_witness:
                if not witness_exists:
                    raise AmnesiaError(f"{directory / fmt.WITNESS_NAME} is missing")
                self._check_witness()
            if "seal" not in self.meta:
                fmt.seal_meta(self._db)  # made by an earlier release
        except (sqlite3.Error, UnicodeDecodeError) as exc:
            self.close()
            # Damage takes with it what was promised; what the disk doesn't give now it may give later.
            kind = AmnesiaError if fmt.is_damage(exc, opening=True) else LogDamagedError
            raise kind(f"{path} can't be read: {exc}") from exc
        except BaseException:
            self.close()
            raise

    # Opening

    @property
    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            raise LogIOError("log.db is closed")
        return self._connection

    def _load(self, *, check_seal: bool) -> None:
        try:
            self.meta = fmt.read_meta(self._db)
            if self.meta["format"] != fmt.FORMAT:
                raise LogDamagedError(f"log.db has format {self.meta['format']!r}, this release reads {fmt.FORMAT}")
            if check_seal and self.meta.get("seal", seal := fmt.meta_seal(self.meta)) != seal:
                raise AmnesiaError("what log.db says about itself is damaged: its checksum does not match")
            self.snapshot = fmt.mark_from(self.meta)
            self.generation = fmt.int_of(self.meta["state_gen"])
            self.cluster_id = fmt.bytes_of(self.meta["cluster_id"])
            self.epoch = fmt.int_of(self.meta["epoch"])
            self.member_id = fmt.int_of(self.meta["member_id"])
            self.former = fmt.former_from(self.meta)
        except (KeyError, TypeError, ValueError) as exc:
            raise AmnesiaError(f"log.db is incomplete: {exc!r}") from exc
        row = self._db.execute("SELECT term, vote, crc FROM hard").fetchone()
        if row is None or fmt.hard_crc(HardState(row[0], row[1])) != row[2]:
            raise AmnesiaError("the record of term and vote in log.db is damaged")
        self.hard = HardState(row[0], row[1])
        self.entries = read_entries(self._db, self.snapshot)
        last = self.entries[-1] if self.entries else None
        self._tail = _Tail(last.index, last.chain) if last else _Tail(self.snapshot.index, self.snapshot.chain)
        self.last_term = last.term if last else self.snapshot.term  #: as it was when opened

    def _check_witness(self) -> None:
        """Compare the log with what we remember having promised."""
        seen = self._witness.last if self._witness else None
        if seen is None:
            raise AmnesiaError("tail.wit is damaged")
        if seen.index > self._tail.index:
            raise AmnesiaError(f"the log ends at {self._tail.index}, but {seen.index} was durable once")
        known = self._chain_at(seen.index)
        if known is not None and known != seen.chain:
            raise AmnesiaError(f"log entry {seen.index} is not the one that was durable once")
        if seen.hard.term > self.hard.term:
            raise AmnesiaError(f"the log is in term {self.hard.term}, but {seen.hard.term} was durable once")
        if seen.hard.term == self.hard.term and seen.hard.vote and seen.hard.vote != self.hard.vote & 0xFFFFFFFF:
            raise AmnesiaError(f"the vote of term {self.hard.term} is not the one that was durable once")

    def _chain_at(self, index: Index) -> bytes | None:
        """Return the chain at an index, or None if it lies before the log."""
        if index == self.snapshot.index:
            return self.snapshot.chain
        row = self._db.execute("SELECT chain FROM entries WHERE idx = ?", (index,)).fetchone()
        return None if row is None else bytes(row[0])

    def durable_state(self, applied: Index) -> DurableState:
        """Return what a core is started from, given what the state file has applied.

        Raises AmnesiaError if the state is ahead of the log, or lies before its begin: it was checkpointed before the
        log was cut, so an older or empty file has taken its place, which is as good as none. The entries are handed over, not kept here.
        """
        if applied > self._tail.index:
            raise AmnesiaError(f"the state has applied {applied}, but the log ends at {self._tail.index}")
        if applied < self.snapshot.index:
            raise AmnesiaError(f"the state ends at {applied}, but the log begins after {self.snapshot.index}")
        entries, self.entries = self.entries, ()
        return DurableState(
            member_id=self.member_id,
            cluster_id=self.cluster_id,
            epoch=self.epoch,
            hard=self.hard,
            snapshot=self.snapshot,
            entries=entries,
            applied=applied,
            incarnation=secrets.randbits(64) or 1,
            sqlite_version=sqlite3.sqlite_version,
            features=supported_with(sqlite3.sqlite_version_info),
        )

    # Writing

    @property
    def last_index(self) -> Index:
        """The last durable entry."""
        return self._tail.index

    @property
    def last_chain(self) -> bytes:
        """The chain at the last durable entry."""
        return self._tail.chain

    def write(self, writes: Sequence[WriteLog]) -> None:
        """Make some writes durable in one transaction. Raises LogFullError (nothing happened) or LogIOError."""
        if self.failed:
            raise LogIOError("an earlier write failed")
        hard, tail = self.hard, replace(self._tail)
        self._lower_witness(writes)
        try:
            self._db.execute("BEGIN IMMEDIATE")
            for write in writes:
                if write.hard is not None:
                    hard = write.hard
                    fmt.write_hard(self._db, hard)
                if write.truncate_from is not None and write.truncate_from <= tail.index:
                    tail = self._truncate(write.truncate_from)
                if write.entries:
                    self._append(write.entries, tail)
            fmt.write_commit(self._db, writes[-1].commit)
            self._db.execute("COMMIT")
        except sqlite3.Error as exc:
            raise self._failure(exc) from exc
        self.hard, self._tail = hard, tail
        self._testify()

    def _append(self, entries: Sequence[Entry], tail: _Tail) -> None:
        if entries[0].index != tail.index + 1:
            self.failed = True
            raise LogIOError(f"entry {entries[0].index} can't follow {tail.index}")
        fmt.insert_entries(self._db, entries)
        tail.index, tail.chain = entries[-1].index, entries[-1].chain

    def _truncate(self, start: Index) -> _Tail:
        chain = self._chain_at(start - 1)
        if chain is None:
            self.failed = True
            raise LogIOError(f"can't truncate to {start - 1}: the log begins after {self.snapshot.index}")
        self._db.execute("DELETE FROM entries WHERE idx >= ?", (start,))
        self._db.execute("DELETE FROM configs WHERE idx >= ?", (start,))
        return _Tail(start - 1, chain)

    def _lower_witness(self, writes: Sequence[WriteLog]) -> None:
        """Before a truncation, durably testify to less: the witness must never lead."""
        starts = [w.truncate_from for w in writes if w.truncate_from is not None]
        if not starts or self._witness is None or self._witness.last is None:
            return
        lowest = min(starts) - 1
        if lowest < self._witness.last.index:
            chain = self._chain_at(lowest)
            if chain is not None:
                self._testify_to_less(lowest, chain, self._witness.last.hard)

    def _testify_to_less(self, index: Index, chain: bytes, hard: HardState) -> None:
        """Lower the witness durably; nothing may be dropped before. Raises LogFullError, OSError."""
        if self._witness is None:
            return
        try:
            self._witness.write(index, chain, hard, _wall_ms(), sync=True)
        except OSError as exc:
            if is_no_space(exc):
                raise LogFullError(f"{fmt.WITNESS_NAME}: {exc}") from exc
            raise

    def _testify(self) -> None:
        if self._witness is not None:
            self._witness.testify(self._tail.index, self._tail.chain, self.hard, _wall_ms())

    def _failure(self, error: sqlite3.Error) -> LogError:
        """Roll back; tell the two kinds of failure apart, and remember the bad one."""
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except sqlite3.Error:
            self.failed = True
        code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
        if code == sqlite3.SQLITE_FULL and not self.failed:
            return LogFullError(str(error))
        self.failed = True
        return LogIOError(f"log.db: {error}")

    # Upkeep

    @property
    def witness_lag(self) -> int:
        """How many durable entries the witness would not know of after a power cut; any thread may ask."""
        witness = self._witness
        return 0 if witness is None else max(0, self._tail.index - witness.synced_index)

    def sync_witness(self) -> None:
        """Make the witness survive a power cut; every few seconds. Raises OSError."""
        if self._witness is not None:
            if self._witness.behind:
                self._testify()
            self._witness.sync()

    def witness_lagged(self) -> int:
        """Return how often the witness could not follow for want of space."""
        return 0 if self._witness is None else self._witness.lagged

    def wal_bytes(self) -> int:
        """Return the size of the write-ahead log file."""
        try:
            return (self.directory / (fmt.LOG_NAME + "-wal")).stat().st_size
        except FileNotFoundError:
            return 0

    def checkpoint(self) -> None:
        """Move the write-ahead log into log.db, so that it is used again from its start. Raises LogIOError."""
        try:
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as exc:
            raise self._failure(exc) from exc

    def configuration_at(self, index: Index) -> tuple[Index, Configuration]:
        """Return the configuration that was active at a durable index, and where it was decided."""
        row = self._db.execute("SELECT MAX(idx), body FROM configs WHERE idx <= ?", (index,)).fetchone()
        if row[0] is None:
            return self.snapshot.configuration_index, self.snapshot.configuration
        return row[0], decode_configuration(row[1])

    def compact(self, index: Index) -> SnapshotMark:
        """Drop entries up to `index`, which the state file has made durable (R-TRUNC); return the new mark.

        Raises LogFullError or LogIOError.
        """
        if index <= self.snapshot.index:
            return self.snapshot
        row = self._db.execute("SELECT term, chain FROM entries WHERE idx = ?", (index,)).fetchone()
        if row is None:
            raise LogIOError(f"can't compact up to {index}: the log ends at {self._tail.index}")
        decided, configuration = self.configuration_at(index)
        mark = SnapshotMark(index, row[0], bytes(row[1]), configuration, decided)
        self._switch(mark, {}, f"DELETE FROM entries WHERE idx <= {index}", f"DELETE FROM configs WHERE idx <= {index}")
        return mark

    def install(self, mark: SnapshotMark, generation: int, *, keep_suffix: bool) -> None:
        """Begin the log after an installed snapshot and name the generation that holds it: one commit (R-SNAP).

        Entries behind `mark` stay only if `keep_suffix` and ours at `mark.index` is the very same. Raises
        LogFullError or LogIOError.
        """
        row = self._db.execute("SELECT term, chain FROM entries WHERE idx = ?", (mark.index,)).fetchone()
        keep = keep_suffix and row is not None and (row[0], bytes(row[1])) == (mark.term, mark.chain)
        which = f"WHERE idx <= {mark.index}" if keep else ""
        if not keep:
            # What is dropped must not be testified to; the old begin of the log is true before and after.
            self._testify_to_less(self.snapshot.index, self.snapshot.chain, self.hard)
        self._switch(mark, {"state_gen": generation}, f"DELETE FROM entries {which}", f"DELETE FROM configs {which}")
        self.generation = generation
        if not keep:
            self._tail = _Tail(mark.index, mark.chain)
        self._testify()

    def begin_epoch(self, epoch: int, hard: HardState, entries: Sequence[Entry], former: Sequence[Member]) -> None:
        """Append forced entries in a new epoch, in one commit (recovery.py). `former` members are told of it when
        they come back. Raises LogFullError or LogIOError."""
        tail = replace(self._tail)
        try:
            self._db.execute("BEGIN IMMEDIATE")
            fmt.write_meta(self._db, {"epoch": epoch, "former": fmt.former_value(former)})
            fmt.write_hard(self._db, hard)
            self._append(entries, tail)
            self._db.execute("COMMIT")
        except sqlite3.Error as exc:
            raise self._failure(exc) from exc
        self.epoch, self.hard, self._tail, self.former = epoch, hard, tail, tuple(former)
        self._testify()
        self.sync_witness()

    def _switch(self, mark: SnapshotMark, more: dict[str, int | bytes], *deletes: str) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            fmt.write_meta(self._db, {**fmt.mark_values(mark), **more})
            for sql in deletes:
                self._db.execute(sql)
            self._db.execute("COMMIT")
        except sqlite3.Error as exc:
            raise self._failure(exc) from exc
        self.snapshot = mark

    def copy_to(self, path: Path) -> None:
        """Write everything to a new file, durable when this returns. Raises sqlite3.Error, OSError."""
        target = sqlite3.connect(path, isolation_level=None)
        try:
            self._db.backup(target)
        finally:
            target.close()
        with path.open("rb") as file:
            os.fsync(file.fileno())

    def mark_suspect(self, reason: str) -> None:
        """Leave word for the next start that a write failed (best effort, the disk is in trouble)."""
        with (self.directory / fmt.SUSPECT_NAME).open("w") as file:
            file.write(f"{_wall_ms()} {reason}\n")
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Release files and the lock. Raises OSError if the witness can't be synced; they are released then too."""
        try:
            if self._witness is not None:
                self._witness.close()
        except OSError:
            if not self.failed:  # else it has been said already that this disk fails
                raise
        finally:
            self._witness = None
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000
