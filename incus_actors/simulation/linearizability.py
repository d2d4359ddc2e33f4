"""Is a history of operations on one register linearizable? The search of Wing and Gong with Lowe's memory.

Owns the checker for single keys; histories over many keys are split by key first, which is sound because
linearizability is compositional. Used after a run; must never call a history good that it has not explained.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

FOREVER = 1 << 62


class TooHardError(Exception):
    """The search gave up: too many open operations."""


@dataclass(frozen=True, slots=True)
class Call:
    """One operation. `end_us` FOREVER: its result is not known, it may happen at any time after its start or never.

    `kind`: "read" (`result` is the value), "write" (`value`), "cas" (`value` is (expected, new), `result` whether
    it took place).
    """

    key: str
    kind: str
    start_us: int
    end_us: int
    value: Any = None
    result: Any = None


def check(calls: Iterable[Call], *, most_states: int = 200_000) -> list[Call] | None:
    """Return None if the history is linearizable, else the calls of the first key that is not.

    Raises TooHardError after `most_states` states of one key.
    """
    by_key: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        by_key[call.key].append(call)
    for key in sorted(by_key):
        if not is_linearizable(by_key[key], most_states=most_states):
            return by_key[key]
    return None


def is_linearizable(calls: Sequence[Call], initial: Hashable = None, *, most_states: int = 200_000) -> bool:
    """Return whether some order explains all results, in which nothing precedes what ended before it began.

    A state of the search is (which calls have happened, value now); each is visited once (Lowe's memory).
    """
    known = [call for call in calls if call.end_us < FOREVER or call.kind != "read"]
    order = sorted(known, key=lambda call: (call.start_us, call.end_us))
    must = sum(1 << i for i, call in enumerate(order) if call.end_us < FOREVER)
    seen: set[tuple[int, Hashable]] = set()
    stack: list[tuple[int, int, Hashable]] = [(0, 0, initial)]  # (done, all below this are done, value)
    while stack:
        done, base, value = stack.pop()
        done, base = _take_reads(order, done, base, value)
        if done & must == must:
            return True
        if (done, value) in seen:
            continue
        seen.add((done, value))
        if len(seen) > most_states:
            raise TooHardError(f"{len(order)} calls")
        for i in _candidates(order, done, base):
            allowed, after = _run(order[i], value)
            if allowed:
                stack.append((done | 1 << i, base, after))
    return False


def _take_reads(order: Sequence[Call], done: int, base: int, value: Hashable) -> tuple[int, int]:
    """Let every read happen that can and fits: it changes nothing, so waiting can't help."""
    found = True
    while found:
        found = False
        while base < len(order) and done >> base & 1:
            base += 1
        for i in _candidates(order, done, base):
            if order[i].kind == "read" and order[i].result == value:
                done |= 1 << i
                found = True
    return done, base


def _candidates(order: Sequence[Call], done: int, base: int) -> list[int]:
    """Return the calls that may come next: begun before the earliest end among those that have not happened."""
    found: list[int] = []
    earliest = FOREVER + 1
    for i in range(base, len(order)):
        call = order[i]
        if call.start_us > earliest:
            break
        if done >> i & 1:
            continue
        found.append(i)
        earliest = min(earliest, call.end_us)
    return [i for i in found if order[i].start_us <= earliest]


def _run(call: Call, value: Hashable) -> tuple[bool, Hashable]:
    """Return whether a call may happen now with the result it had, and the value after it."""
    if call.kind == "read":
        return call.result == value, value
    if call.kind == "write":
        return True, call.value
    expected, new = call.value
    fits = value == expected
    if call.end_us < FOREVER and bool(call.result) != fits:
        return False, value
    return True, new if fits else value
