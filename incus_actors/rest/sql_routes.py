"""/internal/sql: `incus admin sql global|local` (CONTRACT 17).

Owns the shapes of its requests and answers. For root on this machine only: whoever may open the unix socket.
"""

from __future__ import annotations

import msgspec
from aiohttp import web

from incus_actors.errors import ForbiddenError
from incus_actors.rest.context import caller, gateway
from incus_actors.rest.http import RouteSpec, flag, read_json, sync


class SqlQuery(msgspec.Struct, kw_only=True):
    """POST /internal/sql."""

    database: str = ""
    query: str = ""


def routes() -> list[RouteSpec]:
    """Return the routes of this module."""
    return [
        RouteSpec("GET", "/internal/sql", get_sql, access="member", consistency="fallback"),
        RouteSpec("POST", "/internal/sql", post_sql, access="member", consistency="fallback"),
    ]


def _check(request: web.Request) -> None:
    who = caller(request)
    if who.protocol != "unix" or who.forwarded:
        raise ForbiddenError


async def get_sql(request: web.Request) -> web.StreamResponse:
    """GET ?database=[&schema=1]: the database as SQL text (".dump", ".schema")."""
    _check(request)
    name = request.query.get("database", "")
    return sync({"text": await gateway(request).services.sql.text(name, schema=flag(request, "schema"))})


async def post_sql(request: web.Request) -> web.StreamResponse:
    """POST: run statements."""
    _check(request)
    body = await read_json(request, SqlQuery)
    return sync({"Results": await gateway(request).services.sql.run(body.database, body.query)})
