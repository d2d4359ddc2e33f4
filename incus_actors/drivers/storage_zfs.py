"""Storage pools on ZFS: a file of ours, a block device, or a pool or dataset that is there already.

Owns the datasets below the pool's root: one per volume (`containers/c1`, `custom/default_v1`), its snapshots as
`@snapshot-s1`, images unpacked once and cloned. Called by StorageActor. Uses only what both OpenZFS and Debian's
zfs-fuse have; disks are files in datasets (zfs-fuse has no block volumes). Pools are zfs_pools.py's. Must never leave a
half volume under a volume's name.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path

from incus_actors.drivers import commands, trees
from incus_actors.drivers import zfs_tools as tools
from incus_actors.drivers.base import DriverError, PoolSpec, Progress, Usage, VolumeSpec
from incus_actors.drivers.commands import run
from incus_actors.drivers.image_unpack import unpack
from incus_actors.drivers.images import ImageFiles
from incus_actors.drivers.path_storage import enlarge, fit, tar_of, untar, wanted_size
from incus_actors.drivers.raw_stream import read_disk, write_disk
from incus_actors.drivers.storage import BACKUP, DISK_FILE, RAW, TAR, backup_prefix
from incus_actors.drivers.zfs_pools import ZFS, ZfsPools
from incus_actors.errors import BadRequestError

_SNAPSHOT = "snapshot-"
_CLONED = "readonly"  #: the snapshot of an image that instances are cloned from


class ZfsStorage(ZfsPools):
    """The StorageDriver "zfs"."""

    # --- volumes --------------------------------------------------------------------------------------------

    def has_volume(self, volume: VolumeSpec) -> bool:
        """Return whether it is there."""
        return self.volume_path(volume).is_dir()

    async def activate_volume(self, volume: VolumeSpec) -> Path:
        """Mount it if it isn't; return its path. Raises DriverError."""
        path, dataset = self.volume_path(volume), self._dataset(volume)
        if not await tools.mounted(dataset):
            path.mkdir(mode=0o700, exist_ok=True)
            await run("zfs", "mount", dataset)
        return path

    async def create_volume(
        self, volume: VolumeSpec, image: ImageFiles | None = None, *, progress: Progress | None = None
    ) -> Path:
        """Make it, empty or from an image, complete or not at all; return its path. Raises DriverError."""
        path, dataset = self.volume_path(volume), self._dataset(volume)
        if await tools.exists(dataset):
            raise DriverError(f'Volume "{volume.name}" already exists in storage pool "{volume.pool.name}"')
        try:
            if image is not None:
                await self._clone(await self._image(volume.pool, image, progress), dataset, path)
            else:
                await self._make(dataset, path)
            fit(volume, path, image)
            await self._limit(volume, wanted_size(volume))
        except BaseException as error:
            if await tools.exists(dataset):
                await self._destroy(dataset)
            if isinstance(error, OSError):
                raise DriverError(f'Failed to create volume "{volume.name}": {error.strerror or error}') from error
            raise
        return path

    async def _limit(self, volume: VolumeSpec, size: int) -> None:
        if volume.content == "filesystem":
            await run("zfs", "set", f"quota={size or 'none'}", self._dataset(volume))

    async def _image(self, pool: PoolSpec, image: ImageFiles, progress: Progress | None) -> str:
        """Return the snapshot that instances of an image are cloned from."""
        volume = VolumeSpec(pool, image.fingerprint, kind="image")
        dataset = self._dataset(volume)
        async with self._images.setdefault(dataset, asyncio.Lock()):
            if not await tools.exists(f"{dataset}@{_CLONED}"):
                async with self._working(pool) as (work, path):
                    await self._make(work, path)
                    await unpack(image, path, progress)
                    await run("zfs", "snapshot", f"{work}@{_CLONED}")
                    await self._unmount(work)
                    await tools.when_free("zfs", "rename", work, dataset)
                    await run("zfs", "set", "mountpoint=none", dataset)
        return f"{dataset}@{_CLONED}"

    async def delete_volume(self, volume: VolumeSpec) -> None:
        """Remove it and its snapshots. Idempotent."""
        if await tools.exists(self._dataset(volume)):
            await self._destroy(self._dataset(volume))
        self._remove_mountpoint(self.volume_path(volume))

    async def rename_volume(self, volume: VolumeSpec, new: VolumeSpec) -> None:
        """Rename within the pool, snapshots too. Raises DriverError if the new name is taken."""
        if await tools.exists(self._dataset(new)):
            raise DriverError(f'Volume "{new.name}" already exists in storage pool "{new.pool.name}"')
        await self._move(self._dataset(volume), self._dataset(new), self.volume_path(new))

    async def resize_volume(self, volume: VolumeSpec, size: int) -> None:
        """Limit what it may hold, or give a disk its size. Raises MemberError for a disk that would shrink."""
        if volume.content == "filesystem":
            await self._limit(volume, size)
            return
        enlarge(volume, await self.activate_volume(volume) / DISK_FILE, size)

    async def volume_usage(self, volume: VolumeSpec) -> Usage:
        """Return what it uses."""
        found = await tools.numbers(self._dataset(volume), "used", "quota")
        return Usage(used_bytes=found["used"], total_bytes=found["quota"])

    async def copy_volume(
        self, source: VolumeSpec, target: VolumeSpec, snapshots: Sequence[str] = (), *, progress: Progress | None = None
    ) -> None:
        """Copy within a pool by sending and receiving: a clone would keep its source from ever going."""
        async with self.receiver(target, ZFS) as receiver:
            parent = ""
            for snapshot in (*snapshots, ""):
                async with contextlib.aclosing(self.send(source, snapshot, ZFS, parent=parent)) as chunks:
                    await receiver.receive(snapshot, chunks)
                parent = snapshot
            await receiver.keep()

    # --- snapshots ------------------------------------------------------------------------------------------

    def snapshot_path(self, volume: VolumeSpec, snapshot: str) -> Path:
        """Return where OpenZFS shows a snapshot; zfs-fuse shows none: use `readable`."""
        self._check_snapshot(snapshot)
        return self.volume_path(volume) / ".zfs" / "snapshot" / f"{_SNAPSHOT}{snapshot}"

    def _check_snapshot(self, snapshot: str) -> None:
        if not snapshot or snapshot.startswith(".") or set("/@\0\n") & set(snapshot):
            raise BadRequestError(f"Invalid snapshot name: {snapshot}")

    async def snapshots(self, volume: VolumeSpec) -> list[str]:
        """Return the names of the snapshots that are there, sorted."""
        names = await tools.snapshots_of(self._dataset(volume))
        return sorted(name.removeprefix(_SNAPSHOT) for name in names if name.startswith(_SNAPSHOT))

    async def create_snapshot(self, volume: VolumeSpec, snapshot: str) -> None:
        """Keep the volume as it is now. Raises DriverError if the name is taken."""
        self._check_snapshot(snapshot)
        if snapshot in await self.snapshots(volume):
            raise DriverError(f'Snapshot "{snapshot}" already exists')
        await run("zfs", "snapshot", f"{self._dataset(volume)}@{_SNAPSHOT}{snapshot}")

    async def delete_snapshot(self, volume: VolumeSpec, snapshot: str) -> None:
        """Remove a snapshot. Idempotent."""
        self._check_snapshot(snapshot)
        name = f"{self._dataset(volume)}@{_SNAPSHOT}{snapshot}"
        if await tools.exists(name):
            await run("zfs", "destroy", name)

    async def rename_snapshot(self, volume: VolumeSpec, snapshot: str, new: str) -> None:
        """Give it another name. Raises DriverError if that is taken."""
        self._check_snapshot(new)
        dataset = self._dataset(volume)
        if new in await self.snapshots(volume):
            raise DriverError(f'Snapshot "{new}" already exists')
        await tools.when_free("zfs", "rename", f"{dataset}@{_SNAPSHOT}{snapshot}", f"{dataset}@{_SNAPSHOT}{new}")

    async def restore_snapshot(self, volume: VolumeSpec, snapshot: str) -> None:
        """Roll back, at once. Raises DriverError when later snapshots would be lost by that."""
        dataset, wanted = self._dataset(volume), f"{_SNAPSHOT}{snapshot}"
        names = await tools.snapshots_of(dataset)  # in the order of their making
        if wanted not in names:
            raise DriverError(f'Snapshot "{snapshot}" of volume {volume.label} is missing')
        if names[-1] != wanted:
            raise DriverError(f'Snapshot "{snapshot}" cannot be restored due to subsequent snapshot(s)')
        await run("zfs", "rollback", f"{dataset}@{wanted}")

    # --- streams --------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _frozen(self, volume: VolumeSpec, snapshot: str) -> AsyncIterator[str]:
        """Yield the full name of a snapshot: the one that is named, or one of this moment."""
        dataset = self._dataset(volume)
        if snapshot:
            self._check_snapshot(snapshot)
            yield f"{dataset}@{_SNAPSHOT}{snapshot}"
            return
        name = f"{dataset}@sending-{uuid.uuid4().hex}"
        await run("zfs", "snapshot", name)
        try:
            yield name
        finally:
            await run("zfs", "destroy", name)

    @contextlib.asynccontextmanager
    async def readable(self, volume: VolumeSpec, snapshot: str) -> AsyncIterator[Path]:
        """Give a clone of a snapshot: the one that is named, or one of this moment."""
        async with self._frozen(volume, snapshot) as name, self._working(volume.pool) as (work, path):
            await self._clone(name, work, path)
            yield path

    async def send(
        self, volume: VolumeSpec, snapshot: str, form: str, *, parent: str = ""
    ) -> AsyncGenerator[bytes, None]:
        """Yield a snapshot, or ("") the volume as it is: as `zfs send` writes it, a tar of its files, or its disk."""
        if form == ZFS:
            async with self._frozen(volume, snapshot) as name:
                relative = ["-i", f"{self._dataset(volume)}@{_SNAPSHOT}{parent}"] if parent else []
                async with contextlib.aclosing(commands.output_of("zfs", "send", *relative, name)) as chunks:
                    async for chunk in chunks:
                        yield chunk
            return
        if form not in (TAR, RAW):
            raise BadRequestError(f"Unknown format of streams: {form}")
        async with (
            self.readable(volume, snapshot) as path,
            contextlib.aclosing(read_disk(path / DISK_FILE) if form == RAW else tar_of(path)) as chunks,
        ):
            async for chunk in chunks:
                yield chunk

    @contextlib.asynccontextmanager
    async def receiver(self, volume: VolumeSpec, form: str) -> AsyncIterator[ZfsReceiver]:
        """Take a new volume in. Leaving the block without `keep` leaves nothing behind."""
        if await tools.exists(self._dataset(volume)):
            raise DriverError(f'Volume "{volume.name}" already exists in storage pool "{volume.pool.name}"')
        async with self._working(volume.pool) as (work, path):
            yield ZfsReceiver(self, volume, form, work, path)

    async def take_place(self, volume: VolumeSpec, dataset: str) -> None:
        """Make a received dataset the volume. Raises DriverError."""
        for name in await tools.snapshots_of(dataset):
            if not name.startswith(_SNAPSHOT):
                await run("zfs", "destroy", f"{dataset}@{name}")
        await self._move(dataset, self._dataset(volume), self.volume_path(volume))
        await run("zfs", "set", "canmount=noauto", self._dataset(volume))
        await self._limit(volume, wanted_size(volume))

    async def make_dataset(self, dataset: str, path: Path) -> None:
        """Make an empty, mounted dataset. Raises DriverError."""
        await self._make(dataset, path)


