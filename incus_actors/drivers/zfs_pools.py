"""The half of the ZFS driver that is about pools and datasets: how they come, are mounted, moved and go.

Owns the ZFS pool or dataset that a storage pool lives on and the layout below it (`containers/`, `custom/`, `images/`,
`work/` …). Base of storage_zfs.ZfsStorage, which adds volumes, snapshots and streams. Must never destroy what it did not
make.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import uuid
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from incus_actors.drivers import commands, loop, trees
from incus_actors.drivers import zfs_tools as tools
from incus_actors.drivers.base import (
    Availability,
    Config,
    DriverError,
    DriverInfo,
    PoolSpec,
    Usage,
    VolumeSpec,
)
from incus_actors.drivers.commands import CommandError, run
from incus_actors.drivers.mounted_pools import MountedPools
from incus_actors.drivers.pool_places import KINDS
from incus_actors.drivers.storage import RAW, TAR
from incus_actors.errors import BadRequestError
from incus_actors.model.config_values import is_true

ZFS = "zfs"  #: the format of streams that only ZFS understands
_DATASETS = ("containers", "custom", "deleted", "images", "virtual-machines", "work")
_POOL_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.:-]*(/[A-Za-z0-9][A-Za-z0-9_.: -]*)*")


class ZfsPools(MountedPools):
    """`directory` is the daemon's own (`$INCUS_DIR`)."""

    stream_formats: tuple[str, ...] = (ZFS, TAR, RAW)

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.info = DriverInfo("zfs", "")

    def availability(self) -> Availability:
        """Return whether the programs are here and the kernel, or zfs-fuse, answers them."""
        missing = commands.missing("zfs", "zpool", "tar")
        if missing:
            return Availability(False, f"Required tool '{missing[0]}' is missing")
        reason = tools.problem()
        if reason:
            return Availability(False, reason)
        self.info = DriverInfo("zfs", tools.version())
        return Availability(True)

    # --- names ----------------------------------------------------------------------------------------------

    def _root(self, pool: PoolSpec) -> str:
        """Return the pool's dataset."""
        return pool.config.get("zfs.pool_name", "") or pool.name

    def _dataset(self, volume: VolumeSpec) -> str:
        if volume.kind not in KINDS:
            raise BadRequestError(f"Invalid storage volume type: {volume.kind}")
        return f"{self._root(volume.pool)}/{KINDS[volume.kind]}/{volume.disk_name}"

    def _work(self, pool: PoolSpec) -> str:
        return f"{self._root(pool)}/work/{uuid.uuid4().hex}"

    # --- pools ----------------------------------------------------------------------------------------------

    def validate_pool(self, pool: PoolSpec) -> None:
        """Raise BadRequestError for names that ZFS doesn't take."""
        name = self._root(pool)
        if not _POOL_NAME.fullmatch(name):
            raise BadRequestError(f'Invalid ZFS pool name "{name}"')

    async def create_pool(self, pool: PoolSpec) -> Mapping[str, str]:
        """Make it; return the config as it is now. Raises DriverError if a source isn't empty or is in use."""
        source = pool.config.get("source", "")
        if source and not source.startswith("/"):
            config = await self._take_dataset(pool, source)
        else:
            config = await self._make_pool(pool, source)
        made = PoolSpec(pool.name, pool.driver, config)
        try:
            for name in _DATASETS:
                if not await tools.exists(f"{self._root(made)}/{name}"):
                    await run("zfs", "create", "-o", "mountpoint=none", f"{self._root(made)}/{name}")
        except BaseException:
            await self._unmake(made)
            raise
        self._make_directories(made)
        return config

    async def _take_dataset(self, pool: PoolSpec, source: str) -> dict[str, str]:
        """Use an empty pool or dataset of the machine's. Raises DriverError."""
        if pool.config.get("size"):
            raise DriverError('Config key "size" cannot be used with an existing ZFS pool or dataset')
        name = pool.config.get("zfs.pool_name") or source
        if name != source:
            raise DriverError(f'Config key "zfs.pool_name" ({name}) and "source" ({source}) differ')
        if not _POOL_NAME.fullmatch(source):
            raise DriverError(f'Invalid ZFS pool name "{source}"')
        if not await tools.exists(source):
            if "/" not in source:
                raise DriverError(f'ZFS pool "{source}" does not exist')
            await run("zfs", "create", "-p", "-o", "mountpoint=none", source)
        left = [entry for entry in await tools.below(source) if entry.removeprefix(f"{source}/") not in _DATASETS]
        if left:
            raise DriverError(
                f'Provided ZFS pool (or dataset) isn\'t empty, run "sudo zfs list -r {source}" to see existing entries'
            )
        return {**pool.config, "source": source, "zfs.pool_name": source}

    async def _make_pool(self, pool: PoolSpec, source: str) -> dict[str, str]:
        """Make a ZFS pool on a file of ours or on a device. Raises DriverError."""
        self.validate_pool(pool)
        name, file = self._root(pool), self._file(pool)
        if "/" in name:
            raise DriverError(f'ZFS pool name "{name}" may not hold a slash')
        if await tools.exists(name):
            left = [e for e in await tools.below(name) if e.removeprefix(f"{name}/") not in _DATASETS]
            if not await self._is_ours(pool) or left:
                raise DriverError(f'Could not create ZFS pool "{name}": it exists already')
            await tools.when_free("zpool", "destroy", "-f", name)  # an interrupted attempt of ours
        config = {**pool.config, "zfs.pool_name": name}
        if self._is_on_file(pool):
            config |= {"source": str(file), "size": pool.config.get("size") or loop.default_size(self._directory)}
            loop.make(file, loop.size_bytes(config["size"]))
        vdev, force = config["source"], [] if source else ["-f"]
        if is_true(pool.config.get("source.wipe")):
            force = ["-f"]
            config.pop("source.wipe")
        if source and vdev == source:
            config["volatile.initial_source"] = source
        try:
            options = ("-m", "none", "-O", "compression=on", "-O", "atime=off")
            await run("zpool", "create", *force, *options, name, vdev)
        except BaseException:
            if vdev == str(file):
                file.unlink(missing_ok=True)
            raise
        return config

    async def _is_ours(self, pool: PoolSpec) -> bool:
        """Return whether a ZFS pool is on the file or device that we would make it on."""
        vdev = str(self._file(pool)) if self._is_on_file(pool) else pool.config["source"]
        return vdev in await tools.devices_of(self._root(pool))

    async def _unmake(self, pool: PoolSpec) -> None:
        name, source = self._root(pool), pool.config.get("source", "")
        if source.startswith("/"):
            if await tools.exists(name):
                await tools.when_free("zpool", "destroy", "-f", name)
            if source == str(self._file(pool)):
                Path(source).unlink(missing_ok=True)
            return
        for dataset in _DATASETS:
            if await tools.exists(f"{name}/{dataset}"):
                await run("zfs", "destroy", "-r", f"{name}/{dataset}")

    async def activate_pool(self, pool: PoolSpec) -> None:
        """Import it if it isn't. Raises DriverError."""
        name = self._root(pool).partition("/")[0]
        if not await tools.exists(name):
            source = pool.config.get("source", "")
            where = ["-d", str(Path(source).parent)] if source.startswith("/") else []
            await run("zpool", "import", "-f", *where, name)
        self._make_directories(pool)

    async def update_pool(self, pool: PoolSpec, old: Config) -> None:
        """Grow the file. Raises MemberError "Pool cannot be shrunk", DriverError."""
        if await self._grow_file(pool, old):
            await run("zpool", "online", "-e", self._root(pool), str(self._file(pool)))

    async def delete_pool(self, pool: PoolSpec) -> None:
        """Remove it. Raises DriverError if volumes are left. Idempotent."""
        name = self._root(pool)
        if await tools.exists(name):
            await self.reconcile(pool)
            left = [
                entry.removeprefix(f"{name}/")
                for entry in await tools.below(name)
                if entry.count("/") > name.count("/") + 1
                and not entry.startswith((f"{name}/images/", f"{name}/deleted/"))
            ]
            if left:
                raise DriverError(f'Storage pool "{pool.name}" is not empty: {", ".join(left[:5])}')
            await self._unmake(pool)
        elif self._is_on_file(pool):
            self._file(pool).unlink(missing_ok=True)
        await trees.remove_tree(self.pool_path(pool))

    async def pool_usage(self, pool: PoolSpec) -> Usage:
        """Return the space of the pool. Raises DriverError."""
        found = await tools.numbers(self._root(pool), "used", "available")
        return Usage(used_bytes=found["used"], total_bytes=found["used"] + found["available"])

    async def reconcile(self, pool: PoolSpec) -> list[str]:
        """At start: remove unfinished work; return a line for each thing removed."""
        removed = []
        prefix = f"{self._root(pool)}/work/"
        for dataset in sorted(await tools.below(f"{self._root(pool)}/work"), reverse=True):
            if dataset.startswith(prefix):
                await self._destroy(dataset)
                removed.append(f"unfinished volume {dataset} removed")
        return removed

    async def cached_images(self, pool: PoolSpec) -> list[str]:
        """Return the fingerprints of the images that are cached in a pool."""
        prefix = f"{self._root(pool)}/images/"
        return [e.removeprefix(prefix) for e in await tools.below(prefix.rstrip("/")) if e.startswith(prefix)]

    async def delete_image(self, pool: PoolSpec, fingerprint: str) -> None:
        """Drop a cached image; one with clones is put aside until the last of them has gone. Idempotent."""
        volume = VolumeSpec(pool, fingerprint, kind="image")
        dataset = self._dataset(volume)
        async with self._images.setdefault(dataset, asyncio.Lock()):
            if not await tools.exists(dataset):
                return
            try:
                await self._destroy(dataset)
            except DriverError:
                if not await tools.exists(dataset):
                    return
                await self._unmount(dataset)
                aside = f"{self._root(pool)}/deleted/{fingerprint[:32]}-{uuid.uuid4().hex}"
                await tools.when_free("zfs", "rename", dataset, aside)
            self._remove_mountpoint(self.volume_path(volume))

    # --- datasets -------------------------------------------------------------------------------------------

    async def _make(self, dataset: str, path: Path) -> None:
        path.mkdir(mode=0o700, exist_ok=True)
        await run("zfs", "create", "-o", f"mountpoint={path}", "-o", "canmount=noauto", dataset)
        await run("zfs", "mount", dataset)

    async def _clone(self, snapshot: str, dataset: str, path: Path) -> None:
        path.mkdir(mode=0o700, exist_ok=True)
        await run("zfs", "clone", "-o", f"mountpoint={path}", "-o", "canmount=noauto", snapshot, dataset)
        if not await tools.mounted(dataset):  # zfs-fuse mounts clones whatever canmount says
            await run("zfs", "mount", dataset)

    async def _unmount(self, dataset: str) -> None:
        if await tools.mounted(dataset):
            await run("zfs", "unmount", dataset)

    async def _destroy(self, dataset: str) -> None:
        """Remove a dataset with its snapshots, and its mount point; nothing if it is gone. Raises DriverError for one
        with clones."""
        try:
            path = Path(await tools.value(dataset, "mountpoint"))
            origin = await tools.value(dataset, "origin")
            await self._unmount(dataset)
        except CommandError as error:
            if tools.is_missing(error):  # what a broken `zfs receive` leaves goes by itself, a moment later
                return
            raise
        try:
            await tools.when_free("zfs", "destroy", "-r", dataset)
        except BaseException:
            if path.is_absolute():
                await commands.run_quietly("zfs", "mount", dataset)
            raise
        if path.is_absolute():
            self._remove_mountpoint(path)
        if "/deleted/" in origin:  # an image that only waited for its last clone to go
            await commands.run_quietly("zfs", "destroy", "-r", origin.partition("@")[0])

    def _remove_mountpoint(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            path.rmdir()

    async def _move(self, dataset: str, new: str, path: Path) -> None:
        """Give a dataset another name and place; it is mounted there afterwards."""
        old_path = Path(await tools.value(dataset, "mountpoint"))
        await self._unmount(dataset)
        await tools.when_free("zfs", "rename", dataset, new)
        path.mkdir(mode=0o700, exist_ok=True)
        await run("zfs", "set", f"mountpoint={path}", new)
        if not await tools.mounted(new):
            await run("zfs", "mount", new)
        if old_path != path and old_path.is_absolute():
            self._remove_mountpoint(old_path)

    @contextlib.asynccontextmanager
    async def _working(self, pool: PoolSpec) -> AsyncIterator[tuple[str, Path]]:
        """Yield the name and place of a dataset that is yet to be made; what is there at the end is removed."""
        dataset = self._work(pool)
        path = self.pool_path(pool) / "work" / dataset.rpartition("/")[2]
        try:
            yield dataset, path
        except OSError as error:
            raise DriverError(f"{error.strerror or error}: {error.filename or path}") from error
        finally:
            if await tools.exists(dataset):
                await self._destroy(dataset)
            self._remove_mountpoint(path)
