"""Leave nothing behind: processes, mounts and control groups that belong to a lab directory.

Owns the last resort of demo, benchmarks and tests, for when a daemon can no longer clean up itself. Must never
touch anything whose path is not inside the given directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

# Set for whatever a lab starts, and inherited by the helpers of those daemons. Not INCUS_DIR: a user's shell and the
# programs in it have that, too.
LAB_VARIABLE = "INCUS_ACTORS_LAB"
DAEMON = b"incus_actors.cli.daemon"
DAEMON_SCRIPT = "incus-actorsd"
RUN_DIRECTORY = "/run/incus-actors"
LOCK_DIRECTORY = "/run/lxc/lock"


def digests_of(directory: Path) -> set[str]:
    """Return how the container driver abbreviates the state directories inside `directory` (drivers/lxc.py)."""
    inside = [directory, *(p for p in directory.glob("*") if p.is_dir())] if directory.is_dir() else [directory]
    return {hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:10] for path in inside}


def processes_of(directory: Path) -> list[int]:
    """Return what a lab started inside `directory` with its helpers, daemons of ours that a user started there by hand,
    the monitors of its containers, and dnsmasq for its networks.

    Never this process or one that it descends from, whatever their command lines say, and nothing else of a user's that
    merely has INCUS_DIR in its environment.
    """
    started, state = f"{LAB_VARIABLE}={directory}/".encode(), f"INCUS_DIR={directory}/".encode()
    inside = f"{directory}/".encode()
    monitors = [f"{RUN_DIRECTORY}/{digest} ".encode() for digest in digests_of(directory)]
    spared = ancestors(os.getpid())
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in spared:
            continue
        try:
            command, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:
            continue
        variables = environment.split(b"\0")
        ours = any(value.startswith(started) for value in variables) or (
            _is_daemon(command) and any(value.startswith(state) for value in variables)
        )
        monitor = command.startswith(b"[lxc monitor]") and any(path in command for path in (*monitors, inside))
        service = command.partition(b"\0")[0].endswith(b"dnsmasq") and inside in command
        if ours or monitor or service:
            found.append(int(entry.name))
    return found


def daemons_of(directory: Path) -> list[int]:
    """Return those of `processes_of` that are daemons: they can be asked to end."""
    found = []
    for pid in processes_of(directory):
        with contextlib.suppress(OSError):
            if _is_daemon(Path(f"/proc/{pid}/cmdline").read_bytes()):
                found.append(pid)
    return found


def _is_daemon(command: bytes) -> bool:
    """`command` as in /proc/PID/cmdline: `python -m incus_actors.cli.daemon` or `python …/incus-actorsd`."""
    words = command.split(b"\0")
    return DAEMON in words or any(Path(os.fsdecode(word)).name == DAEMON_SCRIPT for word in words[:2])


def ancestors(pid: int) -> set[int]:
    """Return a process and everything above it."""
    found: set[int] = set()
    while pid > 0 and pid not in found:
        found.add(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
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
    digests = digests_of(directory)
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
    for digest in digests:
        _remove_groups(digest)
        for left in (Path(RUN_DIRECTORY, digest), Path(LOCK_DIRECTORY, RUN_DIRECTORY[1:], digest)):
            shutil.rmtree(left, ignore_errors=True)  # liblxc makes them; the driver takes them away when all went well
    if not mounts_below(directory):
        shutil.rmtree(directory, ignore_errors=True)
    return forced


def _remove_groups(digest: str) -> None:
    """Remove the empty control groups of one state directory, below every controller."""
    for root in Path("/sys/fs/cgroup").glob(f"**/incus-actors-{digest}"):
        for group, _, _ in os.walk(root, topdown=False):
            with contextlib.suppress(OSError):  # busy: a process that we don't know of is in it, and stays
                Path(group).rmdir()
