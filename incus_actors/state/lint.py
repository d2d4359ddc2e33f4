"""Looks at SQL before it is replicated: one ordered, deterministic statement at a time.

Owns the order lint of CONSENSUS 3.11 (layer 4), called where a transaction is proposed, and the schema lint
(layer 3), called while a SCHEMA entry is applied. Must never be the only guard: `determinism.py` is the other.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import pairwise

from incus_actors.errors import BadRequestError
from incus_actors.model.transaction import Transaction

_TOKEN = re.compile(
    r"""(?P<skip>\s+|--[^\n]*|/\*.*?(?:\*/|\Z)|'(?:[^']|'')*'|"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\])
    |(?P<word>[A-Za-z_][A-Za-z_0-9$]*)|(?P<open>\()|(?P<close>\))|(?P<end>;)|(?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
_UNORDERED_AGGREGATES = frozenset({"GROUP_CONCAT", "STRING_AGG", "JSON_GROUP_ARRAY", "JSON_GROUP_OBJECT"})
_VERBS = frozenset({"INSERT", "REPLACE", "UPDATE", "DELETE", "SELECT", "VALUES", "CREATE", "ALTER", "DROP"})
_DDL = frozenset({"CREATE", "ALTER", "DROP"})
_CALL = re.compile(r"([A-Za-z_][A-Za-z_0-9]*)\s*\(")


class LintError(BadRequestError):
    """A statement whose effect could differ from member to member."""


def check_transaction(transaction: Transaction) -> None:
    """Raise LintError if a statement or guard may not be replicated."""
    for statement in transaction.statements:
        problem = _problem(statement.sql)
        if problem:
            raise LintError(f"Statement refused: {problem}: {_short(statement.sql)}")
        if _verb(statement.sql) in _DDL and not transaction.schema:
            raise LintError(f"Statement refused: only a schema transaction may do this: {_short(statement.sql)}")
    for guard in transaction.guards:
        problem = _problem(guard.sql)
        if not problem and _verb(guard.sql) not in {"SELECT", "VALUES"}:
            problem = "a guard only reads"
        if problem:
            raise LintError(f"Guard refused: {problem}: {_short(guard.sql)}")


def _short(sql: str) -> str:
    return " ".join(sql.split())[:120]


def _words(sql: str) -> Iterator[tuple[int, str]]:
    """Yield (depth of parentheses, upper-case word), with "(" and ";" as words of their own."""
    depth = 0
    for match in _TOKEN.finditer(sql):
        if match.lastgroup == "word":
            yield depth, match.group().upper()
        elif match.lastgroup == "open":
            depth += 1
        elif match.lastgroup == "close":
            depth -= 1
        elif match.lastgroup == "end":
            yield depth, ";"


@lru_cache(maxsize=1024)
def _verb(sql: str) -> str:
    top = [word for depth, word in _words(sql) if depth == 0]
    if not top or top[0] not in _VERBS | {"WITH"}:
        return ""  # EXPLAIN, PRAGMA, BEGIN ...
    return next((word for word in top if word in _VERBS), "")


@lru_cache(maxsize=1024)
def _problem(sql: str) -> str:
    """Return what is wrong with one statement, or nothing."""
    words = list(_words(sql))
    top = [word for depth, word in words if depth == 0]
    if top and top[-1] == ";":
        top.pop()
    verb = _verb(sql)
    everywhere = {word for _, word in words}
    ordered = ("ORDER", "BY") in set(pairwise(top))
    if not verb:
        return "not a statement of data or schema"
    if ";" in top and not (verb == "CREATE" and "TRIGGER" in top):
        return "one statement at a time"
    if verb in {"INSERT", "REPLACE"} and "SELECT" in top and not ordered:
        return "INSERT ... SELECT needs ORDER BY"
    if verb in {"UPDATE", "DELETE"} and "LIMIT" in top:
        return f"{verb} ... LIMIT picks rows in no certain order"
    if verb == "CREATE" and "TABLE" in top and "SELECT" in top:
        return "CREATE TABLE ... AS SELECT has no certain order"
    if everywhere & _UNORDERED_AGGREGATES and ("ORDER" not in everywhere):
        return "an aggregate that depends on order needs ORDER BY"
    return ""


def schema_problems(connection: sqlite3.Connection, tables: Iterable[str], known: frozenset[str]) -> list[str]:
    """Return what is wrong with these new tables: each has a primary key that no page layout decides (an INTEGER
    PRIMARY KEY, or WITHOUT ROWID), its defaults call only `known` functions, and no check waits for the commit."""
    problems: list[str] = []
    for table in sorted(tables):
        columns = connection.execute(
            "SELECT name, type, pk, dflt_value FROM pragma_table_xinfo(?)", (table,)
        ).fetchall()
        sql = str(connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", (table,)).fetchone()[0])
        words = [word for _, word in _words(sql)]
        keys = [column for column in columns if column[2]]
        rowid_alias = len(keys) == 1 and str(keys[0][1]).upper() == "INTEGER"
        if not rowid_alias and "WITHOUT" not in words:
            problems.append(f"table {table} has neither an INTEGER PRIMARY KEY nor WITHOUT ROWID")
        if "DEFERRED" in words:
            problems.append(f"table {table} has a deferred constraint, which would fail at commit")
        for name, _, _, default in columns:
            unknown = {call.lower() for call in _CALL.findall(str(default or ""))} - known
            if unknown:
                problems.append(f"column {table}.{name} has a default that calls {', '.join(sorted(unknown))}")
    return problems
