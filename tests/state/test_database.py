"""Readers: read-only, up to date, consistent in a snapshot, following generations."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from incus_actors.errors import UnavailableError
from incus_actors.state.apply import Applier
from incus_actors.state.database import Database


def write(path: Path, sql: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.executescript(sql)
    connection.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "one.db", "CREATE TABLE t (id INTEGER PRIMARY KEY, a); INSERT INTO t (a) VALUES (1)")
    return tmp_path / "one.db"


def test_reads_by_name_and_sees_every_commit(path: Path) -> None:
    database = Database(path)
    row = database.one("SELECT id, a FROM t WHERE a = ?", (1,))
    assert row is not None
    assert (row["id"], row["a"]) == (1, 1)
    assert database.one("SELECT 1 FROM t WHERE a = 5") is None
    assert database.scalar("SELECT a FROM t WHERE a = 5") is None
    write(path, "INSERT INTO t (a) VALUES (2)")
    assert [row["a"] for row in database.query("SELECT a FROM t ORDER BY a")] == [1, 2]
    database.close()


def test_can_not_write(path: Path) -> None:
    database = Database(path)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        database.query("INSERT INTO t (a) VALUES (3)")


def test_a_snapshot_stands_still_while_others_move_on(path: Path) -> None:
    database = Database(path)
    with database.snapshot() as first, database.snapshot() as second:
        write(path, "INSERT INTO t (a) VALUES (2)")
        assert first.scalar("SELECT COUNT(*) FROM t") == second.scalar("SELECT COUNT(*) FROM t") == 1
        assert database.scalar("SELECT COUNT(*) FROM t") == 2
    with database.snapshot() as again:
        assert again.scalar("SELECT COUNT(*) FROM t") == 2


def test_a_failing_block_does_not_poison_the_next(path: Path) -> None:
    database = Database(path)
    with pytest.raises(sqlite3.OperationalError), database.snapshot() as snapshot:
        snapshot.query("SELECT nonsense")
    write(path, "INSERT INTO t (a) VALUES (2)")
    with database.snapshot() as snapshot:
        assert snapshot.scalar("SELECT COUNT(*) FROM t") == 2


def test_switches_to_another_generation(path: Path, tmp_path: Path) -> None:
    write(tmp_path / "two.db", "CREATE TABLE t (id INTEGER PRIMARY KEY, a)")
    database = Database(path)
    with database.snapshot() as old:
        database.switch(tmp_path / "two.db")
        assert old.scalar("SELECT COUNT(*) FROM t") == 1
        assert database.scalar("SELECT COUNT(*) FROM t") == 0
    with database.snapshot() as new:
        assert new.scalar("SELECT COUNT(*) FROM t") == 0


def test_says_so_when_there_is_nothing_to_read() -> None:
    database = Database()
    with pytest.raises(UnavailableError, match="starting up"):
        database.query("SELECT 1")


def test_an_empty_state_is_unavailable_but_can_be_asked_what_it_has(tmp_path):
    """A server that joins a cluster has nothing applied for a moment: that is no error of the SQL."""
    Applier(tmp_path / "empty.db").close()
    database = Database(tmp_path / "empty.db")
    assert database.scalar("SELECT COUNT(*) FROM sqlite_master WHERE name = 'schema'") == 0
    with pytest.raises(UnavailableError):
        database.query("SELECT id FROM nodes")
    with pytest.raises(sqlite3.OperationalError):
        database.query("SELECT nope FROM sqlite_master")
    database.close()
