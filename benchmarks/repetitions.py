"""A measurement done several times: what the machine was like each time, and median and range of every number.

Used by consensus.py (CONSENSUS 5.2): systems take turns, and before each turn a probe syncs small writes to the disk that
all of them use, so that a reader can tell a slow disk or a busy machine from a slow system.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
System = tuple[str, Callable[[], list[Row]]]
PROBES = 100
_NAMES = ("where", "what", "clients")  # what tells a row from the others; everything else is a number


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """Return p50, p99, p99.9 and max of milliseconds."""
    ordered = sorted(values)
    count = len(ordered)
    return {
        "p50_ms": round(ordered[count // 2], 3),
        "p99_ms": round(ordered[min(count - 1, count * 99 // 100)], 3),
        "p999_ms": round(ordered[min(count - 1, count * 999 // 1000)], 3),
        "max_ms": round(ordered[-1], 3),
    }


def probe_disk(directory: Path) -> dict[str, float]:
    """Return how long a write of 4 KiB and its sync take there just now."""
    took: list[float] = []
    with tempfile.TemporaryFile(dir=directory) as file:
        for _ in range(PROBES):
            begin = time.perf_counter()
            os.pwrite(file.fileno(), b"x" * 4096, 0)
            os.fsync(file.fileno())
            took.append((time.perf_counter() - begin) * 1000)
    return {f"fsync_{name}": value for name, value in percentiles(took).items()}


def repeated(systems: list[System], times: int, directory: Path) -> tuple[list[Row], list[Row]]:
    """Let the systems take turns (A B A B …), `times` times; return the merged rows, and the conditions of each turn."""
    rows: list[Row] = []
    conditions: list[Row] = []
    for number in range(1, times + 1):
        for name, measure in systems:
            found: Row = {"repetition": number, "system": name, "load_average": round(os.getloadavg()[0], 2)}
            conditions.append({**found, **probe_disk(directory)})
            print("-- {repetition}: {system}, load {load_average}, fsync p50 {fsync_p50_ms} ms, p99 {fsync_p99_ms} ms".format(
                **conditions[-1]
            ), flush=True)  # fmt: skip
            rows += measure()
    return merged(rows), conditions


def merged(rows: Iterable[Row]) -> list[Row]:
    """Return one row for each thing that was measured: the median of every number, and its range."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in _NAMES), []).append(row)
    return [_merge(group) for group in groups.values()]


def _merge(group: list[Row]) -> Row:
    first = group[0]
    numbers = [name for name in first if name not in _NAMES]
    values = {name: sorted(row[name] for row in group) for name in numbers}
    return {
        **{name: first[name] for name in _NAMES},
        "repetitions": len(group),
        **{name: round(statistics.median(found), 3) for name, found in values.items()},
        "range": {name: [found[0], found[-1]] for name, found in values.items()},
    }
