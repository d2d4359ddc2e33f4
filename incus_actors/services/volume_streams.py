"""The sending side of volumes: which format, which snapshots, how fast.

Owns the choice of the format and the brake (`rsync.bwlimit`). Used by services/volume_copies.py for another pool of
the same member, and by the gateway for another member.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from incus_actors.drivers.storage import RAW, TAR
from incus_actors.drivers.volume_frames import Head, pack
from incus_actors.errors import BadRequestError, NotFoundError
from incus_actors.model.config_values import parse_size
from incus_actors.services.volume_tools import NOT_FOUND, VolumeTools
from incus_actors.state.queries import volumes as queries
from incus_actors.state.queries.volumes import VolumeRow

BRAKE_S = 0.1


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """What to send: a volume by its row, with its snapshots (or none), or one snapshot as if it were the volume."""

    volume_id: int
    forms: tuple[str, ...]
    volume_only: bool = False
    snapshot: str = ""


class VolumeFetcher(Protocol):
    """Opens the stream of a volume on another member over HTTPS (gateway/volume_transfer.py)."""

    def __call__(self, member_id: int, request: StreamRequest) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Raises MemberError when that member can't be reached or doesn't have it."""


def choose_form(content: str, ours: Collection[str], theirs: Collection[str]) -> str:
    """Return the best format that both know: of a pool's kind, else of what is inside. Raises BadRequestError."""
    plain = TAR if content == "filesystem" else RAW
    for form in ours:
        if form in theirs and form not in (TAR, RAW):
            return form
    if plain in ours and plain in theirs:
        return plain
    raise BadRequestError("The two storage pools have no format in common")


class VolumeSender:
    """Sends volumes of this member."""

    def __init__(self, tools: VolumeTools) -> None:
        self._tools = tools

    def open(self, request: StreamRequest) -> AsyncGenerator[bytes, None]:
        """Return the stream of a volume of this member. Raises NotFoundError, BadRequestError."""
        tools = self._tools
        row = queries.by_id(tools.host.database(), request.volume_id)
        if row is None or row.node_id != tools.host.member_id():
            raise NotFoundError(NOT_FOUND)
        tools.check_idle(row)
        driver, volume = tools.driver(row), tools.spec(row)
        form = choose_form(row.content, driver.stream_formats, request.forms)
        names = [] if request.volume_only or request.snapshot else self._snapshots(row)
        optimized = form not in (TAR, RAW)

        def open_item(item: str, before: str) -> AsyncGenerator[bytes, None]:
            return driver.send(volume, item or request.snapshot, form, parent=before if optimized else "")

        stream = pack(Head(form, (*names, "")), open_item)
        limit = tools.pool(row.pool).config_on(tools.host.member_id()).get("rsync.bwlimit", "")
        return stream if not limit else slowed(stream, parse_size(limit))

    def _snapshots(self, row: VolumeRow) -> list[str]:
        found = self._tools.snapshots(row)
        return [snapshot.name for snapshot in found if not snapshot.phase]

    @asynccontextmanager
    async def local(self, request: StreamRequest) -> AsyncIterator[AsyncIterator[bytes]]:
        """Yield the stream for a pool of this member."""
        async with aclosing(self.open(request)) as chunks:
            yield chunks


async def slowed(chunks: AsyncGenerator[bytes, None], bytes_per_s: int) -> AsyncGenerator[bytes, None]:
    """Yield the same at no more than so many bytes per second (0: as it comes)."""
    loop = asyncio.get_running_loop()
    began, sent = loop.time(), 0
    async with aclosing(chunks):
        async for chunk in chunks:
            yield chunk
            sent += len(chunk)
            ahead_s = sent / bytes_per_s - (loop.time() - began) if bytes_per_s else 0
            if ahead_s > BRAKE_S:
                await asyncio.sleep(ahead_s)
