"""Custom volumes copied and moved: within a pool, to another pool, from another member (CONTRACT 13).

Owns the order of the steps on the member that gets the copy: its row, marked as being made; the bytes; the rows of the
snapshots; the mark goes. Called by rest/volume_routes.py. A move removes the original only after the copy is whole.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

from incus_actors.actors.storage_messages import CopyVolume, ReceiveVolume
from incus_actors.actors.volume_repair import renaming
from incus_actors.domain import transactions_volumes as transactions
from incus_actors.domain.transactions_volumes import NewSnapshot
from incus_actors.drivers.base import ProgressReport
from incus_actors.drivers.volume_frames import Unpacking
from incus_actors.errors import BadRequestError, MemberError, NotFoundError, NotImplementedHereError
from incus_actors.model import config_keys
from incus_actors.model.volumes import VolumePost, VolumeSource, VolumesPost
from incus_actors.services.progress import Report, progress_text
from incus_actors.services.volume_streams import StreamRequest, VolumeFetcher, VolumeSender
from incus_actors.services.volume_tools import VolumeAddress, VolumeTools
from incus_actors.services.volumes import VolumeService
from incus_actors.state.queries.volumes import SnapshotRow, VolumeRow

COPY_CONFIG = "Failed generating volume copy config: "


@dataclass(frozen=True, slots=True)
class _Copy:
    """What is to be copied; `snapshot`: that one as it was, instead of the volume as it is."""

    source: VolumeRow
    snapshot: SnapshotRow | None
    snapshots: tuple[SnapshotRow, ...]


class VolumeCopyService:
    """`fetch` opens volumes on other members."""

    def __init__(self, tools: VolumeTools, volumes: VolumeService, sender: VolumeSender, fetch: VolumeFetcher) -> None:
        self._tools = tools
        self._volumes = volumes
        self._sender = sender
        self._fetch = fetch

    # --- before the operation -------------------------------------------------------------------------------

    def check(self, source: VolumeSource) -> None:
        """Raise what is wrong with a source before an operation begins."""
        if source.type not in ("copy", "migration"):
            raise BadRequestError(f'Unknown source type "{source.type}"')
        if source.type == "migration":
            raise NotImplementedHereError("Copying volumes from other servers is not supported yet")
        if not source.name:
            raise BadRequestError("No source volume name provided")

    def member_for(self, project: str, source: VolumeSource) -> int | None:
        """Return where a copy goes when the request doesn't say: to the member that has the source."""
        try:
            return self._find(project, source).source.node_id
        except (NotFoundError, MemberError):
            return None

    # --- copying --------------------------------------------------------------------------------------------

    async def copy(
        self,
        pool: str,
        project: str,
        post: VolumesPost,
        report: Report,
        caller: Any = None,
        *,
        instead_of: int | None = None,
    ) -> None:
        """Make a copy on this member, which takes the place of `instead_of` in what its project may have. Raises ConflictError, NotFoundError, MemberError, DriverError."""
        tools = self._tools
        copy = self._find(project, post.source)
        content = copy.source.content
        driver = tools.pool(pool).driver
        wanted = dict(copy.source.config if copy.snapshot is None else copy.snapshot.config)
        wanted = {key: value for key, value in wanted.items() if config_keys.volume_key_fits(key, driver, content)}
        given = config_keys.without_empty(post.config)
        whole = VolumesPost(
            name=post.name,
            config={**wanted, **given},
            description=post.description or copy.source.description,
        )
        try:
            row = await self._volumes.new_row(pool, project, whole, content, instead_of=instead_of)
        except NotFoundError as error:
            raise MemberError(str(error)) from error
        try:
            await self._fill(row, copy, report)
            await self._record_snapshots(row, copy)
            await self._volumes.finish(row)
        except BaseException:
            await tools.take_back(row)
            raise
        tools.created(row, caller)

    def _find(self, project: str, source: VolumeSource) -> _Copy:
        tools = self._tools
        name, _, snapshot = source.name.partition("/")
        from_project = source.project or project
        member_id = tools.member_id(source.location) if source.location and tools.identity.clustered else None
        try:
            row = tools.find(VolumeAddress(source.pool, from_project, "custom", name, member_id))
        except NotFoundError as error:
            if str(error) == "Storage pool not found":
                raise
            raise NotFoundError(
                f'{COPY_CONFIG}Storage volume "{name}" in project "{from_project}" of type "custom" does not exist on'
                f' pool "{source.pool}": Storage volume not found'
            ) from None
        tools.check_idle(row)
        found = [s for s in tools.snapshots(row) if not s.phase]
        if not snapshot:
            return _Copy(row, None, () if source.volume_only else tuple(found))
        for candidate in found:
            if candidate.name == snapshot:
                return _Copy(row, candidate, ())
        raise NotFoundError(f'{COPY_CONFIG}Storage volume snapshot "{snapshot}" not found')

    async def _fill(self, row: VolumeRow, copy: _Copy, report: Report) -> None:
        """Bring the bytes into the new volume: a clone where the pool can, a stream elsewhere."""
        tools, source = self._tools, copy.source
        here = source.node_id == tools.host.member_id()
        driver = tools.driver(row)
        names = tuple(snapshot.name for snapshot in copy.snapshots)
        if here and source.pool_id == row.pool_id and driver.caches_images and copy.snapshot is None:
            await tools.ask(CopyVolume(tools.spec(source), tools.spec(row), names))
            return
        request = StreamRequest(
            volume_id=source.id,
            forms=driver.stream_formats,
            volume_only=not names,
            snapshot="" if copy.snapshot is None else copy.snapshot.name,
        )
        opened = self._sender.local(request) if here else self._fetch(source.node_id or 0, request)
        async with opened as chunks:
            await self._take(row, chunks, report)

    async def _take(self, row: VolumeRow, chunks: AsyncIterator[bytes], report: Report) -> None:
        stream = Unpacking(chunks, _counter(f"{row.name}", report))
        head = await stream.head()
        await self._tools.ask(ReceiveVolume(self._tools.spec(row), head.form, stream.parts()))

    async def _record_snapshots(self, row: VolumeRow, copy: _Copy) -> None:
        for snapshot in copy.snapshots:
            new = NewSnapshot(
                snapshot.name, snapshot.description, snapshot.created_at, snapshot.expires_at, snapshot.config
            )
            await self._tools.propose(transactions.create_snapshot(row.id, self._tools.host.member_id(), new, phase=""))

    # --- moving ---------------------------------------------------------------------------------------------

    async def move(self, address: VolumeAddress, post: VolumePost, report: Report, caller: Any = None) -> None:
        """Copy to another pool or project of this member, let the disks follow, and remove the original."""
        tools = self._tools
        row = self._volumes.check_move(address, post)
        target = VolumesPost(
            name=post.name,
            description=row.description,
            config=dict(row.config),
            source=VolumeSource(
                name=row.name,
                type="copy",
                pool=row.pool,
                project=row.project,
                location=row.location,
                volume_only=post.volume_only,
            ),
        )
        pool, project = post.pool or address.pool, post.project or address.project
        await self.copy(pool, project, target, report, caller, instead_of=row.id)
        step = renaming(tools.host, row, post.name)
        await tools.propose(transactions.repoint(step, pool))
        with contextlib.suppress(NotFoundError):
            await self._volumes.delete(replace(address, member_id=tools.host.member_id()), caller)


def _counter(name: str, report: Report) -> Callable[[int], None]:
    loop = asyncio.get_running_loop()
    began, done = loop.time(), 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        speed = int(done / max(loop.time() - began, 1e-3))
        report("fs", None, speed, progress_text(name, ProgressReport(done, None, speed)))

    return count
