"""Benchmark results for people and machines: a table, JSON, a plot.

Owns presentation only; called by the benchmark front ends. Must never leave out a failed round.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from incus_actors import __version__
from incus_actors.lab.failover import Round

if TYPE_CHECKING:
    from incus_actors.lab.everyday import Row

HOW_TEXT = {
    "kill": "SIGKILL of the leader → next accepted write",
    "cut": "leader's network cut → next accepted write",
    "stop": "planned stop of the leader: longest gap between writes",
}


def quantile(values: Sequence[float], q: float) -> float:
    """Return the q-quantile (nearest rank) of values that are not empty."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def machine_facts() -> dict[str, Any]:
    """Return what a reader must know to compare."""
    cpu = next((line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if "model name" in line), "?")
    revision = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
        timeout=10,
    ).stdout.strip()
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "incus_actors": __version__,
        "commit": revision or "?",
        "load_average": [round(x, 2) for x in os.getloadavg()],
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def failover_table(rounds: Sequence[Round]) -> Table:
    """Return the table of all products and ways."""
    table = Table(title="Failover (milliseconds, observer's clock)", title_justify="left")
    for heading in ("what", "product", "rounds", "noticed p50", "elected p50"):
        table.add_column(heading)
    for heading in ("write p50", "p90", "max", "acked", "lost", "failed", "disk p50", "disk max"):
        table.add_column(heading, justify="right")
    for how, product in sorted({(r.how, r.product) for r in rounds}, key=lambda k: (list(HOW_TEXT).index(k[0]), k[1])):
        mine = [r for r in rounds if (r.how, r.product) == (how, product)]
        writes = [r.write_ms for r in mine if r.write_ms is not None]
        table.add_row(
            HOW_TEXT[how],
            product,
            str(len(mine)),
            _median(r.noticed_ms for r in mine),
            _median(r.elected_ms for r in mine),
            _median(writes),
            f"{quantile(writes, 0.9):.0f}" if writes else "–",
            f"{max(writes):.0f}" if writes else "–",
            str(sum(r.acknowledged for r in mine)),
            str(sum(r.lost for r in mine)),
            str(sum(bool(r.failure) for r in mine)),
            _median(r.disk_ms for r in mine),
            _longest(r.disk_ms for r in mine),
        )
    return table


def _median(values: Iterable[float | None]) -> str:
    known = [v for v in values if v is not None]
    return f"{quantile(known, 0.5):.1f}" if known else "–"


def _longest(values: Iterable[float | None]) -> str:
    known = [v for v in values if v is not None]
    return f"{max(known):.0f}" if known else "–"


def show_failover(rounds: Sequence[Round], *, not_measured: str = "") -> None:
    """Print the table, and why there is no comparison if there is none."""
    console = Console(width=None if os.isatty(1) else 160)
    console.print(failover_table(rounds))
    console.print("disk: the observer's own longest synced write of 4 KiB in a round; both products wait for this disk")
    if not_measured:
        console.print(f"real Incus: not measured ({not_measured})")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write results with the facts of the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine_facts(), **content}, indent=1) + "\n")


def plot_failover(rounds: Sequence[Round], path: Path) -> None:
    """Draw stacked phases of every round, sorted by total, on a log axis; real Incus beside ours."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    hows = [how for how in HOW_TEXT if any(r.how == how for r in rounds)]
    figure, axes = pyplot.subplots(len(hows), 1, figsize=(10, 3.2 * len(hows)), squeeze=False)
    for axis, how in zip(axes[:, 0], hows, strict=True):
        _plot_one(axis, [r for r in rounds if r.how == how and r.write_ms is not None], how)
    facts = machine_facts()
    figure.suptitle(
        f"Failover, three members on one machine — {facts['cores']} cores, {facts['cpu']}, commit {facts['commit']}, "
        f"{facts['date'][:10]}",
        fontsize=9,
    )
    figure.tight_layout(rect=(0, 0, 1, 0.97))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _plot_one(axis: Any, rounds: Sequence[Round], how: str) -> None:
    ours = sorted((r for r in rounds if r.product == "incus_actors"), key=lambda r: r.write_ms or 0)
    real = sorted((r for r in rounds if r.product != "incus_actors"), key=lambda r: r.write_ms or 0)
    for row, item in enumerate([*ours, *real]):
        total = item.write_ms or 0.0
        if item.product != "incus_actors" or how == "stop":
            color = "#4c9f70" if item.product == "incus_actors" else "#b0b0b0"
            axis.barh(row, total, color=color)
            continue
        noticed = min(item.noticed_ms or total, total)
        elected = min(max(item.elected_ms or total, noticed), total)
        axis.barh(row, noticed, color="#e07a5f")
        axis.barh(row, elected - noticed, left=noticed, color="#f2cc8f")
        axis.barh(row, total - elected, left=elected, color="#4c9f70")
    axis.set_xscale("log")
    axis.set_xlim(left=1)
    axis.set_yticks([])
    axis.set_xlabel("ms")
    label = "planned stop: longest gap" if how == "stop" else "noticed / elected / first accepted write"
    axis.set_title(f"{HOW_TEXT[how]}   (green and red: incus_actors, {label}; grey: Incus 6.0.4)", fontsize=8)


def show_rows(rows: Sequence[Row], *, not_measured: str = "") -> None:
    """Print our rows beside real Incus', with the ratio and the goal."""
    table = Table(title="p50 (p99)", title_justify="left")
    table.add_column("what")
    for heading in ("incus_actors", "goal", "Incus", "Incus / ours"):
        table.add_column(heading, justify="right")
    real = {row.what: row for row in rows if row.product != "incus_actors"}
    for row in (r for r in rows if r.product == "incus_actors"):
        other = real.get(row.what)
        met = "" if row.budget is None else f"{row.budget:g} {'✔' if row.p50 <= row.budget else '✘'}"
        table.add_row(
            f"{row.what} [{row.unit}]" if row.unit else row.what,
            f"{row.p50:.2f} ({row.p99:.2f})",
            met,
            "–" if other is None else f"{other.p50:.2f} ({other.p99:.2f})",
            "–" if other is None or not row.p50 else f"{other.p50 / row.p50:.1f} ×",
        )
    console = Console(width=None if os.isatty(1) else 160, markup=False)
    console.print(table)
    if not_measured:
        console.print(f"real Incus: not measured ({not_measured})")
