"""Benchmarks are told as medians and ranges, with what the machine was like (benchmarks/repetitions.py)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def repetitions() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "repetitions.py"
    spec = importlib.util.spec_from_file_location("repetitions", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_systems_take_turns_and_rows_are_medians_with_their_range(repetitions: ModuleType, tmp_path: Path) -> None:
    turns: list[str] = []

    def system(name: str, rates: list[int]):  # type: ignore[no-untyped-def]
        def measure() -> list[dict[str, object]]:
            turns.append(name)
            return [{"where": name, "what": "write", "clients": 1, "per_second": rates.pop(0), "p50_ms": 1.5}]

        return name, measure

    rows, conditions = repetitions.repeated([system("a", [10, 30, 20]), system("b", [1, 2, 9])], 3, tmp_path)
    assert turns == ["a", "b", "a", "b", "a", "b"]
    assert [(row["where"], row["repetitions"], row["per_second"]) for row in rows] == [("a", 3, 20), ("b", 3, 2)]
    assert rows[0]["range"] == {"per_second": [10, 30], "p50_ms": [1.5, 1.5]}
    assert [(c["repetition"], c["system"]) for c in conditions] == [(n, s) for n in (1, 2, 3) for s in "ab"]
    assert all(0 < c["fsync_p50_ms"] <= c["fsync_p999_ms"] for c in conditions)
    assert all(c["load_average"] >= 0 for c in conditions)


def test_one_slow_answer_in_a_thousand_is_seen(repetitions: ModuleType) -> None:
    found = repetitions.percentiles([1.0] * 998 + [50.0, 70.0])
    assert found == {"p50_ms": 1.0, "p99_ms": 1.0, "p999_ms": 70.0, "max_ms": 70.0}
