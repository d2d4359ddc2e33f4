"""New instances: what is wrong with the request, row first, then the volume (CONTRACT 8.3).

Owns validation with Incus' texts and the order of the steps; called by rest/instance_routes.py. The rows
come first, marked "creating"; InstanceActor makes the volume and takes the mark away, or everything back.
"""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from incus_actors.actors import disks
from incus_actors.actors.host import INSTANCES_PATH, Host
from incus_actors.actors.instance_messages import Create
from incus_actors.actors.instances import ActorFor, Reap
from incus_actors.actors.ref import AskError
from incus_actors.actors.system import ActorSystem
from incus_actors.domain import instances as rules
from incus_actors.domain import transactions_instances as transactions
from incus_actors.domain.instance_config import HIDDEN_PREFIX, check_config, is_true
from incus_actors.domain.instances import ProfileLayer
from incus_actors.domain.names import check_instance_name, petname
from incus_actors.domain.project_rules import Subject
from incus_actors.domain.transactions_instances import NewInstance
from incus_actors.drivers.base import InstanceSpec, ProgressReport
from incus_actors.drivers.idmap import default_idmap
from incus_actors.errors import (
    ApiError,
    BadRequestError,
    ForbiddenError,
    MemberError,
    NotFoundError,
    NotImplementedHereError,
    UnavailableError,
)
from incus_actors.model.architectures import number_of
from incus_actors.model.instances import InstancesPost
from incus_actors.model.transaction import Outcome, Transaction
from incus_actors.services import project_guard
from incus_actors.services.images import ImageService
from incus_actors.services.instances import REFERENCE_S, WORK_S
from incus_actors.services.progress import Report, progress_text
from incus_actors.state.queries import images as image_queries
from incus_actors.state.queries import instances as queries
from incus_actors.state.queries.images import ImageRecord
from incus_actors.state.queries.instances import PoolRecord

RECORD = "Failed creating instance record: "
UNIQUE = 'Add instance info to the database: Failed to create "instances" entry: UNIQUE constraint failed: '
STAGE = "create_instance_from_image_unpack"


@dataclass(frozen=True, slots=True)
class _Plan:
    """A checked request."""

    new: NewInstance
    pool: PoolRecord


