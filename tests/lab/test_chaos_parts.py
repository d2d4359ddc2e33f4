"""The judge of a nemesis run must find what is wrong, and the clients must not call a write failed that may have happened."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest

from incus_actors.cli.chaos import judge, summary
from incus_actors.consensus.opening import check_state
from incus_actors.lab.chaos import ChaosResult
from incus_actors.lab.client import RequestFailedError
from incus_actors.lab.disk_faults import damage_state, flip_bit
from incus_actors.lab.member_faults import empty
from incus_actors.lab.registers import UNKNOWN_NS, Operation, Registers, happened_not
from incus_actors.lab.schedule import ALONE, NEED_LOOP, NEED_TRACE, PROCESS, WEIGHTS, choose
from incus_actors.lab.writers import Attempt, LostWrite

MS = 1_000_000
WRITTEN = [[Attempt("k", 1, "m1", 0, 1, True)]]


def call(kind: str, start: int, end: int, **values: object) -> Operation:
    return Operation("r", kind, "m1", start * MS, end if end == UNKNOWN_NS else end * MS, **values)


def result(*operations: Operation, **values: object) -> ChaosResult:
    return ChaosResult(
        **{"seed": 1, "faults": [], "operations": list(operations), "attempts": WRITTEN, "failures": {}, **values}
    )


def test_a_good_history_is_good() -> None:
    assert (
        judge(
            result(
                call("read", 0, 1),
                call("write", 0, 5, value="a"),
                call("cas", 6, 7, expected="a", value="b", result=True),
                call("cas", 8, 9, expected="a", value="c", result=False),
                call("write", 9, UNKNOWN_NS, value="d"),
                call("read", 10, 11, result="b"),
                call("read", 12, 13, result="d"),
            )
        )
        == []
    )


@pytest.mark.parametrize(
    "operations",
    [
        [call("write", 0, 1, value="a"), call("read", 2, 3, result=None)],  # lost, or a stale read
        [call("write", 0, 1, value="a"), call("cas", 2, 3, expected="a", value="b", result=False)],
        [call("write", 0, 1, value="a"), call("cas", 2, 3, expected="x", value="b", result=True)],
        [
            call("write", 0, UNKNOWN_NS, value="a"),
            call("read", 2, 3, result="a"),
            call("read", 4, 5, result=None),  # it had happened, and then it had not
        ],
    ],
)
def test_a_bad_history_is_found(operations: list[Operation]) -> None:
    assert judge(result(*operations)) == [f"r is not linearizable ({len(operations)} operations)"]


def test_everything_else_that_is_wrong_is_said() -> None:
    bad = result(lost=[LostWrite("k", 7, 6)], problems=["m2 ended by itself"])
    assert judge(bad) == ["m2 ended by itself", "lost: k was acknowledged at 7, is 6"]
    assert judge(result(attempts=[])) == ["nothing was written: the run shows nothing"]
    assert "1 lost" in summary(bad)


@pytest.mark.parametrize(
    ("status", "text", "sure"),
    [
        (503, "Failed to begin transaction: no available leader found: needs 2 of 3 voters", True),
        (503, "Failed to begin transaction: the disk of the database is full", True),
        (404, "Profile not found", True),
        (503, "Shutting down", True),
        (503, "Failed to commit transaction: its outcome is not known", False),
        (503, "Failed to commit transaction: no answer in time", False),
        (500, "something else", False),
    ],
)
def test_what_counts_as_not_happened(status: int, text: str, sure: bool) -> None:
    assert happened_not(RequestFailedError(status, text)) is sure


def test_the_same_seed_draws_the_same_faults() -> None:
    def drawn() -> list[list[type]]:
        rng = random.Random(5)
        return [choose(rng) for _ in range(1000)]

    assert drawn() == drawn()
    assert {kind for kinds in drawn() for kind in kinds} == set(WEIGHTS)
    for kinds in drawn():
        assert len(kinds) == 1 or not ALONE & set(kinds)
        assert len(set(kinds) & PROCESS) <= 1
    rng = random.Random(6)
    without = NEED_LOOP | NEED_TRACE
    assert not {kind for _ in range(500) for kind in choose(rng, without=without)} & without


def test_what_could_cost_a_majority_its_disks_strikes_alone() -> None:
    assert {kind for kind in WEIGHTS if "disk_faults" in kind.__module__} <= ALONE
    assert {kind for kind in WEIGHTS if "member_faults" in kind.__module__} <= ALONE
    assert not PROCESS & ALONE


def test_registers_are_replaced_before_they_get_too_hard_to_judge() -> None:
    registers = Registers([], random.Random(1), count=1, life=5)
    registers._current = ["a"]
    assert [registers.pick() for _ in range(6)] == ["a"] * 5 + [None]
    registers._current = ["b"]
    for _ in range(10):
        registers.unclear("b")
    assert [registers.pick(), registers.pick()] == ["b", None]


def state_file(tmp_path: Path) -> Path:
    path = tmp_path / "global-1.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=WAL")
    with connection:
        connection.execute("CREATE TABLE t (a TEXT)")
        connection.executemany("INSERT INTO t VALUES (?)", [("x" * 300,)] * 200)
    connection.close()
    return path


@pytest.mark.parametrize("how", ["deleted", "cut", "garbled"])
def test_a_state_is_damaged_so_that_a_start_can_notice(tmp_path: Path, how: str) -> None:
    path = state_file(tmp_path)
    assert check_state(path) == ""
    damage_state(path, how)
    assert path.exists() is (how != "deleted")
    if how != "deleted":
        assert check_state(path) != ""


def test_one_bit_is_flipped(tmp_path: Path) -> None:
    path = tmp_path / "log.db-wal"
    path.write_bytes(bytes(100))
    assert flip_bit(path, 40, 3) == 40
    assert path.read_bytes() == bytes(40) + b"\x08" + bytes(59)


def test_a_replaced_disk_is_empty_and_still_there(tmp_path: Path) -> None:
    (tmp_path / "database").mkdir()
    (tmp_path / "database" / "log.db").write_bytes(b"x")
    (tmp_path / "guests").symlink_to(tmp_path / "database")
    (tmp_path / "server.crt").write_bytes(b"x")
    empty(tmp_path)
    assert list(tmp_path.iterdir()) == []
