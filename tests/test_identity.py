"""Who this member says it is, through bootstrap, a join and an exchanged database."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest

from incus_actors.errors import UnavailableError
from incus_actors.identity import Identity


class Rows:
    """A database with one row, or a failure."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def one(self, _sql: str, _params: Any = ()) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def identity(answer: Any) -> Identity:
    found = Identity(database=lambda: Rows(answer), member_id=lambda: 2, hostname="host")
    found.refresh()
    return found


def test_a_member():
    found = identity({"name": "node2", "address": "10.0.0.2:8443", "state": 0})
    assert (found.member_id, found.name, found.location, found.server_name) == (2, "node2", "node2", "node2")
    assert found.clustered


@pytest.mark.parametrize(
    "answer",
    [
        {"name": "none", "address": "0.0.0.0", "state": 0},
        {"name": "node2", "address": "10.0.0.2:8443", "state": 1},
        None,
        sqlite3.OperationalError("no such table: nodes"),
        UnavailableError("Daemon is starting up"),
    ],
)
def test_not_a_member(answer):
    found = identity(answer)
    assert not found.clustered
    assert (found.name, found.location, found.server_name) == ("none", "none", "host")
