"""Requests that another member must answer: passed on whole, both ways as a stream (CONTRACT 16.1, DESIGN D9).

Owns the HTTPS connections to other members: our server certificate as client certificate, the peer pinned to the
cluster certificate, the original caller in X-Incus-forwarded-* headers. Called by the REST middleware. It must never
hold a whole body, follow a redirect, or send a request twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any

import aiohttp
from aiohttp import hdrs, web
from multidict import CIMultiDict
from yarl import URL

from incus_actors.errors import MemberError
from incus_actors.gateway.access import (
    DETOUR,
    FORWARDED_ADDRESS,
    FORWARDED_PROTOCOL,
    FORWARDED_USERNAME,
    caller_of,
    forwarding_headers,
)
from incus_actors.gateway.detour import Detours
from incus_actors.gateway.spare_connections import Connection, SpareConnections
from incus_actors.gateway.upgrades import Hijacked, cancelled_when_gone, hijack, tunnel

_log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 3.0
KEEPALIVE_S = 30.0  #: below the keep-alive time of our listeners: a request never meets a closing connection
NOT_READY = "Server isn't ready yet"  #: CONTRACT 18: forwarding to a dead member
_CHUNK_BYTES = 64 << 10
_SMALL_BODY_BYTES = 256 << 10
_HOP_BY_HOP = frozenset(
    h.lower()
    for h in (
        "Connection",
        "Keep-Alive",
        "Proxy-Authenticate",
        "Proxy-Authorization",
        "TE",
        "Trailer",
        "Transfer-Encoding",
        "Upgrade",
        "Host",
        FORWARDED_ADDRESS,
        FORWARDED_USERNAME,
        FORWARDED_PROTOCOL,
        DETOUR,
    )
)
_DETOURED = web.RequestKey("detoured", int)  #: our id, once the request goes around a cut link
_GIVEN_HEADERS = (hdrs.USER_AGENT, hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE)


class _Pinned(aiohttp.Fingerprint):
    """Accepts what `accepted()` gives at the time of the handshake: a certificate update needs no new session."""

    def __init__(self, accepted: Callable[[], Collection[str]]) -> None:
        super().__init__(bytes(32))
        self._accepted = accepted

    def check(self, transport: asyncio.Transport) -> None:
        """Raise ServerFingerprintMismatch for any other certificate."""
        if not transport.get_extra_info("sslcontext"):
            return
        der = transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
        if not is_accepted(der, self._accepted()):
            host, port, *_ = transport.get_extra_info("peername")
            raise aiohttp.ServerFingerprintMismatch(self.fingerprint, hashlib.sha256(der or b"").digest(), host, port)


def is_accepted(der: bytes | None, accepted: Collection[str]) -> bool:
    """Return whether a certificate has one of these fingerprints, in constant time each."""
    found = hashlib.sha256(der or b"").hexdigest()
    return sum(hmac.compare_digest(found, fingerprint) for fingerprint in accepted) > 0


def keepalive_socket(address: tuple[Any, ...]) -> socket.socket:
    """Return a TCP socket that notices a silent peer within about 10 s, even while we only wait."""
    family, kind, protocol, *_ = address
    found = socket.socket(family, kind, protocol)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 4)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 10_000)
    return found


class Forwarder:
    """`address_of` gives host:port of a member; `context()` the TLS client context with our server certificate;
    `accepted()` the fingerprints of the cluster certificate (two of them while it is being replaced); `offline(id)`
    says why a member is not even tried, "" if it may be; `detours` knows the way around a link that is cut, if any."""

    def __init__(
        self,
        *,
        address_of: Callable[[int], str | None],
        context: Callable[[], ssl.SSLContext],
        accepted: Callable[[], Collection[str]],
        offline: Callable[[int], str] = lambda _member_id: "",
        detours: Detours | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> None:
        self._address_of = address_of
        self._make_context = context
        self._tls: ssl.SSLContext | None = None
        self._accepted = accepted
        self._offline = offline
        self.detours = detours
        self._connect_timeout_s = connect_timeout_s
        self._session: aiohttp.ClientSession | None = None
        self._spares = SpareConnections(self._dial)

    async def close(self) -> None:
        """Close the connections to other members."""
        self._spares.close()
        if self._session is not None:
            await self._session.close()
            self._session = None

    def session(self) -> aiohttp.ClientSession:
        """Return the session for requests of this member's own to others (image transfers and the like).

        Give `ssl=forwarder.tls()` with each request; the peer's certificate is checked by the connector.
        """
        if self._session is None:
            connector = aiohttp.TCPConnector(
                ssl=_Pinned(self._accepted),
                limit=0,
                keepalive_timeout=KEEPALIVE_S,
                use_dns_cache=False,
                socket_factory=keepalive_socket,
            )
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout_s)
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=timeout, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._session

    def tls(self) -> ssl.SSLContext:
        """Return the client context for requests to other members."""
        if self._tls is None:  # made once: kept connections belong to the context that they were made with
            self._tls = self._make_context()
        return self._tls

    def url(self, member_id: int, path_and_query: str) -> URL:
        """Return the URL of something on another member. Raises MemberError if it has no address."""
        return URL(f"https://{self._address(member_id)}{path_and_query}", encoded=True)

    def _address(self, member_id: int) -> str:
        address = self._address_of(member_id)
        if not address:
            raise MemberError(NOT_READY, remedy=f"member {member_id} has no address")
        return address

    def offline(self, member_id: int) -> str:
        """Return since when nothing was heard of a member, "" unless it counts as offline."""
        return self._offline(member_id)

    async def forward(
        self, request: web.Request, member_id: int, *, body: bytes | None = None, upgrades: int = 0
    ) -> web.StreamResponse:
        """Return that member's answer to this very request, unchanged; give `body` if it was read already. So many
        `upgrades` to the same member will follow.

        Raises MemberError (500 "Server isn't ready yet") when the member can't be reached; at once and with the
        reason when it is offline.
        """
        if caller_of(request).forwarded:
            raise MemberError("Request was forwarded more than once", remedy="the instance moved meanwhile: try again")
        if self.detours is not None and not caller_of(request).detoured:
            through = self.detours.around(member_id)
            if through:
                return await self.detour(request, through, body=body, upgrades=upgrades)
        return await self._pass_on(request, member_id, body=body, upgrades=upgrades)

    def stand_in(self) -> int:
        """Return the member that should do our work while only we are cut off from the leader, else 0."""
        return 0 if self.detours is None else self.detours.to_leader()

    async def detour(
        self, request: web.Request, member_id: int, *, body: bytes | None = None, upgrades: int = 0
    ) -> web.StreamResponse:
        """Return the answer of a member that stands in for this one: it does, or forwards, what we should have.

        Raises MemberError as `forward` does, also if we stand in for another member ourselves.
        """
        if caller_of(request).detoured:
            raise MemberError("Request was forwarded more than once", remedy="no member near us can reach the leader")
        assert self.detours is not None
        request[_DETOURED] = self.detours.consensus.member_id
        return await self._pass_on(request, member_id, body=body, upgrades=upgrades)

    async def _pass_on(
        self, request: web.Request, member_id: int, *, body: bytes | None, upgrades: int
    ) -> web.StreamResponse:
        reason = self._offline(member_id)
        if reason:
            raise MemberError(f"{NOT_READY}: {reason}")
        if request.headers.get(hdrs.UPGRADE):
            return await self._forward_upgrade(request, member_id)
        if upgrades:
            self._spares.expect(self._address(member_id), upgrades)
        return await self._forward_plain(request, member_id, body)

    # -- plain requests -----------------------------------------------------------------------------------------------

    async def _forward_plain(self, request: web.Request, member_id: int, body: bytes | None) -> web.StreamResponse:
        url = self.url(member_id, request.raw_path)
        try:
            with cancelled_when_gone(request):
                return await self._exchange(request, url, body)
        except aiohttp.ServerFingerprintMismatch as error:
            raise MemberError(NOT_READY, remedy=f"{url.host} shows a foreign certificate: {error}") from error
        except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError, TimeoutError) as error:
            _log.info("%s %s: %s", request.method, url, error)
            raise MemberError(NOT_READY) from error
        except aiohttp.ClientError as error:
            _log.info("%s %s: %s", request.method, url, error)
            raise MemberError(f"Lost the connection to the member that worked on the request: {error}") from error

    async def _exchange(self, request: web.Request, url: URL, read: bytes | None) -> web.StreamResponse:
        body = read if read is not None else request.content if request.can_read_body else None
        async with self.session().request(
            request.method,
            url,
            headers=_request_headers(request) if read is None else _headers_of_another_body(request),
            data=body,
            skip_auto_headers=_GIVEN_HEADERS,
            allow_redirects=False,
            ssl=self.tls(),
        ) as upstream:
            headers = _answer_headers(upstream)
            length = upstream.content_length
            if length is not None and length <= _SMALL_BODY_BYTES:
                return web.Response(status=upstream.status, headers=headers, body=await upstream.read())
            return await _stream(request, upstream, headers)

    # -- upgrades -----------------------------------------------------------------------------------------------------

    async def _forward_upgrade(self, request: web.Request, member_id: int) -> web.StreamResponse:
        """Repeat the upgrade at the other member and tunnel bytes: frames, pings and ends arrive as they were sent."""
        async with self._raw_connection(self._address(member_id)) as (reader, writer):
            writer.write(_upgrade_head(request, self._address(member_id)))
            try:
                async with asyncio.timeout(30):
                    await writer.drain()
                    head = await reader.readuntil(b"\r\n\r\n")
                    if not head.startswith(b"HTTP/1.1 101 "):
                        return await _refusal(head, reader)
            except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
                raise MemberError(NOT_READY, remedy=repr(error)) from error
            try:
                connection = hijack(request, head)
            except ConnectionResetError:
                return Hijacked()
            await tunnel(connection, (reader, writer))
        return Hijacked()

    @contextlib.asynccontextmanager
    async def _raw_connection(self, address: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await self._spares.take(address)
        try:
            self._check_certificate(writer, address)  # a spare one was made while others may have been accepted
            yield reader, writer
        finally:
            writer.close()

    async def _dial(self, address: str) -> Connection:
        """Raises MemberError."""
        url = URL(f"https://{address}")
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                reader, writer = await asyncio.open_connection(
                    url.host, url.port, ssl=self.tls(), limit=_CHUNK_BYTES, ssl_shutdown_timeout=2.0
                )
        except (OSError, TimeoutError) as error:
            _log.info("upgrade through %s: %s", address, error)
            raise MemberError(NOT_READY) from error
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 10_000)
        return reader, writer

    def _check_certificate(self, writer: asyncio.StreamWriter, address: str) -> None:
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        if not is_accepted(der, self._accepted()):
            raise MemberError(NOT_READY, remedy=f"{address} shows a foreign certificate")


def _request_headers(request: web.Request) -> CIMultiDict[str]:
    headers: CIMultiDict[str] = CIMultiDict(
        (name, value) for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP
    )
    headers.update(forwarding_headers(caller_of(request)))
    if _DETOURED in request:
        headers[DETOUR] = str(request[_DETOURED])
    return headers


def _headers_of_another_body(request: web.Request) -> CIMultiDict[str]:
    """The body was read already and may have changed: the length that the client gave may not be its own."""
    headers = _request_headers(request)
    headers.popall(hdrs.CONTENT_LENGTH, None)
    return headers


def _answer_headers(upstream: aiohttp.ClientResponse) -> CIMultiDict[str]:
    skipped = _HOP_BY_HOP | {"date", "server", "content-length"}
    return CIMultiDict((n, v) for n, v in upstream.headers.items() if n.lower() not in skipped)


async def _stream(
    request: web.Request, upstream: aiohttp.ClientResponse, headers: CIMultiDict[str]
) -> web.StreamResponse:
    response = web.StreamResponse(status=upstream.status, headers=headers)
    if upstream.content_length is not None:
        response.content_length = upstream.content_length
    await response.prepare(request)
    try:
        async for chunk in upstream.content.iter_chunked(_CHUNK_BYTES):
            await response.write(chunk)
        await response.write_eof()
    except ConnectionError:
        return response  # our own client left
    except (aiohttp.ClientError, TimeoutError) as error:
        _log.info("the answer of %s broke off: %s", upstream.url, error)
        if request.transport is not None:
            request.transport.abort()  # a clean end would make a truncated body look whole
    return response


def _upgrade_head(request: web.Request, address: str) -> bytes:
    headers = _request_headers(request)
    headers[hdrs.HOST] = address
    headers[hdrs.CONNECTION] = "Upgrade"
    headers[hdrs.UPGRADE] = request.headers[hdrs.UPGRADE]
    lines = [f"{request.method} {request.raw_path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join((*lines, "", "")).encode("utf-8", "surrogateescape")


async def _refusal(head: bytes, reader: asyncio.StreamReader) -> web.Response:
    """Return the JSON answer of a member that refused the upgrade."""
    status_line, *lines = head.decode("latin-1").split("\r\n")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = min(int(fields.get("content-length", "0")), _SMALL_BODY_BYTES)
    body = await reader.readexactly(length)
    content_type = fields.get("content-type", "application/json").partition(";")[0]
    return web.Response(status=int(status_line.split(" ", 2)[1]), body=body, content_type=content_type)
