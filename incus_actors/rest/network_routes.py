"""/1.0/networks, read only (creating them is issue 4; other methods answer 501).

Owns the shapes of CONTRACT 14; handlers call NetworkService, they hold no rule.
"""

from __future__ import annotations

from aiohttp import web

from incus_actors.rest.context import caller, gateway
from incus_actors.rest.http import RouteSpec, etag_of, filter_objects, flag, project_of, recursion, sync, url_of

_PATH = "/1.0/networks"
_ONE = "/1.0/networks/{name}"


def routes() -> list[RouteSpec]:
    """Return the routes of this module."""
    return [
        RouteSpec("GET", _PATH, get_networks, project_scoped=True),
        RouteSpec("GET", _ONE, get_network, project_scoped=True, forward="target"),
        RouteSpec("GET", f"{_ONE}/state", get_network_state, project_scoped=True, forward="target"),
    ]


async def get_networks(request: web.Request) -> web.StreamResponse:
    """GET /1.0/networks."""
    project = None if flag(request, "all-projects") else project_of(request)  # ?project= with it is ignored
    allowed = caller(request).projects if project is None else None
    found = gateway(request).services.networks.list(project)
    found = [network for network in found if allowed is None or network.project in allowed]
    found = filter_objects(found, request.query.get("filter"))
    if recursion(request):
        return sync(found)
    return sync([url_of("networks", network.name, project=network.project) for network in found])


async def get_network(request: web.Request) -> web.StreamResponse:
    """GET one."""
    found = gateway(request).services.networks.get(project_of(request), request.match_info["name"])
    return sync(found, etag=etag_of([found.name, found.managed, found.type, found.description, found.config]))


async def get_network_state(request: web.Request) -> web.StreamResponse:
    """GET addresses and counters."""
    return sync(gateway(request).services.networks.state(project_of(request), request.match_info["name"]))
