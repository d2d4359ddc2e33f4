"""/1.0 itself: the server object, its configuration, hardware, and what keys there are.

Owns the shapes of CONTRACT 4 and 7.1; handlers parse and call services, they hold no rule.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import msgspec
from aiohttp import web

from incus_actors.model import config_keys
from incus_actors.model.server import ServerPut
from incus_actors.rest.context import caller, gateway
from incus_actors.rest.http import RouteSpec, check_etag, etag_of, project_of, read_json, sync

_METADATA = Path(config_keys.__file__).with_name("metadata_configuration.json")


def routes() -> list[RouteSpec]:
    """Return the routes of this module."""
    return [
        RouteSpec("GET", "/1.0", get_server, access="untrusted", consistency="fallback", forward="target"),
        RouteSpec("PUT", "/1.0", put_server, access="admin", forward="target"),
        RouteSpec("PATCH", "/1.0", patch_server, access="admin", forward="target"),
        RouteSpec("GET", "/1.0/resources", get_resources, consistency="local", forward="target"),
        RouteSpec("GET", "/1.0/metadata/configuration", get_metadata, consistency="local"),
    ]


async def get_server(request: web.Request) -> web.StreamResponse:
    """GET /1.0: everybody sees something, trusted callers all of it."""
    who = caller(request)
    here = gateway(request)
    info = here.services.server
    if not who.trusted or who.metrics_only:
        return sync(info.untrusted())
    method = "unix" if who.protocol == "unix" else "tls"
    server = info.server(user=who.username or who.fingerprint or "", method=method, project=project_of(request))
    if who.detoured:  # we say who we are, but the configuration, and with it the ETag, is that of the asked member
        server.config = here.services.config.effective(who.detoured)
    if who.projects is not None:
        server.config = {}
    return sync(server, etag=etag_of(server.config))


async def put_server(request: web.Request) -> web.StreamResponse:
    """PUT /1.0: replace the configuration."""
    return await _change(request, patch=False)


async def patch_server(request: web.Request) -> web.StreamResponse:
    """PATCH /1.0: merge into the configuration."""
    return await _change(request, patch=True)


async def _change(request: web.Request, *, patch: bool) -> web.StreamResponse:
    here = gateway(request)
    body = await read_json(request, ServerPut)
    service = here.services.config
    change = service.patch if patch else service.replace
    conditional = partial(check_etag, request) if request.headers.get("If-Match") else None
    changed = await change(body.config, expect=conditional, member_id=caller(request).detoured)
    if changed:
        here.events.lifecycle("config-updated", "/1.0", caller=caller(request))
    return sync()


async def get_resources(request: web.Request) -> web.StreamResponse:
    """GET /1.0/resources."""
    return sync(await gateway(request).services.server.resources())


async def get_metadata(_request: web.Request) -> web.StreamResponse:
    """GET /1.0/metadata/configuration: every key with its description, as the contract has it."""
    content = await asyncio.get_running_loop().run_in_executor(None, _METADATA.read_bytes)
    return sync(msgspec.Raw(content.strip()))
