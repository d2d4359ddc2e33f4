"""/internal: what the stock client's admin commands and our own CLI ask the daemon itself (CONTRACT 17).

Owns readiness, shutdown and the views of actors and consensus. Open to the unix socket and to members only.
"""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from incus_actors.errors import ForbiddenError, UnavailableError
from incus_actors.rest.context import caller, gateway
from incus_actors.rest.http import RouteSpec, flag, sync


def routes() -> list[RouteSpec]:
    """Return the routes of this module."""
    return [
        RouteSpec("GET", "/internal/ready", ready, access="member", consistency="local", during_shutdown=True),
        RouteSpec("PUT", "/internal/shutdown", shutdown, access="member", consistency="local", during_shutdown=True),
        RouteSpec("GET", "/internal/actors", actors, access="member", consistency="local", during_shutdown=True),
        RouteSpec(
            "GET", "/internal/raft", raft, access="member", consistency="local", forward="target", during_shutdown=True
        ),
        RouteSpec("POST", "/internal/raft/check", check_state, access="member"),
        RouteSpec("DELETE", "/internal/cluster/raft-node/{address}", remove_raft_node, access="member"),
    ]


async def ready(request: web.Request) -> web.StreamResponse:
    """GET /internal/ready: {} once the daemon serves (`incus admin waitready` polls it)."""
    if gateway(request).phase != "ready":
        raise UnavailableError("Daemon not ready yet")
    return sync()


async def shutdown(request: web.Request) -> web.StreamResponse:
    """PUT /internal/shutdown?force=: stop cleanly, answer when that is done, then exit."""
    here = gateway(request)
    if caller(request).protocol != "unix" or caller(request).forwarded:
        raise ForbiddenError
    if here.phase == "stopping":
        raise UnavailableError("Shutting down")
    here.phase = "stopping"
    await here.shutdown(flag(request, "force"))
    response = sync()
    response.force_close()
    await response.prepare(request)
    await response.write_eof()
    here.exit()
    return response


async def remove_raft_node(request: web.Request) -> web.StreamResponse:
    """DELETE /internal/cluster/raft-node/<address>: `incus admin cluster remove-raft-node`."""
    here = gateway(request)
    if caller(request).protocol != "unix" or caller(request).forwarded:
        raise ForbiddenError
    await here.services.members.remove_raft_node(request.match_info["address"])
    return sync()


async def actors(request: web.Request) -> web.StreamResponse:
    """GET /internal/actors: the live supervision tree, parents before children."""
    return sync(gateway(request).actor_tree())


async def raft(request: web.Request) -> web.StreamResponse:
    """GET /internal/raft: what this member (?target= another one) knows of consensus, what its lanes count, its last
    changes of role, and what the members are called."""
    here = gateway(request)
    status = here.consensus.status()
    known = () if here.phase == "starting" else status.configuration.members()  # the tables may not be there yet
    return sync(
        {
            "status": _with_lags(msgspec.to_builtins(status)),
            "names": {str(member): here.routing.name_of(member) or "" for member in known},
            "transport": here.lane_counters(),
            "journal": here.role_journal(),
        }
    )


def _with_lags(status: dict[str, Any]) -> dict[str, Any]:
    """Say of each member how many entries it lacks, -1 where only the leader knows."""
    for peer in status["peers"]:
        peer["lag"] = -1 if peer["state"] == "unknown" else max(0, status["last"] - peer["match"])
    return status


async def check_state(request: web.Request) -> web.StreamResponse:
    """POST /internal/raft/check: every member compares its whole state with the others' (CONSENSUS 3.11)."""
    found = await gateway(request).consensus.check_state()
    return sync({"index": found.index, "hash": found.hash.hex()})
