"""The same state machine on the daemon's own applier and real SQLite files, for some of the seeds.

Owns the translation of commands to guarded statements and one directory of files per machine. Slower than
machine.py by far, but what it runs is `state/apply.py`: its deduplication, guards, digests and positions.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from dataclasses import replace
from operator import itemgetter
from pathlib import Path

from incus_actors.consensus.types import GENESIS_CHAIN, Entry, EntryKind, Index
from incus_actors.model.transaction import Guard, Statement, Transaction
from incus_actors.model.transaction import Outcome as Applied
from incus_actors.simulation.machine import TOO_OLD, Command, Image, Outcome, Value, noisy
from incus_actors.state.apply import TOO_OLD as TOO_OLD_TEXT
from incus_actors.state.apply import Applier
from incus_actors.state.codec import decode_transaction, encode_expire, encode_transaction

_SCHEMA = """
CREATE TABLE registers (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE lists (key TEXT, position INTEGER, number INTEGER NOT NULL, PRIMARY KEY (key, position)) STRICT;
"""
_SET = (
    "INSERT INTO registers (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value "
    "RETURNING value"
)
_APPEND = "INSERT INTO lists (key, position, number) SELECT ?1, COUNT(*), ?2 FROM lists WHERE key = ?1"
_LIST = "SELECT number FROM lists WHERE key = ? ORDER BY position"
_REGISTER = "SELECT value FROM registers WHERE key = ?"
_EVERYTHING = 2**62  #: the tests of the daemon keep what is young; here as much as possible is forgotten
_ANY_LEVEL = 1 << 30  #: upgrades.py says what the release of a machine can apply
_FIRST = itemgetter(0)
_MEMORY = Path("/dev/shm")  # noqa: S108  # files that need not survive us, and whose syncs cost nothing


class SqlMachine:
    """One state file. `close` removes it."""

    def __init__(self) -> None:
        parent = _MEMORY if _MEMORY.is_dir() else None
        self.directory = Path(tempfile.mkdtemp(prefix="incus-actors-simulation-", dir=parent))
        self.path = self.directory / "state.db"
        connection = sqlite3.connect(self.path)
        connection.executescript(_SCHEMA)
        connection.close()
        self.applier = Applier(self.path, supported=_ANY_LEVEL)

    @property
    def index(self) -> Index:
        """What is applied."""
        return self.applier.position.index

    @property
    def chain(self) -> bytes:
        """The chain there."""
        return self.applier.position.chain if self.index else GENESIS_CHAIN

    @property
    def digest(self) -> bytes:
        """The running digest."""
        return self.applier.position.digest

    @property
    def level(self) -> int:
        """The feature level that is switched on."""
        return self.applier.level

    def encode(self, command: Command) -> bytes:
        """Return the body of a proposal."""
        statements: list[Statement] = []
        for action in command.actions:
            if action.kind == "set":
                statements.append(Statement(_SET, (action.key, action.value)))
            else:
                if action.kind == "append":
                    statements.append(Statement(_APPEND, (action.key, action.value)))
                statements.append(Statement(_LIST, (action.key,)))
        guards = tuple(
            Guard(_REGISTER, (key,), () if expected is None else ((expected,),), "value")
            for key, expected in command.guards
        )
        return encode_transaction(Transaction(tuple(statements), guards))

    def encode_expire(self, cutoff_ms: int) -> bytes:
        """Return the body of an EXPIRE entry."""
        return encode_expire(cutoff_ms, _EVERYTHING)

    def apply(self, entries: tuple[Entry, ...]) -> list[Outcome | None]:
        """Apply contiguous entries in one transaction of SQLite."""
        if not entries:
            return []
        found = dict(self.applier.apply(entries).results)
        return [_outcome(entry, found.get(entry.proposal_id)) for entry in entries]

    def read(self, keys: tuple[str, ...]) -> tuple[Value, ...]:
        """Return the values of some keys in one read transaction."""
        connection = self._reader()
        try:
            connection.execute("BEGIN")
            return tuple(self._read_one(connection, key) for key in keys)
        finally:
            connection.close()

    def _reader(self) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{self.path}?mode=ro", uri=True, isolation_level=None)

    @staticmethod
    def _read_one(connection: sqlite3.Connection, key: str) -> Value:
        if key.startswith("r"):
            row = connection.execute(_REGISTER, (key,)).fetchone()
            return None if row is None else str(row[0])
        return tuple(map(int, map(_FIRST, connection.execute(_LIST, (key,))))) or None

    def image(self) -> Image:
        """Return the file as bytes, copied by the backup API as for a transfer snapshot."""
        source, copy = self._reader(), sqlite3.connect(":memory:")
        try:
            source.backup(copy)
            content = copy.serialize()
        finally:
            source.close()
            copy.close()
        return Image(self.index, self.chain, self.digest, content, self.level)

    def restore(self, image: Image) -> None:
        """Put a file in the place of this one."""
        if not isinstance(image.content, bytes):
            raise TypeError(image.content)
        self.applier.close()
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        self.path.write_bytes(image.content)
        self.applier = Applier(self.path, supported=_ANY_LEVEL)

    def diverge(self, noise: int) -> None:
        """Bits flip that only the digest shows; never the same ones on two members."""
        position = self.applier.position
        self.applier.position = replace(position, digest=noisy(position.digest, noise))

    def reopen(self) -> None:
        """Open the file again, as a new process does."""
        self.applier.close()
        self.applier = Applier(self.path, supported=_ANY_LEVEL)

    def close(self) -> None:
        """Remove the files."""
        self.applier.close()
        shutil.rmtree(self.directory, ignore_errors=True)


def _outcome(entry: Entry, applied: Applied | None) -> Outcome | None:
    if applied is None or not isinstance(applied, Applied):
        return None
    if applied.error == TOO_OLD_TEXT:
        return TOO_OLD
    if not applied.applied:
        return (applied.status, (), applied.index)
    if entry.kind is not EntryKind.SQL:
        return ("applied", (), applied.index)
    values: list[Value] = []
    transaction = decode_transaction(entry.body, schema=False)
    for statement, rows in zip(transaction.statements, applied.rows, strict=True):
        if statement.sql == _SET:
            values.append(str(rows[0][0]))
        elif statement.sql == _LIST:
            values.append(tuple(map(int, map(_FIRST, rows))) or None)
    return ("applied", tuple(values), applied.index)
