"""The half of the LVM driver that is about pools: volume groups with one thin pool, and the logical volumes in them.

Owns the volume group that a storage pool lives on. Base of storage_lvm.LvmStorage, which adds volumes, snapshots and
streams. Must never remove a volume group that it did not make, nor a logical volume that is not named as ours are.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from incus_actors.drivers import commands, loop, mounts, trees
from incus_actors.drivers import lvm_tools as tools
from incus_actors.drivers.base import Availability, Config, DriverError, DriverInfo, PoolSpec, Usage, VolumeSpec
from incus_actors.drivers.lvm_tools import LogicalVolume
from incus_actors.drivers.mounted_pools import MountedPools
from incus_actors.drivers.pool_places import KINDS
from incus_actors.drivers.storage import RAW, TAR
from incus_actors.errors import BadRequestError, MemberError
from incus_actors.model.config_values import is_true

THIN_POOL = "IncusThinPool"
_WORK = "work_"
_MADE = "volatile.initial_source"  #: in the config of a pool on a volume group that was there before us


class LvmPools(MountedPools):
    """`directory` is the daemon's own (`$INCUS_DIR`)."""

    stream_formats: tuple[str, ...] = (TAR, RAW)

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.info = DriverInfo("lvm", "")

    def availability(self) -> Availability:
        """Return whether the programs and the kernel's device-mapper are here."""
        reason = tools.problem()
        if reason:
            return Availability(False, reason)
        self.info = DriverInfo("lvm", tools.version())
        return Availability(True)

    # --- names ----------------------------------------------------------------------------------------------

    def _group(self, pool: PoolSpec) -> str:
        return pool.config.get("lvm.vg_name", "") or pool.name

    def _thin(self, pool: PoolSpec) -> str:
        return pool.config.get("lvm.thinpool_name", "") or THIN_POOL

    def _name(self, volume: VolumeSpec, snapshot: str = "") -> str:
        if volume.kind not in KINDS:
            raise BadRequestError(f"Invalid storage volume type: {volume.kind}")
        return tools.lv_name(KINDS[volume.kind], volume.disk_name, snapshot)

    def _device(self, pool: PoolSpec, name: str) -> Path:
        return Path("/dev") / self._group(pool) / name

    def validate_pool(self, pool: PoolSpec) -> None:
        """Raise BadRequestError for names that LVM doesn't take, and for pools without thin volumes."""
        tools.checked(self._group(pool))
        tools.checked(self._thin(pool))
        if pool.config.get("lvm.use_thinpool") and not is_true(pool.config["lvm.use_thinpool"]):
            raise BadRequestError("Pools without a thin pool (lvm.use_thinpool=false) are not supported by this server")

    # --- pools ----------------------------------------------------------------------------------------------

    async def create_pool(self, pool: PoolSpec) -> Mapping[str, str]:
        """Make it; return the config as it is now. Raises DriverError if a source isn't empty or is in use."""
        self.validate_pool(pool)
        source = pool.config.get("source", "")
        if source and not source.startswith("/"):
            config = await self._take_group(pool, source)
        else:
            config = await self._make_group(pool, source)
        made = PoolSpec(pool.name, pool.driver, config)
        try:
            await self._make_thin_pool(made)
        except BaseException:
            await self._unmake(made)
            raise
        self._make_directories(made)
        return config

    async def _groups(self) -> dict[str, int]:
        text = await commands.run("vgs", "--noheadings", "--separator", "|", "-o", "vg_name,lv_count")
        return tools.parse_vgs(text)

    async def _take_group(self, pool: PoolSpec, source: str) -> dict[str, str]:
        """Use a volume group of the machine's. Raises DriverError."""
        if pool.config.get("size"):
            raise DriverError('Config key "size" cannot be used with an existing volume group')
        if pool.config.get("lvm.vg_name", source) != source:
            raise DriverError(f'Config key "lvm.vg_name" ({pool.config["lvm.vg_name"]}) and "source" ({source}) differ')
        groups = await self._groups()
        if tools.checked(source) not in groups:
            raise DriverError(f'The requested volume group "{source}" does not exist')
        left = [lv.name for lv in await self.volumes_in(source) if lv.name != self._thin(pool)]
        if left and not is_true(pool.config.get("lvm.vg.force_reuse")):
            raise DriverError(f'Volume group "{source}" is not empty: {", ".join(left[:5])}')
        return {**pool.config, "source": source, "lvm.vg_name": source, _MADE: source}

    async def _make_group(self, pool: PoolSpec, source: str) -> dict[str, str]:
        """Make a volume group on a file of ours or on a device. Raises DriverError."""
        group, file = self._group(pool), self._file(pool)
        config = {**pool.config, "lvm.vg_name": group}
        own = self._is_on_file(pool)
        if group in await self._groups():
            if not own or not file.exists() or not await self._is_ours(group, file):
                raise DriverError(f'A volume group already exists called "{group}"')
            await self._remove_group(group)  # an interrupted attempt of ours
        if own:
            await loop.detach(file)
            config |= {"source": str(file), "size": pool.config.get("size") or loop.default_size(self._directory)}
            loop.make(file, loop.size_bytes(config["size"]))
            device = await loop.attach(file)
        else:
            device = source
            if is_true(config.pop("source.wipe", "")):
                await commands.run("wipefs", "--all", device)
        try:
            await commands.run("pvcreate", "--yes" if own else "--quiet", device)
            await commands.run("vgcreate", group, device)
        except BaseException:
            if own:
                await loop.detach(file)
                file.unlink(missing_ok=True)
            raise
        return config

    async def _is_ours(self, group: str, file: Path) -> bool:
        """Return whether a volume group is on our file, and on nothing else."""
        text = await commands.run("pvs", "--noheadings", "--separator", "|", "-o", "pv_name,vg_name")
        on = {device for device, found in tools.parse_pvs(text).items() if found == group}
        return bool(on) and on <= set(loop.devices(file))

    async def _make_thin_pool(self, pool: PoolSpec) -> None:
        group, thin = self._group(pool), self._thin(pool)
        if any(lv.name == thin for lv in await self.volumes_in(group)):
            return
        size = ["--extents", "100%FREE"]
        if metadata := pool.config.get("lvm.thinpool_metadata_size"):
            size += ["--poolmetadatasize", f"{loop.size_bytes(metadata)}b"]
        await commands.run("lvcreate", "--yes", "--wipesignatures", "y", *size, "--thinpool", thin, group)

    async def _unmake(self, pool: PoolSpec) -> None:
        group, file = self._group(pool), self._file(pool)
        if pool.config.get(_MADE) == group:  # it was there before us: only the thin pool goes
            if any(lv.name == self._thin(pool) for lv in await self.volumes_in(group)):
                await commands.run("lvremove", "--force", f"{group}/{self._thin(pool)}")
            return
        if group in await self._groups():
            await self._remove_group(group)
        source = pool.config.get("source", "")
        if source == str(file):
            await loop.detach(file)
            file.unlink(missing_ok=True)
        elif source:
            await commands.run("pvremove", "--yes", source)

    @staticmethod
    async def _remove_group(group: str) -> None:
        await commands.run("vgremove", "--force", group)

    async def activate_pool(self, pool: PoolSpec) -> None:
        """Give its file a loop device and activate its volumes. Raises DriverError."""
        file = self._file(pool)
        if pool.config.get("source") == str(file):
            await loop.attach(file)
        await commands.run("vgchange", "--activate", "y", self._group(pool))
        self._make_directories(pool)

    async def update_pool(self, pool: PoolSpec, old: Config) -> None:
        """Grow the file. Raises MemberError "Pool cannot be shrunk", DriverError."""
        for key in ("lvm.vg_name", "lvm.thinpool_name"):
            if pool.config.get(key, "") != old.get(key, ""):
                raise MemberError(f"{key} cannot be changed")
        if await self._grow_file(pool, old):
            await commands.run("pvresize", await loop.attach(self._file(pool)))
            await commands.run("lvextend", "--extents", "+100%FREE", f"{self._group(pool)}/{self._thin(pool)}")

    async def delete_pool(self, pool: PoolSpec) -> None:
        """Remove it. Raises DriverError if volumes are left. Idempotent."""
        group = self._group(pool)
        if group in await self._groups():
            await self.reconcile(pool)
            lvs = [lv.name for lv in await self.volumes_in(group) if lv.pool == self._thin(pool)]
            images = [name for name in lvs if name.startswith(f"{KINDS['image']}_")]
            left = [name for name in lvs if name not in images]
            if left:
                raise DriverError(f'Storage pool "{pool.name}" is not empty: {", ".join(left[:5])}')
            for name in images:
                await self._drop(pool, name)
            await self._unmake(pool)
        elif self._is_on_file(pool):
            await loop.detach(self._file(pool))
            self._file(pool).unlink(missing_ok=True)
        await trees.remove_tree(self.pool_path(pool))

    async def pool_usage(self, pool: PoolSpec) -> Usage:
        """Return the space of the thin pool. Raises DriverError."""
        thin = next((lv for lv in await self.volumes_in(self._group(pool)) if lv.name == self._thin(pool)), None)
        if thin is None:
            raise DriverError(f'Thin pool "{self._thin(pool)}" is missing')
        return Usage(used_bytes=thin.used_bytes, total_bytes=thin.size)

    async def reconcile(self, pool: PoolSpec) -> list[str]:
        """At start: remove unfinished work; return a line for each thing removed."""
        removed = []
        for lv in await self.volumes_in(self._group(pool)):
            if lv.name.startswith(_WORK) and lv.pool == self._thin(pool):
                await self._drop(pool, lv.name)
                removed.append(f"unfinished volume {lv.name} removed")
        return removed

    async def cached_images(self, pool: PoolSpec) -> list[str]:
        """Return the fingerprints of the images that are cached in a pool."""
        prefix = f"{KINDS['image']}_"
        found = await self.volumes_in(self._group(pool))
        return [lv.name.removeprefix(prefix) for lv in found if lv.name.startswith(prefix)]

    async def delete_image(self, pool: PoolSpec, fingerprint: str) -> None:
        """Drop a cached image; thin clones do without their origin. Idempotent."""
        name = self._name(VolumeSpec(pool, fingerprint, kind="image"))
        async with self._images.setdefault(f"{self._group(pool)}/{name}", asyncio.Lock()):
            if await self.has(pool, name):
                await self._drop(pool, name)

    # --- logical volumes ------------------------------------------------------------------------------------

    async def volumes_in(self, group: str) -> list[LogicalVolume]:
        """Return the logical volumes of a group. Raises DriverError."""
        return tools.parse_lvs(await commands.run(*tools.LVS, tools.LVS_FIELDS, group))

    async def has(self, pool: PoolSpec, name: str) -> bool:
        """Return whether there is a logical volume. Raises DriverError."""
        return any(lv.name == name for lv in await self.volumes_in(self._group(pool)))

    async def make(self, pool: PoolSpec, name: str, size: int) -> Path:
        """Make an empty thin volume; return its device. Raises DriverError."""
        group = self._group(pool)
        thin = f"{group}/{self._thin(pool)}"
        await commands.run("lvcreate", "--yes", "--thin", "--name", name, "--virtualsize", f"{size}b", thin)
        return self._device(pool, name)

    async def clone(self, pool: PoolSpec, source: str, name: str, *, readonly: bool = False) -> Path:
        """Make a thin snapshot, which is a volume like any other; return its device. Raises DriverError."""
        flags = ("--setactivationskip", "n", "--name", name, "--permission", "r" if readonly else "rw")
        await commands.run("lvcreate", "--yes", "--snapshot", *flags, f"{self._group(pool)}/{source}")
        await commands.run("lvchange", "--activate", "y", f"{self._group(pool)}/{name}")
        return self._device(pool, name)

    async def rename(self, pool: PoolSpec, name: str, new: str) -> None:
        """Give a logical volume another name. Raises DriverError."""
        await commands.run("lvrename", self._group(pool), name, new)

    async def _drop(self, pool: PoolSpec, name: str) -> None:
        """Unmount and remove a logical volume. Raises DriverError."""
        await mounts.unmount(self.pool_path(pool) / "work" / name)
        await commands.run("lvremove", "--force", f"{self._group(pool)}/{name}")

    @contextlib.asynccontextmanager
    async def working(self, pool: PoolSpec) -> AsyncIterator[tuple[str, Path]]:
        """Yield the name and the mount point of a volume that is yet to be made; what is there at the end is removed."""
        name = f"{_WORK}{uuid.uuid4().hex}"
        path = self.pool_path(pool) / "work" / name
        try:
            yield name, path
        except OSError as error:
            raise DriverError(f"{error.strerror or error}: {error.filename or path}") from error
        finally:
            await mounts.unmount(path)
            if await self.has(pool, name):
                await self._drop(pool, name)
            with contextlib.suppress(OSError):
                path.rmdir()
