"""All mutants, and what catches them: the interaction scripts of tests/interaction.

Owns the list and the judgement of one mutant; used by test_mutants.py and by `python -m tests.mutants`.
"""

from __future__ import annotations

from pathlib import Path

from incus_actors.interaction.runner import Outcome, run_file

from .clients import CLIENTS
from .disks import DISKS
from .elections import ELECTIONS
from .membership import MEMBERSHIP
from .mutation import Mutant, switched_on
from .replication import REPLICATION
from .upgrades import UPGRADES

MUTANTS: tuple[Mutant, ...] = (*ELECTIONS, *REPLICATION, *MEMBERSHIP, *CLIENTS, *DISKS, *UPGRADES)
SCRIPTS = Path(__file__).parents[1] / "interaction"
#: a mutation that cannot run proves nothing
CRASHES = ("NameError", "AttributeError", "TypeError", "SyntaxError", "KeyError", "UnboundLocalError")


def script(name: str) -> Path:
    """Return the file of a script."""
    return SCRIPTS / f"{name}.txt"


def judge(bug: Mutant, name: str) -> Outcome:
    """Run one script with the bug in the core."""
    with switched_on(bug):
        return run_file(script(name))


def catches(outcome: Outcome) -> bool:
    """Return whether the script has failed because of the bug, and not because the mutation is nonsense."""
    return not outcome.passed and not outcome.error and not any(crash in outcome.text for crash in CRASHES)


def catchers(bug: Mutant) -> list[str]:
    """Return the names of all scripts that catch this bug."""
    with switched_on(bug):
        return [path.stem for path in sorted(SCRIPTS.glob("*.txt")) if catches(run_file(path))]
