"""Image files between members, over HTTPS with the member certificates (DESIGN D9).

Owns the private format of `GET /internal/images/<fingerprint>/export`: the metadata (or unified) file, directly
followed by the root file system, sizes in headers. Used by ImagesActor through its ImageFetcher. Must never hand on a
stream that ended early as a whole one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web

from incus_actors.actors.images import ImageFetcher, IncomingImage
from incus_actors.errors import MemberError

if TYPE_CHECKING:
    from incus_actors.drivers.images import ImageFiles
    from incus_actors.gateway.forwarding import Forwarder

METADATA_SIZE = "X-Incus-Actors-Metadata-Size"
ROOTFS_SIZE = "X-Incus-Actors-Rootfs-Size"  #: absent for a unified image
SILENCE_S = 30.0  #: a member that sends nothing for this long is given up
_CHUNK_BYTES = 256 << 10


class MemberImages:
    """An ImageFetcher: opens images on other members."""

    def __init__(self, forwarder: Forwarder) -> None:
        self._forwarder = forwarder

    @asynccontextmanager
    async def __call__(self, member_id: int, fingerprint: str) -> AsyncIterator[IncomingImage]:
        """See ImageFetcher. Raises MemberError."""
        url = self._forwarder.url(member_id, f"/internal/images/{fingerprint}/export")
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=3, sock_read=SILENCE_S)
        try:
            async with self._forwarder.session().get(url, ssl=self._forwarder.tls(), timeout=timeout) as response:
                if response.status != 200:
                    raise MemberError(f"member {member_id} answered {response.status}: {await _reason(response)}")
                yield _incoming(response)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise MemberError(f"Failed getting the image from member {member_id}: {error}") from error


def image_fetcher(forwarder: Forwarder) -> ImageFetcher:
    """Return what ImagesActor opens images on other members with."""
    return MemberImages(forwarder)


async def _reason(response: aiohttp.ClientResponse) -> str:
    return (await response.content.read(300)).decode(errors="replace")


def _incoming(response: aiohttp.ClientResponse) -> IncomingImage:
    metadata_size = int(response.headers.get(METADATA_SIZE, ""))
    rootfs_size = response.headers.get(ROOTFS_SIZE)
    metadata = _take(response.content, metadata_size)
    return IncomingImage(metadata, None if rootfs_size is None else _take(response.content, int(rootfs_size)))


async def _take(content: aiohttp.StreamReader, size_bytes: int) -> AsyncIterator[bytes]:
    """Yield exactly so many bytes. Raises MemberError when there are fewer."""
    left = size_bytes
    while left:
        chunk = await content.read(min(left, _CHUNK_BYTES))
        if not chunk:
            raise MemberError("The connection ended in the middle of an image")
        left -= len(chunk)
        yield chunk


async def send_image(request: web.Request, files: ImageFiles) -> web.StreamResponse:
    """Answer with the files of an image in the private format."""
    paths = [files.metadata_file, *([files.rootfs_file] if files.rootfs_file is not None else [])]
    sizes = [(await asyncio.to_thread(path.stat)).st_size for path in paths]
    headers = {"Content-Type": "application/octet-stream", METADATA_SIZE: str(sizes[0])}
    if len(sizes) > 1:
        headers[ROOTFS_SIZE] = str(sizes[1])
    response = web.StreamResponse(headers=headers)
    response.content_length = sum(sizes)
    await response.prepare(request)
    for path in paths:
        await write_file(response, path)
    await response.write_eof()
    return response


async def write_file(response: web.StreamResponse, path: Path) -> None:
    """Send a file; read in a thread, paced by the peer."""
    file = await asyncio.to_thread(path.open, "rb")
    try:
        while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
            await response.write(chunk)
    finally:
        file.close()
