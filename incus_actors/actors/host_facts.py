"""What this host says about itself: load, memory, uptime, processes, read from /proc.

Owns the readings; HeartbeatActor tells them to others and member state shows them. Must never block: /proc only.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_SHOWN = frozenset({"MemTotal", "MemFree", "MemAvailable", "Shmem", "Buffers", "SwapTotal", "SwapFree"})


@dataclass(frozen=True, slots=True)
class HostFacts:
    """Sizes in bytes, uptime in seconds."""

    uptime_s: int
    load: tuple[float, float, float]
    total_ram: int
    free_ram: int
    available_ram: int
    shared_ram: int
    buffered_ram: int
    total_swap: int
    free_swap: int
    processes: int


def read_host_facts(proc: Path = Path("/proc")) -> HostFacts:
    """Return the present readings; a file that isn't there gives zeros. Raises OSError for anything else."""
    memory = _meminfo(_read(proc / "meminfo"))
    uptime = _read(proc / "uptime").split()
    load = _read(proc / "loadavg").split()
    processes = load[3].partition("/")[2] if len(load) > 3 else "0"
    return HostFacts(
        uptime_s=int(float(uptime[0])) if uptime else 0,
        load=tuple(float(x) for x in load[:3]) if len(load) >= 3 else os.getloadavg(),  # type: ignore[arg-type]
        total_ram=memory.get("MemTotal", 0),
        free_ram=memory.get("MemFree", 0),
        available_ram=memory.get("MemAvailable", 0),
        shared_ram=memory.get("Shmem", 0),
        buffered_ram=memory.get("Buffers", 0),
        total_swap=memory.get("SwapTotal", 0),
        free_swap=memory.get("SwapFree", 0),
        processes=int(processes) if processes.isdigit() else 0,
    )


def _read(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    try:
        return os.read(descriptor, 1 << 16).decode()  # once a second on every member: no buffers, no stat
    finally:
        os.close(descriptor)


def _meminfo(text: str) -> dict[str, int]:
    found = {}
    for line in text.splitlines():
        key, _, rest = line.partition(":")
        if key not in _SHOWN:
            continue
        words = rest.split()
        if words and words[0].isdigit():
            found[key] = int(words[0]) * 1024
    return found
