"""GET /1.0/metrics, for Prometheus and `incus top`; also on a listener of its own (core.metrics_address).

Owns the shape of the answer; services/metrics.py knows what there is to tell.
"""

from __future__ import annotations

from aiohttp import web

from incus_actors.errors import ForbiddenError
from incus_actors.rest.context import caller, gateway
from incus_actors.rest.http import RouteSpec

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def routes() -> list[RouteSpec]:
    """Return the routes of this module."""
    return [RouteSpec("GET", "/1.0/metrics", get_metrics, access="metrics", consistency="local", forward="target")]


async def get_metrics(request: web.Request) -> web.StreamResponse:
    """What this member has measured; of one project if one is named, of the caller's if it is limited to some."""
    who = caller(request)
    wanted = request.query.get("project")
    if who.projects is not None and wanted is not None and wanted not in who.projects:
        raise ForbiddenError
    projects = who.projects if wanted is None else frozenset({wanted})
    text = await gateway(request).services.metrics.text(projects)
    return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})
