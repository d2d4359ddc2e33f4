"""Custom storage volumes: create, list, show, change, restore, rename, delete (CONTRACT 13).

Owns their rules with Incus' texts; called by rest/volume_routes.py, for everything but reading on the member that has
the volume. Rows come first and carry a mark until the work is done, so that a crash in between is repaired.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from incus_actors.actors.storage_messages import (
    CheckPool,
    CreateVolume,
    DeleteVolume,
    RenameVolume,
    ResizeVolume,
    RestoreSnapshot,
    VolumeUsage,
)
from incus_actors.actors.volume_repair import mark, renaming
from incus_actors.domain import transactions_volumes as transactions
from incus_actors.domain.project_rules import volume_subject
from incus_actors.domain.transactions_volumes import NewVolume
from incus_actors.drivers.base import Usage
from incus_actors.drivers.path_storage import wanted_size
from incus_actors.errors import BadRequestError, ConflictError, MemberError, NotFoundError
from incus_actors.model import config_keys
from incus_actors.model.transaction import Outcome
from incus_actors.model.volumes import Volume, VolumePost, VolumePut, VolumesPost, VolumeState
from incus_actors.model.volumes import VolumeUsage as ShownUsage
from incus_actors.services import project_guard
from incus_actors.services.proposing import Expect, until_unchanged
from incus_actors.services.urls import url_of
from incus_actors.services.volume_rules import check_combination, check_instance_volume, check_name, check_new_name
from incus_actors.services.volume_tools import EXISTS, VolumeAddress, VolumeTools
from incus_actors.state.queries import volumes as queries
from incus_actors.state.queries.storage import PoolState
from incus_actors.state.queries.volumes import SnapshotRow, Uses, VolumeRow

IN_USE = "The storage volume is still in use"


class VolumeService:
    """`tools` finds volumes and asks the StorageActor."""

    def __init__(self, tools: VolumeTools) -> None:
        self._tools = tools

    # --- reading --------------------------------------------------------------------------------------------

    def locate(self, address: VolumeAddress) -> int | None:
        """Return the member that has a volume, or the volume of a snapshot "volume/snapshot". Raises NotFoundError,
        MemberError when several have it."""
        return self._tools.find(replace(address, name=address.name.partition("/")[0])).node_id

    def all_of(
        self, pool: str, project: str | None, type_: str | None = None, member_id: int | None = None
    ) -> list[Volume]:
        """Return the volumes of a pool with their snapshots: of a project (None: of all), of a type, of a member."""
        tools = self._tools
        row = tools.pool(pool)
        if type_ is not None:
            tools.check_type(type_)
        projects: Collection[int] | None = None if project is None else [tools.project_id(project)]
        with tools.host.database().snapshot() as database:
            found = queries.volumes(database, pool_id=row.id, project_ids=projects, type_=type_, node_id=member_id)
            if projects is not None and type_ in (None, "image"):
                others = queries.volumes(database, pool_id=row.id, type_="image", node_id=member_id)
                found = [volume for volume in found if volume.type != "image"] + others
            uses = queries.uses(database, pool=pool)
            snapshots = queries.snapshots(database, [v.id for v in found] if len(found) < 100 else None)
        shown: list[Volume] = []
        for volume in found:
            shown.append(_shown(volume, uses))
            shown += [_shown_snapshot(volume, snapshot) for snapshot in snapshots.get(volume.id, [])]
        return sorted(shown, key=lambda volume: (volume.type, volume.name, volume.location))

    def get(self, address: VolumeAddress) -> Volume:
        """Return one volume, or a snapshot named "volume/snapshot", wherever it is. Raises NotFoundError, MemberError when
        several members have it."""
        name, slash, snapshot = address.name.partition("/")
        row = self._tools.find(replace(address, name=name))
        if slash:
            return _shown_snapshot(row, self._tools.snapshot(row, snapshot))
        return _shown(row, queries.uses(self._tools.host.database(), pool=row.pool))

    async def state(self, address: VolumeAddress) -> VolumeState:
        """Return what a volume of this member uses. Raises NotFoundError, MemberError."""
        name, slash, snapshot = address.name.partition("/")
        if slash:
            self._tools.snapshot(self._tools.find(replace(address, name=name)), snapshot)
            return VolumeState(usage=None)
        row = self._tools.find(address, here=True)
        usage: Usage = await self._tools.ask(VolumeUsage(self._tools.spec(row)), deadline_s=600)
        return VolumeState(usage=ShownUsage(used=usage.used_bytes, total=usage.total_bytes))

    # --- creating -------------------------------------------------------------------------------------------

    def check_pool(self, pool: str, type_: str) -> None:
        """Raise what keeps any volume of this type from being made in a pool."""
        self._tools.check_type(type_)
        if type_ != "custom":
            raise BadRequestError(f'Currently not allowed to create storage volumes of type "{type_}"')
        self._tools.pool(pool)

    def check_new(self, pool: str, type_: str, post: VolumesPost) -> None:
        """Raise what is wrong with a request for a new volume, before an operation begins."""
        self._tools.check_type(type_)
        if not post.name:
            raise BadRequestError("No name provided")
        if type_ != "custom":
            raise BadRequestError(f'Currently not allowed to create storage volumes of type "{type_}"')
        check_name(post.name)
        if post.content_type not in ("", *queries.CONTENT_NUMBERS):
            raise BadRequestError("Invalid volume content type name")
        if self._tools.pool(pool).state is not PoolState.CREATED:
            raise MemberError("Specified pool is not fully created")

    def check_free(self, pool: str, project: str, name: str) -> None:
        """Raise ConflictError if this member has a custom volume of that name."""
        tools = self._tools
        if queries.volumes(
            tools.host.database(),
            pool_id=tools.pool(pool).id,
            project_ids=[tools.project_id(project)],
            type_="custom",
            name=name,
            node_id=tools.host.member_id(),
        ):
            raise ConflictError(EXISTS)

    async def create(self, pool: str, project: str, post: VolumesPost, caller: Any = None) -> None:
        """Create an empty volume on this member. Raises ConflictError, MemberError (500: keys), DriverError."""
        self.check_free(pool, project, post.name)
        content = post.content_type or "filesystem"
        if content == "iso" and not (post.config or {}).get("size"):
            raise MemberError("Size cannot be zero")
        row = await self.new_row(pool, project, post, content)
        try:
            await self._tools.ask(CreateVolume(self._tools.spec(row)))
            await self.finish(row)
        except BaseException:
            await self._tools.take_back(row)
            raise
        self._tools.created(row, caller)

    async def new_row(
        self, pool: str, project: str, post: VolumesPost, content: str, *, instead_of: int | None = None
    ) -> VolumeRow:
        """Write a volume of this member down, marked as being made; `instead_of`: it takes the place of that one.

        Raises ConflictError, MemberError, NotFoundError.
        """
        tools = self._tools
        pool_row = tools.pool(pool)
        tools.host.pool(pool)
        config = tools.new_config(pool_row, post.config or {}, content)
        tools.check_config(post.name, config, pool_row.driver, content)
        check_combination(config)
        new = NewVolume(
            name=post.name,
            pool_id=pool_row.id,
            node_id=tools.host.member_id(),
            project_id=tools.project_id(project),
            type=queries.TYPE_NUMBERS["custom"],
            content=queries.CONTENT_NUMBERS[content],
            description=post.description or "",
            created_at=tools.host.now(),
            config=config,
        )
        owner, counted = tools.project_name(project), volume_subject(post.name, pool, config.get("size", ""))

        async def attempt() -> Outcome:
            database = tools.host.database()
            guards = project_guard.volume_guards(database, owner, new.project_id)
            project_guard.check_volume(database, owner, counted, instead_of=instead_of)
            transaction = transactions.create(new, phase=mark(tools.host, transactions.CREATING))
            return await tools.propose(replace(transaction, guards=(*transaction.guards, *guards)))

        outcome = await until_unchanged(attempt)
        row = queries.by_id(tools.host.database(), int(outcome.rows[0][0][0] or 0))
        if row is None:
            raise NotFoundError("Storage pool volume not found")
        return row

    async def finish(self, row: VolumeRow) -> None:
        """Take the mark of a volume's making away. Raises ApiError."""
        await self._tools.propose(transactions.set_phase(row.id, self._tools.host.member_id(), row.phase, ""))

    # --- changing -------------------------------------------------------------------------------------------

    async def update(
        self,
        address: VolumeAddress,
        put: VolumePut,
        *,
        patch: bool = False,
        expect: Expect | None = None,
        caller: Any = None,
    ) -> None:
        """Replace or merge description and config; restore a snapshot, then only with a config that. Raises NotFoundError, MemberError (500),
        PreconditionFailedError."""

        async def attempt() -> VolumeRow:
            row = self._tools.find_here(address)
            if expect is not None:
                expect(editable(_shown(row, Uses())))
            if put.restore:
                await self._restore(row, put.restore)
                if put.config is None:
                    return row
            given = config_keys.without_empty(put.config)
            config = config_keys.merged(row.config, (put.config or {}).items()) if patch else given
            keep = patch and put.description is None
            description = row.description if keep else put.description or ""
            await self._change(row, description, config, [key for key in put.config or {} if key not in config])
            return row

        changed = await until_unchanged(attempt)
        if put.restore:
            self._tools.lifecycle("storage-volume-restored", changed, caller, snapshot=put.restore)
        if not put.restore or put.config is not None:
            self._tools.lifecycle("storage-volume-updated", changed, caller)

    async def _change(self, row: VolumeRow, description: str, config: dict[str, str], unset: list[str]) -> None:
        tools = self._tools
        if row.type == "custom":
            named = {**config, **dict.fromkeys(unset, "")}  # also what is to be unset must be a key
            tools.check_config(f"{row.project}_{row.name}", named, row.driver, row.content)
            if row.content == "iso" and config != dict(row.config):
                raise MemberError("Custom ISO volume config cannot be changed")
            check_combination(config)
            counted = volume_subject(row.name, row.pool, config.get("size", ""))
            project_guard.check_volume(tools.host.database(), row.project, counted, changed=row.id)
        else:
            check_instance_volume(row, {**config, **dict.fromkeys(unset, "")})
        old = tools.spec(row)
        new = replace(old, config=config)
        resized = row.type == "custom" and config.get("size", "") != row.config.get("size", "")
        if resized:
            await tools.ask(ResizeVolume(new, wanted_size(new)))
        try:
            await tools.propose(
                transactions.update(
                    row.id, tools.host.member_id(), (row.description, row.config), (description, config)
                )
            )
        except BaseException:
            if resized and row.content == "filesystem":  # a disk never shrinks
                await tools.ask(ResizeVolume(old, wanted_size(old)))
            raise

    async def _restore(self, row: VolumeRow, snapshot: str) -> None:
        tools = self._tools
        if tools.running_users(row):
            raise MemberError("Cannot restore custom volume used by running instances")
        found = tools.snapshots(row)
        if not any(one.name == snapshot and not one.phase for one in found):
            raise MemberError("Snapshot not found")
        await tools.ask(RestoreSnapshot(tools.spec(row), snapshot))

    async def rename(self, address: VolumeAddress, post: VolumePost, caller: Any = None) -> None:
        """Give a volume another name within its pool; disks of instances follow. Raises ConflictError, MemberError."""
        tools = self._tools
        row = self.check_move(address, post)
        phase = mark(tools.host, transactions.RENAMING, post.name)
        await tools.propose(transactions.set_phase(row.id, tools.host.member_id(), "", phase))
        old = tools.spec(row)
        new = replace(old, name=post.name)
        try:
            await tools.ask(RenameVolume(old, new))
        except BaseException:
            await tools.propose(transactions.set_phase(row.id, tools.host.member_id(), phase, ""))
            raise
        try:
            await tools.propose(transactions.rename(renaming(tools.host, row, post.name)))
        except BaseException:
            await tools.ask(RenameVolume(new, old))
            await tools.propose(transactions.set_phase(row.id, tools.host.member_id(), phase, ""))
            raise
        tools.lifecycle("storage-volume-renamed", row, caller, name=post.name, old_name=row.name)

    def check_move(self, address: VolumeAddress, post: VolumePost) -> VolumeRow:
        """Return the volume that is to get another name or pool. Raises what forbids it."""
        tools = self._tools
        check_new_name(address.type, post)
        row = tools.find_here(address)
        self.check_free(post.pool or address.pool, post.project or address.project, post.name)
        if tools.running_users(row):
            raise MemberError("Volume is still in use by running instances")
        return row

    # --- deleting -------------------------------------------------------------------------------------------

    async def delete(self, address: VolumeAddress, caller: Any = None) -> None:
        """Remove a volume with its snapshots. Raises NotFoundError, BadRequestError (in use), UnavailableError (its pool
        is not there: only its row would go)."""
        tools = self._tools
        tools.check_type(address.type)
        if address.type not in ("custom", "image"):
            raise BadRequestError(f'Storage volumes of type "{address.type}" cannot be deleted with the storage API')
        row = tools.find(address, here=True)
        if row.type == "custom" and queries.uses(tools.host.database(), pool=row.pool).of(row):
            raise BadRequestError(IN_USE)
        await tools.ask(CheckPool(tools.spec(row).pool))
        if not row.phase.startswith(transactions.DELETING):
            tools.check_idle(row)
            phase = mark(tools.host, transactions.DELETING)
            await tools.propose(transactions.set_phase(row.id, tools.host.member_id(), "", phase))
        await tools.ask(DeleteVolume(tools.spec(row)))
        await tools.propose(transactions.delete(row.id, tools.host.member_id()))
        tools.lifecycle("storage-volume-deleted", row, caller)


def editable(volume: Volume) -> object:
    """Return what the ETag of a volume covers."""
    return [volume.name, volume.type, volume.description, volume.config]


def _used_by(row: VolumeRow, uses: Uses) -> list[str]:
    if row.type in ("container", "virtual-machine"):
        return [url_of("instances", row.name, project=row.project)]
    if row.type == "image":
        return [url_of("images", row.name)]
    found = {url_of(f"{use.kind}s", use.name, project=use.project) for use in uses.of(row)}
    return sorted(found)


def _shown(row: VolumeRow, uses: Uses) -> Volume:
    return Volume(
        config=dict(row.config),
        description=row.description,
        name=row.name,
        type=row.type,
        used_by=_used_by(row, uses),
        location=row.location,
        content_type=row.content,
        project=row.project,
        created_at=row.created_at,
    )


def _shown_snapshot(row: VolumeRow, snapshot: SnapshotRow) -> Volume:
    return Volume(
        config=dict(snapshot.config),
        description=snapshot.description,
        name=f"{row.name}/{snapshot.name}",
        type=row.type,
        used_by=[],
        location=row.location,
        content_type=row.content,
        project=row.project,
        created_at=snapshot.created_at,
    )
