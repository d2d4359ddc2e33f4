"""Snapshots of custom volumes by schedule, and the removal of what has expired.

Owns the minute: each member looks after its own volumes, so nobody has to agree on anything. Started and stopped by
the daemon; a failure with one volume is logged and never keeps another from its turn.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime

from incus_actors.domain import schedules
from incus_actors.errors import ApiError, UnavailableError
from incus_actors.model.volumes import SnapshotsPost
from incus_actors.services.volume_backups import VolumeBackupService
from incus_actors.services.volume_snapshots import VolumeSnapshotService, rfc3339
from incus_actors.services.volume_tools import VolumeAddress, VolumeTools
from incus_actors.state.queries import volumes as queries
from incus_actors.state.queries.volumes import VolumeRow
from incus_actors.tasks import spawn

_log = logging.getLogger(__name__)

BARRIER_S = 5.0
AGAIN_S = 1.0


class VolumeSchedule:
    """`now` is local time, as in cron."""

    def __init__(
        self,
        tools: VolumeTools,
        snapshots: VolumeSnapshotService,
        backups: VolumeBackupService,
        *,
        now: Callable[[], datetime] = lambda: datetime.now().astimezone(),
    ) -> None:
        self._tools = tools
        self._snapshots = snapshots
        self._backups = backups
        self._now = now
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin with what is wanted at the start, then look every minute."""
        self._task = spawn(self._run(), name="volume schedule")

    def stop(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self) -> None:
        while True:
            try:
                await self._tools.host.consensus().read_barrier(timeout_s=BARRIER_S)
                break
            except UnavailableError:
                await asyncio.sleep(AGAIN_S)  # what rows say is certain only then
        try:
            await self._backups.reconcile()
        except (ApiError, OSError) as error:
            _log.warning("backups of volumes are not looked through: %s", error)
        await self.tick(starting=True)
        while True:
            now = self._now()
            await asyncio.sleep(60 - now.second - now.microsecond / 1e6 + 0.05)
            await self.tick()

    async def tick(self, *, starting: bool = False) -> None:
        """Do what this minute asks for."""
        moment = self._now()
        database, own = self._tools.host.database(), self._tools.host.member_id()
        try:
            rows = queries.volumes(database, type_="custom", node_id=own)
        except ApiError as error:  # no state yet: a join is under way
            _log.info("volumes are not looked at in this minute: %s", error)
            return
        for row in rows:
            if row.phase:
                continue
            schedule = row.config.get("snapshots.schedule", "")
            if schedules.at_startup(schedule) if starting else schedules.due(schedule, moment):
                await self._take(row)
            await self._expire(row, rfc3339(moment.astimezone(UTC)))
        for volume_id, name in queries.expired_backups(database, own, rfc3339(moment.astimezone(UTC))):
            try:
                await self._backups.drop(volume_id, name)
            except (ApiError, OSError) as error:
                _log.warning("the expired backup %s can't be removed: %s", name, error)

    async def _take(self, row: VolumeRow) -> None:
        address = VolumeAddress(row.pool, row.project, row.type, row.name, self._tools.host.member_id())
        post = SnapshotsPost()
        try:
            self._snapshots.check_new(address, post)
            await self._snapshots.create(address, post)
        except (ApiError, OSError) as error:
            _log.warning("no scheduled snapshot of volume %s in storage pool %s: %s", row.name, row.pool, error)

    async def _expire(self, row: VolumeRow, now: str) -> None:
        for snapshot in self._tools.snapshots(row):
            if snapshot.expires_at and snapshot.expires_at <= now and not snapshot.phase:
                try:
                    await self._snapshots.delete_row(row, snapshot)
                except (ApiError, OSError) as error:
                    _log.warning("the expired snapshot %s of volume %s stays: %s", snapshot.name, row.name, error)
