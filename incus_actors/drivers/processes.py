"""Facts about processes, from /proc: identity that survives pid reuse, parents, namespaces, boot time.

Owns nothing. Called by the instance drivers on the event loop: each function reads one or two small files.
Must never signal anything.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A pid and the tick when it started: together unique until the next boot."""

    pid: int
    start_ticks: int

    def alive(self) -> bool:
        """Return whether this very process still exists and is no zombie."""
        found = stat_of(self.pid)
        return found is not None and found.start_ticks == self.start_ticks and found.state not in "ZX"

    @property
    def started_at(self) -> float:
        """Return when it started, seconds since the epoch (resolution 10 ms)."""
        return boot_time_s() + self.start_ticks / _TICKS_PER_S


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """The part of /proc/<pid>/stat that we use. `cpu_ns` is that of the process alone."""

    state: str
    parent: int
    start_ticks: int
    cpu_ns: int
    rss_bytes: int


def stat_of(pid: int) -> ProcessStat | None:
    """Return None if there is no such process."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except (OSError, ValueError):
        return None
    fields = text[text.rindex(")") + 2 :].split()
    cpu_ns = (int(fields[11]) + int(fields[12])) * 1_000_000_000 // _TICKS_PER_S
    return ProcessStat(fields[0], int(fields[1]), int(fields[19]), cpu_ns, int(fields[21]) * os.sysconf("SC_PAGESIZE"))


def identity_of(pid: int) -> ProcessIdentity | None:
    """Return what identifies a living process."""
    found = stat_of(pid)
    return ProcessIdentity(pid, found.start_ticks) if found is not None and found.state not in "ZX" else None


def status_field(pid: int, name: str) -> str:
    """Return one line's value of /proc/<pid>/status, "" if missing."""
    try:
        for line in (_PROC / str(pid) / "status").read_text().splitlines():
            key, _, value = line.partition(":")
            if key == name:
                return value.strip()
    except OSError:
        pass
    return ""


def pid_inside(pid: int) -> tuple[int, ...]:
    """Return the pids in each namespace from ours inwards: (host, container)."""
    return tuple(int(word) for word in status_field(pid, "NSpid").split())


def command_line(pid: int) -> str:
    """Return the arguments joined by blanks, "" if it is gone or a kernel thread."""
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def blocks_signal(pid: int, number: int) -> bool:
    """Return whether the process blocks this signal (systemd does so with SIGRTMIN+3)."""
    return _in_mask(pid, "SigBlk", number)


def catches_signal(pid: int, number: int) -> bool:
    """Return whether the process has a handler for this signal; pid 1 ignores all others."""
    return _in_mask(pid, "SigCgt", number)


def _in_mask(pid: int, field: str, number: int) -> bool:
    mask = status_field(pid, field)
    return bool(mask) and bool(int(mask, 16) & (1 << (number - 1)))


@functools.cache
def boot_time_s() -> int:
    """Return when the kernel booted, seconds since the epoch."""
    for line in (_PROC / "stat").read_text().splitlines():
        if line.startswith("btime "):
            return int(line.split()[1])
    return 0


@functools.cache
def boot_id() -> str:
    """Return what tells this boot of the kernel from all others."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


@functools.cache
def memory_total_bytes() -> int:
    """Return the machine's memory."""
    for line in (_PROC / "meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def online_cpus() -> tuple[int, ...]:
    """Return the cpus that we may use."""
    return tuple(sorted(os.sched_getaffinity(0)))
