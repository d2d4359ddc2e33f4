"""Disks of lab members that fill up or hang: a small tmpfs, or a loop device that can be frozen.

Owns the mounts that it makes on state directories; needs root. Called by chaos and tests before a member is started.
Must never freeze or fill anything but its own mounts.
"""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

BALLOON = "balloon"
_CHUNK = b"\0" * 65536


def _run(*command: str, check: bool = True) -> None:
    subprocess.run(command, check=check, capture_output=True, text=True, timeout=60)


@dataclass
class SmallDisk:
    """A tmpfs of some MiB on a member's state directory."""

    directory: Path
    size_mib: int = 160

    def mount(self) -> None:
        """Make it; the directory must be empty."""
        self.directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        _run("mount", "-t", "tmpfs", "-o", f"size={self.size_mib}m,mode=711", "tmpfs", str(self.directory))

    def fill(self, *, attempts: int = 3) -> None:
        """Take all space that is left, also what is freed in the next moments."""
        for attempt in range(attempts):
            try:
                with (self.directory / BALLOON).open("ab", buffering=0) as balloon:
                    while True:
                        balloon.write(_CHUNK)
            except OSError:
                time.sleep(0.05 if attempt < attempts - 1 else 0)

    def free(self) -> None:
        """Give the space back."""
        (self.directory / BALLOON).unlink(missing_ok=True)

    def unmount(self) -> None:
        """Remove it with everything on it; not there is fine."""
        _run("umount", "-l", str(self.directory), check=False)


@dataclass
class FreezableDisk:
    """An ext4 file system in a file, on a member's state directory: writes to it can be made to hang."""

    directory: Path
    image: Path
    size_mib: int = 300
    frozen: bool = False

    def mount(self) -> None:
        """Make it; the directory must be empty."""
        with self.image.open("wb") as file:
            file.truncate(self.size_mib << 20)
        _run("mkfs.ext4", "-q", "-m", "0", str(self.image))
        self.directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        _run("mount", "-o", "loop", str(self.image), str(self.directory))
        self.directory.chmod(0o711)

    def freeze(self) -> None:
        """From now on whoever writes waits."""
        _run("fsfreeze", "--freeze", str(self.directory))
        self.frozen = True

    def thaw(self) -> None:
        """Let them go on."""
        if self.frozen:
            _run("fsfreeze", "--unfreeze", str(self.directory))
            self.frozen = False

    def unmount(self) -> None:
        """Remove it, thawed first: a frozen file system can't be left behind."""
        self.thaw()
        _run("umount", "-l", str(self.directory), check=False)
        self.image.unlink(missing_ok=True)


def can_loop() -> bool:
    """Whether this machine has loop devices and we may use them."""
    return os.geteuid() == 0 and Path("/dev/loop-control").exists()
