"""What the services of storage volumes share: finding a volume, asking the StorageActor, taking back half-made ones.

Owns the lookups with Incus' texts. Used by services/volumes.py and its siblings; must never act on a volume of
another member.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from incus_actors.actors.disks import spec_of
from incus_actors.actors.host import STORAGE_PATH, Host
from incus_actors.actors.ref import AskError
from incus_actors.actors.storage_messages import DeleteVolume, RepairVolumes
from incus_actors.actors.system import ActorSystem
from incus_actors.actors.volume_repair import read_mark
from incus_actors.domain import transactions_volumes as transactions
from incus_actors.drivers.base import RunStatus, VolumeSpec
from incus_actors.drivers.storage import StorageDriver
from incus_actors.errors import ApiError, BadRequestError, ConflictError, MemberError, NotFoundError
from incus_actors.identity import Identity
from incus_actors.model import config_keys
from incus_actors.model.transaction import Outcome, Transaction
from incus_actors.services.proposing import DuplicateError, TransactionConflictError, propose
from incus_actors.state.queries import instances as instance_queries
from incus_actors.state.queries import storage as pool_queries
from incus_actors.state.queries import volumes as queries
from incus_actors.state.queries.storage import PoolRow
from incus_actors.state.queries.volumes import SnapshotRow, VolumeRow

_log = logging.getLogger(__name__)

WORK_S = 24 * 3600.0  #: the longest that copying a volume may take
NOT_FOUND = "Storage pool volume not found"
NOT_ON_MEMBER = "Storage volume not found"  #: a member was named, and that one has no such volume
EXISTS = "Volume by that name already exists"


@dataclass(frozen=True, slots=True)
class VolumeAddress:
    """How a request names a volume; `member_id` None: on whichever member it is."""

    pool: str
    project: str
    type: str
    name: str
    member_id: int | None = None


class VolumeTools:
    """One per daemon."""

    def __init__(self, host: Host, system: ActorSystem, identity: Identity) -> None:
        self.host = host
        self.system = system
        self.identity = identity

    # --- finding --------------------------------------------------------------------------------------------

    def pool(self, name: str) -> PoolRow:
        """Return a pool. Raises NotFoundError "Storage pool not found"."""
        found = pool_queries.pool(self.host.database(), name)
        if found is None:
            raise NotFoundError("Storage pool not found")
        return found

    def project_id(self, project: str) -> int:
        """Return the id of the project whose volumes `project` uses. Raises NotFoundError."""
        found = instance_queries.effective_project(self.host.database(), project, "features.storage.volumes")
        if found is None:
            raise NotFoundError(f'Failed to load project "{project}": Project not found')
        return found

    def project_name(self, project: str) -> str:
        """Return the name of the project whose volumes `project` uses. Raises NotFoundError."""
        own = instance_queries.project_id(self.host.database(), project)
        return project if own == self.project_id(project) else "default"

    def check_type(self, type_: str) -> None:
        """Raise BadRequestError for a type that doesn't exist."""
        if type_ not in queries.TYPE_NUMBERS:
            raise BadRequestError("Invalid storage volume type name")

    def find(self, address: VolumeAddress, *, here: bool = False) -> VolumeRow:
        """Return one volume, of this member if it must be `here`. Raises NotFoundError, and MemberError (500, as Incus) when several members have one."""
        self.check_type(address.type)
        pool_id = self.pool(address.pool).id
        project_id = self.project_id(address.project)
        found = queries.volumes(
            self.host.database(),
            pool_id=pool_id,
            project_ids=None if address.type == "image" else [project_id],
            type_=address.type,
            name=address.name,
            node_id=self.host.member_id() if here else address.member_id,
        )
        if not found:
            raise NotFoundError(NOT_FOUND if address.member_id is None else NOT_ON_MEMBER)
        if len(found) > 1:
            raise MemberError(
                f'More than one cluster member has a volume named "{address.name}". Please target a specific member'
            )
        return found[0]

    def find_here(self, address: VolumeAddress) -> VolumeRow:
        """Return a custom volume of this member with nothing under way. Raises NotFoundError, BadRequestError."""
        row = self.find(address, here=True)
        self.check_idle(row)
        return row

    def snapshots(self, row: VolumeRow) -> list[SnapshotRow]:
        """Return the snapshots of a volume."""
        return queries.snapshots(self.host.database(), [row.id]).get(row.id, [])

    def snapshot(self, row: VolumeRow, name: str) -> SnapshotRow:
        """Return one snapshot of a volume. Raises NotFoundError."""
        for found in self.snapshots(row):
            if found.name == name:
                return found
        raise NotFoundError(NOT_FOUND)

    def check_idle(self, row: VolumeRow) -> None:
        """Raise BadRequestError while something is under way."""
        if row.phase:
            raise BadRequestError(f'Storage volume "{row.name}" is busy ({read_mark(row.phase)[0]})')

    def member_id(self, name: str) -> int:
        """Return the id of a member by name. Raises NotFoundError."""
        for member_id, member in pool_queries.member_names(self.host.database()).items():
            if member == name:
                return member_id
        raise NotFoundError("Cluster member not found")

    # --- deciding -------------------------------------------------------------------------------------------

    def new_config(self, pool: PoolRow, given: Mapping[str, str], content: str) -> dict[str, str]:
        """Return the config of a new volume: what was given over the pool's `volume.*`."""
        config = config_keys.without_empty(given)
        for key, value in pool.config_on(self.host.member_id()).items():
            name = key.removeprefix("volume.")
            if name != key and name not in given and config_keys.volume_key_fits(name, pool.driver, content):
                config[name] = value
        return dict(sorted(config.items()))

    @staticmethod
    def check_config(name: str, config: Mapping[str, str], driver: str, content: str) -> None:
        """Raise MemberError (500, as Incus) for keys and values that can't be."""
        try:
            config_keys.validate_volume_config(name, config, driver, content)
        except config_keys.ConfigError as error:
            raise MemberError(str(error)) from None

    def running_users(self, row: VolumeRow) -> list[str]:
        """Return the names of running instances of this member that have a volume as a disk."""
        found = []
        for use in queries.uses(self.host.database(), pool=row.pool).of(row):
            if use.kind == "instance" and use.node_id == self.host.member_id():
                record = self.host.record(use.id)
                if self.host.driver.status(self.host.status_spec(record)) is not RunStatus.STOPPED:
                    found.append(use.name)
        return found

    # --- acting ---------------------------------------------------------------------------------------------

    def spec(self, row: VolumeRow) -> VolumeSpec:
        """Return a volume for its driver. Raises NotFoundError when its pool isn't usable here."""
        return spec_of(self.host, row)

    def driver(self, row: VolumeRow) -> StorageDriver:
        """Return the driver of a volume's pool. Raises MemberError where this machine has none."""
        found = self.host.storage.get(row.driver)
        if found is None:
            raise MemberError(f'Failed loading storage driver "{row.driver}": Unknown storage driver')
        return found

    async def ask(self, message: object, *, deadline_s: float = WORK_S) -> Any:
        """Have the StorageActor do something. Raises what it raises; MemberError when it was interrupted."""
        try:
            return await self.system.ref(STORAGE_PATH).ask(message, deadline_s=deadline_s)
        except AskError as error:
            raise MemberError(f"The work on the storage volume was interrupted: {error}") from error

    async def propose(self, transaction: Transaction) -> Outcome:
        """Raises ConflictError for a taken name, NotFoundError for a volume that is gone, BadRequestError while it
        is busy, MemberError; TransactionConflictError "changed" goes through."""
        try:
            return await propose(self.host.consensus(), transaction)
        except DuplicateError:
            raise ConflictError(EXISTS) from None
        except TransactionConflictError as conflict:
            if conflict.label == "gone":
                raise NotFoundError(NOT_FOUND) from None
            if conflict.label == "busy":
                raise BadRequestError("The storage volume is busy with something else") from None
            if conflict.label == "pool":
                raise NotFoundError("Storage pool not found") from None
            if conflict.label == "in_use":
                raise BadRequestError("The storage volume is still in use") from None
            raise

    async def take_back(self, row: VolumeRow) -> None:
        """Remove a volume whose making failed: files first, then rows. What fails now is tried again until it is done."""
        try:
            await self.ask(DeleteVolume(self.spec(row)))
            await self.propose(transactions.delete(row.id, self.host.member_id()))
        except (ApiError, OSError) as error:
            _log.warning("volume %s in storage pool %s is not taken back yet: %s", row.name, row.pool, error)
            self.system.ref(STORAGE_PATH).tell(RepairVolumes(abandoned=row.id))

    def created(self, row: VolumeRow, caller: Any) -> None:
        """Tell everybody that a volume has come."""
        where = {"location": row.location} if self.identity.clustered else {}
        self.lifecycle("storage-volume-created", row, caller, **where, type=row.type)

    def lifecycle(
        self, action: str, row: VolumeRow, caller: Any, *, name: str = "", suffix: str = "", **context: str
    ) -> None:
        """Tell everybody; `context` is what Incus says besides."""
        project = "" if row.project == "default" else f"?project={row.project}"
        source = f"/1.0/storage-pools/{row.pool}/volumes/{row.type}/{name or row.name}{suffix}{project}"
        self.host.lifecycle(action, source, project=row.project, caller=caller, context=context, name=name or row.name)
