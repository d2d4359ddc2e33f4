"""Pools and root volumes of this member (DESIGN D10).

Owns every call of a storage driver after the daemon has started; asked by InstanceActors and the storage service.
At its start it removes what interrupted work has left. Must never remove a volume that a row still names.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from incus_actors.actors.actor import Actor, Later
from incus_actors.actors.host import Host, pool_spec
from incus_actors.drivers.base import (
    DriverError,
    ImageFiles,
    PoolSpec,
    Progress,
    Usage,
    VolumeSpec,
)
from incus_actors.drivers.storage import StorageDriver
from incus_actors.errors import BadRequestError
from incus_actors.state.queries import instances as queries

_log = logging.getLogger(__name__)

UNPACKS = 2  #: at a time; more only make each other slower


@dataclass(frozen=True, slots=True)
class CreateVolume:
    """Make a root volume from an image. Answer: its path."""

    volume: VolumeSpec
    image: ImageFiles | None
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class DeleteVolume:
    """Remove a volume; nothing happens if there is none."""

    volume: VolumeSpec


@dataclass(frozen=True, slots=True)
class RenameVolume:
    """Give a volume another name within its pool."""

    volume: VolumeSpec
    new: VolumeSpec


@dataclass(frozen=True, slots=True)
class CreatePool:
    """Make a pool here. Answer: its config with the defaults filled in."""

    pool: PoolSpec


@dataclass(frozen=True, slots=True)
class DeletePool:
    """Remove a pool from this machine."""

    pool: PoolSpec


@dataclass(frozen=True, slots=True)
class PoolUsage:
    """Answer: Usage."""

    pool: PoolSpec


Message = CreateVolume | DeleteVolume | RenameVolume | CreatePool | DeletePool | PoolUsage


class StorageActor(Actor):
    """Volumes are worked on side by side, each by one piece of work at a time."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._unpacking = asyncio.Semaphore(UNPACKS)
        self._locks: weakref.WeakValueDictionary[tuple[str, str, str], asyncio.Lock] = weakref.WeakValueDictionary()

    async def started(self) -> None:
        """Remove leftovers of a crash, pool by pool, before anybody asks for a volume."""
        for pool in queries.pools(self._host.database(), self._host.member_id()):
            driver = self._host.storage.get(pool.driver)
            if not pool.usable or driver is None:
                continue
            try:
                for line in await driver.reconcile(pool_spec(pool)):
                    _log.info("storage pool %s: %s", pool.name, line)
            except (DriverError, OSError) as error:
                _log.error("storage pool %s can't be cleaned up: %s", pool.name, error)

    async def receive(self, message: object) -> object:
        """Start the work; the asker gets the answer when it is done."""
        match message:
            case CreateVolume():
                return Later(_answer(self._create(message)))
            case DeleteVolume(volume):
                return Later(_answer(self._delete(volume)))
            case RenameVolume(volume, new):
                return Later(_answer(self._rename(volume, new)))
            case CreatePool(pool):
                return Later(_answer(self._create_pool(pool)))
            case DeletePool(pool):
                return Later(_answer(self._driver(pool).delete_pool(pool)))
            case PoolUsage(pool):
                return Later(_answer(self._usage(pool)))
            case _:
                return self.unhandled(message)

    def _driver(self, pool: PoolSpec) -> StorageDriver:
        driver = self._host.storage.get(pool.driver)
        if driver is None:
            raise BadRequestError(f'Failed loading storage driver "{pool.driver}": Unknown storage driver')
        return driver

    def _lock(self, volume: VolumeSpec) -> asyncio.Lock:
        return self._locks.setdefault((volume.pool.name, volume.kind, volume.disk_name), asyncio.Lock())

    async def _create(self, message: CreateVolume) -> Path:
        async with self._lock(message.volume), self._unpacking:
            driver = self._driver(message.volume.pool)
            return await driver.create_volume(message.volume, message.image, progress=message.progress)

    async def _delete(self, volume: VolumeSpec) -> None:
        async with self._lock(volume):
            await self._driver(volume.pool).delete_volume(volume)

    async def _rename(self, volume: VolumeSpec, new: VolumeSpec) -> None:
        async with self._lock(volume):
            await self._driver(volume.pool).rename_volume(volume, new)

    async def _create_pool(self, pool: PoolSpec) -> Mapping[str, str]:
        return await self._driver(pool).create_pool(pool)

    async def _usage(self, pool: PoolSpec) -> Usage:
        return await self._driver(pool).pool_usage(pool)


async def _answer(work: Coroutine[Any, Any, object]) -> object:
    """A full disk or a missing directory is an answer for one asker, no reason to start this actor anew."""
    try:
        return await work
    except OSError as error:
        raise DriverError(f"Storage: {error}") from error
