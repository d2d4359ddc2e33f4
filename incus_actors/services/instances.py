"""Instances: list, show, change state, update, rename, delete (CONTRACT 8).

Owns their rules with Incus' texts; called by rest/instance_routes.py on the member that has the instance (lists: on
any member). The work on the machine is done by InstanceActors. Must never touch an instance of another member.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from incus_actors.actors import disks
from incus_actors.actors.host import INSTANCES_PATH, STATES_PATH, Host
from incus_actors.actors.instance_messages import Delete, Rename, Update
from incus_actors.actors.instance_states import CollectStates, read_state, shown_status
from incus_actors.actors.instances import CHANGE_S, ActorFor, ChangeAll, StopAll, state_message
from incus_actors.actors.ref import AskError
from incus_actors.actors.system import ActorSystem
from incus_actors.domain import instances as rules
from incus_actors.domain.instance_config import check_config, is_true
from incus_actors.domain.instances import ProfileLayer
from incus_actors.domain.names import check_instance_name
from incus_actors.domain.placement import Candidate
from incus_actors.domain.transactions_instances import InstanceChange, fingerprint_guard
from incus_actors.errors import ApiError, BadRequestError, ConflictError, MemberError, NotFoundError
from incus_actors.model.architectures import number_of
from incus_actors.model.instances import (
    NEVER_USED,
    Instance,
    InstanceFull,
    InstancePatch,
    InstancePut,
    InstanceState,
    InstanceStatePut,
)
from incus_actors.services import project_guard
from incus_actors.state.queries import instances as queries
from incus_actors.state.queries.instances import InstanceRecord, Place
from incus_actors.state.reader import Reader

_log = logging.getLogger(__name__)

STATES_S = 1.0  #: a member that takes longer to tell its states is shown as unreachable
REFERENCE_S = 30.0
WORK_S = 3700.0
ACTIONS = {
    "start": "Starting instance",
    "stop": "Stopping instance",
    "restart": "Restarting instance",
    "freeze": "Freezing instance",
    "unfreeze": "Unfreezing instance",
}
_STATUS_NAMES = {
    102: "Stopped",
    103: "Running",
    106: "Starting",
    107: "Stopping",
    109: "Freezing",
    110: "Frozen",
    112: "Error",
}
Shape = TypeVar("Shape", bound=Instance)


class Members(Protocol):
    """What is needed of the membership service."""

    def candidates(self) -> list[Candidate]:
        """Return every full member as placement sees it."""

    def online(self, member_id: int) -> bool:
        """Return whether a member was heard of lately."""


class InstanceService:
    """`project` in every method is the one that the request names."""

    def __init__(self, host: Host, system: ActorSystem, members: Members) -> None:
        self._host = host
        self._system = system
        self._members = members

    # --- reading --------------------------------------------------------------------------------------------

    def urls(self, projects: Collection[str] | None) -> list[tuple[str, str]]:
        """Return (project, name) of the instances of these projects (None: all)."""
        with self._host.database().snapshot() as snapshot:
            return [(r.project, r.name) for r in queries.all_of(snapshot, projects=projects)]

    async def list_instances(self, projects: Collection[str] | None, *, full: bool) -> list[Instance]:
        """Return the instances of these projects (None: all) with their present status from every member.

        With `full`, InstanceFull. Members that don't answer within a second have status Error (B.8).
        """
        with self._host.database().snapshot() as snapshot:
            records = queries.all_of(snapshot, projects=projects)
        by_member: dict[int, list[InstanceRecord]] = {}
        for record in records:
            by_member.setdefault(record.node_id, []).append(record)
        answers = await asyncio.gather(*(self._states(member, own, full) for member, own in by_member.items()))
        states = {instance_id: state for answer in answers for instance_id, state in answer.items()}
        return [_listed(record, states.get(record.id), full=full) for record in records]

    async def _states(self, member: int, records: list[InstanceRecord], full: bool) -> dict[int, list[Any]]:
        """Return id → [status code, state] from one member; empty when it doesn't answer."""
        if member != self._host.member_id() and not self._members.online(member):
            return {}
        question = CollectStates([record.id for record in records], full)
        try:
            answer = await self._system.ref(STATES_PATH, member).ask(question, deadline_s=STATES_S)
        except ApiError as error:
            _log.info("member %d doesn't tell the states of its instances: %s", member, error)
            return {}
        return {int(instance_id): list(state) for instance_id, state in answer.items()}

    def record(self, project: str, name: str) -> InstanceRecord:
        """Return an instance of this member. Raises NotFoundError with Incus' text."""
        with self._host.database().snapshot() as snapshot:
            found = queries.find(snapshot, project, name)
        if found is None:
            raise missing(project, name)
        if found.node_id != self._host.member_id():
            raise MemberError("Server isn't ready yet", remedy="the instance moved while it was asked for")
        return found

    def place(self, project: str, name: str) -> Place:
        """Return where an instance is. Raises NotFoundError "Instance not found"."""
        found = queries.place(self._host.database(), project, name)
        if found is None:
            raise NotFoundError("Instance not found")
        return found

    def get(self, project: str, name: str) -> Instance:
        """Return one instance of this member."""
        record = self.record(project, name)
        return _shown(record, shown_status(self._host, record).code, Instance)

    async def get_full(self, project: str, name: str) -> InstanceFull:
        """Return one instance of this member with its state."""
        record = self.record(project, name)
        state = await read_state(self._host, record)
        shown = _shown(record, state.status_code, InstanceFull)
        shown.state = state
        return shown

    async def state(self, project: str, name: str) -> InstanceState:
        """Return the present state of an instance of this member."""
        return await read_state(self._host, self.record(project, name))

    # --- state changes --------------------------------------------------------------------------------------

    def check_action(self, put: InstanceStatePut) -> str:
        """Return the description of the operation. Raises BadRequestError "Unknown action: 'x'"."""
        description = ACTIONS.get(put.action)
        if description is None:
            raise BadRequestError(f"Unknown action: '{put.action}'")
        return description

    async def change_state(self, project: str, name: str, put: InstanceStatePut, caller: Any = None) -> None:
        """Start, stop, restart, freeze or unfreeze. Raises what the operation shows as its error."""
        record = self.record(project, name)
        if put.stateful and put.action in ("start", "stop"):
            if not is_true(record.expanded_config.get("migration.stateful")):
                raise BadRequestError(
                    f"Stateful {put.action} requires the instance to have migration.stateful be set to true"
                )
            raise BadRequestError(f"Stateful {put.action} is not supported yet")
        await self._ask(record.id, state_message(put.action, put.timeout, put.force, caller))

    async def _ask(self, instance_id: int, message: object) -> Any:
        try:
            supervisor = self._system.ref(INSTANCES_PATH)
            ref = await supervisor.ask(ActorFor(instance_id), deadline_s=REFERENCE_S)
            return await ref.ask(message, deadline_s=WORK_S)
        except AskError as error:
            raise MemberError(f"The work on the instance was interrupted: {error}") from error

    async def change_everywhere(self, projects: Collection[str], put: InstanceStatePut) -> None:
        """Do `put` to all instances of these projects, on every member, for which it makes sense.

        Raises MemberError with all failures in one text.
        """
        with self._host.database().snapshot() as snapshot:
            members = {record.node_id for record in queries.all_of(snapshot, projects=projects)}
        message = ChangeAll(sorted(projects), put.action, put.timeout, put.force)
        answers = await asyncio.gather(*(self._change_all(member, message) for member in sorted(members)))
        failures = [failure for answer in answers for failure in answer]
        if failures:
            raise MemberError("; ".join(failures))

    async def _change_all(self, member: int, message: ChangeAll) -> list[str]:
        try:
            return list(await self._system.ref(INSTANCES_PATH, member).ask(message, deadline_s=CHANGE_S))
        except ApiError as error:
            return [f"member {member}: {error}"]

    def log_directory(self, project: str, name: str) -> Path:
        """Return where the log files of an instance of this member are."""
        return self._host.status_spec(self.record(project, name)).log_dir

    async def stop_all(self, *, force: bool = False, timeout_s: float = 600.0) -> None:
        """Stop every instance of this member, to be started again with the next daemon (`incus admin shutdown`)."""
        await self._system.ref(INSTANCES_PATH).ask(StopAll(force), deadline_s=timeout_s)

    # --- update, rename, delete -----------------------------------------------------------------------------

    def editable(self, project: str, name: str) -> dict[str, Any]:
        """Return what a PUT replaces: the ETag is made of it."""
        return editable(self.record(project, name))

    def check_put(self, project: str, put: InstancePut) -> None:
        """Raise NotFoundError, BadRequestError for what is refused before the operation begins."""
        if put.restore:
            raise BadRequestError("Snapshots are not supported yet")
        wanted = put.profiles if put.profiles is not None else []
        if len(queries.profile_ids(self._host.database(), project, set(wanted))) < len(set(wanted)):
            raise NotFoundError("Profile not found")

    async def update(self, project: str, name: str, put: InstancePut, caller: Any = None) -> None:
        """Replace what a user may change. Raises what the operation shows as its error."""
        record = self.record(project, name)
        await self._update(record, put, caller)

    async def patch(self, project: str, name: str, patch: InstancePatch, caller: Any = None) -> None:
        """Change single fields and keys."""
        record = self.record(project, name)
        config = {**record.config, **(patch.config or {})}
        devices: dict[str, dict[str, str]] = {n: dict(d) for n, d in record.devices.items()}
        for device, options in (patch.devices or {}).items():
            devices[device] = {**devices.get(device, {}), **options}
        put = InstancePut(
            architecture=patch.architecture if patch.architecture is not None else record.architecture,
            config={key: value for key, value in config.items() if value},
            devices=devices,
            ephemeral=patch.ephemeral if patch.ephemeral is not None else record.ephemeral,
            profiles=patch.profiles if patch.profiles is not None else list(record.profiles),
            stateful=patch.stateful if patch.stateful is not None else record.stateful,
            description=patch.description if patch.description is not None else record.description,
        )
        self.check_put(project, put)
        try:
            await self._update(record, put, caller)
        except BadRequestError as error:
            raise MemberError(str(error)) from error  # Incus answers 500

    async def _update(self, record: InstanceRecord, put: InstancePut, caller: Any) -> None:
        with self._host.database().snapshot() as snapshot:
            seen = queries.settings_fingerprint(snapshot, record.id)
            change, layers = self._checked_change(snapshot, record, put)
        devices = rules.expand_devices(layers, change.devices)
        self._check_devices(record, devices)
        guards = (fingerprint_guard(record.id, seen),)
        expanded = rules.expand_config(layers, change.config)
        project_guard.check_update(self._host.database(), record, expanded, devices)
        await self._ask(record.id, Update(change, expanded, devices, guards, caller))

    def _checked_change(
        self, db: Reader, record: InstanceRecord, put: InstancePut
    ) -> tuple[InstanceChange, list[ProfileLayer]]:
        names = put.profiles if put.profiles is not None else []
        if len(set(names)) < len(names):
            raise BadRequestError("Duplicate profile found in request")
        ids = queries.profile_ids(db, record.project, set(names))
        if len(ids) < len(names):
            raise NotFoundError("Profile not found")
        config = {key: value for key, value in put.config.items() if value}
        try:
            check_config({key: value for key, value in config.items() if record.config.get(key) != value})
        except BadRequestError as error:
            raise BadRequestError(f"Invalid config: {error}") from None
        rules.check_volatile_kept(record.config, config)
        try:
            architecture = number_of(put.architecture or record.architecture)
        except ValueError:
            architecture = number_of(record.architecture)
        layers = queries.profile_layers(db, ids.values())
        change = InstanceChange(
            architecture=architecture,
            ephemeral=put.ephemeral,
            stateful=put.stateful,
            description=put.description,
            config=config,
            devices=rules.canonical_devices(put.devices),
            profile_ids=[ids[name] for name in names],
        )
        return change, [layers[ids[name]] for name in names]

    def _check_devices(self, record: InstanceRecord, expanded: Mapping[str, Mapping[str, str]]) -> None:
        try:
            rules.check_expanded_devices(
                expanded, self._host.networks(record.project), project=self._host.networks_project(record.project)
            )
        except BadRequestError as error:
            raise BadRequestError(f"Invalid devices: {error}") from None
        disks.check_changed(self._host, record.project, record.expanded_devices, expanded)
        for name in expanded.keys() - record.expanded_devices.keys():
            if any(option.startswith("initial.") for option in expanded[name]):
                raise BadRequestError(
                    "New device with initial configuration cannot be added once the instance is created"
                )
        try:
            _, root = rules.root_disk(expanded)
        except BadRequestError as error:
            raise BadRequestError(f"Invalid root disk device: {error}") from None
        _, old_root = rules.root_disk(record.expanded_devices)
        if root.get("pool") != old_root.get("pool"):
            raise BadRequestError(f'Cannot update root disk device pool name to "{root.get("pool", "")}"')

    def check_rename(self, project: str, name: str, new_name: str) -> None:
        """Raise BadRequestError, ConflictError 409 `Name "x" already in use`."""
        self.record(project, name)
        check_instance_name(new_name)
        if queries.place(self._host.database(), project, new_name) is not None:
            raise ConflictError(f'Name "{new_name}" already in use')

    async def rename(self, project: str, name: str, new_name: str, caller: Any = None) -> None:
        """Give a stopped instance another name."""
        await self._ask(self.record(project, name).id, Rename(new_name, caller))

    def check_delete(self, project: str, name: str) -> None:
        """Raise BadRequestError 400 "Instance is running"."""
        record = self.record(project, name)
        if not record.phase and shown_status(self._host, record).code not in (102, 112):
            raise BadRequestError("Instance is running")

    async def delete(self, project: str, name: str, caller: Any = None) -> None:
        """Remove a stopped instance."""
        await self._ask(self.record(project, name).id, Delete(caller))


