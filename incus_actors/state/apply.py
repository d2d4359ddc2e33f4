"""Runs committed log entries against the state file: the only writer of `global-<generation>.db`.

Owns the writer connection; it writes where the state is (position.py) and the answers already given, so that a proposal runs
once, in the same SQLite transaction as their effects. Used from the apply thread only. Must never skip an entry, and must never turn a trouble of this machine (disk full, I/O error)
into the outcome of an entry.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Final, Protocol

from incus_actors.model.features import FeatureBodyError, decode_level
from incus_actors.model.transaction import Outcome, Statement, Transaction
from incus_actors.state.codec import (
    BodyError,
    decode_expire,
    decode_outcome,
    decode_transaction,
    encode_outcome,
)
from incus_actors.state.determinism import DeterminismGuard, Mode
from incus_actors.state.lint import schema_problems
from incus_actors.state.position import (
    FEATURE_TABLE,
    SUPPORTED_HERE,
    TABLES,
    ApplyError,
    Position,
    UnknownEntryKindError,
    check_level,
    read_level,
    read_position,
)
from incus_actors.state.whole_hash import whole_hash

log = logging.getLogger(__name__)

# The numbers of consensus.types.EntryKind, which this layer may not import.
NOOP, CONFIG, SQL, SCHEMA, EXPIRE, FEATURE, CHECK, DELETE = range(8)

TOO_OLD: Final = "proposal is older than the memory of answered proposals"
#: Result codes that say something about the statement, not about this machine.
_DETERMINISTIC: Final = frozenset(
    {
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_TOOBIG,
        sqlite3.SQLITE_RANGE,
        sqlite3.SQLITE_AUTH,
    }
)


class Record(Protocol):
    """What is applied: a log entry as consensus.types.Entry has it."""

    @property
    def index(self) -> int: ...  # noqa: D102
    @property
    def term(self) -> int: ...  # noqa: D102
    @property
    def kind(self) -> int: ...  # noqa: D102
    @property
    def timestamp_ms(self) -> int: ...  # noqa: D102
    @property
    def proposal_id(self) -> bytes: ...  # noqa: D102
    @property
    def body(self) -> bytes: ...  # noqa: D102
    @property
    def chain(self) -> bytes: ...  # noqa: D102


@dataclass(slots=True)
class Batch:
    """What applying some entries gave."""

    position: Position
    level: int = 0  #: the feature level that is switched on behind them
    results: list[tuple[bytes, Outcome]] = field(default_factory=list)
    topics: set[str] = field(default_factory=set)
    counters: dict[str, int] = field(default_factory=dict)

    def count(self, name: str) -> None:
        """Add one to a counter."""
        self.counters[name] = self.counters.get(name, 0) + 1


def is_disk_full(error: sqlite3.Error) -> bool:
    """Whether this failed for want of space: everything was rolled back and may be tried again."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF == sqlite3.SQLITE_FULL


