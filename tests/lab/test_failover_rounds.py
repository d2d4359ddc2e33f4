"""Phases of a failover, read from the journal of the survivors."""

from __future__ import annotations

from typing import Any

from incus_actors.lab.failover import phases, since

MS = 1_000_000
MOMENT = 5_000 * MS


def _row(ms: float, role: str, cause: str) -> dict[str, Any]:
    return {"monotonic_ns": MOMENT + int(ms * MS), "role": role, "cause": cause}


def test_the_first_that_noticed_and_the_first_leader_count() -> None:
    journal = [
        _row(-4000, "leader", "won"),
        _row(3, "follower", "forgot"),
        _row(4, "pre-candidate", "heir"),
        _row(8, "leader", "won"),
    ]
    assert phases(journal, MOMENT) == (3.0, 8.0)


def test_survivors_that_are_faster_than_the_observer_are_not_left_out() -> None:
    assert phases([_row(-6, "follower", "forgot"), _row(2, "leader", "won")], MOMENT) == (0.0, 2.0)
    assert since(_row(-3000, "follower", "startup"), MOMENT) is None
