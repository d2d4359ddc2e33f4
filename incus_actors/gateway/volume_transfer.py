"""Storage volumes between members, over HTTPS with the member certificates (DESIGN D9).

Owns the private request `GET /internal/storage-volumes/<id>/stream`. Used by VolumeCopyService through its fetcher; the
frames inside tell a whole stream from a broken one (drivers/volume_frames.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import aiohttp

from incus_actors.errors import MemberError
from incus_actors.gateway.forwarding import NOT_READY
from incus_actors.services.volume_streams import StreamRequest

if TYPE_CHECKING:
    from incus_actors.gateway.forwarding import Forwarder

STREAM_PATH = "/internal/storage-volumes/{id}/stream"
SILENCE_S = 60.0  #: a member that sends nothing for this long is given up
_CHUNK_BYTES = 256 << 10


class MemberVolumes:
    """A VolumeFetcher."""

    def __init__(self, forwarder: Forwarder) -> None:
        self._forwarder = forwarder

    @asynccontextmanager
    async def __call__(self, member_id: int, request: StreamRequest) -> AsyncIterator[AsyncIterator[bytes]]:
        """See VolumeFetcher. Raises MemberError."""
        query = urlencode(
            {
                "forms": ",".join(request.forms),
                "volume-only": "1" if request.volume_only else "",
                "snapshot": request.snapshot,
            }
        )
        url = self._forwarder.url(member_id, f"{STREAM_PATH.format(id=request.volume_id)}?{query}")
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=3, sock_read=SILENCE_S)
        try:
            async with self._forwarder.session().get(url, ssl=self._forwarder.tls(), timeout=timeout) as response:
                if response.status != 200:
                    text = (await response.content.read(300)).decode(errors="replace")
                    raise MemberError(f"Member {member_id} answered {response.status}: {text}")
                yield _reported(response.content.iter_chunked(_CHUNK_BYTES), member_id)
        except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError, TimeoutError) as error:
            reason = self._forwarder.offline(member_id)
            raise MemberError(f"{NOT_READY}: {reason}" if reason else NOT_READY) from error


async def _reported(chunks: AsyncIterator[bytes], member_id: int) -> AsyncIterator[bytes]:
    """Yield the same; a broken connection is an error of ours."""
    try:
        async for chunk in chunks:
            yield chunk
    except (aiohttp.ClientError, TimeoutError) as error:
        raise MemberError(f"Lost the connection to member {member_id} in the middle of a volume: {error}") from error


def read_request(volume_id: str, query: Mapping[str, str]) -> StreamRequest:
    """Return what another member asks for. Raises MemberError for nonsense."""
    if not volume_id.isascii() or not volume_id.isdigit():
        raise MemberError("Not a volume id")
    forms = tuple(form for form in query.get("forms", "").split(",") if form)
    return StreamRequest(int(volume_id), forms, query.get("volume-only", "") == "1", query.get("snapshot", ""))
