"""The hash of a whole state: equal where the content is, and nothing else; damage never goes unseen."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from state_kit import ScratchState

from incus_actors.state.whole_hash import whole_hash


def hash_of(path: Path) -> tuple[bytes, str]:
    connection = sqlite3.connect(path)
    try:
        return whole_hash(connection, connection.execute)
    finally:
        connection.close()


def change(path: Path, *sql: str) -> None:
    with sqlite3.connect(path, isolation_level=None) as connection:
        for statement in sql:
            connection.execute(statement)
    connection.close()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    scratch = ScratchState(tmp_path)
    scratch.sql("INSERT INTO config (key, value) VALUES ('user.a', '1')")
    scratch.close()
    return tmp_path / "state.db"


def test_equal_content_in_another_file_layout_has_the_same_hash(state: Path) -> None:
    before = hash_of(state)
    assert before[1] == ""
    change(
        state,
        "INSERT INTO config (key, value) VALUES ('user.z', '1')",
        "DELETE FROM config WHERE key = 'user.z'",
        "VACUUM",
        "UPDATE _raft SET digest = x'00', applied_index = applied_index + 1",
    )
    assert hash_of(state) == before


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE config SET value = '2' WHERE key = 'user.a'",
        "DELETE FROM config WHERE key = 'user.a'",
        "UPDATE _sessions SET ts = ts + 1 WHERE idx = 1",
        "CREATE INDEX another ON config (value)",
        "CREATE TABLE another (id INTEGER PRIMARY KEY) STRICT",
        "UPDATE config SET value = CAST(x'ff' AS TEXT) WHERE key = 'user.a'",
    ],
)
def test_whatever_differs_shows(state: Path, sql: str) -> None:
    before, _ = hash_of(state)
    change(state, sql)
    assert hash_of(state)[0] != before


def test_an_index_that_lacks_a_row_shows_although_all_rows_are_there(state: Path) -> None:
    """What a lost page of an index is: rows that some queries find and some don't."""
    change(state, "CREATE TABLE extra (id INTEGER PRIMARY KEY, a TEXT) STRICT", "INSERT INTO extra VALUES (1, 'one')")
    change(state, "CREATE INDEX by_a ON extra (a)")
    before = hash_of(state)
    with sqlite3.connect(state, isolation_level=None) as connection:
        root, text = connection.execute("SELECT rootpage, sql FROM sqlite_master WHERE name = 'by_a'").fetchone()
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("DELETE FROM sqlite_master WHERE name = 'by_a'")
    connection.close()
    change(state, "INSERT INTO extra VALUES (2, 'two')")  # without the index, which does not get it
    with sqlite3.connect(state, isolation_level=None) as connection:
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute(
            "INSERT INTO sqlite_master (type, name, tbl_name, rootpage, sql) VALUES ('index', 'by_a', 'extra', ?, ?)",
            (root, text),
        )
    connection.close()
    found, damage = hash_of(state)
    assert "by_a" in damage
    assert found != before[0]


def test_a_page_of_noise_has_a_hash_and_a_reason(state: Path) -> None:
    before, _ = hash_of(state)
    size = 4096
    with state.open("r+b") as file:
        file.seek(3 * size)
        file.write(b"\xa5" * size)
    found, damage = hash_of(state)
    assert found != before
    assert damage
