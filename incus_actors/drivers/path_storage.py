"""What drivers share whose volumes are trees of files below the pool's directory (dir, btrfs).

Owns the order of steps that makes every change all or nothing: work in a place that nobody sees, then one rename.
Extended by the drivers, which add the primitives of path_trees.py; must never show a half-made volume.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from pathlib import Path
from typing import Any

from incus_actors.drivers import commands, trees
from incus_actors.drivers.base import DriverError, PoolSpec, Progress, Usage, VolumeSpec
from incus_actors.drivers.child import run_helper
from incus_actors.drivers.image_unpack import unpack
from incus_actors.drivers.images import ImageFiles
from incus_actors.drivers.path_receiver import PathReceiver
from incus_actors.drivers.path_trees import PathTrees
from incus_actors.drivers.raw_stream import read_disk, write_disk
from incus_actors.drivers.storage import BLOCK_SIZE_DEFAULT, DISK_FILE, RAW, TAR
from incus_actors.errors import BadRequestError, MemberError
from incus_actors.model.config_values import parse_size

CANNOT_SHRINK = "Block volumes cannot be shrunk: Cannot be shrunk"
_TAR_OPTIONS = ("--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls")


def wanted_size(volume: VolumeSpec) -> int:
    """Return the bytes of the volume's `size`; the default of a disk, 0 (no limit) for a file system without one."""
    text = volume.config.get("size", "") or (BLOCK_SIZE_DEFAULT if volume.content == "block" else "0")
    try:
        return parse_size(text)
    except ValueError as error:
        raise BadRequestError(f'Invalid value for volume "{volume.name}" option "size": {error}') from None


