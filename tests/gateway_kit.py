"""A member's gateways for tests: real listeners, TLS, trust store, operations and routing over a real schema;
consensus is a switch that says whether a quorum is there."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sqlite3
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
from aiohttp import web

from incus_actors.consensus.types import Configuration, Member
from incus_actors.errors import UnavailableError
from incus_actors.gateway.access import Access, read_trusted_certificates
from incus_actors.gateway.events import EventHub
from incus_actors.gateway.forwarding import Forwarder
from incus_actors.gateway.operations import Operations
from incus_actors.gateway.routing import Routing
from incus_actors.rest.app import build_app
from incus_actors.rest.context import Gateway
from incus_actors.rest.context import gateway as gateway_of
from incus_actors.rest.http import RouteSpec
from incus_actors.rest.internal_routes import routes as internal_routes
from incus_actors.rest.listeners import Listeners
from incus_actors.rest.operation_routes import routes as operation_routes
from incus_actors.security.certificates import KeyPair, fingerprint_pem, load_or_create, make_certificate, write_pair
from incus_actors.security.tls import client_context
from incus_actors.state.schema import pending_migrations


class ScratchDatabase:
    """The schema of the state in memory; `execute` writes, the rest is the Reader protocol."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect(":memory:")
        self._connection.row_factory = sqlite3.Row
        for transaction in pending_migrations(0):
            for statement in transaction.statements:
                self._connection.execute(statement.sql, statement.parameters)
        self._connection.execute("DELETE FROM nodes")

    def execute(self, sql: str, params: Sequence[Any] = ()) -> None:
        self._connection.execute(sql, params)

    def query(self, sql: str, params: Sequence[Any] = ()) -> list[sqlite3.Row]:
        return self._connection.execute(sql, params).fetchall()

    def one(self, sql: str, params: Sequence[Any] = ()) -> sqlite3.Row | None:
        return self._connection.execute(sql, params).fetchone()

    def scalar(self, sql: str, params: Sequence[Any] = ()) -> Any:
        row = self.one(sql, params)
        return None if row is None else row[0]

    def add_member(self, id_: int, name: str, address: str) -> None:
        self.execute(
            "INSERT INTO nodes (id, name, description, address, schema, api_extensions, heartbeat, state, arch)"
            " VALUES (?, ?, '', ?, 1, 1, '2026-01-01 00:00:00', 0, 2)",
            (id_, name, address),
        )

    def add_certificate(self, pem: str, kind: int, name: str = "someone", projects: Iterable[str] | None = None) -> str:
        fingerprint = fingerprint_pem(pem)
        self.execute(
            "INSERT INTO certificates (fingerprint, type, name, certificate, restricted) VALUES (?, ?, ?, ?, ?)",
            (fingerprint, kind, name, pem, int(projects is not None)),
        )
        for project in projects or ():
            self.execute(
                "INSERT INTO certificates_projects (certificate_id, project_id) SELECT c.id, p.id FROM certificates c,"
                " projects p WHERE c.fingerprint = ? AND p.name = ?",
                (fingerprint, project),
            )
        return fingerprint

    def add_project(self, name: str) -> None:
        self.execute("INSERT OR IGNORE INTO projects (name, description) VALUES (?, '')", (name,))

    def add_instance(self, name: str, member: int, project: str = "default") -> None:
        self.add_project(project)
        self.execute(
            "INSERT INTO instances (node_id, name, architecture, type, project_id, description, creation_date)"
            " SELECT ?, ?, 2, 0, id, '', '2026-01-01T00:00:00Z' FROM projects WHERE name = ?",
            (member, name, project),
        )


@dataclass
class SwitchedConsensus:
    """A consensus with a quorum, or without."""

    member_id: int = 1
    quorum: bool = True
    refused_by: tuple[int, ...] = ()
    barriers: int = 0
    extras: dict[str, Any] = field(default_factory=dict)  #: what the handlers of a test keep
    configuration: Configuration = field(
        default_factory=lambda: Configuration((Member(1, "m1 key"), Member(2, "m2 key"), Member(3, "m3 key")))
    )

    async def read_barrier(self, *, timeout_s: float = 5.0) -> int:
        self.barriers += 1
        if not self.quorum:
            await asyncio.sleep(timeout_s)
            raise UnavailableError("nobody leads")
        return 7

    def status(self) -> Any:
        return SimpleNamespace(
            member_id=self.member_id,
            leader=1 if self.quorum else 0,
            applied=7,
            age_ms=lambda _now_ms: 1234,
            configuration=self.configuration,
            peers=(),
            refused_by=self.refused_by,
            halted="",
            disk_full=False,
        )


