"""`incus admin sql`: looking into the databases, and writing the global one through the log.

Owns how a text becomes statements, which of them write, and the shapes of results and dumps (CONTRACT 17);
rest/sql_routes.py calls it. Reads run on a read-only connection of their own in a thread, with a deadline. Must never
write anything but by a transaction that every member runs alike.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from incus_actors.consensus.api import Consensus
from incus_actors.errors import BadRequestError, MemberError
from incus_actors.identity import Identity
from incus_actors.model.transaction import Statement, Transaction
from incus_actors.services.sql_text import dump, split_statements
from incus_actors.state.lint import LintError
from incus_actors.state.queries import cluster as cluster_queries
from incus_actors.state.queries import config as config_queries
from incus_actors.state.reader import Reader

log = logging.getLogger(__name__)

READ_S = 10.0  #: a query that takes longer is interrupted
MAX_ROWS = 100_000
DUMP_BYTES = 256 << 20
_STEPS = 10_000  #: SQLite instructions between two looks at the clock
#: Everybody looks again: nobody knows what a statement typed by hand has touched.
TOPICS = (
    "certificates",
    "cluster-certificate",
    "config",
    "images",
    "instances",
    "members",
    "networks",
    "profiles",
    "projects",
    "storage",
    "tokens",
    "warnings",
)
_READS = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE})
_PRAGMAS = frozenset({"table_info", "table_xinfo", "table_list", "index_list", "index_info", "foreign_key_list"})
_RAFT_ROLES = {"voter": 0, "standby": 1, "spare": 2}

Name = Literal["global", "local"]


@dataclass(slots=True)
class _Answer:
    """What one statement gave on the read-only connection; `writes`: it was not run, because it would write."""

    writes: bool = False
    columns: tuple[str, ...] = ()
    rows: Sequence[tuple[Any, ...]] = ()

    def shape(self) -> dict[str, Any]:
        """Return it as the client expects it."""
        rows = [[_plain(value) for value in row] for row in self.rows]
        return {"type": "select", "columns": list(self.columns), "rows": rows, "rows_affected": 0}


def _plain(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


class SqlService:
    """`path()` gives the state file that is read now."""

    def __init__(self, *, consensus: Consensus, database: Reader, path: Callable[[], Path], identity: Identity) -> None:
        self._consensus = consensus
        self._database = database
        self._path = path
        self._identity = identity

    async def run(self, name: str, text: str) -> list[dict[str, Any]] | None:
        """Return one result for each statement; None for ".sync".

        All statements take effect together or not at all. Raises BadRequestError (no query, no such database),
        MemberError (500 with SQLite's words), UnavailableError.
        """
        where = _named(name)
        if text.strip() == ".sync":
            await self._consensus.read_barrier()
            return None
        statements = split_statements(text)
        if not statements:
            raise BadRequestError("No query provided")
        answers = await self._ask(where, statements)
        if not any(answer.writes for answer in answers):
            return [answer.shape() for answer in answers]
        if where == "local":
            raise MemberError(
                "Failed to exec query: the local database only shows what this member knows of itself",
                remedy="`incus config set` changes the configuration of a member",
            )
        return await self._write(statements, answers)

    async def _write(self, statements: list[str], answers: list[_Answer]) -> list[dict[str, Any]]:
        transaction = Transaction(tuple(Statement(sql) for sql in statements), topics=TOPICS)
        try:
            outcome = await self._consensus.propose(transaction)
        except LintError as error:  # refused, and counted, where every proposal is
            raise MemberError(f"Failed to exec query: {error}") from None
        if not outcome.applied:
            raise MemberError(f"Failed to exec query: {outcome.error or outcome.label}")
        log.warning("%d statements of `admin sql` were run as entry %d", len(statements), outcome.index)
        results = []
        for number, answer in enumerate(answers):
            if answer.writes:
                changed = outcome.changed[number]
                results.append({"type": "exec", "columns": None, "rows": None, "rows_affected": changed})
            else:
                results.append(_Answer(columns=answer.columns, rows=outcome.rows[number]).shape())
        return results

    async def text(self, name: str, *, schema: bool) -> str:
        """Return the database as SQL, with `schema` only its tables. Raises BadRequestError, MemberError."""
        where = _named(name)
        facts = self._local_facts() if where == "local" else None
        return await asyncio.to_thread(self._dump, facts, schema)

    def _dump(self, facts: _LocalFacts | None, schema: bool) -> str:
        connection = self._open(facts)
        try:
            return dump(connection, schema=schema, limit_bytes=DUMP_BYTES)
        except sqlite3.Error as error:
            raise MemberError(f"Failed to dump the database: {error}") from error
        finally:
            connection.close()

    # -- reading --------------------------------------------------------------------------------------------------

    async def _ask(self, name: Name, statements: list[str]) -> list[_Answer]:
        facts = self._local_facts() if name == "local" else None
        return await asyncio.to_thread(self._read, facts, statements)

    def _read(self, facts: _LocalFacts | None, statements: list[str]) -> list[_Answer]:
        """Run what reads; in a thread. Raises MemberError."""
        connection = self._open(facts)
        writes = False

        def authorize(action: int, first: str | None, second: str | None, _db: str | None, _why: str | None) -> int:
            nonlocal writes
            if action in _READS or (action == sqlite3.SQLITE_PRAGMA and first in _PRAGMAS):
                return sqlite3.SQLITE_OK
            writes = True
            return sqlite3.SQLITE_DENY

        deadline = time.monotonic() + READ_S
        connection.set_authorizer(authorize)
        connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
        answers = []
        try:
            for sql in statements:
                writes = False
                try:
                    cursor = connection.execute(sql)
                    rows = cursor.fetchmany(MAX_ROWS + 1)
                except sqlite3.Error as error:
                    if not writes:
                        raise MemberError(f"{_failed(sql)}: {error}") from None
                    answers.append(_Answer(writes=True))
                    continue
                if len(rows) > MAX_ROWS:
                    raise MemberError(f"{_failed(sql)}: more than {MAX_ROWS} rows")
                answers.append(_Answer(columns=tuple(c[0] for c in cursor.description or ()), rows=rows))
        finally:
            connection.close()
        return answers

    def _open(self, facts: _LocalFacts | None) -> sqlite3.Connection:
        if facts is None:
            return sqlite3.connect(f"file:{self._path()}?mode=ro", uri=True, isolation_level=None, timeout=2.0)
        connection = sqlite3.connect(":memory:", isolation_level=None)
        connection.executescript(_LOCAL_SCHEMA)
        connection.executemany("INSERT INTO config (key, value) VALUES (?, ?)", facts.config)
        connection.executemany("INSERT INTO raft_nodes (id, address, role, name) VALUES (?, ?, ?, ?)", facts.nodes)
        connection.execute("INSERT INTO raft (member_id, cluster_id, term, applied) VALUES (?, ?, ?, ?)", facts.raft)
        return connection

    def _local_facts(self) -> _LocalFacts:
        """What a real Incus keeps in the database of the member itself."""
        status = self._consensus.status()
        known = {facts.id: facts for facts in cluster_queries.members(self._database, pending=True)}
        nodes = []
        for member in sorted(status.configuration.target, key=lambda m: m.id) if self._identity.clustered else ():
            facts = known.get(member.id)
            address, name = (facts.address, facts.name) if facts is not None else (member.address, "")
            nodes.append((member.id, address, _RAFT_ROLES[member.role.value], name))
        config = config_queries.member_config(self._database, self._identity.member_id)
        raft = (status.member_id, status.cluster_id, status.term, status.applied)
        return _LocalFacts(tuple(config.items()), tuple(nodes), raft)


@dataclass(frozen=True, slots=True)
class _LocalFacts:
    config: tuple[tuple[str, str], ...]
    nodes: tuple[tuple[int, str, int, str], ...]
    raft: tuple[int, str, int, int]


_LOCAL_SCHEMA = """\
CREATE TABLE config (
    id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    UNIQUE (key)
);
CREATE TABLE raft_nodes (
    id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    address TEXT NOT NULL,
    role INTEGER NOT NULL DEFAULT 0,
    name TEXT NOT NULL DEFAULT '',
    UNIQUE (address)
);
CREATE TABLE raft (
    member_id INTEGER PRIMARY KEY NOT NULL,
    cluster_id TEXT NOT NULL,
    term INTEGER NOT NULL,
    applied INTEGER NOT NULL
);
"""


def _named(name: str) -> Name:
    """Raises BadRequestError."""
    if name == "global":
        return "global"
    if name == "local":
        return "local"
    raise BadRequestError("Invalid database")


def _failed(sql: str) -> str:
    """Incus words the failure of a SELECT otherwise than that of anything else."""
    return "Failed to execute query" if sql.lstrip()[:6].upper() == "SELECT" else "Failed to exec query"
