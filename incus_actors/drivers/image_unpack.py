"""Images become trees of files.

Owns the unpackers' command lines and their progress. Called by the storage drivers; must never believe that an
archive had a root file system without looking.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from incus_actors.drivers.base import DriverError, Progress, ProgressReport
from incus_actors.drivers.child import Child
from incus_actors.drivers.image_archive import DECOMPRESSORS, sniff
from incus_actors.drivers.images import ImageFiles
from incus_actors.drivers.templates import mark

_REPORT_EVERY_S = 0.1


async def unpack(image: ImageFiles, target: Path, progress: Progress | None) -> None:
    """Fill an empty directory with `rootfs/`, `metadata.yaml` and the mark of a new instance. Raises DriverError."""
    await _run_unpacker(_tar_command(target, image.compression), image.metadata_file, progress)
    rootfs = target / "rootfs"
    if image.rootfs_file is not None:
        kind, compression = sniff(image.rootfs_file)
        if rootfs.is_symlink():
            raise DriverError("Failed to unpack the image: it has no root file system")
        rootfs.mkdir(mode=0o755, exist_ok=True)
        if any(rootfs.iterdir()):  # a link in there would lead the next unpacker, who is root, to the host's files
            raise DriverError("Failed to unpack the image: there is a rootfs in the metadata of a split image")
        if kind == "squashfs":
            command = ["unsquashfs", "-no-progress", "-n", "-f", "-d", str(rootfs)]
            await _run_unpacker([*command, str(image.rootfs_file)], image.rootfs_file, None)
        else:
            await _run_unpacker(_tar_command(rootfs, compression), image.rootfs_file, progress)
    if rootfs.is_symlink() or not rootfs.is_dir():
        raise DriverError("Failed to unpack the image: it has no root file system")
    mark(target, "create")
    target.chmod(0o700)


def _tar_command(target: Path, compression: str) -> list[str]:
    command = ["tar", "--extract", "--file=-", f"--directory={target}", "--numeric-owner", "--preserve-permissions"]
    command += DECOMPRESSORS[compression][1]
    if os.geteuid() == 0:
        return [*command, "--same-owner", "--xattrs", "--xattrs-include=user.*", "--xattrs-include=security.capability"]
    return [*command, "--no-same-owner"]


async def _run_unpacker(command: Sequence[str], source: Path, progress: Progress | None) -> None:
    """Run an unpacker with the archive as its stdin; the position in the file is the progress."""
    total = max(source.stat().st_size, 1)
    loop = asyncio.get_running_loop()
    began = loop.time()

    def report(done: int) -> None:
        if progress is not None:
            speed = int(done / max(loop.time() - began, 1e-3))
            progress(ProgressReport(done, min(100, done * 100 // total), speed))

    with source.open("rb") as file, tempfile.TemporaryFile() as errors:
        child = Child(command, stdin=file, stderr=errors)
        try:
            while True:
                try:
                    code = await asyncio.wait_for(child.wait(), _REPORT_EVERY_S)
                    break
                except TimeoutError:
                    report(os.lseek(file.fileno(), 0, os.SEEK_CUR))  # the description is shared with the child
        except BaseException:
            child.kill()
            await child.wait()
            raise
        if code != 0:
            errors.seek(0)
            text = errors.read(4096).decode(errors="replace").strip()
            raise DriverError(f"Failed to unpack the image: {text or f'{command[0]} ended with {code}'}")
    report(total)
