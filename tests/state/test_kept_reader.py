"""Answers are kept only while nothing changes, and never across generations."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_database import write

from incus_actors.errors import UnavailableError
from incus_actors.state.database import Database
from incus_actors.state.kept_reader import LIMIT, KeptReader


class Counting(Database):
    """Counts what is really asked."""

    asked = 0

    def query(self, sql, params=()):
        self.asked += 1
        return super().query(sql, params)


def test_asks_once_until_it_is_told_to_forget(tmp_path: Path) -> None:
    path = tmp_path / "one.db"
    write(path, "CREATE TABLE t (a); INSERT INTO t (a) VALUES (1)")
    database = Counting(path)
    kept = KeptReader(database)
    assert [kept.scalar("SELECT a FROM t WHERE a = ?", (1,)) for _ in range(5)] == [1] * 5
    assert kept.one("SELECT a FROM t WHERE a = ?", (2,)) is None
    assert kept.scalar("SELECT a FROM t WHERE a = ?", (2,)) is None
    assert database.asked == 2
    write(path, "INSERT INTO t (a) VALUES (2)")
    assert kept.scalar("SELECT a FROM t WHERE a = ?", (2,)) is None
    kept.forget()
    assert kept.scalar("SELECT a FROM t WHERE a = ?", (2,)) == 2
    assert database.asked == 3
    database.close()


def test_another_file_is_another_answer(tmp_path: Path) -> None:
    for number in (1, 2):
        write(tmp_path / f"{number}.db", f"CREATE TABLE t (a); INSERT INTO t (a) VALUES ({number})")
    database = Database()
    kept = KeptReader(database)
    with pytest.raises(UnavailableError):
        kept.query("SELECT a FROM t")
    for number in (1, 2, 1):
        database.switch(tmp_path / f"{number}.db")
        assert kept.scalar("SELECT a FROM t") == number
    database.switch(None)
    with pytest.raises(UnavailableError):
        kept.query("SELECT a FROM t")


def test_it_does_not_grow_without_end(tmp_path: Path) -> None:
    path = tmp_path / "one.db"
    write(path, "CREATE TABLE t (a)")
    database = Counting(path)
    kept = KeptReader(database)
    for number in range(LIMIT + 1):
        kept.query("SELECT a FROM t WHERE a = ?", (number,))
    kept.query("SELECT a FROM t WHERE a = ?", (0,))
    assert database.asked == LIMIT + 2
    database.close()
