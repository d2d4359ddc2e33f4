"""Every historic bug, put into the core, is caught by the scripts that are named for it (CONSENSUS 4.1)."""

from __future__ import annotations

import pytest

from incus_actors.interaction.runner import run_file

from .catalogue import MUTANTS, catches, judge, script
from .mutation import Mutant, StaleMutantError, mutant, switched_on


def test_there_are_enough_mutants() -> None:
    assert len(MUTANTS) >= 30
    assert len({bug.name for bug in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("bug", MUTANTS, ids=lambda bug: bug.name)
def test_mutant_is_caught(bug: Mutant) -> None:
    assert bug.caught_by, "a mutant names what must catch it"
    for name in bug.caught_by:
        outcome = judge(bug, name)
        assert catches(outcome), f"{name} does not notice that {bug.what}:\n" + "\n".join(outcome.report())


@pytest.mark.parametrize("name", sorted({name for bug in MUTANTS for name in bug.caught_by}))
def test_without_a_mutant_the_same_script_passes(name: str) -> None:
    """Run after the mutants: nothing of them is left in the core."""
    outcome = run_file(script(name))
    assert outcome.passed, "\n".join(outcome.report())


def test_a_mutation_whose_code_is_gone_is_noticed() -> None:
    bug = mutant("stale", "-", "-", "-", ("voting.on_vote", "no such text", ""))
    with pytest.raises(StaleMutantError, match="0 times"), switched_on(bug):
        pass
