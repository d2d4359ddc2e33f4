"""Pools whose volumes are trees of files, and what a driver must be able to do with a tree.

Owns the directories of such a pool and what is left in them. Extended by path_storage.py; must never follow a link out of
the pool.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from incus_actors.drivers import trees
from incus_actors.drivers.base import DriverError, PoolSpec, Usage, VolumeSpec
from incus_actors.drivers.pool_places import KINDS, PoolPlaces
from incus_actors.drivers.storage import RAW, TAR

DIRECTORIES = {
    "containers": 0o711,
    "containers-snapshots": 0o711,
    "custom": 0o700,
    "custom-snapshots": 0o700,
    "images": 0o700,
    "virtual-machines": 0o700,
    "virtual-machines-snapshots": 0o700,
}


class PathTrees(PoolPlaces):
    """`directory` is the daemon's own (`$INCUS_DIR`)."""

    caches_images = False
    stream_formats: tuple[str, ...] = (TAR, RAW)

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._images: dict[Path, asyncio.Lock] = {}

    # --- primitives -----------------------------------------------------------------------------------------

    async def make_tree(self, path: Path) -> None:
        """Make an empty tree."""
        raise NotImplementedError

    async def clone_tree(self, source: Path, target: Path, *, readonly: bool = False) -> None:
        """Make a copy as it is at one moment."""
        raise NotImplementedError

    async def drop_tree(self, path: Path) -> None:
        """Remove a tree; one that is gone is fine."""
        raise NotImplementedError

    async def settle(self, source: Path, target: Path, *, readonly: bool = False) -> None:
        """Give a finished tree its place; the source may stay behind, to be dropped."""
        await asyncio.to_thread(source.rename, target)

    async def limit(self, pool: PoolSpec, path: Path, size: int) -> None:
        """Let a tree grow to `size` bytes at most, 0: as far as it can."""

    async def measured(self, pool: PoolSpec, path: Path) -> Usage | None:
        """Return what a tree uses, None if only a walk can tell."""
        return None

    # --- places ---------------------------------------------------------------------------------------------

    def has_volume(self, volume: VolumeSpec) -> bool:
        """Return whether it is there, complete."""
        return self.volume_path(volume).is_dir()

    async def activate_volume(self, volume: VolumeSpec) -> Path:
        """Return its path: it is there as long as the pool is. Raises DriverError if it is missing."""
        path = self.volume_path(volume)
        if not path.is_dir():
            raise DriverError(f"Volume {volume.label} is missing: {path}")
        return path

    async def snapshots(self, volume: VolumeSpec) -> list[str]:
        """Return the names of the snapshots that are there, sorted."""
        directory = self._snapshots_of(volume)
        if not directory.is_dir():
            return []
        return sorted(entry.name for entry in directory.iterdir() if not entry.name.startswith("."))

    # --- pools ----------------------------------------------------------------------------------------------

    def _make_directories(self, root: Path) -> None:
        for name, mode in DIRECTORIES.items():
            (root / name).mkdir(mode=mode, exist_ok=True)

    def _left_in(self, root: Path, *, images: bool = False) -> list[str]:
        """Return what is in a pool: volumes (with `images` cached images too) as "custom/default_v1"."""
        found = []
        for name in DIRECTORIES:
            if (name != "images" or images) and (root / name).is_dir():
                found += [f"{name}/{entry.name}" for entry in (root / name).iterdir()]
        return sorted(found)

    async def _empty_directories(self, pool: PoolSpec) -> None:
        """Take everything of ours out of a pool's root. Raises DriverError if volumes are left."""
        root = self.pool_path(pool)
        await self.reconcile(pool)
        left = self._left_in(root)
        if left:
            raise DriverError(f'Storage pool "{pool.name}" is not empty: {", ".join(left[:5])}')
        for fingerprint in await self.cached_images(pool):
            await self.delete_image(pool, fingerprint)
        for name in DIRECTORIES:
            with contextlib.suppress(FileNotFoundError):
                (root / name).rmdir()

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

    async def reconcile(self, pool: PoolSpec) -> list[str]:
        """At start: remove unfinished work; return a line for each thing removed."""
        removed = []
        for entry in await asyncio.to_thread(_unfinished_in, self.pool_path(pool)):
            await self.drop_tree(entry)
            removed.append(f"unfinished volume {entry} removed")
        return removed

    async def cached_images(self, pool: PoolSpec) -> list[str]:
        """Return the fingerprints of the images that are cached in a pool."""
        directory = self.pool_path(pool) / KINDS["image"]
        if not self.caches_images or not directory.is_dir():
            return []
        return sorted(entry.name for entry in directory.iterdir() if not entry.name.startswith("."))

    async def delete_image(self, pool: PoolSpec, fingerprint: str) -> None:
        """Drop a cached image; its clones stay. Idempotent."""
        path = self.volume_path(VolumeSpec(pool, fingerprint, kind="image"))
        async with self._images.setdefault(path, asyncio.Lock()):
            await self.drop_tree(path)
        self._images.pop(path, None)


def _unfinished_in(root: Path) -> list[Path]:
    """Return what interrupted work has left: in the directories of volumes, and one deeper in those of snapshots."""
    found = []
    for name in DIRECTORIES:
        if not (root / name).is_dir():
            continue
        for entry in (root / name).iterdir():
            if entry.name.startswith(trees.UNFINISHED):
                found.append(entry)
            elif name.endswith("-snapshots") and entry.is_dir():
                found += [inner for inner in entry.iterdir() if inner.name.startswith(trees.UNFINISHED)]
    return found
