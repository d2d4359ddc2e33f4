"""The journal of a join: from any interruption there is one whole database to start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from incus_actors.consensus import bootstrap
from incus_actors.consensus.types import Configuration, Member
from incus_actors.security import certificates
from incus_actors.services.join_journal import JoinJournal, recover

CLUSTER = b"0123456789abcdef"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    bootstrap.create_standalone(tmp_path / "database", address="")
    (tmp_path / "database" / "local.db").write_text("ours")
    return tmp_path


def replace(directory: Path) -> None:
    bootstrap.replace_database(
        directory / "database",
        cluster_id=CLUSTER,
        epoch=1,
        member_id=2,
        configuration=Configuration((Member(1, "a"),)),
    )


def member_of_log(directory: Path) -> int:
    import sqlite3

    connection = sqlite3.connect(directory / "database" / "log.db")
    try:
        return int(connection.execute("SELECT value FROM meta WHERE key = 'member_id'").fetchone()[0])
    finally:
        connection.close()


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_nothing_to_recover(directory):
    assert recover(directory) == "none"
    assert names(directory) == {"database"}


def test_a_switch_that_was_killed_is_undone(directory):
    journal = JoinJournal(directory)
    journal.write("switching", 2)
    certificates.write_pair(directory, "cluster", *certificates.make_certificate("h"))
    replace(directory)
    assert member_of_log(directory) == 2
    assert recover(directory) == "switching"
    assert member_of_log(directory) == 1
    assert (directory / "database" / "local.db").read_text() == "ours"
    assert names(directory) == {"database"}
    assert recover(directory) == "none"


def test_a_replacement_that_was_only_prepared_is_undone(directory):
    JoinJournal(directory).write("switching", 2)
    (directory / "database.new").mkdir()
    recover(directory)
    assert member_of_log(directory) == 1
    assert names(directory) == {"database"}


@pytest.mark.parametrize("failed_is_there", [False, True])
def test_undoing_can_be_interrupted_itself(directory, failed_is_there):
    JoinJournal(directory).write("switching", 2)
    replace(directory)
    (directory / "database").rename(directory / "database.failed-join")
    if not failed_is_there:
        (directory / "database.failed-join").rename(directory / "elsewhere")
    recover(directory)
    assert member_of_log(directory) == 1
    assert "join.json" not in names(directory)


def test_what_may_be_confirmed_is_never_undone(directory):
    journal = JoinJournal(directory)
    journal.write("switching", 2)
    replace(directory)
    journal.write("confirming", 2)
    assert recover(directory) == "confirming"
    assert member_of_log(directory) == 2
    journal.finish()
    assert names(directory) == {"database"}
    assert journal.phase() == "none"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"phase": "confirmed"}'])
def test_an_odd_journal_is_read_carefully(directory, text):
    (directory / "join.json").write_text(text)
    assert JoinJournal(directory).phase() == "switching"
    recover(directory)
    assert member_of_log(directory) == 1
