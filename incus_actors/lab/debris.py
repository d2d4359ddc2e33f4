"""Leave nothing behind: processes, mounts and control groups that belong to a lab directory.

Owns the last resort of demo, benchmarks and tests, for when a daemon can no longer clean up itself. Must never
touch anything whose path is not inside the given directory.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path


def processes_of(directory: Path) -> list[int]:
    """Return processes that run from, in, or for `directory`: named by command line, environment or root."""
    needle = str(directory).encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            facts = (entry / "cmdline").read_bytes() + b"\0" + (entry / "environ").read_bytes()
        except OSError:
            continue
        if needle in facts and b"INCUS_ACTORS_LAB_OBSERVER" not in facts:
            found.append(int(entry.name))
    return found


def descendants(roots: list[int]) -> list[int]:
    """Return the processes and everything below them, children after parents."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    queue = list(roots)
    while queue:
        pid = queue.pop(0)
        if pid not in found:
            found.append(pid)
            queue += children.get(pid, [])
    return found


def mounts_below(directory: Path) -> list[str]:
    """Return mount points inside `directory`, deepest first."""
    points = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split()[4].encode().decode("unicode_escape")
        if point.startswith(f"{directory}/"):
            points.append(point)
    return sorted(points, key=len, reverse=True)


def remove(directory: Path) -> list[str]:
    """Kill, unmount and delete all of `directory`; return a line for each thing that had to be forced."""
    forced = []
    for _ in range(3):
        pids = descendants(processes_of(directory))
        for pid in pids:
            forced.append(f"killed process {pid}")
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if not pids:
            break
        time.sleep(0.2)
    for point in mounts_below(directory):
        forced.append(f"unmounted {point}")
        subprocess.run(["umount", "-l", point], check=False, capture_output=True, timeout=30)
    if not mounts_below(directory):
        shutil.rmtree(directory, ignore_errors=True)
    return forced
