"""Control groups of instances, version 1, version 2 and the mix of both.

Owns where they are, what they count, freezing, and removing what a dead instance left. Called by the instance
drivers; must never touch a group outside the parent it was given, and never blocks longer than sysfs does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
_V1_CONTROLLERS = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd")


@dataclass(frozen=True, slots=True)
class CgroupLayout:
    """`v1`: controller → mount point of its hierarchy. `v2`: the unified hierarchy, if any, and its controllers."""

    v1: Mapping[str, Path] = field(default_factory=dict)
    v2: Path | None = None
    v2_controllers: frozenset[str] = frozenset()

    def directory(self, controller: str, path: str) -> Path | None:
        """Return where `controller` counts for the group `path`; None if this machine has it not."""
        if controller in self.v1:
            return self.v1[controller] / path
        if self.v2 is not None and controller in self.v2_controllers:
            return self.v2 / path
        return None

    def roots(self) -> list[Path]:
        """Return every hierarchy once."""
        roots = dict.fromkeys(root.resolve() for root in self.v1.values())
        if self.v2 is not None:
            roots[self.v2] = None
        return list(roots)

    def has(self, controller: str) -> bool:
        """Return whether limits of this controller can be set here."""
        return controller in self.v1 or controller in self.v2_controllers


def detect(mounts: str | None = None) -> CgroupLayout:
    """Read /proc/self/mounts. An empty layout means that there are no usable control groups."""
    text = Path("/proc/self/mounts").read_text() if mounts is None else mounts
    v1: dict[str, Path] = {}
    v2: Path | None = None
    for line in text.splitlines():
        _, target, kind, options, *_ = line.split()
        if kind == "cgroup":
            for option in options.split(","):
                controller = option.removeprefix("name=")
                if controller in _V1_CONTROLLERS:
                    v1.setdefault(controller, Path(target))
        elif kind == "cgroup2" and v2 is None:
            v2 = Path(target)
    controllers: frozenset[str] = frozenset()
    if v2 is not None:
        with contextlib.suppress(OSError):
            controllers = frozenset((v2 / "cgroup.controllers").read_text().split())
        if "cgroup.controllers" in {entry.name for entry in _entries(v2)} and not v1:
            controllers |= {"freezer", "cpuacct"}  # part of the core of version 2
    return CgroupLayout(v1, v2, controllers)


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []


def read_int(path: Path | None, default: int = -1) -> int:
    """Return the number in a control file; `default` if it is missing, `0` for "max"."""
    if path is None:
        return default
    try:
        text = path.read_text().strip()
    except OSError:
        return default
    if text == "max":
        return 0
    try:
        return int(text)
    except ValueError:
        return default


@dataclass(frozen=True, slots=True)
class Counters:
    """What a group used; -1 = not counted on this machine. A limit of 0 = none."""

    processes: int = -1
    memory_usage_bytes: int = -1
    memory_peak_bytes: int = -1
    memory_limit_bytes: int = 0
    swap_usage_bytes: int = -1
    swap_peak_bytes: int = -1
    cpu_ns: int = -1


_V1_NO_LIMIT_BYTES = 1 << 60


def counters(layout: CgroupLayout, path: str) -> Counters:
    """Read all counters of a group; a handful of small files."""
    pids = layout.directory("pids", path)
    processes = read_int(pids / "pids.current") if pids else -1
    if "memory" in layout.v1:
        memory = layout.v1["memory"] / path
        limit = read_int(memory / "memory.limit_in_bytes", 0)
        usage = read_int(memory / "memory.usage_in_bytes")
        peak = read_int(memory / "memory.max_usage_in_bytes")
        with_swap = read_int(memory / "memory.memsw.usage_in_bytes")
        swap_peak = read_int(memory / "memory.memsw.max_usage_in_bytes")
        swap = max(0, with_swap - usage) if with_swap >= 0 else -1
        swap_peak = max(0, swap_peak - peak) if swap_peak >= 0 else -1
        limit = 0 if limit >= _V1_NO_LIMIT_BYTES else limit
    elif memory_dir := layout.directory("memory", path):
        limit = read_int(memory_dir / "memory.max", 0)
        usage = read_int(memory_dir / "memory.current")
        peak = read_int(memory_dir / "memory.peak")
        swap = read_int(memory_dir / "memory.swap.current")
        swap_peak = read_int(memory_dir / "memory.swap.peak")
    else:
        limit, usage, peak, swap, swap_peak = 0, -1, -1, -1, -1
    return Counters(processes, usage, peak, limit, swap, swap_peak, _cpu_ns(layout, path))


def _cpu_ns(layout: CgroupLayout, path: str) -> int:
    if "cpuacct" in layout.v1:
        return read_int(layout.v1["cpuacct"] / path / "cpuacct.usage")
    if layout.v2 is not None:
        with contextlib.suppress(OSError, ValueError):
            for line in (layout.v2 / path / "cpu.stat").read_text().splitlines():
                if line.startswith("usage_usec "):
                    return int(line.split()[1]) * 1000
    return -1


def is_frozen(layout: CgroupLayout, path: str) -> bool:
    """Return whether the group is frozen (or on its way there)."""
    if "freezer" in layout.v1:
        try:
            return (layout.v1["freezer"] / path / "freezer.state").read_text().strip() in {"FROZEN", "FREEZING"}
        except OSError:
            return False
    return layout.v2 is not None and read_int(layout.v2 / path / "cgroup.freeze", 0) == 1


def set_frozen(layout: CgroupLayout, path: str, frozen: bool) -> None:
    """Ask for it; `is_settled` says when it is so. Raises OSError."""
    if "freezer" in layout.v1:
        (layout.v1["freezer"] / path / "freezer.state").write_text("FROZEN" if frozen else "THAWED")
    elif layout.v2 is not None:
        (layout.v2 / path / "cgroup.freeze").write_text("1" if frozen else "0")
    else:
        raise OSError("this machine has no freezer")


def is_settled(layout: CgroupLayout, path: str, frozen: bool) -> bool:
    """Return whether every process of the group is in the state asked for."""
    if "freezer" in layout.v1:
        wanted = "FROZEN" if frozen else "THAWED"
        return (layout.v1["freezer"] / path / "freezer.state").read_text().strip() == wanted
    if layout.v2 is None:
        return not frozen
    return f"frozen {int(frozen)}" in (layout.v2 / path / "cgroup.events").read_text()


def processes(layout: CgroupLayout, path: str) -> Iterator[int]:
    """Yield the pids of a group and those below it, in the first hierarchy that has it."""
    for root in layout.roots():
        found = False
        for directory, _, _ in os.walk(root / path):
            with contextlib.suppress(OSError):
                for line in Path(directory, "cgroup.procs").read_text().split():
                    found = True
                    yield int(line)
        if found:
            return


def write_limits(layout: CgroupLayout, path: str, limits: Mapping[str, str]) -> None:
    """Write limits ("memory.max" → value) of a running instance. Raises OSError with the kernel's reason."""
    for name, value in limits.items():
        directory = layout.directory(name.partition(".")[0], path)
        if directory is not None:
            (directory / name).write_text(value)


def remove(layout: CgroupLayout, path: str, *, kill: bool = False, deadline_s: float = 2.0) -> list[str]:
    """Remove the group everywhere, children first; return what could not be removed. Blocking: a few ms.

    `kill` ends processes that are left (their monitor is dead). Only empty groups can vanish.
    """
    _checked(path)
    until = time.monotonic() + deadline_s
    while True:
        if kill:
            for pid in processes(layout, path):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        left = [str(root / path) for root in layout.roots() if not _remove_tree(root / path)]
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.002)


def remove_if_empty(layout: CgroupLayout, path: str) -> None:
    """Remove a group where nothing is left: itself and the empty `lxc.pivot` that liblxc makes below pivots."""
    _checked(path)
    for root in layout.roots():
        for directory in (root / path / "lxc.pivot", root / path):
            with contextlib.suppress(OSError):
                directory.rmdir()


def _checked(path: str) -> None:
    if not path or path.startswith("/") or ".." in path.split("/"):
        raise ValueError(f"unsafe control group {path!r}")


def _remove_tree(directory: Path) -> bool:
    for current, _, _ in os.walk(directory, topdown=False):
        with contextlib.suppress(OSError):
            Path(current).rmdir()
    return not directory.exists()