class InstanceCreator:
    """`project` in every method is the one that the request names."""

    def __init__(
        self,
        host: Host,
        system: ActorSystem,
        images: ImageService,
        *,
        rng: random.Random,
    ) -> None:
        self._host = host
        self._system = system
        self._images = images
        self._rng = rng

    # --- before the operation -------------------------------------------------------------------------------

    def image_architecture(self, project: str, post: InstancesPost) -> str | None:
        """Return the architecture that the member must be able to run, None if there is no such image."""
        found = self._image(project, post)
        return found.image.architecture if found else None

    def free_name(self, project: str) -> str:
        """Return a made-up name that no instance of the project has."""
        return petname(self._rng, frozenset(queries.names(self._host.database(), project)))

    def check(self, project: str, post: InstancesPost) -> None:
        """Fill in a name; raise what is refused before the operation begins."""
        source = post.source
        if source.type in ("none", "copy", "migration"):
            if source.type == "copy" and not source.source:
                raise BadRequestError("Must specify a source instance")
            raise NotImplementedHereError(f'Creating instances with source type "{source.type}" is not supported yet')
        if source.type != "image":
            raise BadRequestError(f"Unknown source type {source.type}")
        if not (source.alias or source.fingerprint or source.properties):
            raise MemberError("Must specify one of alias, fingerprint or properties for init from image")
        if source.server or source.mode == "pull":
            raise NotImplementedHereError("Images of other servers are not supported yet")
        if post.type == "virtual-machine":
            raise NotImplementedHereError("Virtual machines are not supported yet")
        if post.type not in ("", "container"):
            raise BadRequestError("Invalid instance type")
        if post.instance_type:
            raise BadRequestError(f"Bad custom instance type: {post.instance_type}")
        database = self._host.database()
        if queries.project_id(database, project) is None:
            raise NotFoundError("Project not found")
        if not post.name:
            post.name = self.free_name(project)
        check_instance_name(post.name)
        found = queries.profile_ids(database, project, set(profiles_of(post)))
        for profile in profiles_of(post):
            if profile not in found:
                raise MemberError(f'Requested profile "{profile}" doesn\'t exist')
        self._check_project(project, post)

    def _check_project(self, project: str, post: InstancesPost) -> None:
        """Raise MemberError unless the project has room for this instance and allows what it is."""
        with self._host.database().snapshot() as database:
            ids = queries.profile_ids(database, project, set(profiles_of(post)))
            layers = queries.profile_layers(database, ids.values())
            applied = [layers[ids[name]] for name in profiles_of(post) if name in ids]
            given = {key: value for key, value in post.config.items() if value}
            new = Subject(
                post.name,
                post.type or "container",
                rules.expand_config(applied, given),
                rules.expand_devices(applied, post.devices),
            )
            project_guard.check_creation(database, project, new, given)

    # --- the operation --------------------------------------------------------------------------------------

    async def create(self, project: str, post: InstancesPost, report: Report, caller: Any = None) -> None:
        """Create it here, and start it if asked to. Raises what the operation shows as its error."""
        image = self._image(project, post)
        if image is None:
            raise BadRequestError("Image not provided for instance creation")
        try:
            plan = self._plan(project, post, image)
        except ApiError as error:
            raise BadRequestError(f"{RECORD}{error}") from None
        fingerprint = image.image.fingerprint
        with self._host.pins.hold(fingerprint):
            files = await self._images.local_files(fingerprint, report)
            instance_id = await self._insert(project, post, plan.new)

            def unpacked(progress: ProgressReport) -> None:
                report(STAGE, progress.percent, progress.speed_bytes, progress_text("Unpacking image", progress))

            message = Create(files, post.start, unpacked, caller)
            try:
                supervisor = self._system.ref(INSTANCES_PATH)
                ref = await supervisor.ask(ActorFor(instance_id), deadline_s=REFERENCE_S)
                await ref.ask(message, deadline_s=WORK_S)
            except AskError as error:
                raise MemberError(f"The creation of the instance was interrupted: {error}") from error
        await self._images.touch(image.id)

    async def _insert(self, project: str, post: InstancesPost, new: NewInstance) -> int:
        while True:
            self._check_project(project, post)  # others may have taken the room since the request came
            transaction = transactions.create(new)
            room = project_guard.room_guards(self._host.database(), project, new.project_id)
            outcome = await self._propose(replace(transaction, guards=(*transaction.guards, *room)), new)
            if outcome.label != "room":
                return self._inserted(outcome)

    async def _propose(self, transaction: Transaction, new: NewInstance) -> Outcome:
        try:
            return await self._host.consensus().propose(transaction)
        except UnavailableError:
            self._system.ref(INSTANCES_PATH).tell(Reap(new.config["volatile.uuid"]))
            raise

    def _inserted(self, outcome: Outcome) -> int:
        """Return the id of the new row. Raises ApiError with Incus' texts."""
        if outcome.status == "conflict":
            if outcome.label == "placement":
                raise ForbiddenError("Cluster member is evacuated")
            if outcome.label == "profile":
                raise NotFoundError(f"{RECORD}Profile not found")
            raise NotFoundError(f"{RECORD}Failed initializing instance: Failed loading storage pool: not found")
        if not outcome.applied:
            prefix = "UNIQUE constraint failed: "
            if outcome.error.startswith(f"{prefix}instances."):
                raise MemberError(f"{RECORD}{UNIQUE}instances.project_id, instances.name")
            raise MemberError(f"{RECORD}{outcome.error}")
        return int(outcome.rows[0][0][0] or 0)

    def _image(self, project: str, post: InstancesPost) -> ImageRecord | None:
        database, source = self._host.database(), post.source
        if source.fingerprint:
            return image_queries.find(database, project, source.fingerprint)
        if source.alias:
            alias = image_queries.alias(database, project, source.alias)
            return None if alias is None else image_queries.find(database, project, alias.alias.target)
        found = [
            record
            for record in image_queries.all_of(database, project)
            if all(record.image.properties.get(key) == value for key, value in source.properties.items())
        ]
        return max(found, key=lambda record: record.image.created_at, default=None)

    def _plan(self, project: str, post: InstancesPost, image: ImageRecord) -> _Plan:
        """Return the rows to be. Raises ClientError, MemberError with Incus' text behind RECORD."""
        names = profiles_of(post)
        if len(set(names)) < len(names):
            raise BadRequestError("Duplicate profile found in request")
        given = {key: value for key, value in post.config.items() if value}
        if any(key.startswith(HIDDEN_PREFIX) for key in given):
            raise BadRequestError(f"Unknown configuration key: {HIDDEN_PREFIX}")
        check_config(given)
        rules.check_own_devices(post.devices)
        with self._host.database().snapshot() as database:
            ids = queries.profile_ids(database, project, set(names))
            layers = queries.profile_layers(database, ids.values())
            project_id = queries.project_id(database, project) or 0
            volume_project = queries.effective_project(database, project, "features.storage.volumes") or project_id
            if queries.place(database, project, post.name) is not None:
                raise MemberError(f"{UNIQUE}instances.project_id, instances.name")
        profiles = [layers[ids[name]] for name in names]
        pool = self._check_expanded(project, post, profiles, given)
        architecture = number_of(image.image.architecture)
        config = self._config(given, rules.expand_config(profiles, given), image, start=post.start)
        return _Plan(
            NewInstance(
                name=post.name,
                project_id=project_id,
                volume_project_id=volume_project,
                node_id=self._host.member_id(),
                pool_id=pool.id,
                architecture=architecture,
                ephemeral=post.ephemeral,
                stateful=post.stateful,
                description=post.description,
                created_at=self._host.now(),
                config=config,
                devices=rules.canonical_devices(post.devices),
                profile_ids=[ids[name] for name in names],
            ),
            pool,
        )

    def _check_expanded(
        self, project: str, post: InstancesPost, profiles: list[ProfileLayer], config: dict[str, str]
    ) -> PoolRecord:
        """Return the pool of the root disk. Raises "Failed initializing instance: …"."""
        devices = rules.expand_devices(profiles, rules.canonical_devices(post.devices))
        try:
            try:
                rules.check_expanded_devices(
                    devices, self._host.networks(project), project=self._host.networks_project(project)
                )
            except BadRequestError as error:
                raise BadRequestError(f"Invalid devices: {error}") from None
            disks.check_changed(self._host, project, {}, devices)
            try:
                _, root = rules.root_disk(devices)
            except BadRequestError as error:
                raise BadRequestError(f"Failed getting root disk: {error}") from None
            try:
                pool = self._host.pool(root.get("pool", ""))
            except NotFoundError as error:
                raise NotFoundError(f"Failed loading storage pool: {error}") from None
            nowhere = Path("/nonexistent")
            expanded = rules.expand_config(profiles, config)
            self._host.driver.validate(
                InstanceSpec(post.name, project, nowhere, nowhere, nowhere, config=expanded, devices=devices)
            )
        except ApiError as error:
            raise BadRequestError(f"Failed initializing instance: {error}") from None
        return pool

    def _config(
        self, given: dict[str, str], expanded: dict[str, str], image: ImageRecord, *, start: bool
    ) -> dict[str, str]:
        idmap = None
        if self._host.driver.info.name == "lxc" and not is_true(expanded.get("security.privileged")):
            idmap = rules.idmap_json(
                (uid, not uid, entry.host, entry.container, entry.size)
                for entry in default_idmap()
                for uid in (True, False)
                if entry.kind in ("both", "uid" if uid else "gid")
            )
        volatile = rules.first_volatile(
            fingerprint=image.image.fingerprint,
            uuid=str(uuid.UUID(int=self._rng.getrandbits(128), version=4)),
            instance_id=str(uuid.UUID(int=self._rng.getrandbits(128), version=4)),
            idmap=idmap,
            start=start,
        )
        properties = {f"image.{key}": value for key, value in image.image.properties.items()}
        return {**properties, **volatile, **given}


def profiles_of(post: InstancesPost) -> list[str]:
    """Return the names of the profiles that a request means."""
    return ["default"] if post.profiles is None else post.profiles