class PathStorage(PathTrees):
    """Volumes and snapshots by way of the primitives."""

    def quota(self, volume: VolumeSpec) -> int:
        """Return the limit of a volume's files; a disk has its size instead."""
        return wanted_size(volume) if volume.content == "filesystem" else 0

    # --- volumes --------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _incoming(self, path: Path, what: str) -> AsyncIterator[Path]:
        """Yield an unseen place beside `path`; what is still there at the end is removed. Raises DriverError."""
        incoming = trees.unfinished(path.parent)
        try:
            yield incoming
        except OSError as error:
            raise DriverError(f"Failed to {what}: {error.strerror or error}") from error
        finally:
            if incoming.exists():
                await self.drop_tree(incoming)

    async def create_volume(
        self, volume: VolumeSpec, image: ImageFiles | None = None, *, progress: Progress | None = None
    ) -> Path:
        """Make it, empty or from an image, complete or not at all; return its path. Raises DriverError."""
        path = self.volume_path(volume)
        if path.exists():
            raise DriverError(f'Volume "{volume.name}" already exists in storage pool "{volume.pool.name}"')
        async with self._incoming(path, f'create volume "{volume.name}"') as incoming:
            if image is not None and self.caches_images:
                await self.clone_tree(await self._image(volume.pool, image, progress), incoming)
            else:
                await self.make_tree(incoming)
                if image is not None:
                    await unpack(image, incoming, progress)
            fit(volume, incoming, image)
            await self.limit(volume.pool, incoming, self.quota(volume))
            await asyncio.to_thread(incoming.rename, path)
        return path

    async def _image(self, pool: PoolSpec, image: ImageFiles, progress: Progress | None) -> Path:
        """Return the tree of an image, unpacked by the first who needs it."""
        path = self.volume_path(VolumeSpec(pool, image.fingerprint, kind="image"))
        async with self._images.setdefault(path, asyncio.Lock()):
            if not path.is_dir():
                async with self._incoming(path, "unpack the image") as incoming:
                    await self.make_tree(incoming)
                    await unpack(image, incoming, progress)
                    await self.settle(incoming, path, readonly=True)
        return path

    async def delete_volume(self, volume: VolumeSpec) -> None:
        """Remove it and its snapshots; never follows links or crosses mounts. Idempotent."""
        for snapshot in await self.snapshots(volume):
            await self.delete_snapshot(volume, snapshot)
        await self._discard(self.volume_path(volume), f'volume "{volume.name}"')

    async def _discard(self, path: Path, what: str) -> None:
        """Let a tree vanish at once, then remove it; a crash in between leaves only work for `reconcile`."""
        doomed = trees.unfinished(path.parent, trees.DELETING)
        try:
            path.rename(doomed)
        except FileNotFoundError:
            return
        except OSError as error:
            raise DriverError(f"Failed to delete {what}: {error.strerror}") from error
        await self.drop_tree(doomed)

    async def rename_volume(self, volume: VolumeSpec, new: VolumeSpec) -> None:
        """Rename within the pool. Raises DriverError if the new name is taken or the old one missing."""
        old_path, new_path = self.volume_path(volume), self.volume_path(new)
        if new_path.exists():
            raise DriverError(f'Volume "{new.name}" already exists in storage pool "{new.pool.name}"')
        old_snapshots, new_snapshots = self._snapshots_of(volume), self._snapshots_of(new)
        try:
            if not old_path.is_dir():
                raise FileNotFoundError(2, os.strerror(2))
            if old_snapshots.is_dir():
                old_snapshots.rename(new_snapshots)
            old_path.rename(new_path)
        except OSError as error:
            raise DriverError(f'Failed to rename volume "{volume.name}": {error.strerror}') from error

    async def resize_volume(self, volume: VolumeSpec, size: int) -> None:
        """Limit what it may hold, or give a disk its size. Raises MemberError for a disk that would shrink."""
        if volume.content == "filesystem":
            await self.limit(volume.pool, self.volume_path(volume), size)
            return
        enlarge(volume, self.disk_path(volume), size)

    async def volume_usage(self, volume: VolumeSpec) -> Usage:
        """Return what it uses; where the driver doesn't count, a helper walks the tree."""
        path = self.volume_path(volume)
        found = await self.measured(volume.pool, path)
        if found is not None:
            return found
        answer = await run_helper("rootfs_helper", ["usage"], [("path", str(path))], timeout_s=600)
        return Usage(used_bytes=int(answer["bytes"]), total_bytes=0, used_inodes=int(answer["inodes"]))

    async def copy_volume(
        self, source: VolumeSpec, target: VolumeSpec, snapshots: Sequence[str] = (), *, progress: Progress | None = None
    ) -> None:
        """Copy within a pool. Raises DriverError if the target is there."""
        path = self.volume_path(target)
        if path.exists():
            raise DriverError(f'Volume "{target.name}" already exists in storage pool "{target.pool.name}"')
        try:
            for snapshot in snapshots:
                await self._clone_snapshot(self.snapshot_path(source, snapshot), self.snapshot_path(target, snapshot))
            async with self._incoming(path, f'copy volume "{source.name}"') as incoming:
                await self.clone_tree(self.volume_path(source), incoming)
                await self.limit(target.pool, incoming, self.quota(target))
                await asyncio.to_thread(incoming.rename, path)
        except BaseException:
            await self._drop_snapshots(target)
            raise

    async def _drop_snapshots(self, volume: VolumeSpec) -> None:
        for snapshot in await self.snapshots(volume):
            await self.delete_snapshot(volume, snapshot)

    # --- snapshots ------------------------------------------------------------------------------------------

    async def create_snapshot(self, volume: VolumeSpec, snapshot: str) -> None:
        """Keep the volume as it is now. Raises DriverError if the name is taken."""
        await self._clone_snapshot(self.volume_path(volume), self.snapshot_path(volume, snapshot))

    async def _clone_snapshot(self, source: Path, path: Path) -> None:
        if path.exists():
            raise DriverError(f'Snapshot "{path.name}" already exists')
        path.parent.mkdir(mode=0o700, exist_ok=True)
        async with self._incoming(path, f'create snapshot "{path.name}"') as incoming:
            await self.clone_tree(source, incoming, readonly=True)
            await asyncio.to_thread(incoming.rename, path)

    async def delete_snapshot(self, volume: VolumeSpec, snapshot: str) -> None:
        """Remove a snapshot. Idempotent."""
        path = self.snapshot_path(volume, snapshot)
        await self._discard(path, f'snapshot "{snapshot}"')
        with contextlib.suppress(OSError):
            path.parent.rmdir()  # only the last one succeeds

    async def rename_snapshot(self, volume: VolumeSpec, snapshot: str, new: str) -> None:
        """Give it another name. Raises DriverError if that is taken."""
        old_path, new_path = self.snapshot_path(volume, snapshot), self.snapshot_path(volume, new)
        if new_path.exists():
            raise DriverError(f'Snapshot "{new}" already exists')
        try:
            old_path.rename(new_path)
        except OSError as error:
            raise DriverError(f'Failed to rename snapshot "{snapshot}": {error.strerror}') from error

    async def restore_snapshot(self, volume: VolumeSpec, snapshot: str) -> None:
        """Make the volume what the snapshot holds; all or nothing. Raises DriverError."""
        path, source = self.volume_path(volume), self.snapshot_path(volume, snapshot)
        if not source.is_dir():
            raise DriverError(f'Snapshot "{snapshot}" of volume {volume.label} is missing')
        async with self._incoming(path, f'restore snapshot "{snapshot}"') as incoming:
            await self.clone_tree(source, incoming)
            await self.limit(volume.pool, incoming, self.quota(volume))
            await asyncio.to_thread(trees.exchange, incoming, path)  # the old one is dropped as unfinished

    @contextlib.asynccontextmanager
    async def readable(self, volume: VolumeSpec, snapshot: str) -> AsyncIterator[Path]:
        """Give the directory itself; files may change while they are read."""
        path = self.snapshot_path(volume, snapshot) if snapshot else self.volume_path(volume)
        if not path.is_dir():
            raise DriverError(f"Volume {volume.label} is missing: {path}")
        yield path

    # --- streams --------------------------------------------------------------------------------------------

    async def send(
        self, volume: VolumeSpec, snapshot: str, form: str, *, parent: str = ""
    ) -> AsyncGenerator[bytes, None]:
        """Yield a snapshot, or ("") the volume as it is: a tar of its files, or its disk. Raises DriverError."""
        if form not in (TAR, RAW):
            raise BadRequestError(f"Unknown format of streams: {form}")
        async with self.readable(volume, snapshot) as path:
            stream = read_disk(path / DISK_FILE) if form == RAW else tar_of(path)
            async with contextlib.aclosing(stream) as chunks:
                async for chunk in chunks:
                    yield chunk

    @contextlib.asynccontextmanager
    async def receiver(self, volume: VolumeSpec, form: str) -> AsyncIterator[PathReceiver]:
        """Take a new volume in. Leaving the block without `keep` leaves nothing behind."""
        path = self.volume_path(volume)
        if path.exists():
            raise DriverError(f'Volume "{volume.name}" already exists in storage pool "{volume.pool.name}"')
        async with self._incoming(path, f'receive volume "{volume.name}"') as work:
            work.mkdir(mode=0o700)
            receiver = PathReceiver(self, volume, form, work)
            try:
                yield receiver
            except BaseException:
                await self._drop_snapshots(volume)
                raise
            if not receiver.kept:
                await self._drop_snapshots(volume)

    async def take_in(self, form: str, chunks: AsyncIterator[bytes], target: Path) -> None:
        """Make a tree of a stream; "tar@prefix" takes what is below `prefix` in a larger tar. Raises DriverError."""
        kind, _, prefix = form.partition("@")
        if kind not in (TAR, RAW):
            raise BadRequestError(f"Unknown format of streams: {form}")
        await self.make_tree(target)
        if kind == RAW:
            await write_disk(target / DISK_FILE, chunks)
        else:
            await untar(chunks, target, prefix=prefix)


