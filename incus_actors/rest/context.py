"""What handlers get: the Gateway of this daemon and the Caller of this request.

Owns the two lookups `gateway(request)` and `caller(request)`. Built by daemon.py; must never hold state itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from aiohttp import web

from incus_actors.gateway.access import Access, Caller, caller_of

if TYPE_CHECKING:
    from incus_actors.consensus.api import Consensus
    from incus_actors.gateway.events import EventHub
    from incus_actors.gateway.forwarding import Forwarder
    from incus_actors.gateway.operations import Operations
    from incus_actors.gateway.routing import Routing
    from incus_actors.identity import Identity
    from incus_actors.rest.discovery_agent import DiscoveryAgent
    from incus_actors.services.registry import Services
    from incus_actors.settings import Settings
    from incus_actors.state.database import Database

Phase = Literal["starting", "ready", "stopping"]


@dataclass
class Gateway:
    """Everything a handler may use. One per daemon.

    `shutdown(force)` stops the daemon's instances and actors cleanly and returns when that is done; `exit()` then ends
    the process, after the answer is sent (CONTRACT 17). `actor_tree()` gives rows for `GET /internal/actors`,
    `role_journal()` the last changes of role for `GET /internal/raft`, `lane_counters()` what each lane has counted.
    """

    settings: Settings
    identity: Identity
    access: Access
    operations: Operations
    events: EventHub
    forwarder: Forwarder
    routing: Routing
    consensus: Consensus
    database: Database
    services: Services
    shutdown: Callable[[bool], Awaitable[None]]
    exit: Callable[[], None]
    actor_tree: Callable[[], list[Any]] = list
    role_journal: Callable[[], list[dict[str, Any]]] = list
    lane_counters: Callable[[], dict[str, dict[str, int]]] = dict
    phase: Phase = "starting"
    discovery: DiscoveryAgent | None = None  #: while this server waits to be joined (rest/discovery_agent.py)


GATEWAY: web.AppKey[Gateway] = web.AppKey("gateway", Gateway)


def gateway(request: web.Request) -> Gateway:
    """Return the daemon's Gateway."""
    return request.app[GATEWAY]


def caller(request: web.Request) -> Caller:
    """Return who asks; always set, `caller.trusted` is False for strangers."""
    return caller_of(request)
