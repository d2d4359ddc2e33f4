"""The aiohttp application: every route module's routes behind one middleware.

Owns which route modules exist. Called by the composition root (and by tests with a few routes of their own); it must
never know what a route does.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Iterable

from aiohttp import web

from incus_actors.rest.context import GATEWAY, Gateway
from incus_actors.rest.http import RouteSpec, sync
from incus_actors.rest.middleware import Freshness, endpoint, envelope, note_start

_log = logging.getLogger(__name__)

ROUTE_MODULES = (
    "server",
    "cluster",
    "certificate",
    "profile",
    "project",
    "storage",
    "volume",
    "volume_snapshot",
    "volume_backup",
    "network",
    "warning",
    "metrics",
    "instance",
    "exec",
    "image",
    "operation",
    "discovery",
    "internal",
    "sql",
)


async def _root(_request: web.Request) -> web.Response:
    return sync(["/1.0"])


def collect_routes() -> list[RouteSpec]:
    """Return the routes of every module. Raises ImportError if one is broken."""
    found = [RouteSpec("GET", "/", _root, access="untrusted", consistency="local")]
    for name in ROUTE_MODULES:
        module = f"incus_actors.rest.{name}_routes"
        if importlib.util.find_spec(module) is None:
            _log.warning("no %s in this build: its paths answer 404", module)
            continue
        found.extend(importlib.import_module(module).routes())
    return found


def build_app(gateway: Gateway, routes: Iterable[RouteSpec] | None = None) -> web.Application:
    """Return the application that the listeners serve; `routes` replaces the collected ones (for tests)."""
    app = web.Application(middlewares=[envelope], client_max_size=1 << 62)  # bodies are limited where they are read
    app[GATEWAY] = gateway
    app.on_response_prepare.append(note_start)
    freshness = Freshness(gateway.consensus, detour=gateway.forwarder.stand_in)
    for spec in collect_routes() if routes is None else routes:
        app.router.add_route(spec.method, spec.path, endpoint(spec, freshness))
    return app
