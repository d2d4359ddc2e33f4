"""What the benchmarks and the demo conclude from a history."""

from __future__ import annotations

from incus_actors.lab.writers import Attempt, first_accepted_after, longest_gap_ns, lost_writes


def attempt(value: int, begin: int, end: int, *, ok: bool = True, key: str = "user.a") -> Attempt:
    return Attempt(key, value, "m1", begin, end, ok)


def test_first_accepted_counts_only_writes_sent_after_the_deed() -> None:
    history = [attempt(1, 0, 10), attempt(2, 90, 130), attempt(3, 101, 190, ok=False), attempt(4, 200, 250)]
    assert first_accepted_after([history], 100) == 250
    assert first_accepted_after([history], 300) is None


def test_longest_gap_includes_both_edges() -> None:
    history = [attempt(1, 0, 10), attempt(2, 10, 20), attempt(3, 20, 80)]
    assert longest_gap_ns([history], 0, 100) == 60
    assert longest_gap_ns([[]], 0, 100) == 100


def test_a_value_below_the_last_acknowledged_one_is_a_lost_write() -> None:
    history = [attempt(1, 0, 1), attempt(2, 1, 2), attempt(3, 2, 3, ok=False)]
    assert lost_writes([history], {"user.a": "2"}) == []
    assert lost_writes([history], {"user.a": "3"}) == [], "unknown outcome: may have happened"
    lost = lost_writes([history], {"user.a": "1"})
    assert [(w.acknowledged, w.found) for w in lost] == [(2, 1)]


def test_a_value_nobody_sent_is_reported_too() -> None:
    assert lost_writes([[attempt(1, 0, 1)]], {"user.a": "7"})
