"""The checker of single registers, on histories whose verdict is known."""

from __future__ import annotations

import itertools
import random

import pytest

from incus_actors.simulation.linearizability import FOREVER, Call, TooHardError, check, is_linearizable


def read(start: int, end: int, result: str | None) -> Call:
    return Call("x", "read", start, end, None, result)


def write(start: int, end: int, value: str) -> Call:
    return Call("x", "write", start, end, value)


def cas(start: int, end: int, expected: str | None, new: str, *, took_place: bool) -> Call:
    return Call("x", "cas", start, end, (expected, new), took_place)


GOOD: dict[str, list[Call]] = {
    "nothing": [],
    "one after another": [write(0, 1, "a"), read(2, 3, "a"), write(4, 5, "b"), read(6, 7, "b")],
    "a read beside a write sees either": [write(0, 10, "a"), read(1, 2, None), read(3, 4, "a")],
    "two writes at once, in either order": [write(0, 10, "a"), write(0, 10, "b"), read(11, 12, "a")],
    "an open write may happen late": [write(0, FOREVER, "a"), read(5, 6, None), read(50, 51, "a")],
    "an open write may never happen": [write(0, FOREVER, "a"), read(5, 6, None), read(50, 51, None)],
    "a compare-and-set that fits": [write(0, 1, "a"), cas(2, 3, "a", "b", took_place=True), read(4, 5, "b")],
    "one that does not": [write(0, 1, "a"), cas(2, 3, "z", "b", took_place=False), read(4, 5, "a")],
    "an open one explains a value": [write(0, 1, "a"), cas(2, FOREVER, "a", "b", took_place=False), read(4, 5, "b")],
    "an open one that came too early": [cas(0, FOREVER, "a", "b", took_place=False), write(2, 3, "a"), read(4, 5, "a")],
    "porcupine's register example": [write(0, 100, "100"), read(25, 75, "100"), read(30, 60, None)],
}
BAD: dict[str, list[Call]] = {
    "a value that nobody wrote": [read(0, 1, "ghost")],
    "a stale read": [write(0, 1, "a"), write(2, 3, "b"), read(4, 5, "a")],
    "a lost write": [write(0, 1, "a"), read(2, 3, None)],
    "time runs backwards between reads": [write(0, 10, "a"), read(1, 2, "a"), read(3, 4, None)],
    "two winners": [cas(0, 1, None, "a", took_place=True), cas(2, 3, None, "b", took_place=True)],
    "a failure without a reason": [write(0, 1, "a"), cas(2, 3, "a", "b", took_place=False)],
    "an open write cannot happen twice": [
        write(0, FOREVER, "a"), read(1, 2, "a"), write(3, 4, "b"), read(5, 6, "a"),
    ],
    "an open write cannot happen before it began": [read(0, 1, "a"), write(2, FOREVER, "a")],
    "porcupine's second example": [write(0, 100, "200"), read(10, 30, "200"), read(40, 90, None)],
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_good_histories(name: str) -> None:
    assert is_linearizable(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_bad_histories(name: str) -> None:
    assert not is_linearizable(BAD[name])


def by_trying_everything(calls: list[Call]) -> bool:
    """Every order of every choice of open calls."""
    must = [call for call in calls if call.end_us < FOREVER]
    open_ = [call for call in calls if call.end_us == FOREVER]
    for size in range(len(open_) + 1):
        for some in itertools.combinations(open_, size):
            for order in itertools.permutations([*must, *some]):
                if any(b.end_us < a.start_us for i, a in enumerate(order) for b in order[i + 1 :]):
                    continue
                value: object = None
                for call in order:
                    if call.kind == "read":
                        if call.result != value:
                            break
                    elif call.kind == "write":
                        value = call.value
                    else:
                        expected, new = call.value
                        if call.end_us < FOREVER and call.result != (value == expected):
                            break
                        value = new if value == expected else value
                else:
                    return True
    return False


def random_history(rng: random.Random) -> list[Call]:
    calls = []
    for _ in range(rng.randint(1, 5)):
        start = rng.randint(0, 12)
        end = FOREVER if rng.random() < 0.2 else start + rng.randint(1, 8)
        kind = rng.choice(("read", "write", "cas"))
        values = (None, "a", "b")
        if kind == "read" and end < FOREVER:
            calls.append(read(start, end, rng.choice(values)))
        elif kind == "cas":
            calls.append(cas(start, end, rng.choice(values), rng.choice("ab"), took_place=rng.random() < 0.5))
        else:
            calls.append(write(start, end, rng.choice("ab")))
    return calls


def test_agrees_with_trying_everything() -> None:
    rng = random.Random(7)
    verdicts = {True: 0, False: 0}
    for _ in range(1500):
        history = random_history(rng)
        expected = by_trying_everything(history)
        assert is_linearizable(history) == expected, history
        verdicts[expected] += 1
    assert min(verdicts.values()) > 200


def test_names_the_key_that_is_wrong() -> None:
    good = Call("a", "write", 0, 1, "1")
    bad = [Call("b", "write", 0, 1, "1"), Call("b", "read", 2, 3, None, None)]
    assert check([good, *bad]) == bad
    assert check([good]) is None


def test_long_histories_are_quick_and_hopeless_ones_give_up() -> None:
    long = [
        call
        for i in range(1000)
        for call in (write(10 * i, 10 * i + 15, str(i)), read(10 * i + 16, 10 * i + 19, str(i)))
    ]
    assert is_linearizable(long)
    hopeless = [write(0, FOREVER, str(i)) for i in range(30)] + [read(1, 2, "nothing of it")]
    with pytest.raises(TooHardError):
        is_linearizable(hopeless, most_states=1000)
