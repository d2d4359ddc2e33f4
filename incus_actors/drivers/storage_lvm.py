"""Storage pools on LVM: a file of ours, a block device, or a volume group that is there already.

Owns the thin volumes of a pool: one with a file system per volume (or the bare device, for disks), snapshots and images as
thin snapshots. Called by StorageActor. Pools are lvm_pools.py's. A volume is made under a name that `reconcile` knows and
then renamed: must never leave a half volume under a volume's name.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path

from incus_actors.drivers import commands, mounts, trees
from incus_actors.drivers import lvm_tools as tools
from incus_actors.drivers.base import DriverError, PoolSpec, Progress, Usage, VolumeSpec
from incus_actors.drivers.image_unpack import unpack
from incus_actors.drivers.images import ImageFiles
from incus_actors.drivers.lvm_pools import LvmPools
from incus_actors.drivers.path_storage import CANNOT_SHRINK, fit, tar_of, untar, wanted_size
from incus_actors.drivers.raw_stream import read_disk, write_disk
from incus_actors.drivers.storage import BACKUP, BLOCK_SIZE_DEFAULT, RAW, TAR, backup_prefix
from incus_actors.errors import BadRequestError, MemberError
from incus_actors.model.config_values import parse_size

FILE_SYSTEMS = ("ext4", "xfs", "btrfs")
_MOUNT_OPTIONS = "discard"


def file_system_of(volume: VolumeSpec) -> str:
    """Return what a volume is formatted with. Raises BadRequestError."""
    found = volume.config.get("block.filesystem") or volume.pool.config.get("volume.block.filesystem") or "ext4"
    if found not in FILE_SYSTEMS:
        raise BadRequestError(f'Invalid value for option "block.filesystem": {found}')
    return found


def size_of(volume: VolumeSpec) -> int:
    """Return the bytes of a new volume: every volume of LVM has a size. Raises BadRequestError."""
    return wanted_size(volume) or parse_size(volume.pool.config.get("volume.size") or BLOCK_SIZE_DEFAULT)


class LvmStorage(LvmPools):
    """The StorageDriver "lvm"."""

    # --- volumes --------------------------------------------------------------------------------------------

    def disk_path(self, volume: VolumeSpec) -> Path:
        """Return the device that a block or ISO volume is."""
        return self._device(volume.pool, self._name(volume))

    def has_volume(self, volume: VolumeSpec) -> bool:
        """Return whether it is there."""
        return self.disk_path(volume).exists()

    async def activate_volume(self, volume: VolumeSpec) -> Path:
        """Mount it if it isn't; return its path. Raises DriverError."""
        path = self.volume_path(volume)
        if volume.content == "filesystem" and mounts.mounted_at(path) is None:
            await self._mount(self.disk_path(volume), path, volume)
        return path

    async def _mount(self, device: Path, path: Path, volume: VolumeSpec, *extra: str) -> None:
        path.mkdir(mode=0o700, exist_ok=True)
        wanted = volume.config.get("block.mount_options") or volume.pool.config.get("volume.block.mount_options", "")
        options = [wanted or _MOUNT_OPTIONS, *extra]
        if file_system_of(volume) == "xfs":
            options.append("nouuid")  # a snapshot has the UUID of its origin
        await mounts.mount(str(device), path, "-o", ",".join(options))

    async def _format(self, device: Path, volume: VolumeSpec) -> None:
        kind = file_system_of(volume)
        options = ["-q", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"] if kind == "ext4" else ["-q"]
        await commands.run(f"mkfs.{kind}", *options, str(device))

    async def create_volume(
        self, volume: VolumeSpec, image: ImageFiles | None = None, *, progress: Progress | None = None
    ) -> Path:
        """Make it, empty or from an image, complete or not at all; return its path. Raises DriverError."""
        pool, name, path = volume.pool, self._name(volume), self.volume_path(volume)
        await self._require_free(volume)
        async with self.working(pool) as (work, place):
            if image is not None:
                await self._cloned(await self._image(volume, image, progress), work, place, volume)
            elif volume.content == "filesystem":
                await self._format(await self.make(pool, work, size_of(volume)), volume)
                await self._mount(self._device(pool, work), place, volume)
                with contextlib.suppress(OSError):
                    (place / "lost+found").rmdir()
            else:
                await self.make(pool, work, wanted_size(volume))
            if volume.content == "filesystem":
                fit(volume, place, image)
                await mounts.unmount(place)
            await self.rename(pool, work, name)
        return await self.activate_volume(volume) if volume.content == "filesystem" else path

    async def _require_free(self, volume: VolumeSpec) -> None:
        if await self.has(volume.pool, self._name(volume)):
            raise DriverError(f'Volume "{volume.name}" already exists in storage pool "{volume.pool.name}"')

    async def _cloned(self, source: str, work: str, place: Path, volume: VolumeSpec) -> None:
        """Make a writable clone of a logical volume, as large as the volume is to be, mounted at `place`."""
        device = await self.clone(volume.pool, source, work)
        await self._mount(device, place, volume)
        await self._grow(volume, work, place, size_of(volume))

    async def _grow(self, volume: VolumeSpec, name: str, place: Path, size: int) -> None:
        """Give a mounted volume more room; one that is large enough stays as it is."""
        group = self._group(volume.pool)
        now = next((lv.size for lv in await self.volumes_in(group) if lv.name == name), 0)
        if size <= now:
            return
        await commands.run("lvextend", "--size", f"{size}b", f"{group}/{name}")
        kind = file_system_of(volume)
        grow = {"ext4": ("resize2fs",), "xfs": ("xfs_growfs",), "btrfs": ("btrfs", "filesystem", "resize", "max")}[kind]
        await commands.run(*grow, str(self._device(volume.pool, name) if kind == "ext4" else place))

    async def _image(self, volume: VolumeSpec, image: ImageFiles, progress: Progress | None) -> str:
        """Return the volume that instances of an image are cloned from, unpacked by the first who needs it."""
        pool = volume.pool
        cached = VolumeSpec(pool, image.fingerprint, kind="image", config={"block.filesystem": file_system_of(volume)})
        name = self._name(cached)
        async with self._images.setdefault(f"{self._group(pool)}/{name}", asyncio.Lock()):
            if not await self.has(pool, name):
                async with self.working(pool) as (work, place):
                    await self._format(await self.make(pool, work, size_of(cached)), cached)
                    await self._mount(self._device(pool, work), place, cached)
                    with contextlib.suppress(OSError):
                        (place / "lost+found").rmdir()
                    await unpack(image, place, progress)
                    await mounts.unmount(place)
                    await self.rename(pool, work, name)
        return name

    async def delete_volume(self, volume: VolumeSpec) -> None:
        """Remove it and its snapshots. Idempotent."""
        for snapshot in await self.snapshots(volume):
            await self.delete_snapshot(volume, snapshot)
        path, name = self.volume_path(volume), self._name(volume)
        await mounts.unmount(path)
        if await self.has(volume.pool, name):
            await self._drop(volume.pool, name)
        with contextlib.suppress(OSError):
            path.rmdir()

    async def rename_volume(self, volume: VolumeSpec, new: VolumeSpec) -> None:
        """Rename within the pool, snapshots too. Raises DriverError if the new name is taken."""
        await self._require_free(new)
        old_path = self.volume_path(volume)
        await mounts.unmount(old_path)
        for snapshot in await self.snapshots(volume):
            await self.rename(volume.pool, self._name(volume, snapshot), self._name(new, snapshot))
        await self.rename(volume.pool, self._name(volume), self._name(new))
        with contextlib.suppress(OSError):
            old_path.rmdir()
        await self.activate_volume(new)

    async def resize_volume(self, volume: VolumeSpec, size: int) -> None:
        """Give it more room. Raises MemberError when it would shrink."""
        pool, name = volume.pool, self._name(volume)
        now = next((lv.size for lv in await self.volumes_in(self._group(pool)) if lv.name == name), 0)
        if 0 < size < now:
            if volume.content == "filesystem":
                raise MemberError("Filesystem volumes of this storage driver cannot be shrunk")
            raise MemberError(CANNOT_SHRINK)
        if volume.content == "filesystem":
            await self._grow(volume, name, await self.activate_volume(volume), size)
        elif size > now:
            await commands.run("lvextend", "--size", f"{size}b", f"{self._group(pool)}/{name}")

    async def volume_usage(self, volume: VolumeSpec) -> Usage:
        """Return what its file system, or its device, uses."""
        path = self.volume_path(volume)
        if volume.content == "filesystem" and mounts.mounted_at(path) is not None:
            found = shutil.disk_usage(path)
            return Usage(used_bytes=found.used, total_bytes=found.total)
        name = self._name(volume)
        lv = next((lv for lv in await self.volumes_in(self._group(volume.pool)) if lv.name == name), None)
        return Usage(used_bytes=lv.used_bytes if lv else 0, total_bytes=lv.size if lv else 0)

    async def copy_volume(
        self, source: VolumeSpec, target: VolumeSpec, snapshots: Sequence[str] = (), *, progress: Progress | None = None
    ) -> None:
        """Copy within a pool by thin snapshots. Raises DriverError if the target is there."""
        await self._require_free(target)
        pool = target.pool
        try:
            for snapshot in snapshots:
                await self.clone(pool, self._name(source, snapshot), self._name(target, snapshot), readonly=True)
            async with self.working(pool) as (work, _):
                await self.clone(pool, self._name(source), work)
                await self.rename(pool, work, self._name(target))
        except BaseException:
            for snapshot in await self.snapshots(target):
                await self.delete_snapshot(target, snapshot)
            raise
        await self.activate_volume(target)

    # --- snapshots ------------------------------------------------------------------------------------------

    async def snapshots(self, volume: VolumeSpec) -> list[str]:
        """Return the names of the snapshots that are there, sorted."""
        name = self._name(volume)
        found = (tools.snapshot_of(lv.name, name) for lv in await self.volumes_in(self._group(volume.pool)))
        return sorted(snapshot for snapshot in found if snapshot)

    async def create_snapshot(self, volume: VolumeSpec, snapshot: str) -> None:
        """Keep the volume as it is now. Raises DriverError if the name is taken."""
        self.snapshot_path(volume, snapshot)
        if snapshot in await self.snapshots(volume):
            raise DriverError(f'Snapshot "{snapshot}" already exists')
        await self.clone(volume.pool, self._name(volume), self._name(volume, snapshot), readonly=True)

    async def delete_snapshot(self, volume: VolumeSpec, snapshot: str) -> None:
        """Remove a snapshot. Idempotent."""
        name = self._name(volume, snapshot)
        if await self.has(volume.pool, name):
            await self._drop(volume.pool, name)

    async def rename_snapshot(self, volume: VolumeSpec, snapshot: str, new: str) -> None:
        """Give it another name. Raises DriverError if that is taken."""
        self.snapshot_path(volume, new)
        if new in await self.snapshots(volume):
            raise DriverError(f'Snapshot "{new}" already exists')
        await self.rename(volume.pool, self._name(volume, snapshot), self._name(volume, new))

    async def restore_snapshot(self, volume: VolumeSpec, snapshot: str) -> None:
        """Put a clone of the snapshot in the volume's place; until the last rename the old one is all there."""
        pool, name, path = volume.pool, self._name(volume), self.volume_path(volume)
        if snapshot not in await self.snapshots(volume):
            raise DriverError(f'Snapshot "{snapshot}" of volume {volume.label} is missing')
        async with self.working(pool) as (work, _), self.working(pool) as (old, _):
            await self.clone(pool, self._name(volume, snapshot), work)
            await mounts.unmount(path)
            await self.rename(pool, name, old)
            try:
                await self.rename(pool, work, name)
            except BaseException:
                await self.rename(pool, old, name)
                raise
        await self.activate_volume(volume)

    # --- streams --------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def readable(self, volume: VolumeSpec, snapshot: str) -> AsyncIterator[Path]:
        """Give a clone of a snapshot, or of this moment, mounted read-only."""
        async with self.working(volume.pool) as (work, place):
            device = await self.clone(volume.pool, self._name(volume, snapshot), work)
            await self._mount(device, place, volume)
            yield place

    async def send(
        self, volume: VolumeSpec, snapshot: str, form: str, *, parent: str = ""
    ) -> AsyncGenerator[bytes, None]:
        """Yield a snapshot, or ("") the volume as it is: a tar of its files, or its disk."""
        if form == RAW:
            async with self.working(volume.pool) as (work, _):
                device = await self.clone(volume.pool, self._name(volume, snapshot), work)
                async with contextlib.aclosing(read_disk(device)) as chunks:
                    async for chunk in chunks:
                        yield chunk
            return
        if form != TAR:
            raise BadRequestError(f"Unknown format of streams: {form}")
        async with self.readable(volume, snapshot) as path, contextlib.aclosing(tar_of(path)) as chunks:
            async for chunk in chunks:
                yield chunk

    @contextlib.asynccontextmanager
    async def receiver(self, volume: VolumeSpec, form: str) -> AsyncIterator[LvmReceiver]:
        """Take a new volume in. Leaving the block without `keep` leaves nothing behind."""
        await self._require_free(volume)
        async with self.working(volume.pool) as (work, place):
            receiver = LvmReceiver(self, volume, form, work, place)
            try:
                yield receiver
            finally:
                if not receiver.kept:
                    for snapshot in await self.snapshots(volume):
                        await self.delete_snapshot(volume, snapshot)

    async def begin_incoming(self, volume: VolumeSpec, work: str, place: Path) -> None:
        """Make the volume that a stream fills. Raises DriverError."""
        device = await self.make(volume.pool, work, size_of(volume))
        if volume.content == "filesystem":
            await self._format(device, volume)
            await self._mount(device, place, volume)

    async def keep_snapshot(self, volume: VolumeSpec, work: str, snapshot: str) -> None:
        """Make what has come in so far a snapshot of the volume that is to be. Raises DriverError."""
        await self.clone(volume.pool, work, self._name(volume, snapshot), readonly=True)

    async def take_place(self, volume: VolumeSpec, work: str, place: Path) -> None:
        """Make what has come in the volume. Raises DriverError."""
        await mounts.unmount(place)
        await self.rename(volume.pool, work, self._name(volume))
        await self.activate_volume(volume)

    def incoming_device(self, pool: PoolSpec, work: str) -> Path:
        """Return the device that a stream of a disk is written to."""
        return self._device(pool, work)


class LvmReceiver:
    """See storage.VolumeReceiver. Everything is in the logical volume `work`, mounted at `place`, until it is kept."""

    def __init__(self, storage: LvmStorage, volume: VolumeSpec, form: str, work: str, place: Path) -> None:
        self._storage = storage
        self._volume = volume
        self._form = form
        self._work = work
        self._place = place
        self._begun = self._whole = self.kept = False

    async def receive(self, snapshot: str, chunks: AsyncIterator[bytes]) -> None:
        """Take one snapshot, or ("") the volume itself. Raises DriverError."""
        if self._form not in (TAR, RAW, BACKUP):
            raise BadRequestError(f"Unknown format of streams: {self._form}")
        self._whole = not snapshot
        if not self._begun:
            await self._storage.begin_incoming(self._volume, self._work, self._place)
            self._begun = True
        if self._form == RAW:
            device = self._storage.incoming_device(self._volume.pool, self._work)
            await commands.run("blkdiscard", "--zeroout", str(device))  # the stream leaves out what is zero
            await write_disk(device, chunks, device=True)
        else:
            for entry in list(self._place.iterdir()):
                await trees.remove_tree(entry)
            await untar(chunks, self._place, prefix=backup_prefix(snapshot) if self._form == BACKUP else "")
        if snapshot:
            await self._storage.keep_snapshot(self._volume, self._work, snapshot)

    async def keep(self) -> None:
        """Make it visible. Raises DriverError."""
        if not self._whole:
            raise DriverError("The volume itself is missing in the stream")
        await self._storage.take_place(self._volume, self._work, self._place)
        self.kept = True
