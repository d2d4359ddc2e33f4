"""Arithmetic of majorities, single and joint.

Owns pure functions over voter sets; called by every role. Must never know about time, roles or messages: what
counts as a yes is decided by the caller. An empty voter set has no majority, it is never vacuously satisfied.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from incus_actors.consensus.types import MemberId

VoterSets = tuple[frozenset[MemberId], ...]


def majority(count: int) -> int:
    """Return how many of `count` voters are a majority."""
    return count // 2 + 1


def has_majority(voter_sets: VoterSets, yes: Collection[MemberId]) -> bool:
    """Return whether the members in `yes` are a majority of every voter set."""
    for voters in voter_sets:
        count = 0
        for voter in voters:
            if voter in yes:
                count += 1
        if count < len(voters) // 2 + 1:
            return False
    return bool(voter_sets)


def is_lost(voter_sets: VoterSets, refused: Collection[MemberId]) -> bool:
    """Return whether so many have refused that no majority is possible any more in some voter set."""
    return any(len(voters) - len(voters.intersection(refused)) < majority(len(voters)) for voters in voter_sets)


def agreed(voter_sets: VoterSets, values: Mapping[MemberId, int]) -> int:
    """Return the highest value that a majority of every voter set has reached; absent voters count as 0.

    With match indexes as values this is the index that is replicated on a quorum; with confirmed read
    sequences it is the round that a quorum has answered.
    """
    lowest = -1
    for voters in voter_sets:
        reached = sorted([values.get(voter, 0) for voter in voters], reverse=True)
        value = reached[len(reached) // 2] if reached else 0
        if lowest < 0 or value < lowest:
            lowest = value
    return max(lowest, 0)
