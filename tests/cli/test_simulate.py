"""`incus-actors simulate`: what it is asked wrongly isn't answered with "every property holds"."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from incus_actors.cli.simulate import simulate


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--seeds 0", "'--seeds': 0 is not in the range x>=1"),
        ("--seed -1", "'--seed': -1 is not in the range x>=0"),
        ("--first -1", "'--first'"),
        ("--seed 1 --length 0", "'--length'"),
        ("--trace", "--seed says which"),
        ("--messages --seeds 3", "--seed says which"),
        ("--seed 1 --json x.json", "--first S --seeds 1 --json FILE"),
    ],
)
def test_what_would_show_nothing_is_refused(arguments: str, words: str) -> None:
    done = CliRunner().invoke(simulate, arguments.split())
    assert done.exit_code == 2
    assert words in done.output
    assert "every property holds" not in done.output


def test_a_report_that_can_not_be_written_is_noticed_before_the_seeds_are_run(tmp_path: Path) -> None:
    done = CliRunner().invoke(simulate, ["--seeds", "1000000", "--json", str(tmp_path / "none" / "x.json")])
    assert (done.exit_code, done.output) == (
        1,
        f"Error: {tmp_path / 'none' / 'x.json'} can't be written: No such file or directory\n",
    )


def test_the_report_of_one_seed(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    arguments = ["--first", "7", "--seeds", "1", "--jobs", "1", "--length", "500", "--json", str(report)]
    assert CliRunner().invoke(simulate, arguments).exit_code == 0
    found = json.loads(report.read_text())
    assert (found["first"], found["seeds"], found["failures"]) == (7, 1, [])
