"""A short nemesis run; the long one is `tox -e chaos`."""

from __future__ import annotations

import pytest

from incus_actors.cli.chaos import judge, summary
from incus_actors.lab.chaos import run_chaos

SECONDS = 45
SEED = 20


@pytest.mark.timeout(400)  # the faults end after SECONDS, mending the last one may take its time
def test_nothing_is_lost_and_every_history_is_linearizable(tmp_path) -> None:
    result = run_chaos(SECONDS, seed=SEED, members=3, clients=4, keep_logs=tmp_path / "logs")
    assert judge(result) == [], "\n".join([summary(result), *result.faults])
    assert len({operation.register for operation in result.operations}) >= 3
    assert len(result.faults) >= 5
