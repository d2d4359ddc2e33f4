"""When a frame is due: what a fault says of itself must be so."""

from __future__ import annotations

import random

import pytest

from incus_actors.lab.delay_relay import WAYS


@pytest.mark.parametrize(
    ("how", "most", "least_s", "longest_s"),
    [("late", 1, 0.06, 0.08), ("disorder", 1, 0.0, 0.025), ("twice", 2, 0.0, 0.3)],
)
def test_no_frame_is_lost(how: str, most: int, least_s: float, longest_s: float) -> None:
    rng = random.Random(1)
    drawn = [WAYS[how](rng) for _ in range(1000)]
    assert {len(times) for times in drawn} == set(range(1, most + 1))
    assert all(least_s <= due <= longest_s for times in drawn for due in times)


def test_a_third_overtakes_the_others() -> None:
    rng = random.Random(2)
    at_once = sum(WAYS["disorder"](rng) == [0.0] for _ in range(3000))
    assert 900 < at_once < 1100