def extras(request: web.Request) -> dict[str, Any]:
    return cast(SwitchedConsensus, gateway_of(request).consensus).extras


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@dataclass
class TestMember:
    """One member's REST API on a unix socket and on HTTPS."""

    __test__ = False
    directory: Path
    gateway: Gateway
    listeners: Listeners
    consensus: SwitchedConsensus
    database: ScratchDatabase
    address: str
    server_pair: KeyPair
    cluster_pair: KeyPair
    exited: list[bool]

    def unix_session(self) -> aiohttp.ClientSession:
        connector = aiohttp.UnixConnector(str(self.directory / "unix.socket"), force_close=True)
        return aiohttp.ClientSession("http://unix.socket", connector=connector)

    def tls_session(self, pair: KeyPair | None = None) -> aiohttp.ClientSession:
        if pair is None:
            connector = aiohttp.TCPConnector(ssl=False, force_close=True)
        else:
            context = client_context(pair.certificate_path, pair.key_path)
            connector = aiohttp.TCPConnector(ssl=context, force_close=True)
        return aiohttp.ClientSession(f"https://{self.address}", connector=connector)


def shared_cluster_pair(directory: Path) -> KeyPair:
    directory.mkdir(exist_ok=True)
    return load_or_create(directory, "cluster", "cluster")


def client_pair(directory: Path, name: str) -> KeyPair:
    directory.mkdir(exist_ok=True)
    return write_pair(directory, name, *make_certificate(name))


@contextlib.asynccontextmanager
async def running_member(
    directory: Path,
    routes: Iterable[RouteSpec],
    *,
    member_id: int = 1,
    name: str = "node1",
    database: ScratchDatabase | None = None,
    cluster_pair: KeyPair | None = None,
) -> AsyncIterator[TestMember]:
    directory.mkdir(exist_ok=True)
    database = database or ScratchDatabase()
    server_pair = load_or_create(directory, "server", name)
    cluster_pair = cluster_pair or server_pair
    address = f"127.0.0.1:{free_port()}"
    database.add_member(member_id, name, address)
    database.add_certificate(server_pair.certificate_pem, 2, name)
    consensus = SwitchedConsensus(member_id)
    access = Access(lambda: read_trusted_certificates(database))
    access.refresh()
    events = EventHub(location=lambda: name)
    operations = Operations(events, member_id=lambda: member_id, location=lambda: name)
    routing = Routing(database=lambda: database, member_id=lambda: member_id)
    context = client_context(server_pair.certificate_path, server_pair.key_path)
    forwarder = Forwarder(
        address_of=routing.address_of, context=lambda: context, accepted=lambda: [cluster_pair.fingerprint]
    )
    exited: list[bool] = []

    async def shutdown(force: bool) -> None:
        await operations.stop()

    gateway = Gateway(
        settings=cast(Any, None),
        identity=cast(Any, SimpleNamespace(clustered=True, name=name, member_id=member_id)),
        access=access,
        operations=operations,
        events=events,
        forwarder=forwarder,
        routing=routing,
        consensus=cast(Any, consensus),
        database=cast(Any, database),
        services=cast(Any, SimpleNamespace(config=SimpleNamespace(value=lambda _key: ""))),
        shutdown=shutdown,
        exit=lambda: exited.append(True),
        phase="ready",
    )
    listeners = Listeners(build_app(gateway, [*routes, *operation_routes(), *internal_routes()]))
    await listeners.start()
    await listeners.open_unix(directory / "unix.socket")
    listeners.use_certificate(cluster_pair.certificate_path, cluster_pair.key_path)
    await listeners.set_https(address)
    try:
        yield TestMember(directory, gateway, listeners, consensus, database, address, server_pair, cluster_pair, exited)
    finally:
        await operations.stop(timeout_s=1)
        events.close()
        await listeners.close()
        await forwarder.close()


async def whoami(request: web.Request) -> web.Response:
    """A handler that tells what the middleware has found out."""
    from incus_actors.rest.context import caller
    from incus_actors.rest.http import sync

    who = caller(request)
    return sync(
        {
            "protocol": who.protocol,
            "username": who.username,
            "address": who.address,
            "fingerprint": who.fingerprint,
            "trusted": who.trusted,
            "projects": sorted(who.projects) if who.projects is not None else None,
            "forwarded": who.forwarded,
        }
    )
