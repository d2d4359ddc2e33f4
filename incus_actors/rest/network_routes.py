"""/1.0/networks and /1.0/network-allocations.

Owns the shapes of CONTRACT 14; handlers parse and call NetworkService and NetworkChanges, they hold no rule.
"""

from __future__ import annotations

from aiohttp import web

from incus_actors.model.resources import NamePost, NetworkPut, NetworksPost
from incus_actors.rest.context import caller, gateway
from incus_actors.rest.http import (
    RouteSpec,
    check_etag,
    created,
    etag_of,
    flag,
    project_of,
    read_json,
    recursion,
    sync,
    url_of,
)
from incus_actors.rest.listing import visible
from incus_actors.services.network_changes import editable

_PATH = "/1.0/networks"
_ONE = "/1.0/networks/{name}"


def routes() -> list[RouteSpec]:
    """Return the routes of this module. ?target= of a managed network means rows, which are here too; only what looks
    at the machine is forwarded."""
    return [
        RouteSpec("GET", _PATH, get_networks, project_scoped=True),
        RouteSpec("POST", _PATH, post_networks, access="admin"),
        RouteSpec("GET", _ONE, get_network, project_scoped=True),
        RouteSpec("PUT", _ONE, put_network, access="admin"),
        RouteSpec("PATCH", _ONE, patch_network, access="admin"),
        RouteSpec("POST", _ONE, post_network, access="admin"),
        RouteSpec("DELETE", _ONE, delete_network, access="admin"),
        RouteSpec("GET", f"{_ONE}/state", get_network_state, project_scoped=True, forward="target", own=True),
        RouteSpec("GET", f"{_ONE}/leases", get_network_leases, project_scoped=True),
        RouteSpec("GET", "/1.0/network-allocations", get_allocations, project_scoped=True),
    ]


def _target(request: web.Request) -> str | None:
    return request.query.get("target") or None


def _lifecycle(request: web.Request, action: str, name: str, **context: str) -> str:
    source = url_of("networks", name)
    gateway(request).events.lifecycle(
        action, source, project="default", caller=caller(request), name=name, context=context or None
    )
    return source


async def get_networks(request: web.Request) -> web.StreamResponse:
    """GET /1.0/networks."""
    found = visible(request, gateway(request).services.networks.list, exclusive=False)  # ?project= with it is ignored
    if recursion(request):
        return sync(found)
    return sync([url_of("networks", network.name, project=network.project) for network in found])


async def post_networks(request: web.Request) -> web.StreamResponse:
    """POST /1.0/networks."""
    post = await read_json(request, NetworksPost)
    target = _target(request)
    await gateway(request).services.network_changes.create(project_of(request), post, target)
    return created(_lifecycle(request, "network-created", post.name, **({"target": target} if target else {})))


async def get_network(request: web.Request) -> web.StreamResponse:
    """GET one, as all members have it or as ?target= has it."""
    networks, name, target = gateway(request).services.networks, request.match_info["name"], _target(request)
    project = project_of(request)
    if target is not None and not networks.is_managed(project, name):
        member_id = networks.member_id(target)
        if member_id != gateway(request).identity.member_id:
            return await gateway(request).forwarder.forward(request, member_id)
    found = networks.get(project, name, target)
    return sync(found, etag=etag_of(editable(found)))


async def put_network(request: web.Request) -> web.StreamResponse:
    """PUT one."""
    return await _change(request, patch=False)


async def patch_network(request: web.Request) -> web.StreamResponse:
    """PATCH one."""
    return await _change(request, patch=True)


async def _change(request: web.Request, *, patch: bool) -> web.StreamResponse:
    name = request.match_info["name"]
    put = await read_json(request, NetworkPut)
    await gateway(request).services.network_changes.update(
        project_of(request),
        name,
        put,
        target=_target(request),
        patch=patch,
        expect=lambda current: check_etag(request, current),
    )
    _lifecycle(request, "network-updated", name)
    return sync()


async def post_network(request: web.Request) -> web.StreamResponse:
    """POST: rename one."""
    name = request.match_info["name"]
    post = await read_json(request, NamePost)
    await gateway(request).services.network_changes.rename(project_of(request), name, post.name)
    return created(_lifecycle(request, "network-renamed", post.name, old_name=name))


async def delete_network(request: web.Request) -> web.StreamResponse:
    """DELETE one, on every member."""
    name = request.match_info["name"]
    await gateway(request).services.network_changes.delete(project_of(request), name)
    _lifecycle(request, "network-deleted", name)
    return sync()


async def get_network_state(request: web.Request) -> web.StreamResponse:
    """GET addresses and counters."""
    return sync(gateway(request).services.networks.state(project_of(request), request.match_info["name"]))


async def get_network_leases(request: web.Request) -> web.StreamResponse:
    """GET the leases of all members."""
    name = request.match_info["name"]
    return sync(await gateway(request).services.network_leases.leases(project_of(request), name))


async def get_allocations(request: web.Request) -> web.StreamResponse:
    """GET the addresses in use."""
    leases = gateway(request).services.network_leases
    if not flag(request, "all-projects"):
        return sync(await leases.allocations(project_of(request)))
    allowed = caller(request).projects
    if allowed is None:
        return sync(await leases.allocations(None))
    return sync([entry for project in sorted(allowed) for entry in await leases.allocations(project)])
