"""A few hundred short seeded runs of chaos.py, and that a seed repeats exactly."""

from __future__ import annotations

import pytest

from .chaos import Chaos
from .harness import fingerprint


@pytest.mark.parametrize("block", range(10))
def test_three_voters_under_chaos(block: int) -> None:
    for seed in range(block * 15, block * 15 + 15):
        Chaos(seed, 3).play(600)


@pytest.mark.parametrize("block", range(8))
def test_five_members_that_change_roles_under_chaos(block: int) -> None:
    for seed in range(1000 + block * 8, 1000 + block * 8 + 8):
        Chaos(seed, 5, change_members=True).play(700)


def test_a_seed_repeats_exactly() -> None:
    first, second = Chaos(7, 5, change_members=True), Chaos(7, 5, change_members=True)
    first.play(500)
    second.play(500)
    assert fingerprint(first) == fingerprint(second)
