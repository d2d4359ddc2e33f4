"""What may be proposed."""

from __future__ import annotations

import sqlite3
from contextlib import closing

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
        "SELECT b, json_group_array(a, b) FROM (SELECT a, b FROM t ORDER BY a) AS s WHERE a > 1 GROUP BY b",
        "SELECT group_concat(a) FILTER (WHERE a > 1) OVER (PARTITION BY b ORDER BY a) FROM t",
        "SELECT row_number() OVER w FROM t WINDOW w AS (PARTITION BY b ORDER BY a)",
        "INSERT INTO t SELECT a FROM u UNION SELECT b FROM v ORDER BY 1 LIMIT 3",
        "DELETE FROM t WHERE a = :limit OR a = 1.5e1 OR a = 0xFF",
        "-- a comment; with a semicolon\nDELETE FROM t",
        "UPDATE t SET a = datetime('now', '+1 day'), b = 'localtime', c = lower('utc')",
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
        ("INSERT INTO t SELECT group_concat(a) FROM n ORDER BY 1", "needs ORDER BY in the subquery"),
        ("SELECT [group_concat](a) FROM n", "needs ORDER BY in the subquery"),
        ("SELECT group_concat(a) FROM (SELECT a FROM n), (SELECT b FROM n ORDER BY b)", "in the subquery"),
        ("SELECT group_concat(a) FROM (SELECT a FROM n ORDER BY a) JOIN m", "needs ORDER BY in the subquery"),
        ("SELECT group_concat(a) OVER (PARTITION BY b) FROM n ORDER BY b", "needs ORDER BY in the subquery"),
        ("SELECT group_concat(a) UNION SELECT 1 FROM (SELECT 2 ORDER BY 1)", "needs ORDER BY in the subquery"),
        ("SELECT group_concat(a ORDER BY a) FROM n", "in the subquery"),
        ("SELECT group_concat(a ORDER BY a) FROM (SELECT a FROM n ORDER BY a)", "before 3.44"),
        ("SELECT sum(a ORDER BY a) FROM n", "before 3.44"),
        ("DELETE FROM t WHERE id IN (SELECT id FROM u LIMIT 1)", "LIMIT needs ORDER BY"),
        ("DELETE FROM t WHERE id IN (SELECT id FROM u LIMIT 1) AND b = (SELECT b FROM u ORDER BY b)", "LIMIT needs"),
        ("UPDATE t SET a = (SELECT b FROM (SELECT b FROM u ORDER BY b) LIMIT 1)", "LIMIT needs ORDER BY"),
        ("UPDATE t SET a = 1_000", "before 3.46"),
        ("UPDATE t SET a = octet_length('x')", "oldest SQLite"),
        ("UPDATE t SET a = \"unhex\" ('61')", "oldest SQLite"),
        ("UPDATE t SET a = datetime('now', 'localtime')", "knows no time zones"),
        ("UPDATE t SET a = date (a, '+1 day', ' UTC ')", "knows no time zones"),
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
    check(
        "CREATE TRIGGER x AFTER INSERT ON t WHEN CASE new.a WHEN 1 THEN 1 END BEGIN"
        " INSERT INTO u SELECT a FROM t ORDER BY a; UPDATE u SET b = CASE WHEN 1 THEN 2 END; END;",
        schema=True,
    )
    with pytest.raises(LintError, match="no certain order"):
        check("CREATE TABLE t AS SELECT * FROM u", schema=True)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("BEGIN INSERT INTO b SELECT a FROM a; END", "needs ORDER BY"),
        ("BEGIN DELETE FROM b; INSERT INTO b SELECT a FROM a; END", "needs ORDER BY"),
        ("BEGIN INSERT INTO b SELECT group_concat(a) FROM a ORDER BY 1; END", "needs ORDER BY in the subquery"),
        ("BEGIN UPDATE b SET a = (SELECT a FROM a LIMIT 1); END", "LIMIT needs ORDER BY"),
        ("BEGIN SELECT 1; END; DELETE FROM b", "has a body"),
        ("BEGIN PRAGMA foreign_keys = OFF; END", "not a statement"),
        ("BEGIN ; END", "not a statement"),
        ("DELETE FROM b", "has a body"),
    ],
)
def test_each_statement_of_a_trigger_is_looked_at(body: str, why: str) -> None:
    with pytest.raises(LintError, match=why):
        check(f"CREATE TRIGGER x AFTER INSERT ON a {body}", schema=True)


def test_the_ordered_subquery_feeds_the_aggregate_in_order() -> None:
    """The form that the lint asks for does what it says in the SQLite that we run on."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE n (a TEXT, b INTEGER)")
        connection.executemany("INSERT INTO n VALUES (?, ?)", [("c", 1), ("a", 2), ("d", 1), ("b", 2)])
        asked = "SELECT group_concat(a) FROM (SELECT a, b FROM n ORDER BY a DESC)"
        assert connection.execute(asked).fetchall() == [("d,c,b,a",)]
        assert connection.execute(asked + " GROUP BY b").fetchall() == [("d,c",), ("b,a",)]


def test_guards_only_read() -> None:
    check_transaction(Transaction((), guards=(Guard("SELECT 1", (), ((1,),), "x"),)))
    with pytest.raises(LintError, match="only reads"):
        check_transaction(Transaction((), guards=(Guard("DELETE FROM t", (), (), "x"),)))
