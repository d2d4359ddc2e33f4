"""Pools and volumes of this member (DESIGN D10).

Owns every call of a storage driver after the daemon has started; asked by InstanceActors and the storage services.
At its start it mounts the pools and removes what interrupted work has left, as the rows say. Must never remove a
volume that a row still wants.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from incus_actors.actors.actor import Actor, Later
from incus_actors.actors.host import Host, pool_spec
from incus_actors.actors.pool_watch import PoolWatch
from incus_actors.actors.storage_messages import (
    ActivateVolume,
    CheckPool,
    CopyVolume,
    CreatePool,
    CreateSnapshot,
    CreateVolume,
    DeletePool,
    DeleteSnapshot,
    DeleteVolume,
    ForgetImages,
    PoolUsage,
    ReceiveVolume,
    RenameSnapshot,
    RenameVolume,
    RepairVolumes,
    ResizeVolume,
    RestoreSnapshot,
    UpdatePool,
    VolumeUsage,
)
from incus_actors.actors.volume_repair import VolumeRepair
from incus_actors.domain import transactions_volumes as transactions
from incus_actors.drivers.base import DriverError, PoolSpec, VolumeSpec
from incus_actors.drivers.images import ImageFiles
from incus_actors.drivers.pool_places import PoolPlaces
from incus_actors.drivers.storage import StorageDriver
from incus_actors.errors import ApiError, BadRequestError
from incus_actors.state.queries import images as image_queries
from incus_actors.state.queries import instances as queries
from incus_actors.state.queries import volumes as volume_queries

_log = logging.getLogger(__name__)

UNPACKS = 2  #: at a time; more only make each other slower
REPAIR_AGAIN_S = 5.0


class StorageActor(Actor):
    """Volumes are worked on side by side, each by one piece of work at a time."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._unpacking = asyncio.Semaphore(UNPACKS)
        self._locks: weakref.WeakValueDictionary[tuple[str, str, str], asyncio.Lock] = weakref.WeakValueDictionary()
        self._unsubscribe: Callable[[], None] | None = None
        self._repair = VolumeRepair(host, self._driver)
        self._pools = PoolWatch(host)

    async def started(self) -> None:
        """Mount the pools and remove leftovers of a crash, before anybody asks for a volume."""
        await self._pools.mount()
        self._unsubscribe = self._host.consensus().subscribe_applied(self._applied)
        self.context.run(self._put_right(), name="storage: compare volumes with rows")
        self.context.run(self._pools.follow(), name="storage: look for missing pools")

    async def stopped(self, reason: str) -> None:
        """Follow no more."""
        if self._unsubscribe is not None:
            self._unsubscribe()

    def _applied(self, _index: int, topics: frozenset[str]) -> None:
        if "images" in topics:
            self.context.self_ref.tell(ForgetImages())
        if "storage" in topics:
            self._pools.look()

    async def receive(self, message: object) -> object:
        """Start the work; the asker gets the answer when it is done."""
        match message:
            case ForgetImages():
                return Later(self._forget_images())
            case CheckPool(pool):
                self._pools.check(pool.name)
                return None
            case RepairVolumes(abandoned):
                return Later(self._repair_volumes(abandoned))
            case CreatePool() | UpdatePool() | DeletePool() | PoolUsage():
                return Later(_answer(self._of_pool(message)))
        work = self._of_snapshot(message) or self._of_volume(message)
        return self.unhandled(message) if work is None else Later(_answer(work))

    async def _of_pool(self, message: CreatePool | UpdatePool | DeletePool | PoolUsage) -> object:
        if isinstance(message, DeletePool) and self._never_made(message.pool):
            return None
        driver = self._driver(message.pool)
        match message:
            case CreatePool(pool):
                return await driver.create_pool(pool)
            case UpdatePool(pool, old):
                await driver.update_pool(pool, old)
            case DeletePool(pool):
                async with self._pools.working:
                    await driver.delete_pool(pool)
            case PoolUsage(pool):
                return await driver.pool_usage(pool)
        return None

    def _of_snapshot(self, message: object) -> Coroutine[Any, Any, object] | None:
        match message:
            case CreateSnapshot(volume, snapshot):
                return self._alone(self._driver(volume.pool).create_snapshot(volume, snapshot), volume)
            case DeleteSnapshot(volume, snapshot):
                return self._alone(self._driver(volume.pool).delete_snapshot(volume, snapshot), volume)
            case RenameSnapshot(volume, snapshot, new):
                return self._alone(self._driver(volume.pool).rename_snapshot(volume, snapshot, new), volume)
            case RestoreSnapshot(volume, snapshot):
                return self._alone(self._driver(volume.pool).restore_snapshot(volume, snapshot), volume)
        return None

    def _of_volume(self, message: object) -> Coroutine[Any, Any, object] | None:
        match message:
            case CreateVolume():
                return self._alone(self._create(message), message.volume)
            case DeleteVolume(volume):
                return self._alone(self._driver(volume.pool).delete_volume(volume), volume)
            case RenameVolume(volume, new):
                return self._alone(self._driver(volume.pool).rename_volume(volume, new), volume, new)
            case ActivateVolume(volume):
                return self._alone(self._driver(volume.pool).activate_volume(volume), volume)
            case ResizeVolume(volume, size):
                return self._alone(self._driver(volume.pool).resize_volume(volume, size), volume)
            case VolumeUsage(volume):
                return self._driver(volume.pool).volume_usage(volume)
            case CopyVolume(source, target, snapshots):
                return self._alone(self._driver(target.pool).copy_volume(source, target, snapshots), source, target)
            case ReceiveVolume():
                return self._alone(self._take_in(message), message.volume)
        return None

    def _never_made(self, pool: PoolSpec) -> bool:
        """Without its driver nothing can be made of a pool; so there is nothing to remove, unless it was here once."""
        return pool.driver not in self._host.storage and not PoolPlaces(self._host.directory).has_traces(pool)

    def _driver(self, pool: PoolSpec) -> StorageDriver:
        driver = self._host.storage.get(pool.driver)
        if driver is None:
            raise BadRequestError(f'Failed loading storage driver "{pool.driver}": Unknown storage driver')
        return driver

    async def _alone(self, work: Coroutine[Any, Any, object], *volumes: VolumeSpec) -> object:
        """Do work while nobody else works on these volumes; locks are taken in one order by all."""
        keys = sorted({(volume.pool.name, volume.kind, volume.disk_name) for volume in volumes})
        locks = [self._locks.setdefault(key, asyncio.Lock()) for key in keys]
        taken: list[asyncio.Lock] = []
        try:
            for lock in locks:
                await lock.acquire()
                taken.append(lock)
            return await work
        finally:
            work.close()  # not begun if we were cancelled before our turn
            for lock in reversed(taken):
                lock.release()

    async def _create(self, message: CreateVolume) -> Path:
        volume, driver = message.volume, self._driver(message.volume.pool)
        async with self._unpacking:
            path = await driver.create_volume(volume, message.image, progress=message.progress)
        if message.image is not None and driver.caches_images:
            await self._remember_image(volume.pool, message.image)
        return path

    async def _take_in(self, message: ReceiveVolume) -> None:
        driver = self._driver(message.volume.pool)
        async with driver.receiver(message.volume, message.form) as receiver:
            async for snapshot, chunks in message.items:
                await receiver.receive(snapshot, chunks)
            await receiver.keep()

    # --- images that were unpacked once ---------------------------------------------------------------------

    async def _remember_image(self, pool: PoolSpec, image: ImageFiles) -> None:
        own = self._host.member_id()
        found = queries.pool(self._host.database(), pool.name, own)
        known = volume_queries.volumes(self._host.database(), type_="image", name=image.fingerprint, node_id=own)
        if found is None or any(volume.pool_id == found.id for volume in known):
            return
        try:
            await self._host.commit(transactions.remember_image(image.fingerprint, found.id, own, self._host.now()))
        except ApiError as error:  # a list lacks a line; the copy is used and dropped all the same
            _log.warning("the unpacked image %s is not recorded: %s", image.fingerprint[:12], error)

    async def _forget_images(self) -> None:
        """Drop the copies of images that are gone, and the rows that tell of them."""
        database, own = self._host.database(), self._host.member_id()
        known = image_queries.known_fingerprints(database)
        for pool in queries.pools(database, own):
            driver = self._host.storage.get(pool.driver)
            if not pool.usable or driver is None or not driver.caches_images:
                continue
            rows = volume_queries.volumes(database, pool_id=pool.id, type_="image", node_id=own)
            gone = {row.name for row in rows} | set(await driver.cached_images(pool_spec(pool)))
            try:
                for fingerprint in sorted(gone - known):
                    await driver.delete_image(pool_spec(pool), fingerprint)
                for row in rows:
                    if row.name not in known:
                        await self._host.commit(transactions.delete(row.id, own))
            except (ApiError, OSError) as error:
                _log.warning("storage pool %s keeps images that are gone: %s", pool.name, error)

    # --- after a start --------------------------------------------------------------------------------------

    async def _put_right(self) -> None:
        """What the rows say is certain only after a barrier; until there is a quorum nothing is removed."""
        await self._host.certain()
        self.context.self_ref.tell(ForgetImages())
        self.context.self_ref.tell(RepairVolumes())

    async def _repair_volumes(self, abandoned: int | None) -> None:
        if abandoned is not None:
            self._repair.abandoned.add(abandoned)
        if not await self._repair.all():
            self.context.tell_after(REPAIR_AGAIN_S, RepairVolumes())


async def _answer(work: Coroutine[Any, Any, object]) -> object:
    """A full disk or a missing directory is an answer for one asker, no reason to start this actor anew."""
    try:
        return await work
    except OSError as error:
        raise DriverError(f"Storage: {error}") from error
    except ValueError as error:  # a name that can't be on disk
        raise BadRequestError(str(error)) from error
