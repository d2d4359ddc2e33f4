"""/1.0/storage-pools (volumes: volume_routes.py).

Owns the shapes of CONTRACT 13; handlers parse and call StoragePoolService, they hold no rule.
"""

from __future__ import annotations

from aiohttp import web

from incus_actors.model.resources import PoolPut, PoolsPost
from incus_actors.rest.context import caller, gateway
from incus_actors.rest.http import (
    RouteSpec,
    check_etag,
    created,
    etag_of,
    filter_objects,
    project_of,
    read_json,
    recursion,
    sync,
    url_of,
)
from incus_actors.services.storage_pools import editable

_PATH = "/1.0/storage-pools"
_ONE = "/1.0/storage-pools/{name}"


def routes() -> list[RouteSpec]:
    """Return the routes of this module. ?target= means rows here, which are the same on every member, so only what
    looks at the machine is forwarded."""
    return [
        RouteSpec("GET", _PATH, get_pools),
        RouteSpec("POST", _PATH, post_pools, access="admin"),
        RouteSpec("GET", _ONE, get_pool),
        RouteSpec("PUT", _ONE, put_pool, access="admin", forward="target"),
        RouteSpec("PATCH", _ONE, patch_pool, access="admin", forward="target"),
        RouteSpec("DELETE", _ONE, delete_pool, access="admin"),
        RouteSpec("GET", f"{_ONE}/resources", get_pool_resources, forward="target", own=True),
    ]


def _target(request: web.Request) -> str | None:
    return request.query.get("target") or None


def _lifecycle(request: web.Request, action: str, name: str) -> str:
    source = url_of("storage-pools", name)
    context = {"target": _target(request)} if _target(request) else None
    gateway(request).events.lifecycle(action, source, caller=caller(request), name=name, context=context)
    return source


async def get_pools(request: web.Request) -> web.StreamResponse:
    """GET /1.0/storage-pools."""
    found = filter_objects(gateway(request).services.storage.list(project_of(request)), request.query.get("filter"))
    return sync(found if recursion(request) else [url_of("storage-pools", pool.name) for pool in found])


async def post_pools(request: web.Request) -> web.StreamResponse:
    """POST /1.0/storage-pools."""
    post = await read_json(request, PoolsPost)
    await gateway(request).services.storage.create(post, _target(request))
    return created(_lifecycle(request, "storage-pool-created", post.name))


async def get_pool(request: web.Request) -> web.StreamResponse:
    """GET one, as all members have it or as ?target= has it."""
    found = gateway(request).services.storage.get(request.match_info["name"], _target(request))
    return sync(found, etag=etag_of(editable(found)))


async def put_pool(request: web.Request) -> web.StreamResponse:
    """PUT one."""
    return await _change(request, patch=False)


async def patch_pool(request: web.Request) -> web.StreamResponse:
    """PATCH one."""
    return await _change(request, patch=True)


async def _change(request: web.Request, *, patch: bool) -> web.StreamResponse:
    name = request.match_info["name"]
    put = await read_json(request, PoolPut)
    await gateway(request).services.storage.update(
        name, put, target=_target(request), patch=patch, expect=lambda current: check_etag(request, current)
    )
    _lifecycle(request, "storage-pool-updated", name)
    return sync()


async def delete_pool(request: web.Request) -> web.StreamResponse:
    """DELETE one, on every member."""
    name = request.match_info["name"]
    await gateway(request).services.storage.delete(name)
    _lifecycle(request, "storage-pool-deleted", name)
    return sync()


async def get_pool_resources(request: web.Request) -> web.StreamResponse:
    """GET space and inodes of one member's share."""
    return sync(await gateway(request).services.storage.resources(request.match_info["name"]))
