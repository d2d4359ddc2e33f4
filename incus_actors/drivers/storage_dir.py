"""Storage pools that are plain directories.

Owns `<dir>/storage-pools/<pool>` or the directory named by `source`: `containers/`, `custom/` and so on, one
directory per volume. Called by StorageActor; must never show a half-made volume, follow a link out of a volume
or cross a mount when it deletes.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from incus_actors.drivers.base import (
    Availability,
    DriverError,
    DriverInfo,
    ImageFiles,
    PoolSpec,
    Progress,
    ProgressReport,
    Usage,
    VolumeSpec,
)
from incus_actors.drivers.child import Child, run_helper
from incus_actors.drivers.image_archive import DECOMPRESSORS, sniff
from incus_actors.drivers.templates import MARKER
from incus_actors.errors import BadRequestError

_KINDS = {"container": "containers", "virtual-machine": "virtual-machines", "custom": "custom", "image": "images"}
_INCOMING, _DELETING = ".incoming-", ".deleting-"
_REPORT_EVERY_S = 0.1
_CONFIG_KEYS = {"source", "source.wipe", "rsync.bwlimit", "rsync.compression"}


class DirStorage:
    """The StorageDriver "dir". `directory` is the daemon's own (`$INCUS_DIR`)."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._base = directory / "storage-pools"
        self.info = DriverInfo("dir", "1")

    def availability(self) -> Availability:
        """Return whether tar and rm are here."""
        missing = [program for program in ("tar", "rm", "gzip") if shutil.which(program) is None]
        if missing:
            return Availability(False, f"{', '.join(missing)} not found in PATH")
        return Availability(True)

    def validate_pool(self, pool: PoolSpec) -> None:
        """Raise BadRequestError for config that this driver does not know."""
        for key in pool.config:
            if key not in _CONFIG_KEYS and not key.startswith(("user.", "volatile.", "volume.")):
                raise BadRequestError(f'Invalid option "{key}"')
        source = pool.config.get("source", "")
        if source and (not source.startswith("/") or ".." in source.split("/")):
            raise BadRequestError("Only absolute paths are supported")

    def pool_path(self, pool: PoolSpec) -> Path:
        """Return the pool's directory."""
        source = pool.config.get("source", "")
        return Path(source) if source else self._default_path(pool)

    def _default_path(self, pool: PoolSpec) -> Path:
        if not pool.name or "/" in pool.name or pool.name.startswith("."):
            raise BadRequestError(f"Invalid storage pool name: {pool.name}")
        return self._base / pool.name

    async def create_pool(self, pool: PoolSpec) -> Mapping[str, str]:
        """Make it; return the config as it is now (`source` filled in). Raises DriverError if not empty."""
        self.validate_pool(pool)
        path, default = self.pool_path(pool), self._default_path(pool)
        if path != default:
            if not path.is_dir():
                raise DriverError(f'Source path "{path}" does not exist')
            if path.resolve().is_relative_to(self._directory.resolve()):
                raise DriverError(f'Source path "{path}" is within the directory of the server')
            if any(True for _ in path.iterdir()) and not (path / _KINDS["container"]).is_dir():
                raise DriverError(f'Source path "{path}" isn\'t empty')
        self._base.mkdir(mode=0o711, parents=True, exist_ok=True)
        path.mkdir(mode=0o711, exist_ok=True)
        for kind in _KINDS.values():
            (path / kind).mkdir(mode=0o711, exist_ok=True)
        return {**pool.config, "source": str(path)}

    async def delete_pool(self, pool: PoolSpec) -> None:
        """Remove it. Raises DriverError if volumes are left. Idempotent."""
        path = self.pool_path(pool)
        if not path.is_dir():
            return
        await self.reconcile(pool)
        kinds = [path / kind for kind in _KINDS.values() if (path / kind).is_dir()]
        for directory in kinds:
            if any(True for _ in directory.iterdir()):
                raise DriverError(f'Storage pool "{pool.name}" is not empty: {directory}')
        for directory in kinds:
            directory.rmdir()
        if path == self._default_path(pool):
            path.rmdir()

    async def pool_usage(self, pool: PoolSpec) -> Usage:
        """Return space and inodes of the file system that the pool is on. Raises DriverError."""
        try:
            found = await asyncio.to_thread(os.statvfs, self.pool_path(pool))
        except OSError as error:
            raise DriverError(f'Storage pool "{pool.name}" is unavailable: {error.strerror}') from error
        return Usage(
            used_bytes=(found.f_blocks - found.f_bfree) * found.f_frsize,
            total_bytes=found.f_blocks * found.f_frsize,
            used_inodes=found.f_files - found.f_ffree,
            total_inodes=found.f_files,
        )

    def volume_path(self, volume: VolumeSpec) -> Path:
        """Return where the volume is (or would be)."""
        if volume.kind not in _KINDS:
            raise BadRequestError(f"Invalid storage volume type: {volume.kind}")
        if volume.disk_name.startswith("."):
            raise BadRequestError(f"Invalid storage volume name: {volume.name}")
        return self.pool_path(volume.pool) / _KINDS[volume.kind] / volume.disk_name

    def has_volume(self, volume: VolumeSpec) -> bool:
        """Return whether it is there, complete."""
        return self.volume_path(volume).is_dir()

    async def create_volume(
        self, volume: VolumeSpec, image: ImageFiles | None = None, *, progress: Progress | None = None
    ) -> Path:
        """Make it, empty or from an image, complete or not at all; return its path. Raises DriverError."""
        path = self.volume_path(volume)
        if path.exists():
            raise DriverError(f'Volume "{volume.name}" already exists in storage pool "{volume.pool.name}"')
        incoming = path.parent / f"{_INCOMING}{uuid.uuid4().hex}"
        try:
            path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
            # Nobody but root may pass: with idmapped mounts set-uid files of instances belong to real root.
            incoming.mkdir(mode=0o700)
            if volume.kind == "container":
                (incoming / "rootfs").mkdir(mode=0o755)
            if image is not None:
                await self._unpack(image, incoming, progress)
                (incoming / MARKER).write_text("create\n")
                incoming.chmod(0o700)
            incoming.rename(path)
        except OSError as error:
            raise DriverError(f'Failed to create volume "{volume.name}": {error.strerror or error}') from error
        finally:
            if incoming.exists():
                await _remove_tree(incoming)
        return path

    async def _unpack(self, image: ImageFiles, target: Path, progress: Progress | None) -> None:
        await _run_unpacker(_tar_command(target, image.compression), image.metadata_file, progress)
        if image.rootfs_file is not None:
            kind, compression = sniff(image.rootfs_file)
            if kind == "squashfs":
                command = ["unsquashfs", "-no-progress", "-n", "-f", "-d", str(target / "rootfs")]
                await _run_unpacker([*command, str(image.rootfs_file)], image.rootfs_file, None)
            else:
                command = _tar_command(target / "rootfs", compression)
                await _run_unpacker(command, image.rootfs_file, progress)
        rootfs = target / "rootfs"
        if rootfs.is_symlink() or not rootfs.is_dir():
            raise DriverError("Failed to unpack the image: it has no root file system")

    async def delete_volume(self, volume: VolumeSpec) -> None:
        """Remove it; never follows links or crosses mounts. Idempotent."""
        path = self.volume_path(volume)
        doomed = path.parent / f"{_DELETING}{uuid.uuid4().hex}"
        try:
            path.rename(doomed)  # gone at once for everyone; a crash leaves only this, for reconcile
        except FileNotFoundError:
            return
        except OSError as error:
            raise DriverError(f'Failed to delete volume "{volume.name}": {error.strerror}') from error
        await _remove_tree(doomed)

    async def rename_volume(self, volume: VolumeSpec, new: VolumeSpec) -> None:
        """Rename within the pool. Raises DriverError if the new name is taken or the old one missing."""
        old_path, new_path = self.volume_path(volume), self.volume_path(new)
        if new_path.exists():
            raise DriverError(f'Volume "{new.name}" already exists in storage pool "{new.pool.name}"')
        try:
            old_path.rename(new_path)
        except OSError as error:
            raise DriverError(f'Failed to rename volume "{volume.name}": {error.strerror}') from error

    async def volume_usage(self, volume: VolumeSpec) -> Usage:
        """Return what it uses; a helper walks the tree."""
        answer = await run_helper("rootfs_helper", ["usage"], [("path", str(self.volume_path(volume)))], timeout_s=600)
        return Usage(used_bytes=int(answer["bytes"]), total_bytes=0, used_inodes=int(answer["inodes"]))

    async def reconcile(self, pool: PoolSpec) -> list[str]:
        """At start: remove unfinished work; return a line for each thing removed."""
        removed = []
        for kind in _KINDS.values():
            directory = self.pool_path(pool) / kind
            if not directory.is_dir():
                continue
            for entry in list(directory.iterdir()):
                if entry.name.startswith((_INCOMING, _DELETING)):
                    await _remove_tree(entry)
                    removed.append(f"unfinished volume {entry} removed")
        return removed


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


async def _remove_tree(path: Path) -> None:
    """Remove without following links or crossing mounts. Raises DriverError."""
    with tempfile.TemporaryFile() as errors:
        child = Child(["rm", "-rf", "--one-file-system", "--", str(path)], stderr=errors)
        code = await child.wait()
        if code != 0:
            errors.seek(0)
            text = errors.read(2048).decode(errors="replace").strip()
            raise DriverError(f"Failed to remove {path}: {text}")
