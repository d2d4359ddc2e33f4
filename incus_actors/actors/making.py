"""How an instance comes and goes on this machine: volume, files and rows, between two marks in its row.

Owns the order: the row says "creating" until everything is there, and "deleting" before anything goes, so whatever a
crash interrupts is found by the mark and removed. Used by InstanceActor; must never touch what has no mark.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from incus_actors.actors.host import Host
from incus_actors.actors.instance_messages import Create
from incus_actors.actors.ref import ActorRef
from incus_actors.actors.storage_messages import CheckPool, CreateVolume, DeleteVolume
from incus_actors.domain import transactions_instances as transactions
from incus_actors.drivers.base import RunStatus, VolumeSpec
from incus_actors.errors import BadRequestError, NotFoundError
from incus_actors.state.queries import instances as queries
from incus_actors.state.queries.instances import InstanceRecord

WORK_S = 3600.0  #: the longest that unpacking or removing a volume may take


class Making:
    """Of one instance. `storage()` is this member's StorageActor."""

    def __init__(self, host: Host, storage: Callable[[], ActorRef]) -> None:
        self._host = host
        self._storage = storage

    async def make(self, record: InstanceRecord, message: Create) -> VolumeSpec:
        """Make what a row marked "creating" stands for and take the mark away; return the root volume. Raises ApiError,
        OSError; what there is then is for `remove`."""
        volume = self._host.volume_of(record)
        with self._host.pins.hold(message.image.fingerprint):
            create = CreateVolume(volume, message.image, message.progress)
            await self._storage().ask(create, deadline_s=WORK_S)
        await self._host.driver.prepare(self._host.spec(record))
        await self._host.commit(transactions.set_phase(record.id, record.node_id, "creating", ""))
        return volume

    async def check_pool(self, record: InstanceRecord) -> None:
        """Raise UnavailableError if the pool of an instance is not there just now: only the row would go."""
        with contextlib.suppress(BadRequestError, NotFoundError):  # the pool is gone, and the volume with it
            await self._storage().ask(CheckPool(self._host.volume_of(record).pool), deadline_s=60)

    async def remove(self, record: InstanceRecord) -> None:
        """First the row says "deleting", then the files go, then the row. Raises ApiError, OSError: do it again then."""
        if record.phase != "deleting":
            await self._host.commit(transactions.set_phase(record.id, record.node_id, record.phase, "deleting"))
        spec = self._host.status_spec(record)
        self._host.driver.unwatch(spec)
        if self._host.driver.status(spec) not in (RunStatus.STOPPED, RunStatus.ERROR):
            await self._host.driver.stop(spec, force=True)
        try:
            volume = self._host.volume_of(record)
        except (BadRequestError, NotFoundError):
            volume = None  # the pool is gone, and the volume with it
        if volume is not None:
            await self._storage().ask(DeleteVolume(volume), deadline_s=WORK_S)
        await self._host.driver.delete(spec)
        project = volume_project(self._host, record)
        await self._host.commit(transactions.delete(record.id, record.node_id, record.name, project))


def volume_project(host: Host, record: InstanceRecord) -> int:
    """Return the id of the project that has the volumes of an instance."""
    found = queries.effective_project(host.database(), record.project, "features.storage.volumes")
    return found or record.project_id
