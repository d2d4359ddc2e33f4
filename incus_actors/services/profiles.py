"""Profiles: create, show, change, rename, delete (CONTRACT 12).

Owns their rules with Incus' texts; called by rest/profile_routes.py. Running instances take a change over before it is
answered (ProfileFollowers); others read their profiles whenever they are started or shown.
"""

from __future__ import annotations

from collections.abc import Mapping

from incus_actors.consensus.api import Consensus
from incus_actors.domain import transactions_profiles as transactions
from incus_actors.domain.instances import (
    ProfileLayer,
    canonical_devices,
    check_profile_devices,
    is_root_disk,
    root_giver,
)
from incus_actors.domain.nics import NetworkFacts
from incus_actors.errors import BadRequestError, ForbiddenError, MemberError, NotFoundError
from incus_actors.model import config_keys
from incus_actors.model.resources import NamePost, Profile, ProfilePut, ProfilesPost
from incus_actors.model.transaction import Guard
from incus_actors.services import project_guard
from incus_actors.services.profile_followers import ProfileFollowers
from incus_actors.services.proposing import (
    DuplicateError,
    Expect,
    TransactionConflictError,
    propose,
    until_unchanged,
)
from incus_actors.services.urls import url_of
from incus_actors.state.queries import instances as instance_queries
from incus_actors.state.queries import networks as network_queries
from incus_actors.state.queries import profiles as queries
from incus_actors.state.queries.networks import NetworkState
from incus_actors.state.queries.profiles import ProfileRow
from incus_actors.state.queries.projects import DEFAULT_PROJECT, ProjectRow, owner_of
from incus_actors.state.reader import Reader

Devices = Mapping[str, Mapping[str, str]]


