"""/1.0/warnings.

Owns the shapes of CONTRACT 15; handlers parse and call WarningService, they hold no rule.
"""

from __future__ import annotations

from aiohttp import web

from incus_actors.model.resources import WarningPut
from incus_actors.rest.context import caller, gateway
from incus_actors.rest.http import RouteSpec, check_etag, etag_of, filter_objects, read_json, recursion, sync, url_of

_ONE = "/1.0/warnings/{uuid}"


def routes() -> list[RouteSpec]:
    """Return the routes of this module. Warnings tell about the whole cluster, so only administrators read them."""
    return [
        RouteSpec("GET", "/1.0/warnings", get_warnings, access="admin"),
        RouteSpec("GET", _ONE, get_warning, access="admin"),
        RouteSpec("PUT", _ONE, put_warning, access="admin"),
        RouteSpec("PATCH", _ONE, put_warning, access="admin"),
        RouteSpec("DELETE", _ONE, delete_warning, access="admin"),
    ]


async def get_warnings(request: web.Request) -> web.StreamResponse:
    """GET /1.0/warnings."""
    found = gateway(request).services.warnings.list(request.query.get("project") or None)
    found = filter_objects(found, request.query.get("filter"))
    return sync(found if recursion(request) else [url_of("warnings", warning.uuid) for warning in found])


async def get_warning(request: web.Request) -> web.StreamResponse:
    """GET one."""
    found = gateway(request).services.warnings.get(request.match_info["uuid"])
    return sync(found, etag=etag_of(found))


async def put_warning(request: web.Request) -> web.StreamResponse:
    """PUT and PATCH one: acknowledge it, or make it new again."""
    here = gateway(request)
    uuid = request.match_info["uuid"]
    put = await read_json(request, WarningPut)
    check_etag(request, here.services.warnings.get(uuid))
    await here.services.warnings.set_status(uuid, put.status)
    action = "warning-acknowledged" if put.status == "acknowledged" else "warning-reset"
    here.events.lifecycle(action, url_of("warnings", uuid), caller=caller(request))
    return sync()


async def delete_warning(request: web.Request) -> web.StreamResponse:
    """DELETE one."""
    here = gateway(request)
    uuid = request.match_info["uuid"]
    await here.services.warnings.delete(uuid)
    here.events.lifecycle("warning-deleted", url_of("warnings", uuid), caller=caller(request))
    return sync()
