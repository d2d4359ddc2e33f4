"""Images: import, list, change, alias, delete (CONTRACT 11).

Owns their rules with Incus' texts and who gets copies; called by rest/image_routes.py and by the creation of
instances. Image files are kept by ImagesActors; bytes come from HTTP bodies through ImageStore. Must never list an
image whose file is nowhere.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from incus_actors.actors.host import IMAGES_PATH, Host
from incus_actors.actors.images import FINGERPRINT, EnsureImage, FetchImage
from incus_actors.actors.ref import AskError
from incus_actors.actors.system import ActorSystem
from incus_actors.domain import transactions_images as transactions
from incus_actors.domain.members import rfc3339
from incus_actors.domain.transactions_images import ImageChange, NewImage
from incus_actors.drivers.base import ProgressReport
from incus_actors.drivers.images import AddedImage, ImageFiles
from incus_actors.errors import ApiError, BadRequestError, ConflictError, MemberError, NotFoundError
from incus_actors.model.architectures import number_of
from incus_actors.model.images import (
    Image,
    ImageAlias,
    ImageAliasPatch,
    ImageAliasPost,
    ImageAliasPut,
    ImagePatch,
    ImagePut,
)
from incus_actors.model.instances import ZERO_TIME
from incus_actors.model.transaction import Outcome, Transaction
from incus_actors.services.instances import Members
from incus_actors.services.progress import Report, progress_text
from incus_actors.state.queries import images as queries
from incus_actors.state.queries import instances as instance_queries
from incus_actors.state.queries.images import AliasRecord, ImageRecord

_log = logging.getLogger(__name__)

FETCH_S = 3600.0
DUPLICATE = "Image with same fingerprint already exists"


@dataclass
class Upload:
    """An image that comes in. `found(fingerprint, size_bytes)` is called when the hash is known."""

    project: str
    metadata: AsyncIterator[bytes]
    rootfs: AsyncIterator[bytes] | None
    found: Callable[[str, int], None]
    filename: str = ""
    public: bool = False
    properties: Mapping[str, str] = field(default_factory=dict)
    expected_fingerprint: str = ""


class ImageService:
    """`project` in every method is the one that the request names; images may belong to "default"."""

    def __init__(self, host: Host, system: ActorSystem, members: Members) -> None:
        self._host = host
        self._system = system
        self._members = members

    # --- reading --------------------------------------------------------------------------------------------

    def list_images(self, project: str | None) -> list[Image]:
        """Return the images that a project uses (None: all projects)."""
        with self._host.database().snapshot() as snapshot:
            return [record.image for record in queries.all_of(snapshot, project)]

    def get(self, project: str, fingerprint: str) -> Image:
        """Return one image by fingerprint or the beginning of it. Raises NotFoundError `Image "x" not found`."""
        return self._record(project, fingerprint, f'Image "{fingerprint}" not found').image

    def _record(self, project: str, fingerprint: str, text: str = "Image not found") -> ImageRecord:
        with self._host.database().snapshot() as snapshot:
            found = queries.find(snapshot, project, fingerprint) if fingerprint else None
        if found is None:
            raise NotFoundError(text)
        return found

    def holders(self, fingerprint: str) -> list[int]:
        """Return the members that have the file, this one first, then those that answer."""
        own = self._host.member_id()
        found = queries.holders(self._host.database(), fingerprint)
        return sorted(found, key=lambda member: (member != own, not self._members.online(member), member))

    def files(self, fingerprint: str) -> ImageFiles | None:
        """Return the files if they are on this member (full fingerprint)."""
        return self._host.images.get(fingerprint) if FINGERPRINT.fullmatch(fingerprint) else None

    def hold(self, fingerprint: str) -> contextlib.AbstractContextManager[None]:
        """Keep the files from being removed while they are read."""
        return self._host.pins.hold(fingerprint)

    # --- import ---------------------------------------------------------------------------------------------

    async def add(self, upload: Upload, caller: Any = None) -> str:
        """Store, check and register an image; return its fingerprint. Copies go to other members afterwards.

        Raises BadRequestError, ConflictError with what the operation shows.
        """
        sizes = _Counted(upload.metadata), _Counted(upload.rootfs) if upload.rootfs is not None else None
        with contextlib.ExitStack() as held:

            async def accept(fingerprint: str) -> None:
                held.enter_context(self._host.pins.hold(fingerprint))
                if upload.expected_fingerprint and upload.expected_fingerprint != fingerprint:
                    raise BadRequestError(
                        f"fingerprints don't match, got {fingerprint} expected {upload.expected_fingerprint}"
                    )
                upload.found(fingerprint, sum(counted.size_bytes for counted in sizes if counted is not None))
                if self._exists(upload.project, fingerprint):
                    raise ConflictError(DUPLICATE)

            added = await self._host.images.add(sizes[0], sizes[1], accept=accept)
            await self._register(upload, added)
        fingerprint = added.files.fingerprint
        source = f"/1.0/images/{fingerprint}"
        self._host.lifecycle(
            "image-created", source, project=upload.project, caller=caller, context={"type": "container"}
        )
        self.replicate(fingerprint)
        return fingerprint

    def _exists(self, project: str, fingerprint: str) -> bool:
        found = queries.find(self._host.database(), project, fingerprint)
        return found is not None

    async def _register(self, upload: Upload, added: AddedImage) -> None:
        database = self._host.database()
        project_id = queries.images_project(database, upload.project)
        if project_id is None:
            raise NotFoundError("Project not found")
        default = instance_queries.profile_ids(database, upload.project, {"default"})
        metadata = added.metadata
        new = NewImage(
            fingerprint=added.files.fingerprint,
            filename=upload.filename,
            size_bytes=added.files.size_bytes,
            public=upload.public,
            architecture=number_of(metadata.architecture),
            created_at=_when(metadata.created_at),
            expires_at=_when(metadata.expires_at),
            uploaded_at=self._host.now(),
            project_id=project_id,
            properties={**metadata.properties, **upload.properties},
            profile_ids=sorted(default.values()),
            node_id=self._host.member_id(),
        )
        try:
            outcome = await self._host.consensus().propose(transactions.create(new))
            if not outcome.applied:
                if outcome.error.startswith("UNIQUE constraint failed: images."):
                    raise ConflictError(DUPLICATE)
                raise MemberError(outcome.error or outcome.label)
        except ApiError:
            if new.fingerprint not in queries.known_fingerprints(self._host.database()):
                await self._host.images.delete(new.fingerprint)
            raise

    def replicate(self, fingerprint: str) -> None:
        """Ask other members to fetch copies until cluster.images_minimal_replica of them have the file."""
        wanted = queries.minimal_replica(self._host.database())
        have = set(queries.holders(self._host.database(), fingerprint)) | {self._host.member_id()}
        others = [member for member in self._members.candidates() if member.online and member.member_id not in have]
        others.sort(key=lambda member: (member.state != 0, member.member_id))
        missing = len(others) if wanted < 0 else max(0, wanted - len(have))
        for member in others[:missing]:
            self._system.ref(IMAGES_PATH, member.member_id).tell(EnsureImage(fingerprint))

    async def local_files(self, fingerprint: str, report: Report) -> ImageFiles:
        """Return the files, fetched from another member if they aren't here."""

        def told(progress: ProgressReport) -> None:
            report("download", progress.percent, progress.speed_bytes, progress_text("Downloading image", progress))

        try:
            found = await self._system.ref(IMAGES_PATH).ask(FetchImage(fingerprint, told), deadline_s=FETCH_S)
        except AskError as error:
            raise MemberError(f"The image transfer was interrupted: {error}") from error
        if not isinstance(found, ImageFiles):
            raise TypeError(f"the images actor answered {type(found).__name__}")
        return found

    async def touch(self, image_id: int) -> None:
        """Note the use of an image; that this may fail is no reason to fail anything else."""
        try:
            await self._host.consensus().propose(transactions.touch(image_id, self._host.now()))
        except ApiError as error:
            _log.info("the last use of image %d is not recorded: %s", image_id, error)

    # --- change, delete -------------------------------------------------------------------------------------

    def editable(self, project: str, fingerprint: str) -> dict[str, Any]:
        """Return what a PUT replaces: the ETag is made of it. Raises NotFoundError "Image not found"."""
        return editable(self._record(project, fingerprint).image)

    async def update(self, project: str, fingerprint: str, put: ImagePut, caller: Any = None) -> None:
        """Replace what a user may change."""
        record = self._record(project, fingerprint)
        wanted = put.profiles if put.profiles is not None else ["default"]
        ids = instance_queries.profile_ids(self._host.database(), project, set(wanted))
        for profile in wanted:
            if profile not in ids:
                raise MemberError(f"Profile '{profile}' doesn't exist")
        change = ImageChange(
            auto_update=put.auto_update,
            public=put.public,
            expires_at=None if put.expires_at in ("", ZERO_TIME) else put.expires_at,
            properties={key: value for key, value in put.properties.items() if value},
            profile_ids=sorted(ids.values()),
        )
        _check(await self._host.consensus().propose(transactions.update(record.id, change)))
        self._tell("image-updated", project, record.image.fingerprint, caller)

    async def patch(self, project: str, fingerprint: str, patch: ImagePatch, caller: Any = None) -> None:
        """Change single fields and properties."""
        image = self._record(project, fingerprint).image
        put = ImagePut(
            auto_update=image.auto_update if patch.auto_update is None else patch.auto_update,
            properties={**image.properties, **(patch.properties or {})},
            public=image.public if patch.public is None else patch.public,
            expires_at=image.expires_at if patch.expires_at is None else patch.expires_at,
            profiles=image.profiles if patch.profiles is None else patch.profiles,
        )
        await self.update(project, fingerprint, put, caller)

    async def delete(self, project: str, fingerprint: str, caller: Any = None) -> None:
        """Remove an image; the members that have its file remove that when they see it."""
        record = self._record(project, fingerprint)
        _check(await self._host.consensus().propose(transactions.delete(record.id)))
        self._tell("image-deleted", project, record.image.fingerprint, caller)

    def _tell(self, action: str, project: str, fingerprint: str, caller: Any) -> None:
        self._host.lifecycle(action, f"/1.0/images/{fingerprint}", project=project, caller=caller)

    # --- aliases --------------------------------------------------------------------------------------------

    def list_aliases(self, project: str) -> list[ImageAlias]:
        """Return the aliases that a project uses."""
        return [record.alias for record in queries.aliases(self._host.database(), project)]

    def alias(self, project: str, name: str) -> ImageAlias:
        """Return one alias. Raises NotFoundError "Image alias not found"."""
        return self._alias(project, name).alias

    def _alias(self, project: str, name: str) -> AliasRecord:
        found = queries.alias(self._host.database(), project, name)
        if found is None:
            raise NotFoundError("Image alias not found")
        return found

    async def create_alias(self, project: str, post: ImageAliasPost, caller: Any = None) -> None:
        """Create an alias; `target` may be the beginning of a fingerprint."""
        if not post.name or not post.target:
            raise BadRequestError("name and target are required")
        if queries.alias(self._host.database(), project, post.name) is not None:
            raise ConflictError(f'Alias "{post.name}" already exists')
        record = self._record(project, post.target)
        await self._alias_change(
            transactions.create_alias(post.name, post.description, record.id, record.project_id), post.name
        )
        context = {"target": record.image.fingerprint}
        self._tell_alias("image-alias-created", project, post.name, caller, context)

    async def _alias_change(self, transaction: Transaction, name: str) -> None:
        outcome = await self._host.consensus().propose(transaction)
        if outcome.label == "exists":
            raise ConflictError(f'Alias "{name}" already exists')
        _check(outcome)

    def _tell_alias(
        self, action: str, project: str, name: str, caller: Any, context: dict[str, str] | None = None
    ) -> None:
        self._host.lifecycle(action, f"/1.0/images/aliases/{name}", project=project, caller=caller, context=context)

    async def update_alias(self, project: str, name: str, put: ImageAliasPut, caller: Any = None) -> None:
        """Replace description and target."""
        found = self._alias(project, name)
        if not put.target:
            raise BadRequestError("The target field is required")
        record = self._record(project, put.target)
        await self._alias_change(transactions.update_alias(found.id, put.description, record.id), name)
        self._tell_alias("image-alias-updated", project, name, caller, {"target": record.image.fingerprint})

    async def patch_alias(self, project: str, name: str, patch: ImageAliasPatch, caller: Any = None) -> None:
        """Change description or target."""
        alias = self.alias(project, name)
        put = ImageAliasPut(
            description=alias.description if patch.description is None else patch.description,
            target=alias.target if patch.target is None else patch.target,
        )
        await self.update_alias(project, name, put, caller)

    async def rename_alias(self, project: str, name: str, new_name: str, caller: Any = None) -> None:
        """Give an alias another name."""
        if not new_name:
            raise BadRequestError("name and target are required")
        if queries.alias(self._host.database(), project, new_name) is not None:
            raise ConflictError(f'Alias "{new_name}" already exists')
        found = self._alias(project, name)
        await self._alias_change(transactions.rename_alias(found.id, new_name, found.project_id), new_name)
        self._tell_alias("image-alias-renamed", project, new_name, caller, {"old_name": name})

    async def delete_alias(self, project: str, name: str, caller: Any = None) -> None:
        """Remove an alias."""
        found = self._alias(project, name)
        await self._alias_change(transactions.delete_alias(found.id), name)
        self._tell_alias("image-alias-deleted", project, name, caller)


class _Counted:
    """Counts the bytes that pass."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self.size_bytes = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        chunk = await anext(self._chunks)
        self.size_bytes += len(chunk)
        return chunk


def editable(image: Image) -> dict[str, Any]:
    """Return what a PUT replaces, the same on every member."""
    return {
        "auto_update": image.auto_update,
        "properties": image.properties,
        "public": image.public,
        "expires_at": image.expires_at,
        "profiles": image.profiles,
    }


def _check(outcome: Outcome) -> None:
    if outcome.status == "conflict":
        raise NotFoundError("Image not found")
    if not outcome.applied:
        raise MemberError(outcome.error)


def _when(seconds: int) -> str | None:
    if not seconds:
        return None
    try:
        datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return None
    return rfc3339(seconds * 1_000_000_000)
