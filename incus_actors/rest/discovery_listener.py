"""The small door that a waiting server opens to its local network: ask, prove, tell, join (see security/pairing.py).

Owns a TLS listener with these four paths alone, on a port of its own: the API proper is not reachable through it. Made
by discovery_agent.py while the server waits. Must never do anything for an asker that has not proven to know the code,
but open a session.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from aiohttp import web

from incus_actors.errors import ApiError, BadRequestError, ClientError, ForbiddenError
from incus_actors.model.cluster import ClusterPut
from incus_actors.rest.http import error, read_json, sync
from incus_actors.security.tls import BioTLSObject, PeerIdentity, TrustAnyClientContext
from incus_actors.services.discovery import CODE_S, Session, Waiting

_log = logging.getLogger(__name__)

_LIMIT_BYTES: Final = 64 << 10
_CONNECTIONS: Final = 32
_PORT_TRIES: Final = 20

#: Joins this server as the body says; `address` is where the asker reached us. Raises ApiError.
Join = Callable[[ClusterPut, Session], Awaitable[None]]
#: Facts about this machine for an asker that was let in.
Facts = Callable[[], Awaitable[dict[str, Any]]]


class AskRequest(msgspec.Struct, kw_only=True):
    """POST /discovery/1/ask."""

    name: str = ""
    nonce: str = ""


class ConfirmRequest(msgspec.Struct, kw_only=True):
    """POST /discovery/1/confirm."""

    session: str = ""
    proof: str = ""


class SessionRequest(msgspec.Struct, kw_only=True):
    """POST /discovery/1/facts."""

    session: str = ""


class JoinRequest(msgspec.Struct, kw_only=True):
    """POST /discovery/1/join."""

    session: str = ""
    put: ClusterPut = msgspec.field(default_factory=ClusterPut)


class DiscoveryListener:
    """Serves `waiting` at `addresses`, all on one port."""

    def __init__(self, waiting: Waiting, context: TrustAnyClientContext, *, join: Join, facts: Facts) -> None:
        self._waiting = waiting
        self._context = context
        self._join = join
        self._facts = facts
        self._servers: list[asyncio.Server] = []
        self._runner: web.AppRunner | None = None
        self._open = 0

    async def start(self, addresses: list[str]) -> int:
        """Listen; return the port. Raises OSError."""
        app = web.Application(middlewares=[self._guard], client_max_size=_LIMIT_BYTES)
        app.router.add_post("/discovery/1/ask", self._ask)
        app.router.add_post("/discovery/1/confirm", self._confirm)
        app.router.add_post("/discovery/1/facts", self._tell)
        app.router.add_post("/discovery/1/join", self._do_join)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0, handler_cancellation=False)
        await self._runner.setup()
        assert self._runner.server is not None
        sockets, port = _sockets(addresses)
        loop = asyncio.get_running_loop()
        for sock in sockets:
            server = await loop.create_server(
                self._runner.server, sock=sock, ssl=self._context, ssl_handshake_timeout=5.0, ssl_shutdown_timeout=2.0
            )
            self._servers.append(server)
        return port

    async def stop(self) -> None:
        """Close everything; an answer under way has two seconds."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    # -- requests -----------------------------------------------------------------------------------------------------

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if self._open >= _CONNECTIONS:
            return error(429, "Too many requests")
        self._open += 1
        try:
            return await handler(request)
        except ApiError as problem:
            return error(problem.status, str(problem))
        except web.HTTPException as problem:
            return error(problem.status, problem.reason.lower())
        except Exception:
            _log.exception("%s %s failed", request.method, request.path)
            return error(500, "Internal error")
        finally:
            self._open -= 1

    async def _ask(self, request: web.Request) -> web.StreamResponse:
        body = await read_json(request, AskRequest, limit_bytes=_LIMIT_BYTES)
        session = self._waiting.ask(
            asker=body.name, address=_address(request), fingerprint=_peer(request).fingerprint, nonce=body.nonce
        )
        return sync({"session": session.id, "name": self._waiting.name, "expires_s": CODE_S})

    async def _confirm(self, request: web.Request) -> web.StreamResponse:
        body = await read_json(request, ConfirmRequest, limit_bytes=_LIMIT_BYTES)
        return sync({"proof": await self._waiting.confirm(body.session, _peer(request).fingerprint, body.proof)})

    async def _tell(self, request: web.Request) -> web.StreamResponse:
        body = await read_json(request, SessionRequest, limit_bytes=_LIMIT_BYTES)
        self._waiting.paired(body.session, _peer(request).fingerprint)
        return sync({**await self._facts(), "address": _own_host(request)})

    async def _do_join(self, request: web.Request) -> web.StreamResponse:
        body = await read_json(request, JoinRequest, limit_bytes=_LIMIT_BYTES)
        session = self._waiting.paired(body.session, _peer(request).fingerprint)
        if not body.put.cluster_token:
            raise BadRequestError("A join token is needed")
        await self._join(body.put, session)
        return sync()


def _peer(request: web.Request) -> PeerIdentity:
    tls = request.transport.get_extra_info("ssl_object") if request.transport is not None else None
    peer = tls.peer_identity() if isinstance(tls, BioTLSObject) else None
    if peer is None:
        raise ForbiddenError("A certificate is needed to ask")
    return peer


def _address(request: web.Request) -> str:
    if request.transport is None:
        raise ClientError("the client has gone")
    host, port, *_ = request.transport.get_extra_info("peername")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _own_host(request: web.Request) -> str:
    """Return our address on this connection: where the asker reaches us."""
    assert request.transport is not None
    host = str(request.transport.get_extra_info("sockname")[0])
    return host.partition("%")[0]


def _sockets(addresses: list[str]) -> tuple[list[socket.socket], int]:
    """Return listening sockets at all addresses, on one port that is free at all of them. Raises OSError."""
    for _ in range(_PORT_TRIES):
        made: list[socket.socket] = []
        try:
            port = 0
            for address in addresses:
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                made.append(socket.create_server((address, port), family=family, backlog=64))
                port = int(made[0].getsockname()[1])
        except OSError as problem:
            for sock in made:
                sock.close()
            if problem.errno != errno.EADDRINUSE:
                raise
        else:
            for sock in made:
                sock.setblocking(False)
            return made, port
    raise OSError(errno.EADDRINUSE, "no port is free at all addresses")
