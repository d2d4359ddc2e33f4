"""The checker of transactions over lists, on the anomalies that have names."""

from __future__ import annotations

import random

import pytest

from incus_actors.simulation.linearizability import FOREVER
from incus_actors.simulation.list_append import Exchange, Step, anomalies


def r(key: str, *seen: int) -> Step:
    return Step("read", key, seen=seen)


def a(key: str, number: int) -> Step:
    return Step("append", key, number)


def t(name: str, start: int, end: int, *steps: Step, failed: bool = False) -> Exchange:
    return Exchange(name, start, end, steps, failed)


BAD: dict[str, tuple[str, list[Exchange]]] = {
    "G0, writes interleave": (
        "cycle",
        [
            t("1", 0, 9, a("x", 1), a("y", 1)),
            t("2", 0, 9, a("x", 2), a("y", 2)),
            t("3", 10, 11, r("x", 1, 2), r("y", 2, 1)),
        ],
    ),
    "G1a, aborted read": ("aborted", [t("1", 0, 1, a("x", 1), failed=True), t("2", 2, 3, r("x", 1))]),
    "G1c, circular information": (
        "cycle",
        [t("1", 0, 9, a("x", 1), r("y", 2)), t("2", 0, 9, a("y", 2), r("x", 1))],
    ),
    "G-single, read skew": (
        "cycle",
        [t("1", 0, 9, a("x", 1), a("y", 1)), t("2", 0, 9, r("x"), r("y", 1)), t("3", 10, 11, r("x", 1))],
    ),
    "G2, write skew": (
        "cycle",
        [t("1", 0, 9, r("x"), a("y", 1)), t("2", 0, 9, r("y"), a("x", 1)), t("3", 10, 11, r("x", 1), r("y", 1))],
    ),
    "write skew without a later read": ("cycle", [t("1", 0, 9, r("x"), a("y", 1)), t("2", 0, 9, r("y"), a("x", 1))]),
    "lost update": (
        "incompatible",
        [t("1", 0, 9, r("x"), a("x", 1), r("x", 1)), t("2", 0, 9, r("x"), a("x", 2), r("x", 2))],
    ),
    "stale read, real time only": ("cycle", [t("1", 0, 1, a("x", 1)), t("2", 2, 3, r("x"))]),
    "a write comes before what had ended": (
        "cycle",
        [t("1", 0, 1, a("x", 1)), t("2", 2, 3, a("x", 2)), t("3", 4, 5, r("x", 2, 1))],
    ),
    "duplicate": ("duplicate", [t("1", 0, 1, a("x", 1)), t("2", 2, 3, r("x", 1, 1))]),
    "invented": ("invented", [t("1", 0, 1, r("x", 7))]),
    "does not see itself": ("internal", [t("1", 0, 1, a("x", 1), r("x"))]),
    "reads two versions": ("internal", [t("1", 0, 9, a("x", 1)), t("2", 0, 9, r("x"), r("x", 1))]),
    "an append vanishes": ("cycle", [t("1", 0, 1, a("x", 1)), t("2", 2, 3, a("x", 2)), t("3", 4, 5, r("x", 2))]),
}
GOOD: dict[str, list[Exchange]] = {
    "nothing": [],
    "one after another": [t("1", 0, 1, a("x", 1)), t("2", 2, 3, r("x", 1), a("y", 2)), t("3", 4, 5, r("y", 2))],
    "at the same time, either order": [t("1", 0, 9, a("x", 1)), t("2", 0, 9, r("x"))],
    "an open one that nobody saw": [t("1", 0, FOREVER, a("x", 1)), t("2", 5, 6, r("x"))],
    "an open one that somebody saw": [t("1", 0, FOREVER, a("x", 1)), t("2", 5, 6, r("x")), t("3", 7, 8, r("x", 1))],
    "a refused one that nobody saw": [t("1", 0, 1, a("x", 1), failed=True), t("2", 5, 6, r("x"))],
    "own appends": [t("1", 0, 1, a("x", 1), r("x", 1), a("x", 2), r("x", 1, 2))],
}


@pytest.mark.parametrize("name", BAD)
def test_bad_histories(name: str) -> None:
    word, history = BAD[name]
    found = anomalies(history)
    assert found
    assert any(word in text for text in found), found


@pytest.mark.parametrize("name", GOOD)
def test_good_histories(name: str) -> None:
    assert anomalies(GOOD[name]) == []


def test_serial_executions_are_good_and_shuffled_results_are_not() -> None:
    """Run random transactions one at a time, let their intervals overlap: always good. Swap two results: mostly bad."""
    rng = random.Random(3)
    noticed = 0
    for _ in range(60):
        lists: dict[str, tuple[int, ...]] = {}
        history = []
        for i in range(30):
            steps = []
            for k in range(rng.randint(1, 3)):
                key = rng.choice("xyz")
                if rng.random() < 0.5:
                    lists[key] = (*lists.get(key, ()), 10 * i + k)
                    steps.append(a(key, 10 * i + k))
                steps.append(r(key, *lists.get(key, ())))
            history.append(t(str(i), 10 * i - rng.randint(0, 30), 10 * i + rng.randint(1, 30), *steps))
        assert anomalies(history) == []
        position = rng.randrange(len(history))
        victim = history[position]
        stale = tuple(Step("read", s.key, seen=s.seen[:-1]) if s.kind == "read" else s for s in victim.steps)
        if stale != victim.steps:
            late = Exchange(victim.name, 900, 901, stale)
            noticed += bool(anomalies([*history[:position], *history[position + 1 :], late]))
    assert noticed > 40
