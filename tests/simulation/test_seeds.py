"""Seeds in CI: the real core under chaos. A failure here is a bug of the core or of the simulator: replay the seed
with `incus-actors simulate --seed N --trace`."""

from __future__ import annotations

import os

import pytest

from incus_actors.simulation.plan import draw_plan
from incus_actors.simulation.runner import run_plan, run_seeds

SEEDS = int(os.environ.get("INCUS_ACTORS_SEEDS", "2000"))
FIRST = int(os.environ.get("INCUS_ACTORS_FIRST_SEED", "0"))


@pytest.mark.alone
@pytest.mark.timeout(900)
def test_every_property_holds_in_every_seed() -> None:
    report = run_seeds(FIRST, SEEDS)
    assert not report.failures, "\n".join(
        f"seed {result.seed}: {result.failure.text}" for result in report.failures if result.failure
    )
    assert report.seeds == SEEDS
    # The chaos was real, and yet work was done.
    assert report.strikes > 5 * SEEDS
    assert report.elections > SEEDS
    assert report.answered > 0.5 * report.operations
    assert len(report.undecided) <= SEEDS // 100


@pytest.mark.parametrize("seed", [700121, 804130, 958320])
def test_seeds_that_have_found_something(seed: int) -> None:
    """Outside of the range that CI runs; what each has found is in docs/simulation.md."""
    failure = run_plan(draw_plan(seed)).failure
    assert failure is None, failure
