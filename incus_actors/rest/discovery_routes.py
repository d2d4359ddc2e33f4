"""/internal/discovery: let this server be found on the local network, and see who asks for it.

Owns the shapes; for the unix socket alone: the codes that are shown here are what strangers must not see.
"""

from __future__ import annotations

import msgspec
from aiohttp import web

from incus_actors.errors import ForbiddenError
from incus_actors.rest.context import Gateway, caller, gateway
from incus_actors.rest.http import RouteSpec, read_json, sync


class DiscoveryPost(msgspec.Struct, kw_only=True):
    """POST /internal/discovery. Without interfaces all of them."""

    interfaces: list[str] = msgspec.field(default_factory=list)
    ipv4_only: bool = False


def routes() -> list[RouteSpec]:
    """Return the routes of this module."""
    return [
        RouteSpec("GET", "/internal/discovery", get_discovery, access="member", consistency="local"),
        RouteSpec("POST", "/internal/discovery", post_discovery, access="member", consistency="local"),
        RouteSpec("DELETE", "/internal/discovery", delete_discovery, access="member", consistency="local"),
    ]


def _here(request: web.Request) -> Gateway:
    who = caller(request)
    if who.protocol != "unix" or who.forwarded:
        raise ForbiddenError
    return gateway(request)


async def get_discovery(request: web.Request) -> web.StreamResponse:
    """GET: whether we wait, and the sessions with their codes."""
    from incus_actors.rest.discovery_agent import agent

    return sync(agent(_here(request)).status())


async def post_discovery(request: web.Request) -> web.StreamResponse:
    """POST: wait to be found."""
    from incus_actors.rest.discovery_agent import agent

    here = _here(request)
    body = await read_json(request, DiscoveryPost)
    await agent(here).start(tuple(body.interfaces), ipv4_only=body.ipv4_only)
    return sync(agent(here).status())


async def delete_discovery(request: web.Request) -> web.StreamResponse:
    """DELETE: wait no more."""
    from incus_actors.rest.discovery_agent import agent

    await agent(_here(request)).stop()
    return sync()
