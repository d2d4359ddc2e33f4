"""A failing seed is shrunk to strikes that each are needed, and the command says so (`incus-actors simulate`)."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner

from incus_actors.cli.simulate import simulate
from incus_actors.simulation.plan import draw_plan
from incus_actors.simulation.runner import run_plan, shrink

from .catalogue import MUTANTS
from .mutation import switched_on

BUG = next(bug for bug in MUTANTS if bug.name == "no_log_check")
SEED, CHAOS_MS = 3, 3000


def test_a_failing_seed_is_shrunk_to_strikes_that_are_all_needed() -> None:
    plan = draw_plan(SEED, chaos_ms=CHAOS_MS)
    with pytest.raises(ValueError, match="does not fail"):
        shrink(plan)
    with switched_on(BUG):
        failure = run_plan(plan).failure
        assert failure is not None
        smaller, found = shrink(plan)
        assert found.name == failure.name == "P-LC"
        assert 0 < len(smaller.events) < len(plan.events)
        again = run_plan(smaller).failure
        assert again is not None
        assert again.text == found.text
        for left_out in smaller.events:
            fewer = smaller.only(tuple(event for event in smaller.events if event is not left_out))
            other = run_plan(fewer).failure
            assert other is None or other.name != failure.name


def test_the_command_says_what_broke_and_which_strikes_are_enough() -> None:
    with switched_on(BUG):
        done = CliRunner().invoke(simulate, ["--seed", str(SEED), "--length", str(CHAOS_MS)])
    assert done.exit_code == 1
    assert re.match(rf"seed {SEED}: P-LC.* \(\d+ steps", done.output)
    enough = re.search(r"^seed 3, (\d+) of (\d+) strikes are enough: P-LC", done.output, re.MULTILINE)
    assert enough is not None
    assert done.output[enough.end() :].count("\n  ") == int(enough[1])
