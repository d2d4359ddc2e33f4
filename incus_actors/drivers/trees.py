"""Trees of files on the host: removed without leaving them, exchanged at once.

Owns the names of unfinished work. Called by the storage drivers; must never follow a link nor cross a mount.
"""

from __future__ import annotations

import ctypes
import errno
import os
import uuid
from pathlib import Path

from incus_actors.drivers.base import DriverError
from incus_actors.drivers.commands import CommandError, run

INCOMING, DELETING, SENDING = ".incoming-", ".deleting-", ".sending-"
UNFINISHED = (INCOMING, DELETING, SENDING)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2

_libc = ctypes.CDLL(None, use_errno=True)


def unfinished(parent: Path, kind: str = INCOMING) -> Path:
    """Return a fresh name in `parent` that `reconcile` removes after a crash."""
    return parent / f"{kind}{uuid.uuid4().hex}"


async def remove_tree(path: Path) -> None:
    """Remove without following links or crossing mounts. Idempotent. Raises DriverError."""
    try:
        await run("rm", "-rf", "--one-file-system", "--", str(path), timeout_s=3600)
    except CommandError as error:
        raise DriverError(f"Failed to remove {path}: {error.stderr.strip()}") from error


def exchange(one: Path, other: Path) -> None:
    """Let two directory entries change places at once. Raises DriverError where the file system can't."""
    if _libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return
    number = ctypes.get_errno()
    if number not in (errno.EINVAL, errno.ENOSYS):
        raise DriverError(f"Failed to exchange {one} and {other}: {os.strerror(number)}")
    aside = unfinished(other.parent, DELETING)
    other.rename(aside)
    try:
        one.rename(other)
    except OSError:
        aside.rename(other)
        raise
    aside.rename(one)
