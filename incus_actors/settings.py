"""Member-local settings: where things are and how the daemon was started.

Owns what comes from flags and the environment; the composition root reads it once. Must never hold anything
that belongs in the replicated configuration.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass, field
from pathlib import Path

from incus_actors.errors import ClientError

DEFAULT_DIRECTORY = "/var/lib/incus-actors"
DEFAULT_MIN_FREE_MIB = 64


def incus_directory() -> Path:
    """Return `$INCUS_DIR`, or the default state directory, as an absolute path."""
    return Path(os.environ.get("INCUS_DIR") or DEFAULT_DIRECTORY).absolute()


@dataclass(frozen=True, slots=True)
class Settings:
    """What one start of the daemon was told."""

    directory: Path = field(default_factory=incus_directory)
    group: str | None = None
    logfile: Path | None = None
    debug: bool = False
    verbose: bool = False
    log_format: str = "text"
    discoverable: bool = False  #: wait to be found on the local network, unless it is a member already
    min_free_mib: int = (
        DEFAULT_MIN_FREE_MIB  #: below this the database counts as low on disk and takes only what makes room
    )
    instance_driver: str = "auto"  #: auto, lxc or process; from INCUS_ACTORS_DRIVER

    @property
    def unix_socket(self) -> Path:
        """The path where the stock client looks."""
        return self.directory / "unix.socket"

    @property
    def database_directory(self) -> Path:
        """Where log.db, the state files and local.db are (DESIGN D3)."""
        return self.directory / "database"


class DirectoryInUseError(ClientError):
    """The state directory belongs to somebody else."""


def refuse_foreign_directory(directory: Path) -> None:
    """Raise DirectoryInUseError if a real Incus or LXD keeps its database there: we must never take it over."""
    database = directory / "database"
    foreign = (database / "global").is_dir() or (
        (database / "local.db").exists() and not (database / "log.db").exists()
    )
    if foreign:
        raise DirectoryInUseError(
            f"{directory} belongs to a real Incus (it holds {database / 'global'}); "
            "set INCUS_DIR to a directory of its own"
        )


def lock_directory(directory: Path) -> int:
    """Create the directory (0711) and lock it for the life of the process; return the descriptor to keep.

    Raises DirectoryInUseError if another daemon runs on it.
    """
    directory.mkdir(mode=0o711, parents=True, exist_ok=True)
    refuse_foreign_directory(directory)
    descriptor = os.open(directory / "daemon.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "?"
        os.close(descriptor)
        raise DirectoryInUseError(f"incus-actorsd is already running on {directory} (process {owner})") from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor
