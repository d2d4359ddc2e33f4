"""What the instance, image and storage actors of one member work with.

Owns the bundle of drivers, consensus and database, and how records become specifications for drivers. Built by the
daemon, given to the actors and to the services above them; must never decide anything itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from incus_actors.actors import disks
from incus_actors.consensus.api import Consensus
from incus_actors.domain import nic_filters, nics
from incus_actors.domain.instances import root_disk
from incus_actors.domain.members import rfc3339
from incus_actors.domain.nics import NetworkFacts
from incus_actors.drivers.base import InstanceDriver, InstanceSpec, PoolSpec, VolumeSpec, disk_name
from incus_actors.drivers.images import ImageStore
from incus_actors.drivers.storage import StorageDriver
from incus_actors.errors import BadRequestError, ConflictError, MemberError, NotFoundError, UnavailableError
from incus_actors.model.transaction import Outcome, Transaction
from incus_actors.state.database import Database
from incus_actors.state.queries import instances as queries
from incus_actors.state.queries import networks as network_queries
from incus_actors.state.queries.instances import InstanceRecord, PoolRecord
from incus_actors.state.queries.networks import NetworkState
from incus_actors.state.queries.projects import owner_of

INSTANCES_PATH = "instances"  #: InstancesSupervisor; its children are InstanceActors, named by row id
STATES_PATH = "instance-states"
STORAGE_PATH = "storage"
IMAGES_PATH = "images"

BARRIER_S = 5.0
BARRIER_AGAIN_S = 1.0


class Lifecycle(Protocol):
    """Publishes a lifecycle event (gateway.events.EventHub.lifecycle)."""

    def __call__(
        self,
        action: str,
        source: str,
        *,
        project: str | None = None,
        caller: Any = None,
        context: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> None:
        """Tell everybody."""


class ImagePins:
    """Image files that somebody reads or writes at the moment: they are not removed meanwhile."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    @contextlib.contextmanager
    def hold(self, fingerprint: str) -> Iterator[None]:
        """Keep the files of `fingerprint` for the length of the block."""
        self._counts[fingerprint] += 1
        try:
            yield
        finally:
            self._counts[fingerprint] -= 1
            if self._counts[fingerprint] <= 0:
                del self._counts[fingerprint]

    def held(self, fingerprint: str) -> bool:
        """Return whether anybody holds it."""
        return fingerprint in self._counts


class CommitConflictError(ConflictError):
    """A guard failed: `label` tells which."""

    def __init__(self, label: str) -> None:
        super().__init__(f"The instance or image was changed elsewhere meanwhile ({label})")
        self.label = label


