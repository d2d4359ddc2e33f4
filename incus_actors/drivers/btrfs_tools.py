"""What the programs of btrfs are asked, and how their answers are read.

Owns the parsers and the removal of subvolumes within subvolumes. Called by storage_btrfs.py; must never follow a link
while it looks for subvolumes.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from incus_actors.drivers import commands, mounts
from incus_actors.drivers.trees import remove_tree

_SUBVOLUME_INODE = 256
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_VERSION = re.compile(r"v([0-9.]+)")


@dataclass(frozen=True, slots=True)
class Signature:
    """What is on a block device; `kind` is "" for nothing known."""

    kind: str
    label: str
    uuid: str


@dataclass(frozen=True, slots=True)
class Group:
    """One quota group in bytes; `limit` 0 means none."""

    id: str
    referenced: int
    exclusive: int
    limit: int


def is_uuid(text: str) -> bool:
    """Return whether this is the UUID of a file system."""
    return _UUID.fullmatch(text) is not None


def kernel_problem() -> str:
    """Return why this kernel has no btrfs, "" if it has (a module is loaded if need be)."""
    known = Path("/proc/filesystems").read_text().split()
    if "btrfs" in known:
        return ""
    modprobe = commands.which("modprobe")
    if modprobe is not None and subprocess.run([modprobe, "-q", "btrfs"], check=False, timeout=10).returncode == 0:
        return ""
    return "this kernel has no btrfs"


def version() -> str:
    """Return the version of btrfs-progs, "" if it doesn't tell."""
    program = commands.which("btrfs")
    if program is None:
        return ""
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=10)
    found = _VERSION.search(done.stdout)
    return found[1] if found else ""


def file_system_of(path: Path) -> str:
    """Return the kind of file system that a path is on, such as "ext4"."""
    found = mounts.holding(path)
    return found.kind if found is not None else "unknown"


def is_subvolume(path: Path) -> bool:
    """Return whether a directory on btrfs is the root of a subvolume."""
    return path.stat().st_ino == _SUBVOLUME_INODE


async def identify(device: str) -> Signature:
    """Return what is on a device. Raises CommandError, DriverError."""
    try:
        text = await commands.run("blkid", "--probe", "--output", "export", "--", device)
    except commands.CommandError as error:
        if error.code == 2 and not error.stderr.strip():
            return Signature("", "", "")  # nothing that it knows
        raise
    return parse_signature(text)


def parse_signature(text: str) -> Signature:
    """Read the lines KEY=value of `blkid -o export`."""
    values = dict(line.partition("=")[::2] for line in text.splitlines() if "=" in line)
    kind = values.get("TYPE") or values.get("PTTYPE", "")
    return Signature(kind, values.get("LABEL", "").replace("\\", ""), values.get("UUID", ""))


def parse_groups(text: str) -> list[Group]:
    """Read `btrfs qgroup show --raw -r`, level 0 only."""
    found = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 4 or not fields[0].startswith("0/") or not fields[1].isdigit():
            continue
        limit = int(fields[3]) if fields[3].isdigit() else 0
        found.append(Group(fields[0], int(fields[1]), int(fields[2]), limit))
    return found


def stale_groups(groups: str, subvolumes: str) -> list[str]:
    """Return quota groups ("0/259") whose subvolume isn't in `btrfs subvolume list`."""
    living = {line.split()[1] for line in subvolumes.splitlines() if line.startswith("ID ")}
    return [group.id for group in parse_groups(groups) if group.id not in {"0/5", *(f"0/{id_}" for id_ in living)}]


async def forget_stale_groups(root: Path) -> None:
    """Remove quota groups of subvolumes that are gone (newer kernels do that by themselves)."""
    groups = await commands.run("btrfs", "qgroup", "show", "--raw", "-r", str(root))
    for group in stale_groups(groups, await commands.run("btrfs", "subvolume", "list", str(root))):
        await commands.run_quietly("btrfs", "qgroup", "destroy", group, str(root))


async def drop(path: Path) -> None:
    """Remove a subvolume with those inside it, or a directory with subvolumes in it. Idempotent. Raises DriverError."""
    try:
        if not is_subvolume(path):
            await _drop_directory(path)
            return
        await delete_subvolume(path)
    except FileNotFoundError:
        return


async def delete_subvolume(path: Path) -> None:
    """Remove a subvolume; only if it can't be removed are subvolumes inside looked for. Raises CommandError."""
    command = ("btrfs", "subvolume", "delete", str(path))
    try:
        await commands.run(*command)
    except commands.CommandError:
        if not path.exists():
            return
        inner = await asyncio.to_thread(subvolumes_below, path)
        if not inner:
            raise
        for found in inner:
            await commands.run("btrfs", "subvolume", "delete", str(found))
        await commands.run(*command)


async def _drop_directory(path: Path) -> None:
    for found in await asyncio.to_thread(subvolumes_below, path):
        await commands.run("btrfs", "subvolume", "delete", str(found))
    await remove_tree(path)


def subvolumes_below(top: Path) -> list[Path]:
    """Return the subvolumes in a tree, the deepest first."""
    found: list[Path] = []
    stack = [str(top)]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
                    if entry.stat(follow_symlinks=False).st_ino == _SUBVOLUME_INODE:
                        found.append(Path(entry.path))
    return sorted(found, key=lambda path: -len(path.parts))
