"""Disks of lab members that fill up, hang or fail: a small tmpfs, or a loop device that can be frozen or shut down.

Owns the mounts that it makes on state directories; needs root. Called by chaos and tests before a member is started.
Must never freeze or fill anything but its own mounts.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

BALLOON = "balloon"
_CHUNK = b"\0" * 65536
_ROUGHLY = 4 << 20  #: what a file system may need for itself when so much is reserved
_SHUTDOWN = 0x8004587D  #: ioctl EXT4_IOC_SHUTDOWN
_WITHOUT_FLUSHING = 2  #: EXT4_GOING_FLAGS_NOLOGFLUSH


def _run(*command: str, check: bool = True) -> None:
    subprocess.run(command, check=check, capture_output=True, text=True, timeout=60)


class _Fillable:
    """What can run full: a mount on `directory`."""

    directory: Path

    def fill(self, *, attempts: int = 3) -> None:
        """Take all space that is left, also what is freed in the next moments."""
        for attempt in range(attempts):
            try:
                with (self.directory / BALLOON).open("ab", buffering=0) as balloon:
                    space = os.statvfs(self.directory)
                    most = space.f_bavail * space.f_frsize - _ROUGHLY
                    if most > 0:  # reserved at once: a disk needs seconds to take as many bytes
                        os.posix_fallocate(balloon.fileno(), balloon.tell(), most)
                    while True:
                        balloon.write(_CHUNK)
            except OSError:
                time.sleep(0.05 if attempt < attempts - 1 else 0)

    def free(self) -> None:
        """Give the space back."""
        (self.directory / BALLOON).unlink(missing_ok=True)


@dataclass
class SmallDisk(_Fillable):
    """A tmpfs of some MiB on a member's state directory."""

    directory: Path
    size_mib: int = 160

    def mount(self) -> None:
        """Make it; the directory must be empty."""
        self.directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        _run("mount", "-t", "tmpfs", "-o", f"size={self.size_mib}m,mode=711", "tmpfs", str(self.directory))

    def unmount(self) -> None:
        """Remove it with everything on it; not there is fine."""
        _run("umount", "-l", str(self.directory), check=False)


@dataclass
class FreezableDisk(_Fillable):
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
        self._attach()
        self.directory.chmod(0o711)

    def _attach(self) -> None:
        """Mount the image by a device of its own each time: a failed file system that some other mount namespace still
        refers to (any container that was started meanwhile has one) would be given again, failed as it is."""
        shown = subprocess.run(
            ["losetup", "--find", "--show", str(self.image)], check=True, capture_output=True, text=True, timeout=60
        )
        device = shown.stdout.strip()
        try:
            _run("mount", device, str(self.directory))
        finally:
            _run("losetup", "--detach", device)  # once nobody uses it

    def freeze(self) -> None:
        """From now on whoever writes waits."""
        _run("fsfreeze", "--freeze", str(self.directory))
        self.frozen = True

    def thaw(self) -> None:
        """Let them go on."""
        if self.frozen:
            _run("fsfreeze", "--unfreeze", str(self.directory))
            self.frozen = False

    def fail(self) -> None:
        """From now on every write and fsync is an I/O error; what was not synced is lost, as in a power cut."""
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _WITHOUT_FLUSHING))
        finally:
            os.close(descriptor)

    def replace_cable(self) -> None:
        """Mount it again after a failure; nobody may have files open on it."""
        _run("umount", str(self.directory))
        self._attach()

    def unmount(self) -> None:
        """Remove it, thawed first: a frozen file system can't be left behind."""
        self.thaw()
        _run("umount", "-l", str(self.directory), check=False)
        self.image.unlink(missing_ok=True)


def can_loop() -> bool:
    """Whether this machine has loop devices and we may use them."""
    return os.geteuid() == 0 and Path("/dev/loop-control").exists()
