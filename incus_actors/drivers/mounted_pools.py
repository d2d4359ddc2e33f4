"""What drivers share whose volumes are mounted one by one below the pool's directory (lvm, zfs).

Owns the mount points and the file that such a pool may be on. Extended by lvm_pools.py and zfs_pools.py; must never make a
volume.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from incus_actors.drivers import loop
from incus_actors.drivers.base import Config, DriverError, PoolSpec
from incus_actors.drivers.pool_places import KINDS, PoolPlaces


class MountedPools(PoolPlaces):
    """`directory` is the daemon's own (`$INCUS_DIR`)."""

    caches_images = True

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._images: dict[str, asyncio.Lock] = {}

    def _make_directories(self, pool: PoolSpec) -> None:
        root = self.pool_path(pool)
        root.mkdir(mode=0o711, parents=True, exist_ok=True)
        for name in (*KINDS.values(), "work"):
            (root / name).mkdir(mode=0o711 if name == "containers" else 0o700, exist_ok=True)

    async def _grow_file(self, pool: PoolSpec, old: Config) -> bool:
        """Return whether the pool has a new size, which its file then has. Raises MemberError "Pool cannot be shrunk",
        DriverError."""
        size, file = pool.config.get("size", ""), self._file(pool)
        if not size or size == old.get("size", ""):
            return False
        if pool.config.get("source") != str(file):
            raise DriverError("Cannot resize non-loopback pools")
        await loop.grow(file, loop.size_bytes(size))
        return True
