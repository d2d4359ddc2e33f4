"""Volumes that come in as streams, for drivers whose volumes are trees of files.

Owns the unseen place where items gather until all are there. Made by PathStorage.receiver; must never show a part.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from incus_actors.drivers import trees
from incus_actors.drivers.base import DriverError, VolumeSpec
from incus_actors.drivers.storage import BACKUP, TAR, backup_prefix

if TYPE_CHECKING:
    from incus_actors.drivers.path_storage import PathStorage


class PathReceiver:
    """See storage.VolumeReceiver. Everything is below `work` until it is kept."""

    def __init__(self, storage: PathStorage, volume: VolumeSpec, form: str, work: Path) -> None:
        self._storage = storage
        self._volume = volume
        self._form = form
        self._work = work
        self._items: list[tuple[str, Path]] = []
        self.kept = False

    async def receive(self, snapshot: str, chunks: AsyncIterator[bytes]) -> None:
        """Take one snapshot, or ("") the volume itself. Raises DriverError."""
        item = self._work / str(len(self._items))
        form = f"{TAR}@{backup_prefix(snapshot)}" if self._form == BACKUP else self._form
        await self._storage.take_in(form, chunks, item)
        self._items.append((snapshot, item))

    async def keep(self) -> None:
        """Make it visible: the snapshots first, the volume last. Raises DriverError."""
        storage, volume = self._storage, self._volume
        for snapshot, item in self._items:
            if snapshot:
                path = storage.snapshot_path(volume, snapshot)
                path.parent.mkdir(mode=0o700, exist_ok=True)
                await storage.settle(item, path, readonly=True)
        whole = [item for snapshot, item in self._items if not snapshot]
        if not whole:
            raise DriverError("The volume itself is missing in the stream")
        path = storage.volume_path(volume)
        ready = trees.unfinished(path.parent)
        try:
            await storage.settle(whole[0], ready)
            await storage.limit(volume.pool, ready, storage.quota(volume))
            await asyncio.to_thread(ready.rename, path)
        finally:
            if ready.exists():
                await storage.drop_tree(ready)
        self.kept = True