class ProfileService:
    """`project` in every method is what the request names; the profiles may belong to "default" (features.profiles)."""

    def __init__(self, *, consensus: Consensus, database: Reader, followers: ProfileFollowers) -> None:
        self._consensus = consensus
        self._database = database
        self._followers = followers

    # -- reading ------------------------------------------------------------------------------------------------------

    def list(self, project: str | None) -> list[Profile]:
        """Return the profiles that a project uses, or those of all projects (None). Raises NotFoundError."""
        project_id = None if project is None else self._owner(project).id
        return [_shown(row) for row in queries.profiles(self._database, project_id)]

    def get(self, project: str, name: str) -> Profile:
        """Return one profile. Raises NotFoundError."""
        return _shown(self._row(self._owner(project), name, "Fetch profile: Profile not found"))

    def owner(self, project: str) -> str:
        """Return the name of the project whose profiles a project uses. Raises NotFoundError."""
        return self._owner(project).name

    def _owner(self, project: str) -> ProjectRow:
        owner = owner_of(self._database, project, "profiles")
        if owner is None:
            raise NotFoundError(f'Failed loading project "{project}": Project not found')
        return owner

    def _row(self, owner: ProjectRow, name: str, missing: str) -> ProfileRow:
        row = queries.profile(self._database, owner.id, name)
        if row is None:
            raise NotFoundError(missing)
        return row

    # -- writing ------------------------------------------------------------------------------------------------------

    async def create(self, project: str, post: ProfilesPost) -> None:
        """Create a profile. Raises BadRequestError, MemberError (500: it exists), NotFoundError (no project)."""
        owner = self._owner(project)
        check_name(post.name)
        config = config_keys.without_empty(post.config)
        devices = canonical_devices(post.devices)
        self._check(owner, config, devices)
        layer = ProfileLayer(post.name, config, devices)
        project_guard.check_profile_itself(self._database, owner.name, layer, creating=True)
        transaction = transactions.create_profile(owner.id, post.name, post.description or "", config, devices)
        try:
            await propose(self._consensus, transaction)
        except DuplicateError:
            raise MemberError(f'Error inserting "{post.name}" into database: The profile already exists') from None
        except TransactionConflictError:
            raise NotFoundError(f'Failed loading project "{project}": Project not found') from None

    async def update(
        self, project: str, name: str, put: ProfilePut, *, patch: bool = False, expect: Expect | None = None
    ) -> None:
        """Replace (PUT) or merge (`patch`) config, devices and description; instances take it over.

        Raises NotFoundError, PreconditionFailedError, MemberError (500, as Incus, for what is invalid; also when the
        change is saved, but instances could not take it over).
        """
        owner = self._owner(project)
        sign = "=" if patch else " "
        missing = f'Failed to retrieve profile{sign}"{name}": Profile not found'

        async def attempt() -> tuple[int, set[str]] | None:
            row = self._row(owner, name, missing)
            if expect is not None:
                expect(editable(_shown(row)))
            if patch:
                config = config_keys.merged(row.config, (put.config or {}).items())
                devices = {**row.devices, **canonical_devices(put.devices)}
                description = row.description if put.description is None else put.description
            else:
                config = config_keys.without_empty(put.config)
                devices = canonical_devices(put.devices)
                description = put.description or ""
            try:
                self._check(owner, config, devices)
            except BadRequestError as error:
                raise MemberError(str(error)) from None
            self._check_projects(owner.name, row.id, name, config, devices)
            guards = transactions.profile_guards(row.id, row.description, row.config, row.devices)
            if _root_pool(row.devices) not in ("", _root_pool(devices)):
                guards = (*guards, self._check_root_disk(row))
            await propose(
                self._consensus,
                transactions.replace_profile(row.id, (owner.id, name), guards, description, config, devices),
            )
            if (config, devices) == (row.config, row.devices):
                return None
            names = row.devices.keys() | devices.keys()
            return row.id, {one for one in names if row.devices.get(one) != devices.get(one)}

        changed = await until_unchanged(attempt)
        if changed is not None:
            await self._followers.follow(*changed)

    def _check_projects(
        self, owner: str, profile_id: int, name: str, config: Mapping[str, str], devices: Mapping[str, dict[str, str]]
    ) -> None:
        """Raise MemberError if a project forbids its instances, or its profile, to become this."""
        layer = ProfileLayer(name, config, devices)
        project_guard.check_profile(self._database, profile_id, layer)
        project_guard.check_profile_itself(self._database, owner, layer)

    def _check_root_disk(self, row: ProfileRow) -> Guard:
        """Raise MemberError if an instance has its root disk from a profile that shall give another or none.

        Return a guard that holds while the profile gets no other users.
        """
        guard = transactions.users_guard(row.id, queries.user_ids(self._database, row.id))
        siblings = queries.profiles(self._database, row.project_id)
        layers = {one.name: ProfileLayer(one.name, one.config, one.devices) for one in siblings}
        for record in instance_queries.all_of(self._database, projects={project for project, _ in row.used_by}):
            applied = [layers[profile] for profile in record.profiles if profile in layers]
            if (record.project, record.name) in row.used_by and root_giver(applied, record.devices) == row.name:
                raise MemberError("At least one instance relies on this profile's root disk device")
        return guard

    async def rename(self, project: str, name: str, post: NamePost) -> None:
        """Rename. Raises BadRequestError, ForbiddenError, MemberError (500: unknown or taken)."""
        owner = self._owner(project)
        if name == "default":
            raise ForbiddenError('The "default" profile cannot be renamed')
        check_name(post.name)
        taken = f'Profile "{post.name}" already exists'
        if queries.profile(self._database, owner.id, post.name) is not None:
            raise MemberError(taken)
        row = queries.profile(self._database, owner.id, name)
        if row is None:
            raise MemberError(f'Profile "{name}" doesn\'t exist')
        try:
            await propose(self._consensus, transactions.rename_profile(row.id, owner.id, name, post.name))
        except TransactionConflictError as conflict:
            raise MemberError(taken if conflict.label == "exists" else f'Profile "{name}" doesn\'t exist') from None

    async def delete(self, project: str, name: str) -> None:
        """Delete. Raises ForbiddenError (default), NotFoundError, MemberError (500: in use)."""
        owner = self._owner(project)
        if name == "default":
            raise ForbiddenError('The "default" profile cannot be deleted')
        row = self._row(owner, name, "Profile not found")
        try:
            await propose(self._consensus, transactions.delete_profile(row.id))
        except TransactionConflictError as conflict:
            if conflict.label == "in_use":
                raise MemberError("Profile is currently in use") from None
            raise NotFoundError("Profile not found") from None

    def _check(self, owner: ProjectRow, config: Mapping[str, str], devices: Devices) -> None:
        try:
            config_keys.validate_instance_config(config, profile=True)
        except config_keys.ConfigError as error:
            raise BadRequestError(str(error)) from None
        project = owner.name if owner.has("networks") else DEFAULT_PROJECT
        networks = {
            row.name: NetworkFacts(row.name, row.type, row.config, row.state is NetworkState.CREATED)
            for row in network_queries.networks(self._database)
            if row.project == project
        }
        check_profile_devices(devices, networks, project=project)


def check_name(name: str) -> None:
    """Raise BadRequestError for what can't be a profile's name."""
    if not name:
        raise BadRequestError("No name provided")
    if "/" in name:
        raise BadRequestError("Profile names may not contain slashes")
    if name in {".", ".."}:
        raise BadRequestError(f'Invalid profile name "{name}"')


def editable(profile: Profile) -> object:
    """Return what the ETag of a profile covers."""
    return [profile.config, profile.description, profile.devices]


def _shown(row: ProfileRow) -> Profile:
    return Profile(
        config=row.config,
        description=row.description,
        devices=row.devices,
        name=row.name,
        used_by=[url_of("instances", instance, project=project) for project, instance in row.used_by],
        project=row.project,
    )


def _root_pool(devices: Devices) -> str:
    return next((device.get("pool", "") for device in devices.values() if is_root_disk(device)), "")
