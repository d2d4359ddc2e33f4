"""What is mounted where, and mounting (for the storage drivers).

Owns reading /proc/self/mountinfo. Called by the storage drivers and by the one that maps owners of root file systems;
must never unmount by force: data of others may be behind it.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path

from incus_actors.drivers.commands import CommandError, run

_MOUNTINFO = Path("/proc/self/mountinfo")
_ESCAPE = re.compile(r"\\([0-7]{3})")
_BUSY_S = 3.0


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo. `device` is major:minor of the mounted root, `root` the path of it in its file system."""

    device: str
    root: str
    point: Path
    kind: str
    source: str
    options: str


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def parse(text: str) -> list[Mount]:
    """Return the mounts of a mountinfo file, oldest first."""
    found = []
    for line in text.splitlines():
        fields = line.split(" ")
        if "-" not in fields[6:]:
            continue
        after = fields.index("-", 6)
        kind, source, options = fields[after + 1 : after + 4]
        point = Path(_unescaped(fields[4]))
        found.append(Mount(fields[2], _unescaped(fields[3]), point, kind, _unescaped(source), f"{fields[5]},{options}"))
    return found


def mounts() -> list[Mount]:
    """Return what is mounted in our namespace."""
    return parse(_MOUNTINFO.read_text())


def mounted_at(path: Path) -> Mount | None:
    """Return what is mounted exactly there, the topmost if several are."""
    path = path.resolve()
    return next((mount for mount in reversed(mounts()) if mount.point == path), None)


def holding(path: Path) -> Mount | None:
    """Return the mount that a path is on."""
    path = path.resolve()
    best: Mount | None = None
    for mount in mounts():
        inside = path == mount.point or mount.point in path.parents
        if inside and (best is None or len(mount.point.parts) >= len(best.point.parts)):
            best = mount
    return best


async def mount(source: str, target: Path, *arguments: str) -> None:
    """Mount; `arguments` go to mount(8). Raises CommandError."""
    await run("mount", *arguments, "--", source, str(target))


async def unmount(target: Path) -> None:
    """Unmount everything at exactly this place; nothing if nothing is. Raises CommandError if it stays busy."""
    deadline = asyncio.get_running_loop().time() + _BUSY_S
    while mounted_at(target) is not None:
        try:
            await run("umount", "--", str(target))
        except CommandError:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.05)