class ZfsReceiver:
    """See storage.VolumeReceiver. Everything is in `dataset`, mounted at `path`, until it is kept."""

    def __init__(self, storage: ZfsStorage, volume: VolumeSpec, form: str, dataset: str, path: Path) -> None:
        self._storage = storage
        self._volume = volume
        self._form = form
        self._dataset = dataset
        self._path = path
        self._whole = False

    async def receive(self, snapshot: str, chunks: AsyncIterator[bytes]) -> None:
        """Take one snapshot, or ("") the volume itself. Raises DriverError."""
        self._whole = not snapshot
        if self._form == ZFS:
            again = ["-F"] if await tools.exists(self._dataset) else []
            await commands.feed(chunks, "zfs", "receive", *again, "-u", self._dataset)
            return
        if self._form not in (TAR, RAW, BACKUP):
            raise BadRequestError(f"Unknown format of streams: {self._form}")
        if not await tools.exists(self._dataset):
            await self._storage.make_dataset(self._dataset, self._path)
        else:
            for entry in list(self._path.iterdir()):
                await trees.remove_tree(entry)
        if self._form == RAW:
            await write_disk(self._path / DISK_FILE, chunks)
        else:
            await untar(chunks, self._path, prefix=backup_prefix(snapshot) if self._form == BACKUP else "")
        if snapshot:
            await run("zfs", "snapshot", f"{self._dataset}@{_SNAPSHOT}{snapshot}")

    async def keep(self) -> None:
        """Make it visible. Raises DriverError."""
        if not self._whole:
            raise DriverError("The volume itself is missing in the stream")
        await self._storage.take_place(self._volume, self._dataset)