@dataclass
class Host:
    """One member's machine. `consensus()`, `database()`, `member_id()` and `location()` (the member's name) are
    asked anew each time: a join replaces all of them."""

    directory: Path
    consensus: Callable[[], Consensus]
    database: Callable[[], Database]
    member_id: Callable[[], int]
    location: Callable[[], str]
    driver: InstanceDriver
    storage: Mapping[str, StorageDriver]
    images: ImageStore
    lifecycle: Lifecycle
    clock_ns: Callable[[], int] = time.time_ns
    pins: ImagePins = field(default_factory=ImagePins)
    incarnation: str = field(default_factory=lambda: secrets.token_hex(4))  #: of this daemon: marks of unfinished work

    def now(self) -> str:
        """Return the time for new rows, RFC 3339."""
        return rfc3339(self.clock_ns())

    async def certain(self) -> None:
        """Return when a read barrier has been passed: what the rows say now is so. Waits for a quorum as long as it takes."""
        while True:
            try:
                await self.consensus().read_barrier(timeout_s=BARRIER_S)
            except UnavailableError:
                await asyncio.sleep(BARRIER_AGAIN_S)
            else:
                return

    async def commit(self, transaction: Transaction, *, timeout_s: float = 10.0) -> Outcome:
        """Replicate a transaction about our own things. Raises CommitConflictError, MemberError unless it was applied."""
        outcome = await self.consensus().propose(transaction, timeout_s=timeout_s)
        if outcome.status == "conflict":
            raise CommitConflictError(outcome.label)
        if not outcome.applied:
            raise MemberError(outcome.error)
        return outcome

    # --- from records to specifications ---------------------------------------------------------------------

    def record(self, instance_id: int) -> InstanceRecord:
        """Return the instance as the database has it now. Raises NotFoundError when it is gone or not ours."""
        with self.database().snapshot() as snapshot:
            found = queries.by_id(snapshot, instance_id)
        if found is None or found.node_id != self.member_id():
            raise NotFoundError("Instance not found")
        return found

    def pool(self, name: str) -> PoolRecord:
        """Return a pool that is usable here. Raises NotFoundError "Storage pool not found"."""
        found = queries.pool(self.database(), name, self.member_id())
        if found is None or not found.usable or found.driver not in self.storage:
            raise NotFoundError("Storage pool not found")
        return found

    def networks(self, project: str) -> dict[str, NetworkFacts]:
        """Return the managed networks that instances of a project can use, as this member has them."""
        database, own = self.database(), self.member_id()
        owner = queries.effective_project(database, project, "features.networks")
        rows = [] if owner is None else network_queries.networks(database, owner)
        return {
            row.name: NetworkFacts(row.name, row.type, row.config_on(own), row.state is NetworkState.CREATED)
            for row in rows
        }

    def networks_project(self, project: str) -> str:
        """Return the name of the project whose networks instances of a project use."""
        owner = owner_of(self.database(), project, "networks")
        return project if owner is None else owner.name

    def volume_of(self, record: InstanceRecord) -> VolumeSpec:
        """Return where the root volume of an instance is. Raises BadRequestError, NotFoundError without a pool."""
        found = queries.volume_pools(self.database(), record.node_id).get((record.project, record.name))
        _, device = root_disk(record.expanded_devices)
        pool = self.pool(found or device.get("pool", ""))
        return VolumeSpec(pool_spec(pool), record.name, record.project, "container", _volume_config(device))

    def volume_path(self, volume: VolumeSpec) -> Path:
        """Return the directory of a volume."""
        return self.storage[volume.pool.driver].volume_path(volume)

    def spec(self, record: InstanceRecord) -> InstanceSpec:
        """Return what the instance driver needs. Raises BadRequestError, NotFoundError without a root disk."""
        spec = self._spec(record, self.volume_path(self.volume_of(record)))
        devices = disks.resolved(self, record.project, record.expanded_devices)
        networks = self.networks(record.project)
        filtered = {
            name: nic_filters.filled(name, device, networks, record.expanded_config) for name, device in devices.items()
        }
        return replace(spec, devices=nics.resolved(filtered, networks))

    def status_spec(self, record: InstanceRecord) -> InstanceSpec:
        """Return enough for the driver to tell the status, also of an instance whose pool is gone."""
        return self._spec(record, Path("/nonexistent"))

    def _spec(self, record: InstanceRecord, volume_dir: Path) -> InstanceSpec:
        on_disk = disk_name(record.project, record.name)
        return InstanceSpec(
            name=record.name,
            project=record.project,
            instance_dir=self.directory / "instances" / on_disk,
            volume_dir=volume_dir,
            log_dir=self.directory / "logs" / on_disk,
            config=record.expanded_config,
            devices=record.expanded_devices,
            architecture=record.architecture,
            ephemeral=record.ephemeral,
        )


def pool_spec(pool: PoolRecord) -> PoolSpec:
    """Return a pool for its driver."""
    return PoolSpec(pool.name, pool.driver, pool.config)


def _volume_config(device: Mapping[str, str]) -> dict[str, str]:
    return {"size": device["size"]} if device.get("size") else {}


def source_of(project: str, name: str) -> str:
    """Return the source of an instance's lifecycle events."""
    return f"/1.0/instances/{name}" if project == "default" else f"/1.0/instances/{name}?project={project}"


def check_free(present: bool, what: str) -> None:
    """Raise BadRequestError `Instance is busy running a "stop" operation`."""
    if present:
        raise BadRequestError(f'Instance is busy running a "{what}" operation')
