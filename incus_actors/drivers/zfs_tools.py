"""What the programs of ZFS are asked, and how their answers are read.

Owns the parsers and the patience with a busy dataset. Called by storage_zfs.py. Only options that OpenZFS and zfs-fuse share.
"""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

from incus_actors.drivers import commands
from incus_actors.drivers.base import DriverError
from incus_actors.drivers.commands import CommandError, run

_MODULE_VERSION = Path("/sys/module/zfs/version")
ANSWER_S = 2.0  #: a daemon starts without ZFS rather than wait longer for it
BUSY_TRIES = 20
BUSY_S = 0.1


def problem() -> str:
    """Return why ZFS doesn't work here, "" if it does. Blocks some 10 ms."""
    program = commands.which("zpool")
    if program is None:
        return "Required tool 'zpool' is missing"
    try:
        done = subprocess.run([program, "list", "-H"], capture_output=True, text=True, check=False, timeout=ANSWER_S)
    except (subprocess.TimeoutExpired, OSError) as error:
        return f"zpool doesn't answer: {error}"
    if done.returncode == 0:
        return ""
    said = " ".join(done.stderr.split())
    return f"zpool doesn't work: {said or f'exit status {done.returncode}'}"


def version() -> str:
    """Return the version of the kernel's module, or of zfs-fuse."""
    try:
        return _MODULE_VERSION.read_text().strip()
    except OSError:
        return "fuse"


async def exists(name: str) -> bool:
    """Return whether there is a dataset or snapshot. Raises DriverError when ZFS itself doesn't answer."""
    kind = "snapshot" if "@" in name else "filesystem"
    try:
        await run("zfs", "list", "-H", "-t", kind, "-o", "name", name)
    except CommandError as error:
        if is_missing(error):
            return False
        raise
    return True


def is_missing(error: CommandError) -> bool:
    """Return whether a command failed because what it names is not there."""
    return "not exist" in error.stderr


async def when_free(*argv: str) -> None:
    """Run a command on an unmounted dataset or pool; with zfs-fuse it stays busy for a moment. Raises DriverError."""
    for _ in range(BUSY_TRIES):
        try:
            await run(*argv)
        except CommandError as error:
            if "busy" not in error.stderr:
                raise
            await asyncio.sleep(BUSY_S)
        else:
            return
    await run(*argv)


async def below(dataset: str) -> list[str]:
    """Return the datasets below one, parents first. Raises DriverError."""
    text = await run("zfs", "list", "-H", "-r", "-t", "filesystem", "-o", "name", dataset)
    return [line for line in text.splitlines() if line != dataset]


async def snapshots_of(dataset: str) -> list[str]:
    """Return the names of a dataset's snapshots, without the dataset's, in the order of their making."""
    text = await run("zfs", "list", "-H", "-r", "-d", "1", "-t", "snapshot", "-s", "creation", "-o", "name", dataset)
    return parse_snapshots(text, dataset)


def parse_snapshots(text: str, dataset: str) -> list[str]:
    """Read `zfs list -t snapshot`; zfs-fuse lists those of children too."""
    prefix = f"{dataset}@"
    return [line.removeprefix(prefix) for line in text.splitlines() if line.startswith(prefix)]


async def value(dataset: str, name: str) -> str:
    """Return one property; "" where it is not set. Raises DriverError."""
    text = (await run("zfs", "get", "-H", "-o", "value", name, dataset)).strip()
    return "" if text == "-" else text


async def mounted(dataset: str) -> bool:
    """Return whether a dataset is mounted. Raises DriverError."""
    return await value(dataset, "mounted") == "yes"


async def numbers(dataset: str, *names: str) -> dict[str, int]:
    """Return properties that are numbers; 0 where there is none. Raises DriverError."""
    text = await run("zfs", "get", "-H", "-p", "-o", "property,value", ",".join(names), dataset)
    found = parse_numbers(text)
    missing = set(names) - found.keys()
    if missing:
        raise DriverError(f"zfs does not tell {', '.join(sorted(missing))} of {dataset}")
    return found


def parse_numbers(text: str) -> dict[str, int]:
    """Read `zfs get -Hp -o property,value`."""
    found = {}
    for line in text.splitlines():
        name, _, number = line.partition("\t")
        found[name] = int(number) if number.strip().isdigit() else 0
    return found


async def devices_of(pool: str) -> list[str]:
    """Return the files and devices of a ZFS pool. Raises DriverError."""
    return parse_devices(await run("zpool", "status", pool))


def parse_devices(text: str) -> list[str]:
    """Read `zpool status`: absolute paths of the lines below "config:"."""
    return [word for word in (line.split()[0] for line in text.splitlines() if line.split()) if word.startswith("/")]