def missing(project: str, name: str) -> NotFoundError:
    """Return Incus' text for an instance that isn't there, on the member that looks for it."""
    return NotFoundError("Instance not found", remedy=f'Failed to fetch instance "{name}" in project "{project}"')


def editable(record: InstanceRecord) -> dict[str, Any]:
    """Return what a PUT replaces, the same on every member."""
    return {
        "architecture": record.architecture,
        "config": record.config,
        "devices": record.devices,
        "ephemeral": record.ephemeral,
        "profiles": list(record.profiles),
        "stateful": record.stateful,
        "description": record.description,
    }


def _shown(record: InstanceRecord, status_code: int, kind: type[Shape]) -> Shape:
    return kind(
        architecture=record.architecture,
        config=record.config,
        devices=record.devices,
        ephemeral=record.ephemeral,
        profiles=list(record.profiles),
        stateful=record.stateful,
        description=record.description,
        created_at=record.created_at,
        expanded_config=record.expanded_config,
        expanded_devices=record.expanded_devices,
        name=record.name,
        status=_STATUS_NAMES.get(status_code, "Error"),
        status_code=status_code,
        last_used_at=record.last_used_at or NEVER_USED,
        location=record.location,
        type=record.type,
        project=record.project,
    )


def _listed(record: InstanceRecord, state: list[Any] | None, *, full: bool) -> Instance:
    kind = InstanceFull if full else Instance
    if state is None:
        return kind(name=record.name, location=record.location, type=record.type, project=record.project)
    shown = _shown(record, int(state[0]), kind)
    if isinstance(shown, InstanceFull) and len(state) > 1:
        shown.state = msgspec.convert(state[1], InstanceState)
    return shown
