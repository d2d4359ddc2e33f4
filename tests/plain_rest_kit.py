"""The plain resources over REST: real listeners and TLS, real services, real consensus."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import aiohttp
from gateway_kit import TestMember, running_member
from service_kit import ServiceKit, running_services

from incus_actors.gateway.access import Access, read_trusted_certificates
from incus_actors.gateway.routing import Routing
from incus_actors.rest import (
    certificate_routes,
    network_routes,
    profile_routes,
    project_routes,
    server_routes,
    sql_routes,
    storage_routes,
    warning_routes,
)
from incus_actors.security.certificates import KeyPair

_MODULES = (
    server_routes,
    certificate_routes,
    profile_routes,
    project_routes,
    storage_routes,
    network_routes,
    warning_routes,
    sql_routes,
)


@dataclass
class Answer:
    """`metadata` of a success, `error` of a failure."""

    status: int
    metadata: Any
    error: str
    headers: Any
    body: dict[str, Any]


@dataclass
class RestKit:
    member: TestMember
    kit: ServiceKit
    session: aiohttp.ClientSession
    lifecycle: list[dict[str, Any]] = field(default_factory=list)

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        session: aiohttp.ClientSession | None = None,
    ) -> Answer:
        async with (session or self.session).request(method, path, json=body, headers=headers) as response:
            answer = await response.json()
            return Answer(response.status, answer["metadata"], answer["error"], response.headers, answer)

    async def ended(self, operation: dict[str, Any]) -> dict[str, Any]:
        async with asyncio.timeout(5):
            return (await self.ask("GET", f"/1.0/operations/{operation['id']}/wait?timeout=5")).metadata

    def tls(self, pair: KeyPair | None = None) -> aiohttp.ClientSession:
        self.member.gateway.access.refresh()
        return self.member.tls_session(pair)


@asynccontextmanager
async def running_rest(directory: Path) -> AsyncIterator[RestKit]:
    routes = [route for module in _MODULES for route in module.routes()]
    async with running_services(directory / "services") as kit, running_member(directory / "rest", routes) as member:
        gateway = member.gateway
        gateway.services = kit.services
        gateway.identity = cast(Any, kit.identity)
        gateway.access = Access(lambda: read_trusted_certificates(cast(Any, kit.database)))
        gateway.routing = Routing(database=lambda: kit.database, member_id=lambda: 1)
        gateway.operations.tokens = kit.token_operations
        async with member.unix_session() as session:
            found = RestKit(member, kit, session)
            publish = gateway.events.lifecycle

            def remember(action: str, source: str, **more: Any) -> None:
                found.lifecycle.append({"action": action, "source": source, **more})
                publish(action, source, **more)

            gateway.events.lifecycle = remember  # type: ignore[method-assign]
            yield found
