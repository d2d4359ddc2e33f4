"""Looks at SQL before it is replicated: one ordered, deterministic statement at a time.

Owns the order lint of CONSENSUS 3.11 (layer 4), called where a transaction is proposed, and the schema lint
(layer 3), called while a SCHEMA entry is applied. Must never be the only guard: `determinism.py` is the other.
"""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import TypeAlias

from incus_actors.errors import BadRequestError
from incus_actors.model.transaction import Transaction
from incus_actors.state.determinism import KNOWN, TIME_FUNCTIONS, TOO_NEW, ZONES

_TOKEN = re.compile(
    r"""(?P<skip>\s+|--[^\n]*|/\*.*?(?:\*/|\Z))
    |(?P<text>'(?:[^']|'')*')|(?P<name>"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\])
    |(?P<word>[A-Za-z_][A-Za-z_0-9$]*)|(?P<number>\d[\w.]*)|(?P<open>\()|(?P<close>\))
    |(?P<other>[?:@$]\w+|.)""",
    re.VERBOSE | re.DOTALL,
)
_UNORDERED_AGGREGATES = frozenset({"GROUP_CONCAT", "STRING_AGG", "JSON_GROUP_ARRAY", "JSON_GROUP_OBJECT"})
_VERBS = frozenset({"INSERT", "REPLACE", "UPDATE", "DELETE", "SELECT", "VALUES", "CREATE", "ALTER", "DROP"})
_DDL = frozenset({"CREATE", "ALTER", "DROP"})
_QUERY = frozenset({"SELECT", "VALUES", "WITH"})
#: What ends a FROM clause.
_AFTER_FROM = frozenset("WHERE GROUP HAVING WINDOW ORDER LIMIT UNION EXCEPT INTERSECT RETURNING ON ;".split())  # noqa: SIM905


class LintError(BadRequestError):
    """A statement whose effect could differ from member to member."""


@dataclass(eq=False, slots=True)
class _Scope:
    """What is between two parentheses, or all that is outside of any: words in upper case, quoted names and texts with
    their quotation mark before them, marks, and the scopes inside. `before` is the item in front of the parenthesis."""

    before: _Item = ""
    items: list[_Item] = field(default_factory=list)

    @property
    def ordered(self) -> bool:
        """Whether it has an ORDER BY of its own."""
        return _ordered(self.items)


_Item: TypeAlias = "str | _Scope"


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


def only_deletes(transaction: Transaction) -> bool:
    """Whether all that this transaction does to rows is to remove them."""
    verbs = {_verb(statement.sql) for statement in transaction.statements}
    return "DELETE" in verbs and verbs <= {"DELETE", "SELECT"}


def _short(sql: str) -> str:
    return " ".join(sql.split())[:120]


def _scopes(sql: str) -> list[_Scope]:
    """Return all scopes, the outermost first."""
    found = [_Scope()]
    stack = [found[0]]
    for match in _TOKEN.finditer(sql):
        kind, text, items = match.lastgroup, match.group(), stack[-1].items
        if kind == "open":
            inner = _Scope(items[-1] if items else "")
            items.append(inner)
            found.append(inner)
            stack.append(inner)
        elif kind == "close":
            del stack[max(1, len(stack) - 1) :]
        elif kind == "name":
            items.append(f'"{text[1:-1].upper()}')
        elif kind == "text":
            items.append(f"'{text[1:-1].upper()}")
        elif kind != "skip":
            items.append(text.upper())
    return found


def _ordered(items: list[_Item]) -> bool:
    return ("ORDER", "BY") in pairwise(items)


def _called(item: _Item) -> str:
    """Return the function that is called if a parenthesis follows this item, in upper case."""
    return item.lstrip('"') if isinstance(item, str) else ""


@lru_cache(maxsize=1024)
def _verb(sql: str) -> str:
    return _verb_of(_scopes(sql)[0].items)


def _verb_of(items: list[_Item]) -> str:
    if not items or items[0] not in _VERBS | {"WITH"}:
        return ""  # EXPLAIN, PRAGMA, BEGIN ...
    return next((item for item in items if isinstance(item, str) and item in _VERBS), "")


@lru_cache(maxsize=1024)
def _problem(sql: str) -> str:
    """Return what is wrong with one statement, or nothing."""
    scopes = _scopes(sql)
    top = scopes[0].items
    if top and top[-1] == ";":
        top.pop()
    problem = _trigger_problem(top) if top[:2] == ["CREATE", "TRIGGER"] else _statement_problem(top)
    return problem or next(filter(None, (_scope_problem(scope) for scope in scopes[1:])), "")


def _trigger_problem(items: list[_Item]) -> str:
    """Look at each statement of a trigger's body."""
    if "BEGIN" not in items or items[-2:] != [";", "END"]:
        return "a trigger has a body"
    body: list[list[_Item]] = [[]]
    for item in items[items.index("BEGIN") + 1 : -2]:
        if item == ";":
            body.append([])
        else:
            body[-1].append(item)
    return next(filter(None, map(_statement_problem, body)), "")


