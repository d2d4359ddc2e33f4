"""Whether the pools of this member are there: mounted at the start, looked for again while they are not.

Owns the warnings about pools, each of which is resolved when its pool is there again, or wanted no longer. Used by
StorageActor; must never write anything down on a state that may be old: that waits for a read barrier.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import uuid
from typing import Final

from incus_actors.actors.host import Host, pool_spec
from incus_actors.domain import transactions_warnings as warnings
from incus_actors.errors import ApiError, UnavailableError
from incus_actors.state.queries import instances as queries
from incus_actors.state.queries import warnings as warning_queries
from incus_actors.state.queries.instances import PoolRecord

_log = logging.getLogger(__name__)

AGAIN_S: Final = 1.0
AGAIN_MAX_S: Final = 30.0
POOL_UNAVAILABLE: Final = 23  #: the number of this kind of warning (services/warnings.py shows it)


class PoolWatch:
    """One life of a StorageActor."""

    def __init__(self, host: Host) -> None:
        self.working = asyncio.Lock()  #: held by whoever makes a pool appear or go
        self._host = host
        self._wake = asyncio.Event()
        self._missing: dict[int, str] = {}  #: pool id → what is wrong with it
        self._warned: dict[int, str] = {}

    def look(self) -> None:
        """Pools have changed, or somebody has worked with one: see whether that ends a problem."""
        if self._missing:
            self._wake.set()

    def check(self, name: str) -> None:
        """Raise UnavailableError if this pool is known to be missing."""
        if self._missing and any(pool.name == name and pool.id in self._missing for pool in self._pools()):
            raise UnavailableError("Storage pool is unavailable on this server", remedy="See: incus warning list")

    async def mount(self) -> None:
        """Mount every pool and remove leftovers of a crash, before anybody works; what can't be done is noted."""
        for pool in self._pools():
            await self._try(pool, first=True)

    async def follow(self) -> None:
        """Warn of what is missing, and try again until nothing is."""
        await self._host.certain()
        again_s = AGAIN_S
        while True:
            try:
                await self._again()
                await self._tell()
            except (ApiError, OSError, sqlite3.OperationalError) as error:
                _log.info("warnings about storage pools wait for a quorum: %s", error)
            else:
                if not self._missing:
                    await self._wake.wait()
            try:
                await asyncio.wait_for(self._wake.wait(), again_s)
                again_s = AGAIN_S
            except TimeoutError:
                again_s = min(AGAIN_MAX_S, again_s * 2)
            self._wake.clear()

    def _pools(self) -> list[PoolRecord]:
        return [pool for pool in queries.pools(self._host.database(), self._host.member_id()) if pool.usable]

    async def _again(self) -> None:
        for pool_id in list(self._missing):
            async with self.working:
                pool = next((pool for pool in self._pools() if pool.id == pool_id), None)
                if pool is None:
                    del self._missing[pool_id]
                else:
                    await self._try(pool)

    async def _try(self, pool: PoolRecord, *, first: bool = False) -> None:
        driver = self._host.storage.get(pool.driver)
        if driver is None:
            self._missing[pool.id] = f'{pool.name}: The storage driver "{pool.driver}" does not work here'
            return
        try:
            await driver.activate_pool(pool_spec(pool))
            for line in await driver.reconcile(pool_spec(pool)) if first else ():
                _log.info("storage pool %s: %s", pool.name, line)
        except (ApiError, OSError) as error:
            reason = f"{pool.name}: {error}"
            if self._missing.get(pool.id) != reason:
                _log.error("storage pool %s is not available: %s", pool.name, error)
            self._missing[pool.id] = reason
        else:
            if self._missing.pop(pool.id, None) is not None:
                _log.info("storage pool %s is available again", pool.name)

    async def _tell(self) -> None:
        """Have there be a warning about each pool that is missing, and about no other. Raises ApiError."""
        own, now, missing = self._host.member_id(), self._host.now(), dict(self._missing)
        warned = warning_queries.unresolved_entities(self._host.database(), POOL_UNAVAILABLE, own)
        if over := warned - missing.keys():
            await self._host.commit(warnings.resolve_warnings(POOL_UNAVAILABLE, own, now, about=sorted(over)))
        for pool_id, reason in missing.items():
            if pool_id in warned and self._warned.get(pool_id) == reason:
                continue
            occurrence = warnings.Occurrence(POOL_UNAVAILABLE, reason, own, entity_type_code=-1, entity_id=pool_id)
            await self._host.commit(warnings.raise_warning(occurrence, str(uuid.uuid4()), now))
            self._warned[pool_id] = reason
