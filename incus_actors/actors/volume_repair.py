"""Custom volumes and snapshots whose rows say that something was under way when a daemon ended.

Owns how each kind of unfinished work ends: a creation and a deletion with nothing left, a renaming with the new name.
Used by StorageActor; must never touch what this very daemon is working on (its mark carries another incarnation).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from incus_actors.actors.disks import spec_of
from incus_actors.actors.host import Host
from incus_actors.domain import transactions_volumes as transactions
from incus_actors.domain.transactions_volumes import Renaming
from incus_actors.drivers.base import PoolSpec
from incus_actors.drivers.storage import StorageDriver
from incus_actors.errors import ApiError
from incus_actors.state.queries import volumes as queries
from incus_actors.state.queries.volumes import SnapshotRow, VolumeRow

_log = logging.getLogger(__name__)


def mark(host: Host, kind: str, extra: str = "") -> str:
    """Return the phase of work that this daemon begins: "creating@1f2e", "renaming@1f2e:new"."""
    return f"{kind}@{host.incarnation}" + (f":{extra}" if extra else "")


def read_mark(phase: str) -> tuple[str, str, str]:
    """Return (kind, incarnation, extra) of a phase."""
    head, _, extra = phase.partition(":")
    kind, _, incarnation = head.partition("@")
    return kind, incarnation, extra


class VolumeRepair:
    """`abandoned`: ids of volumes of this daemon's own work that could not be taken back at once."""

    def __init__(self, host: Host, driver: Callable[[PoolSpec], StorageDriver]) -> None:
        self.abandoned: set[int] = set()
        self._host = host
        self._driver = driver

    async def all(self) -> bool:
        """Finish everything of this member; return whether nothing failed, else it is to be tried again."""
        database, complete = self._host.database(), True
        rows = queries.volumes(database, type_="custom", node_id=self._host.member_id())
        for row in rows:
            try:
                if self._strange(row.phase) or (row.phase and row.id in self.abandoned):
                    await self.volume(row)
                    self.abandoned.discard(row.id)
                    continue
                for snapshot in queries.snapshots(database, [row.id]).get(row.id, []):
                    if self._strange(snapshot.phase):
                        await self.snapshot(row, snapshot)
            except (ApiError, OSError) as error:
                _log.error("volume %s in storage pool %s can't be repaired yet: %s", row.name, row.pool, error)
                complete = False
        return complete

    def _strange(self, phase: str) -> bool:
        return bool(phase) and read_mark(phase)[1] != self._host.incarnation

    async def volume(self, row: VolumeRow) -> None:
        """Finish one volume's work. Raises ApiError, OSError."""
        kind, _, extra = read_mark(row.phase)
        volume = spec_of(self._host, row)
        driver = self._driver(volume.pool)
        if kind == transactions.RENAMING:
            new = replace(volume, name=extra)
            if driver.has_volume(volume):
                await driver.rename_volume(volume, new)
            await self._host.commit(transactions.rename(renaming(self._host, row, extra)))
        else:
            await driver.delete_volume(volume)
            await self._host.commit(transactions.delete(row.id, self._host.member_id()))
        _log.info("%s volume %s in storage pool %s was interrupted: repaired", kind, row.name, row.pool)

    async def snapshot(self, row: VolumeRow, snapshot: SnapshotRow) -> None:
        """Finish one snapshot's work. Raises ApiError, OSError."""
        kind, _, extra = read_mark(snapshot.phase)
        volume = spec_of(self._host, row)
        driver = self._driver(volume.pool)
        if kind == transactions.RENAMING:
            if snapshot.name in await driver.snapshots(volume):
                await driver.rename_snapshot(volume, snapshot.name, extra)
            await self._host.commit(transactions.rename_snapshot(snapshot.id, extra))
            await self._host.commit(transactions.set_snapshot_phase(snapshot.id, snapshot.phase, ""))
        else:
            await driver.delete_snapshot(volume, snapshot.name)
            await self._host.commit(transactions.delete_snapshot(snapshot.id))
        _log.info("%s snapshot %s of volume %s was interrupted: repaired", kind, snapshot.name, row.name)


def renaming(host: Host, row: VolumeRow, new: str) -> Renaming:
    """Return the step of the rows; disks of instances on this member and of profiles follow the name."""
    found = queries.uses(host.database(), pool=row.pool).of(row)
    return Renaming(
        volume_id=row.id,
        node_id=host.member_id(),
        pool=row.pool,
        old=row.name,
        new=new,
        instance_ids=tuple(sorted(use.id for use in found if use.kind == "instance")),
        profile_ids=tuple(sorted(use.id for use in found if use.kind == "profile")),
    )