def tar_of(path: Path, *, prefix: str = "") -> AsyncGenerator[bytes, None]:
    """Yield a tar of a directory; its names begin with "./", or with `prefix`."""
    renamed = [f"--transform=flags=rh;s|^\\.|{prefix}|"] if prefix else ["--sparse"]
    options = ("--one-file-system", *_TAR_OPTIONS, *renamed)
    # 1: a file changed while it was read, as in every copy of something that is in use.
    return commands.output_of("tar", "--create", "--file=-", f"--directory={path}", *options, ".", accepted=(0, 1))


def untar(chunks: AsyncIterator[bytes], target: Path, *, prefix: str = "") -> Coroutine[Any, Any, None]:
    """Fill a directory from a tar whose names begin with "./", or with `prefix` (the rest of it is left out)."""
    wanted = [f"--transform=flags=rh;s|^{prefix}|.|", "--no-wildcards", "--anchored", prefix] if prefix else []
    options = ("--preserve-permissions", "--same-owner", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls")
    return commands.feed(chunks, "tar", "--extract", "--file=-", f"--directory={target}", *options, *wanted)


def fit(volume: VolumeSpec, tree: Path, image: ImageFiles | None) -> None:
    """Give a new volume its owner, modes and disk."""
    if volume.kind == "container":
        # Nobody but root may pass: with idmapped mounts set-uid files of instances belong to real root.
        tree.chmod(0o700)
        if image is None:
            (tree / "rootfs").mkdir(mode=0o755)
        return
    if volume.content != "filesystem":
        tree.chmod(0o711)
        with (tree / DISK_FILE).open("xb") as file:
            os.fchmod(file.fileno(), 0o600)
            os.ftruncate(file.fileno(), wanted_size(volume))
        return
    tree.chmod(int(volume.config.get("initial.mode") or "711", 8))
    uid, gid = (int(volume.config.get(f"initial.{key}") or "0") for key in ("uid", "gid"))
    if uid or gid:
        os.chown(tree, uid, gid)


def enlarge(volume: VolumeSpec, disk: Path, size: int) -> None:
    """Give the file that a volume's disk is more room. Raises MemberError when it would shrink, DriverError."""
    try:
        if size < disk.stat().st_size:
            raise MemberError(CANNOT_SHRINK)
        os.truncate(disk, size)
    except OSError as error:
        raise DriverError(f"Failed to resize volume {volume.label}: {error.strerror}") from error