def _statement_problem(items: list[_Item]) -> str:
    verb = _verb_of(items)
    if not verb:
        return "not a statement of data or schema"
    if ";" in items:
        return "one statement at a time"
    if verb in {"INSERT", "REPLACE"} and "SELECT" in items and not _ordered(items):
        return "INSERT ... SELECT needs ORDER BY"
    if verb in {"UPDATE", "DELETE"} and "LIMIT" in items:
        return f"{verb} ... LIMIT picks rows in no certain order"
    if verb == "CREATE" and "TABLE" in items and "SELECT" in items:
        return "CREATE TABLE ... AS SELECT has no certain order"
    return _scope_problem(_Scope("", items))


def _scope_problem(scope: _Scope) -> str:
    """Look at what stands in one scope; scopes inside are looked at by themselves."""
    items = scope.items
    if "LIMIT" in items and not scope.ordered:
        return "LIMIT needs ORDER BY beside it"
    call = _called(scope.before)
    if scope.ordered and call not in {"", "OVER", "AS"} and items[0] not in _QUERY:
        return "ORDER BY inside an aggregate is not known to SQLite before 3.44; order a subquery in FROM"
    if call.lower() in TIME_FUNCTIONS and any(
        isinstance(item, str) and item[1:].strip().lower() in ZONES for item in items
    ):
        return f"{call.lower()}() knows no time zones: they differ from member to member"
    if call.lower() in TOO_NEW:
        return f"{call.lower()}() is not known to the oldest SQLite that a member may have"
    for place, (item, following) in enumerate(pairwise(items)):
        aggregate = isinstance(following, _Scope) and _called(item) in _UNORDERED_AGGREGATES
        if aggregate and not _fed_in_order(items, place + 2):
            return "an aggregate that depends on order needs ORDER BY in the subquery that it reads FROM"
    if any(isinstance(item, str) and item[:1].isdigit() and "_" in item for item in items):
        return "digits with _ between them are not known to SQLite before 3.46"
    return ""


def _fed_in_order(items: list[_Item], place: int) -> bool:
    """Whether the aggregate whose call ends before `place` gets its rows in order: from a window that has one, or
    from nothing but a subquery that has one."""
    if items[place : place + 1] == ["FILTER"]:
        place += 2
    if items[place : place + 1] == ["OVER"]:
        window = items[place + 1] if place + 1 < len(items) else ""
        return isinstance(window, _Scope) and window.ordered
    start = next((n for n in range(place, len(items)) if items[n] == "FROM" or items[n] in _AFTER_FROM), len(items))
    end = next((n for n in range(start, len(items)) if items[n] in _AFTER_FROM), len(items))
    source = items[start + 1 : end]
    joined = "," in source or "JOIN" in source
    return bool(source) and isinstance(source[0], _Scope) and source[0].ordered and not joined


def schema_problems(connection: sqlite3.Connection) -> list[str]:
    """Return what is wrong with the application's tables.

    Each is STRICT, has a primary key that no page layout decides (an INTEGER PRIMARY KEY that is the rowid, or
    WITHOUT ROWID) and no counter in sqlite_sequence: when AUTOINCREMENT is at its end, SQLite says "disk full", which
    a member waits for and does not answer. Its defaults call only functions that are the same everywhere, and no
    check waits for the commit. All tables are looked at, because ALTER TABLE changes old ones.
    """
    problems: list[str] = []
    tables = connection.execute(
        "SELECT t.name, t.wr, t.strict, s.sql FROM pragma_table_list t JOIN sqlite_master s ON s.name = t.name"
        " WHERE t.schema = 'main' AND s.type = 'table' AND t.name NOT LIKE 'sqlite~_%' ESCAPE '~' ORDER BY t.name"
    ).fetchall()
    for table, without_rowid, strict, sql in tables:
        items = [item for scope in _scopes(sql) for item in scope.items]
        if not strict:
            problems.append(f"table {table} is not STRICT")
        if not without_rowid and not _has_rowid_alias(connection, table):
            problems.append(f"table {table} has neither an INTEGER PRIMARY KEY nor WITHOUT ROWID")
        if "AUTOINCREMENT" in items:
            problems.append(f"table {table} has AUTOINCREMENT")
        if "DEFERRED" in items:
            problems.append(f"table {table} has a deferred constraint, which would fail at commit")
        for name, default in connection.execute("SELECT name, dflt_value FROM pragma_table_xinfo(?)", (table,)):
            called = {_called(scope.before).lower() for scope in _scopes(str(default or ""))} - {""}
            if called - KNOWN:
                problems.append(f"column {table}.{name} has a default that calls {', '.join(sorted(called - KNOWN))}")
    return problems


def _has_rowid_alias(connection: sqlite3.Connection, table: str) -> bool:
    """Whether the primary key is the rowid. A key that is not has an index, as `INTEGER PRIMARY KEY DESC` has."""
    keys = connection.execute("SELECT COUNT(*) FROM pragma_table_xinfo(?) WHERE pk > 0", (table,)).fetchone()[0]
    indexes = connection.execute("SELECT COUNT(*) FROM pragma_index_list(?) WHERE origin = 'pk'", (table,))
    return bool(keys) and not indexes.fetchone()[0]
