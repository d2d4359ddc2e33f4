"""Every interaction script of this directory passes (docs/interaction.md)."""

from __future__ import annotations

from pathlib import Path

import pytest

from incus_actors.interaction.runner import run_file

SCRIPTS = sorted(Path(__file__).parent.glob("*.txt"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    outcome = run_file(path)
    assert outcome.passed, "\n".join(outcome.report())
