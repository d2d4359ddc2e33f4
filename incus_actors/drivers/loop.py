"""Files that stand for disks: `<dir>/disks/<pool>.img`, and the loop devices on them.

Owns their size and their growth. Called by the storage drivers that want a block device; must never touch a loop
device whose file is not one of ours.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from incus_actors.drivers.base import DriverError
from incus_actors.drivers.commands import run
from incus_actors.errors import BadRequestError, MemberError
from incus_actors.model.config_values import parse_size

_BLOCKS = Path("/sys/block")
_GIB = 1 << 30
SIZE_MIN_GIB, SIZE_MAX_GIB, SHARE = 5, 30, 0.2  #: as Incus: 20 % of the free space, within 5 and 30 GiB


def default_size(directory: Path) -> str:
    """Return the size of a new pool's file, such as "30GiB"."""
    free_gib = shutil.disk_usage(directory).free * SHARE / _GIB
    return f"{int(min(max(free_gib, SIZE_MIN_GIB), SIZE_MAX_GIB))}GiB"


def size_bytes(text: str) -> int:
    """Return the bytes of "30GiB". Raises BadRequestError."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise BadRequestError(f'Invalid value for option "size": {error}') from None


def make(path: Path, size: int) -> None:
    """Make a sparse file, also where an interrupted attempt left one. Raises DriverError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    try:
        with path.open("xb") as file:
            os.fchmod(file.fileno(), 0o600)
            os.ftruncate(file.fileno(), size)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise DriverError(f"Failed to create sparse file {path}: {error.strerror}") from error


def devices(path: Path) -> list[str]:
    """Return the loop devices ("/dev/loop3") whose file this is."""
    try:
        wanted = path.resolve()
    except OSError:
        return []
    found = []
    for entry in _BLOCKS.glob("loop*"):
        try:
            backing = (entry / "loop/backing_file").read_text().rstrip("\n")
        except OSError:
            continue
        if Path(backing) == wanted:
            found.append(f"/dev/{entry.name}")
    return sorted(found)


async def attach(path: Path) -> str:
    """Return the loop device of a file, made if there is none. Raises CommandError."""
    found = devices(path)
    if found:
        return found[0]
    return (await run("losetup", "--find", "--nooverlap", "--show", "--", str(path))).strip()


async def detach(path: Path) -> None:
    """Take the loop devices of a file away. Raises CommandError while something uses them."""
    for device in devices(path):
        await run("losetup", "--detach", device)


async def grow(path: Path, size: int) -> None:
    """Make the file and its devices larger. Raises MemberError "Pool cannot be shrunk", DriverError."""
    if size < path.stat().st_size:
        raise MemberError("Pool cannot be shrunk")
    try:
        os.truncate(path, size)
    except OSError as error:
        raise DriverError(f"Failed to grow {path}: {error.strerror}") from error
    for device in devices(path):
        await run("losetup", "--set-capacity", device)
