"""Seeds in CI: the real core under chaos. A failure here is a bug of the core or of the simulator: replay the seed
with `incus-actors simulate --seed N --trace`."""

from __future__ import annotations

import json
from typing import Any

import pytest


@pytest.mark.alone
@pytest.mark.timeout(900)
def test_every_property_holds_in_every_seed(seed_run: Any) -> None:
    said, _ = seed_run.process.communicate()
    assert seed_run.report.exists(), said
    report = json.loads(seed_run.report.read_text())
    seeds = report["seeds"]
    assert not report["failures"], "\n".join(
        f"seed {result['seed']}: {result['failure']['text']}" for result in report["failures"] if result["failure"]
    )
    assert seed_run.process.returncode == 0, said
    # The chaos was real, and yet work was done.
    assert seeds > 0
    assert report["strikes"] > 5 * seeds
    assert report["elections"] > seeds
    assert report["answered"] > 0.5 * report["operations"]
    assert len(report["undecided"]) <= max(1, seeds // 100)
    print(f"{seeds} seeds from {report['first']} in {report['seconds']:.0f} s")
