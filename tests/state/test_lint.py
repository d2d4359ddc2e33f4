"""What may be proposed."""

from __future__ import annotations

import pytest

from incus_actors.model.transaction import Guard, Statement, Transaction
from incus_actors.state.lint import LintError, check_transaction


def check(sql: str, *, schema: bool = False) -> None:
    check_transaction(Transaction((Statement(sql),), schema=schema))


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO t (a) VALUES (?)",
        "INSERT INTO t (a) SELECT a FROM u ORDER BY a",
        "INSERT INTO t (a) VALUES ((SELECT id FROM u WHERE name = ?))",
        "INSERT INTO t (a) VALUES (1) ON CONFLICT (a) DO UPDATE SET b = excluded.b RETURNING id",
        "WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x ORDER BY 1",
        "UPDATE t SET a = (SELECT b FROM u ORDER BY b LIMIT 1);",
        "DELETE FROM t WHERE a = 'x LIMIT 1; SELECT'",
        "SELECT group_concat(a) FROM (SELECT a FROM t ORDER BY a)",
        "-- a comment; with a semicolon\nDELETE FROM t",
        'DELETE FROM "limit" WHERE `select` = [order]',
    ],
)
def test_ordered_statements_pass(sql: str) -> None:
    check(sql)


@pytest.mark.parametrize(
    ("sql", "why"),
    [
        ("INSERT INTO t SELECT * FROM u", "needs ORDER BY"),
        ("INSERT INTO t WITH x AS (SELECT 1 ORDER BY 1) SELECT * FROM x", "needs ORDER BY"),
        ("REPLACE INTO t SELECT * FROM u", "needs ORDER BY"),
        ("DELETE FROM t LIMIT 1", "no certain order"),
        ("UPDATE t SET a = 1 LIMIT 1", "no certain order"),
        ("SELECT group_concat(a) FROM t", "needs ORDER BY"),
        ("DELETE FROM t; DELETE FROM u", "one statement at a time"),
        ("PRAGMA foreign_keys = OFF", "not a statement"),
        ("EXPLAIN SELECT 1", "not a statement"),
        ("", "not a statement"),
        ("CREATE TABLE t (id INTEGER PRIMARY KEY)", "only a schema transaction"),
        ("DROP TABLE t", "only a schema transaction"),
    ],
)
def test_unordered_and_foreign_ones_are_refused(sql: str, why: str) -> None:
    with pytest.raises(LintError, match=why):
        check(sql)


def test_schema_transactions_may_define() -> None:
    check("CREATE TABLE t (id INTEGER PRIMARY KEY)", schema=True)
    check("CREATE TRIGGER x AFTER INSERT ON t BEGIN DELETE FROM u; DELETE FROM v; END", schema=True)
    with pytest.raises(LintError, match="no certain order"):
        check("CREATE TABLE t AS SELECT * FROM u", schema=True)


def test_guards_only_read() -> None:
    check_transaction(Transaction((), guards=(Guard("SELECT 1", (), ((1,),), "x"),)))
    with pytest.raises(LintError, match="only reads"):
        check_transaction(Transaction((), guards=(Guard("DELETE FROM t", (), (), "x"),)))