def _is_outcome(error: Exception) -> bool:
    """Whether every member gets this error for this entry. No code means Python's own checks (wrong number of
    parameters, two statements), which are about the statement too."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is None or (code & 0xFF) in _DETERMINISTIC


class Applier:
    """One state file, open for writing. `supported`: the highest feature level to apply. Raises ApplyError, and
    sqlite3.Error for troubles of this machine."""

    def __init__(self, path: Path, *, supported: int = SUPPORTED_HERE) -> None:
        self.path = path
        self.supported = supported
        self._wal = path.with_name(path.name + "-wal")
        self._connection = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, cached_statements=512, timeout=10.0
        )
        try:
            self._set_up()
            self.position = read_position(self._connection)
            self.level = read_level(self._connection)
            check_level(self.level, supported)
            self._guard = DeterminismGuard(self._connection)
        except BaseException:
            # Now, not when the collector comes: SQLite removes the write-ahead log of that name as it closes.
            self._connection.close()
            raise

    def _set_up(self) -> None:
        self._run("PRAGMA auto_vacuum=0")
        self._run("PRAGMA journal_mode=WAL")
        self._run("PRAGMA synchronous=NORMAL")
        self._run("PRAGMA wal_autocheckpoint=0")
        self._run("PRAGMA temp_store=MEMORY")
        # Part of the replicated meaning, so never left to how a distribution compiled SQLite.
        self._run("PRAGMA foreign_keys=ON")
        self._run("PRAGMA recursive_triggers=OFF")
        self._run("PRAGMA case_sensitive_like=OFF")
        self._connection.executescript(TABLES)
        self._run("CREATE TEMP TABLE _reset (id INTEGER PRIMARY KEY)")

    def _run(self, sql: str, parameters: Sequence[object] = ()) -> sqlite3.Cursor:
        return self._connection.execute(sql, parameters)

    def apply(self, records: Sequence[Record]) -> Batch:
        """Apply contiguous entries in one SQLite transaction: all of them, or none if this raises."""
        batch = Batch(self.position, self.level)
        self._run("BEGIN IMMEDIATE")
        try:
            for record in records:
                batch.position = self._apply_one(record, batch)
            position = batch.position
            self._core(
                "INSERT OR REPLACE INTO _raft VALUES (1, ?, ?, ?, ?, ?, ?)",
                (
                    position.index,
                    position.term,
                    position.chain,
                    position.digest,
                    position.timestamp_ms,
                    position.horizon_ms,
                ),
            )
            self._run("COMMIT")
        except BaseException:
            self._guard.mode = Mode.CORE
            if self._connection.in_transaction:
                self._run("ROLLBACK")
            raise
        self.position, self.level = batch.position, batch.level
        return batch

    def _core(self, sql: str, parameters: Sequence[object] = ()) -> sqlite3.Cursor:
        """Run SQL of our own under a text that no entry can have."""
        return self._run(self._guard.text(Mode.CORE, sql), parameters)

    def _apply_one(self, record: Record, batch: Batch) -> Position:
        before = batch.position
        if record.index != before.index + 1:
            raise ApplyError(f"entry {record.index} can't follow {before.index}")
        horizon_ms = before.horizon_ms
        digest = before.digest
        if record.kind in {SQL, SCHEMA, EXPIRE, FEATURE, CHECK, DELETE}:
            outcome = self._answered(record, before, batch)
            if outcome is None:
                if record.kind == EXPIRE:
                    outcome, horizon_ms = self._expire(record, before)
                elif record.kind == CHECK:
                    outcome = self._check(record, batch)
                elif record.kind == FEATURE:
                    outcome = self._switch_on(record, batch)
                else:
                    outcome = self._execute(record, batch)
                encoded = encode_outcome(outcome)
                if record.proposal_id:
                    self._core(
                        "INSERT INTO _sessions VALUES (?, ?, ?, ?)",
                        (record.proposal_id, record.index, record.timestamp_ms, encoded),
                    )
            else:
                encoded = encode_outcome(outcome)
            # The text of an error may differ between versions of SQLite; that it is one may not.
            covered = encode_outcome(replace(outcome, error="")) if outcome.error else encoded
            digest = blake2b(digest + record.index.to_bytes(8, "big") + covered, digest_size=8).digest()
            if record.proposal_id:
                batch.results.append((record.proposal_id, outcome))
        elif record.kind not in {NOOP, CONFIG}:
            raise UnknownEntryKindError(
                f"entry {record.index} is of kind {record.kind}, which this release can't apply: "
                "upgrade incus_actors on this server to the release of the other members"
            )
        return Position(record.index, record.term, record.chain, digest, record.timestamp_ms, horizon_ms)

    def _answered(self, record: Record, before: Position, batch: Batch) -> Outcome | None:
        """Return the answer this proposal already got, or the refusal of one too old to know."""
        if not record.proposal_id:
            return None
        row = self._core("SELECT result FROM _sessions WHERE proposal_id = ?", (record.proposal_id,)).fetchone()
        if row is not None:
            batch.count("dedup_hits")
            return decode_outcome(row[0])
        if int.from_bytes(record.proposal_id[:6], "big") <= before.horizon_ms:
            batch.count("proposals_too_old")
            return Outcome("error", record.index, error=TOO_OLD)
        return None

    def _expire(self, record: Record, before: Position) -> tuple[Outcome, int]:
        """Forget answers; the horizon then refuses what could be a retry of them. The clocks of those who made the
        proposals may be far apart, so that young ones can be behind the horizon: their answers are kept."""
        try:
            cutoff_ms, settled = decode_expire(record.body)
        except BodyError as exc:
            return Outcome("error", record.index, error=str(exc)), before.horizon_ms
        horizon_ms = max(before.horizon_ms, min(cutoff_ms, record.timestamp_ms))
        mark = (max(0, horizon_ms) + 1).to_bytes(6, "big")
        removed = self._core("DELETE FROM _sessions WHERE proposal_id < ? AND idx <= ?", (mark, settled)).rowcount
        return Outcome("applied", record.index, changed=(removed,)), horizon_ms

    def _check(self, record: Record, batch: Batch) -> Outcome:
        """Answer with the hash of all there is: the digest covers answers, so whose rows differ is found out."""
        found, damage = whole_hash(self._connection, self._core)
        batch.count("state_checks")
        if damage:
            batch.count("state_checks_damaged")
            log.error("the state in %s is damaged: %s", self.path, damage)
        return Outcome("applied", record.index, rows=(((found,),),))

    def _switch_on(self, record: Record, batch: Batch) -> Outcome:
        """Remember for good what the cluster may use from here on; a lower level than there is changes nothing."""
        try:
            level = decode_level(record.body)
        except FeatureBodyError as exc:
            return Outcome("error", record.index, error=str(exc))
        check_level(level, self.supported)
        if level > batch.level:
            self._core(FEATURE_TABLE)
            self._core("INSERT OR REPLACE INTO _features VALUES (1, ?)", (level,))
            batch.level = level
        return Outcome("applied", record.index, changed=(level,))

    def _execute(self, record: Record, batch: Batch) -> Outcome:
        """Run one transaction under a savepoint."""
        schema = record.kind == SCHEMA
        try:
            transaction = decode_transaction(record.body, schema=schema)
        except BodyError as exc:
            batch.count("proposals_malformed")
            return Outcome("error", record.index, error=str(exc))
        if transaction.fence_term is not None and transaction.fence_term != record.term:
            batch.count("fence_conflicts")
            return Outcome("conflict", record.index, label="fence")
        if transaction.min_schema and transaction.min_schema > self._schema_version():
            batch.count("schema_conflicts")
            return Outcome("conflict", record.index, label="schema")
        self._guard.begin(record.timestamp_ms, record.chain)
        self._core("SAVEPOINT entry")
        try:
            outcome = self._guarded(transaction, record.index)
        except (sqlite3.Error, sqlite3.Warning, OverflowError, ValueError) as exc:
            self._guard.mode = Mode.CORE
            if not _is_outcome(exc) or not self._connection.in_transaction:
                raise
            outcome = Outcome("error", record.index, error=str(exc))
        if outcome.applied:
            batch.topics.update(transaction.topics)
        else:
            batch.count("guard_conflicts" if outcome.status == "conflict" else "apply_errors")
            self._core("ROLLBACK TO entry")
        self._core("RELEASE entry")
        return outcome

    def _schema_version(self) -> int:
        """Return the version of the tables here, 0 before the first migration. Looked up for each entry: an entry may write
        it like any other row, and who has just started must not see another one than who remembers it."""
        there = self._core("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'schema' LIMIT 1")
        found = there.fetchone() and self._core("SELECT MAX(version) FROM schema").fetchone()[0]
        return int(found or 0)

    def _guarded(self, transaction: Transaction, index: int) -> Outcome:
        """Run guards, then statements. Raises what SQLite raises."""
        self._guard.mode = Mode.GUARD
        for guard in transaction.guards:
            cursor = self._run(self._guard.text(Mode.GUARD, guard.sql), guard.parameters)
            found = tuple(map(tuple, cursor.fetchall()))
            if found != guard.expected:
                self._guard.mode = Mode.CORE
                return Outcome("conflict", index, label=guard.label)
        self._guard.mode = Mode.CORE
        self._forget_rowid(transaction.statements)
        mode = Mode.SCHEMA if transaction.schema else Mode.DATA
        rows: list[tuple[tuple[None | int | float | str | bytes, ...], ...]] = []
        changed: list[int] = []
        self._guard.mode = mode
        for statement in transaction.statements:
            cursor = self._run(self._guard.text(mode, statement.sql), statement.parameters)
            rows.append(tuple(map(tuple, cursor.fetchall())) if cursor.description else ())
            changed.append(max(0, cursor.rowcount))
        self._guard.mode = Mode.CORE
        if transaction.schema:
            problems = schema_problems(self._connection)
            if problems:
                return Outcome("error", index, error="; ".join(problems))
        return Outcome("applied", index, rows=tuple(rows), changed=tuple(changed))

    def _forget_rowid(self, statements: Sequence[Statement]) -> None:
        """Let `last_insert_rowid()` and `changes()` start the same everywhere: a replica that has just been
        restarted would otherwise see 0 where the others see what an earlier entry left."""
        if any("last_insert_rowid" in s.sql.lower() or "changes" in s.sql.lower() for s in statements):
            self._core("REPLACE INTO temp._reset (id) VALUES (0)")

    def wal_bytes(self) -> int:
        """Return the size of the write-ahead log file."""
        try:
            return self._wal.stat().st_size
        except FileNotFoundError:
            return 0

    def checkpoint(self) -> int:
        """Move the write-ahead log into the file and make it durable (R-TRUNC); return the index up to which the
        state now survives a power cut. Readers are not disturbed."""
        index = self.position.index
        _, frames, moved = self._run("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if moved < frames:
            # A reader holds frames back: they stay in the write-ahead log, which then must be durable itself.
            descriptor = os.open(self._wal, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        return index

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
        self._guard.close()
