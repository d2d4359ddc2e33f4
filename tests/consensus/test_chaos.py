"""A few hundred short seeded runs of chaos.py, and that a seed repeats exactly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


def test_no_order_of_sets_leaks_into_what_happens() -> None:
    script = (
        "from tests.consensus.chaos import Chaos; from tests.consensus.harness import fingerprint;"
        "run = Chaos(11, 5, change_members=True); run.play(400); print(fingerprint(run))"
    )
    prints = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(prints) == 1


def test_a_seed_repeats_exactly() -> None:
    first, second = Chaos(7, 5, change_members=True), Chaos(7, 5, change_members=True)
    first.play(500)
    second.play(500)
    assert fingerprint(first) == fingerprint(second)
