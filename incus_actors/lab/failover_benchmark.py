"""The failover benchmark: N rounds of each way, ours and real Incus in the same run.

Called by `incus-actors bench failover` and benchmarks/failover.py. Needs root (network namespaces).
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from incus_actors.lab.cluster import REAL_DAEMON, LabCluster
from incus_actors.lab.failover import NOT_BACK, Round, run_round

LIMITS_S = {"incus_actors": 15.0, "Incus": 120.0}


def real_incus_missing() -> str:
    """Return why real Incus can't be measured here, or nothing."""
    if not REAL_DAEMON.exists():
        return f"{REAL_DAEMON} is not installed: tools/install-incus-client --daemon"
    return ""


def measure(
    product: str, hows: Sequence[str], rounds: int, *, members: int, seed: int, say: Callable[[str], None]
) -> list[Round]:
    """Form one cluster of `product` and run all rounds on it, on a new one after it did not come back."""
    rng = random.Random(seed)  # noqa: S311  # moments of failure, not secrets
    real = product == "Incus"
    cluster = _formed(members, real)
    results: list[Round] = []
    try:
        for number in range(1, rounds + 1):
            for how in hows:
                results.append(run_round(cluster, how, number, rng, LIMITS_S[product]))
                say(_line(results[-1]))
                if results[-1].failure.startswith(NOT_BACK):
                    cluster.destroy()
                    cluster = _formed(members, real)
    finally:
        cluster.destroy()
    return results


def _formed(members: int, real: bool) -> LabCluster:
    cluster = LabCluster.in_namespaces(members, prefix="fob" if real else "foa", real=real)
    try:
        cluster.form()
        cluster.wait_until_healthy(120)
    except BaseException:
        cluster.destroy()
        raise
    return cluster


def _line(item: Round) -> str:
    def ms(value: float | None) -> str:
        return "–" if value is None else f"{value:.0f} ms"

    text = f"{item.product:13} {item.how:5} #{item.number:<3} {item.victim}: noticed {ms(item.noticed_ms)}, "
    text += (
        f"elected {ms(item.elected_ms)}, write {ms(item.write_ms)}, {item.acknowledged} acknowledged, {item.lost} lost, "
        f"disk {ms(item.disk_ms)}"
    )
    return text + (f"  FAILED: {item.failure}" if item.failure else "")


def run(
    *, rounds: int, real_rounds: int, hows: Sequence[str], members: int, seed: int, json_file: Path, plot: Path | None
) -> int:
    """Measure, print, write; return 0 unless a round of ours failed or lost a write."""
    from incus_actors.lab import report

    def say(text: str) -> None:
        sys.stderr.write(text + "\n")

    results = measure("incus_actors", hows, rounds, members=members, seed=seed, say=say)
    missing = real_incus_missing() if real_rounds else "asked not to"
    if not missing:
        version = subprocess.run(
            [str(REAL_DAEMON), "--version"], capture_output=True, text=True, check=False, timeout=30
        )
        say(f"real Incus {version.stdout.strip()}:")
        results += measure("Incus", hows, real_rounds, members=members, seed=seed, say=say)
    report.show_failover(results, not_measured=missing)
    content: dict[str, Any] = {"rounds": [r.as_dict() for r in results], "real_incus": missing or "measured"}
    report.write_json(json_file, content)
    say(f"results: {json_file}")
    if plot is not None:
        report.plot_failover(results, plot)
        say(f"plot: {plot}")
    ours = [r for r in results if r.product == "incus_actors"]
    return 1 if any(r.failure or r.lost for r in ours) else 0
