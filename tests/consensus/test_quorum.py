"""Quorum arithmetic against brute force, single and joint (hashicorp/raft #74, 163a55f)."""

from __future__ import annotations

from itertools import combinations, product

import pytest

from incus_actors.consensus.quorum import agreed, has_majority, is_lost, majority


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4), (7, 4)])
def test_majority(count: int, expected: int) -> None:
    assert majority(count) == expected


def all_sets() -> list[tuple[frozenset[int], ...]]:
    single = [frozenset(range(1, size + 1)) for size in range(1, 6)]
    joint = [
        (frozenset({1, 2, 3}), frozenset(other)) for size in (1, 2, 3) for other in combinations((2, 3, 4, 5), size)
    ]
    return [(one,) for one in single] + joint


@pytest.mark.parametrize("voter_sets", all_sets())
def test_majorities_intersect_and_lost_means_that_none_is_left(voter_sets: tuple[frozenset[int], ...]) -> None:
    everyone = sorted(frozenset().union(*voter_sets))
    quorums = []
    for answers in product((None, True, False), repeat=len(everyone)):
        yes = {member for member, answer in zip(everyone, answers, strict=True) if answer}
        no = {member for member, answer in zip(everyone, answers, strict=True) if answer is False}
        if has_majority(voter_sets, yes):
            quorums.append(yes)
        still_possible = has_majority(voter_sets, set(everyone) - no)
        assert is_lost(voter_sets, no) == (not still_possible)
    assert all(one & other for one in quorums for other in quorums)


@pytest.mark.parametrize("voter_sets", all_sets())
def test_agreed_is_the_highest_value_a_quorum_has(voter_sets: tuple[frozenset[int], ...]) -> None:
    everyone = sorted(frozenset().union(*voter_sets))
    for row in product((0, 1, 2), repeat=len(everyone)):
        values = dict(zip(everyone, row, strict=True))
        reached = [v for v in (0, 1, 2) if has_majority(voter_sets, {m for m in everyone if values[m] >= v})]
        assert agreed(voter_sets, values) == max(reached)


def test_nobody_is_no_majority() -> None:
    assert not has_majority((), {1, 2})
    assert not has_majority((frozenset(),), {1})
    assert agreed((frozenset(),), {1: 5}) == 0
    assert agreed((frozenset({1, 2, 3}),), {}) == 0
