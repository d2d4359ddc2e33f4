"""The image files of this member: fetched from other members, removed when the image is gone.

Owns which files are here and the rows that say so (`images_nodes`). Asked by the image and instance services, and by
those of other members to keep copies. Must never remove a file that somebody uses, nor trust bytes whose hash is not
the fingerprint.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import msgspec

from incus_actors.actors.actor import Actor, Later
from incus_actors.actors.host import Host
from incus_actors.actors.messages import remote_message
from incus_actors.domain import transactions_images as transactions
from incus_actors.drivers.base import Progress
from incus_actors.drivers.images import ImageFiles
from incus_actors.errors import ApiError, BadRequestError, MemberError, NotFoundError, UnavailableError
from incus_actors.state.queries import images as queries
from incus_actors.tasks import spawn

_log = logging.getLogger(__name__)

FINGERPRINT = re.compile(r"[0-9a-f]{64}")
BARRIER_S = 5.0
AGAIN_S = 1.0
BUSY_AGAIN_S = 10.0


@dataclass(frozen=True, slots=True)
class IncomingImage:
    """The bytes of an image on another member: metadata (or unified) file first, then the root file system."""

    metadata: AsyncIterator[bytes]
    rootfs: AsyncIterator[bytes] | None


class ImageFetcher(Protocol):
    """Opens an image on another member over HTTPS (gateway/image_transfer.py)."""

    def __call__(self, member_id: int, fingerprint: str) -> AbstractAsyncContextManager[IncomingImage]:
        """Raises MemberError when that member can't be reached or doesn't have it."""


@remote_message("images.ensure")
class EnsureImage(msgspec.Struct, frozen=True, array_like=True):
    """Have the file of this image, from wherever it is. Answer: None when it is here."""

    fingerprint: str


@dataclass(frozen=True, slots=True)
class FetchImage:
    """The same from this member, with progress. Answer: ImageFiles."""

    fingerprint: str
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class Reconcile:
    """The rows of images may have changed: remove files of images that are gone."""


class ImagesActor(Actor):
    """Transfers run beside the mailbox, each image once however many ask for it."""

    def __init__(self, host: Host, fetcher: ImageFetcher) -> None:
        self._host = host
        self._fetcher = fetcher
        self._fetching: dict[str, asyncio.Task[ImageFiles | Exception]] = {}
        self._mine: frozenset[str] = frozenset()
        self._doomed: set[str] = set()
        self._strangers: list[str] = []  #: files that no row named at the start
        self._waiting = False
        self._unsubscribe: Callable[[], None] | None = None

    async def started(self) -> None:
        """Remove leftovers of interrupted transfers; compare files with rows when the state is certain."""
        database = self._host.database()
        self._strangers = await self._host.images.reconcile(queries.known_fingerprints(database))
        self._mine = queries.fingerprints_on(database, self._host.member_id())
        self._unsubscribe = self._host.consensus().subscribe_applied(self._applied)
        self.context.run(self._compare(), name="images: compare files with rows")

    async def stopped(self, reason: str) -> None:
        """Stop listening and fetching."""
        if self._unsubscribe is not None:
            self._unsubscribe()
        for task in self._fetching.values():
            task.cancel()

    def _applied(self, _index: int, topics: frozenset[str]) -> None:
        if "images" in topics and not self._waiting:
            self._waiting = True
            self.context.self_ref.tell(Reconcile())

    async def receive(self, message: object) -> object:
        """Fetch and clean."""
        match message:
            case EnsureImage(fingerprint):
                return Later(self._ensure(fingerprint))
            case FetchImage(fingerprint, progress):
                return Later(self._fetch(fingerprint, progress))
            case Reconcile():
                await self._reconcile()
                return None
            case _:
                return self.unhandled(message)

    # --- fetching -------------------------------------------------------------------------------------------

    async def _ensure(self, fingerprint: str) -> None:
        """The asker's state may be ahead of ours: first catch up with it."""
        if not FINGERPRINT.fullmatch(fingerprint):
            raise BadRequestError("Not a fingerprint")
        await self._host.consensus().read_barrier(timeout_s=BARRIER_S)
        await self._fetch(fingerprint, None)

    async def _fetch(self, fingerprint: str, progress: Progress | None) -> ImageFiles:
        """Return the files, fetched if they aren't here. Raises NotFoundError, MemberError."""
        here = self._host.images.get(fingerprint)
        if here is not None and fingerprint in self._mine:
            return here
        task = self._fetching.get(fingerprint)
        if task is None:
            task = spawn(self._transfer_or_why_not(fingerprint, progress), name=f"image {fingerprint[:12]}")
            self._fetching[fingerprint] = task
            task.add_done_callback(lambda _task: self._fetching.pop(fingerprint, None))
        await asyncio.wait({task})
        if task.cancelled():
            raise MemberError("The image transfer was interrupted")
        result = task.result()
        if isinstance(result, Exception):
            raise result
        return result

    async def _transfer_or_why_not(self, fingerprint: str, progress: Progress | None) -> ImageFiles | Exception:
        """Several may wait for one transfer, or nobody any more: the failure is a result."""
        try:
            return await self._transfer(fingerprint, progress)
        except (ApiError, OSError) as error:
            return error

    async def _transfer(self, fingerprint: str, progress: Progress | None) -> ImageFiles:
        with self._host.pins.hold(fingerprint):
            files = self._host.images.get(fingerprint)
            if files is None:
                files = await self._from_others(fingerprint, progress)
            outcome = await self._host.consensus().propose(
                transactions.add_location(fingerprint, self._host.member_id())
            )
        if outcome.status == "conflict":  # deleted while we fetched it
            await self._host.images.delete(fingerprint)
            raise NotFoundError("Image not found")
        if not outcome.applied:
            raise MemberError(outcome.error)
        self._mine |= {fingerprint}
        return files

    async def _from_others(self, fingerprint: str, progress: Progress | None) -> ImageFiles:
        own = self._host.member_id()
        holders = [member for member in queries.holders(self._host.database(), fingerprint) if member != own]
        last: Exception | None = None
        for member in holders:
            try:
                async with self._fetcher(member, fingerprint) as incoming:
                    added = await self._host.images.add(
                        incoming.metadata, incoming.rootfs, expected_fingerprint=fingerprint, progress=progress
                    )
            except (ApiError, OSError) as error:
                _log.warning("image %s can't be fetched from member %d: %s", fingerprint[:12], member, error)
                last = error
            else:
                _log.info("fetched image %s from member %d", fingerprint[:12], member)
                return added.files
        raise MemberError(f"Failed getting image {fingerprint[:12]} from another member: {last or 'none has it'}")

    # --- removing -------------------------------------------------------------------------------------------

    async def _compare(self) -> None:
        """After a start: rows without a file and files without a row are put right."""
        while True:
            try:
                await self._host.consensus().read_barrier(timeout_s=BARRIER_S)
                await self._put_right()
            except UnavailableError:
                await asyncio.sleep(AGAIN_S)
            else:
                return

    async def _put_right(self) -> None:
        database = self._host.database()
        own, known = self._host.member_id(), queries.known_fingerprints(database)
        said = queries.fingerprints_on(database, own)
        for fingerprint in sorted(said):
            if self._host.images.get(fingerprint) is None and not self._host.pins.held(fingerprint):
                _log.warning("the file of image %s is missing here", fingerprint[:12])
                await self._host.consensus().propose(transactions.remove_location(fingerprint, own))
        for fingerprint in sorted(known - said):
            if self._host.images.get(fingerprint) is not None:
                await self._host.consensus().propose(transactions.add_location(fingerprint, own))
        self._doomed.update(set(self._strangers) - queries.known_fingerprints(database))
        self.context.self_ref.tell(Reconcile())

    async def _reconcile(self) -> None:
        """Remove the files of images that are gone; one that is in use waits."""
        self._waiting = False
        database = self._host.database()
        known = queries.known_fingerprints(database)
        self._doomed = (self._doomed | self._mine) - known
        self._mine = queries.fingerprints_on(database, self._host.member_id())
        for fingerprint in sorted(self._doomed):
            if self._host.pins.held(fingerprint) or fingerprint in self._fetching:
                continue
            await self._host.images.delete(fingerprint)
            self._doomed.discard(fingerprint)
        if self._doomed:
            self.context.tell_after(BUSY_AGAIN_S, Reconcile())
