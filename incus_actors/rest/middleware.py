"""The way of every request: who asks, which route, may they, is it us, is our state fresh, and what went wrong.

Owns the order of these checks and the mapping of exceptions to answers (CONTRACT 2.1, 18). Wraps every handler; it
must never let an exception reach aiohttp, nor an untrusted caller reach consensus, disk or another member.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from incus_actors.errors import ApiError, BadRequestError, ForbiddenError, UnavailableError
from incus_actors.gateway.access import CALLER, Caller, caller_of
from incus_actors.gateway.upgrades import STARTED
from incus_actors.model.config_values import is_true
from incus_actors.rest.context import GATEWAY, Gateway
from incus_actors.rest.http import Handler, RouteSpec, error, flag, project_of
from incus_actors.security.tls import BioTLSObject

if TYPE_CHECKING:
    from incus_actors.consensus.api import Consensus, ConsensusStatus
    from incus_actors.gateway.routing import Routing

_log = logging.getLogger(__name__)

BARRIER_S = 0.9  #: a read that can't be made linearizable fails, or falls back, after this long
WRITE_BARRIER_S = 5.0  #: a write waits for a new leader instead
HOPELESS_S = 0.8  #: ... but only so long once too many voters are out of reach for there to be one
LOOK_AGAIN_S = 0.2
FALLBACK_AGAIN_S = 0.05  #: ... and this long while we know that nobody leads
INDEX_HEADER = "X-Incus-Actors-Applied-Index"
AGE_HEADER = "X-Incus-Actors-Age-Ms"
STALE_HEADER = "X-Incus-Actors-Stale"


# -- who asks -------------------------------------------------------------------------------------------------------


async def identify(request: web.Request, gateway: Gateway) -> Caller:
    """Return the caller. An unknown certificate may have been trusted through another member a moment ago, so the
    trust store is brought up to date once before we call it unknown."""
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client has gone")
    tls = transport.get_extra_info("ssl_object")
    if tls is None:
        connection: socket.socket = transport.get_extra_info("socket")
        return gateway.access.unix_caller(connection)
    if not isinstance(tls, BioTLSObject):
        raise TypeError(f"the listener's TLS object is {type(tls).__name__}: client certificates would be lost")
    host, port, *_ = transport.get_extra_info("peername")
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    peer = tls.peer_identity()
    found = gateway.access.tls_caller(peer, address, request.headers)
    if not found.trusted and peer is not None and await _freshen(gateway):
        found = gateway.access.tls_caller(peer, address, request.headers)
    return found


async def _freshen(gateway: Gateway) -> bool:
    try:
        await gateway.consensus.read_barrier(timeout_s=BARRIER_S)
    except UnavailableError:
        return False
    gateway.access.refresh()
    return True


def authorize(request: web.Request, spec: RouteSpec, who: Caller) -> None:
    """Raise ForbiddenError unless `who` may use this route (see RouteSpec.access)."""
    if spec.access == "untrusted":
        return
    if not who.trusted:
        raise ForbiddenError
    if spec.access == "metrics":
        return
    if who.metrics_only:
        raise ForbiddenError
    if spec.access == "member":
        if who.protocol not in ("unix", "member"):
            raise ForbiddenError
        return
    if who.projects is None:
        return
    if spec.access == "admin":
        raise ForbiddenError("Certificate is restricted")
    if spec.project_scoped:
        lists_all = request.method == hdrs.METH_GET and flag(request, "all-projects")
        if project_of(request) not in who.projects and not (lists_all and "project" not in request.query):
            raise ForbiddenError(f'User does not have permissions for project "{project_of(request)}"')
    elif request.method != hdrs.METH_GET:
        raise ForbiddenError("Certificate is restricted")


#: What lies under these paths belongs to the default project for projects without the feature.
_SHARED = (
    ("/1.0/images", "features.images"),
    ("/1.0/profiles", "features.profiles"),
    ("/1.0/storage-pools/{pool}/volumes", "features.storage.volumes"),
)


def authorize_shared(request: web.Request, spec: RouteSpec, who: Caller, routing: Routing) -> None:
    """Raise ForbiddenError if a caller limited to projects would change what its project only borrows."""
    if who.projects is None or not spec.project_scoped or request.method == hdrs.METH_GET:
        return
    for path, feature in _SHARED:
        if spec.path.startswith(path) and not who.may_use(routing.owning_project(project_of(request), feature)):
            raise ForbiddenError


# -- is our state fresh ------------------------------------------------------------------------------------------------


class LeaderElsewhereError(UnavailableError):
    """Nobody leads as far as we can see, but `member_id` follows a leader: nothing was done yet, so let it answer."""

    def __init__(self, member_id: int) -> None:
        super().__init__("no available leader found")
        self.member_id = member_id


@dataclass
class Freshness:
    """Read barriers of one daemon, and when the last one succeeded. `detour()` gives the member that could answer a
    request while only we are cut off from the leader, or 0."""

    consensus: Consensus
    confirmed_at: float = 0.0
    detour: Callable[[], int] = lambda: 0
    cut_off: bool = False  #: the last barrier failed, and another member could have answered

    async def barrier(self, request: web.Request, spec: RouteSpec) -> dict[str, str]:
        """Make the state linearizable for this request; return the headers that say otherwise if it isn't.

        Raises BadRequestError; UnavailableError, naming who is missing, when nobody leads within a second (a write: for longer, as long
        as somebody could); LeaderElsewhereError when another member would do.
        """
        if spec.consistency == "local":
            return {}
        if request.method == hdrs.METH_GET and (wish := request.query.get("consistency")):
            if wish != "stale":
                raise BadRequestError(f'Invalid consistency "{wish}": "stale" reads what this member has')
            return self._stale_headers()
        fallback = spec.consistency == "fallback"
        wait_s = BARRIER_S if request.method == hdrs.METH_GET else WRITE_BARRIER_S
        if fallback and not self.consensus.status().leader and self.confirmed_at < time.monotonic() - BARRIER_S:
            wait_s = FALLBACK_AGAIN_S
        may_detour = _may_detour(request, spec)
        if may_detour and self.cut_off and self.detour():
            wait_s = FALLBACK_AGAIN_S
        try:
            await self._confirm(wait_s, may_detour=may_detour)
        except UnavailableError as reason:
            instead = self.detour() if may_detour else 0
            if instead:
                self.cut_off = True
                raise LeaderElsewhereError(instead) from reason
            if fallback:
                return self._stale_headers()
            raise no_quorum(self.consensus, request.app[GATEWAY].routing, reason) from reason
        self.confirmed_at, self.cut_off = time.monotonic(), False
        return {}

    async def _confirm(self, wait_s: float, *, may_detour: bool = False) -> None:
        deadline = time.monotonic() + wait_s
        slice_s = min(wait_s, HOPELESS_S)
        while True:
            begin = time.monotonic()
            try:
                await self.consensus.read_barrier(timeout_s=slice_s)
            except UnavailableError:
                now = time.monotonic()
                refused = now - begin < slice_s / 2  # an answer, and not that nobody leads yet
                if refused or now >= deadline or _in_vain(self.consensus.status()) or (may_detour and self.detour()):
                    raise
                slice_s = min(deadline - now, LOOK_AGAIN_S)
            else:
                return

    def _stale_headers(self) -> dict[str, str]:
        status = self.consensus.status()
        age_ms = status.age_ms(time.monotonic_ns() // 1_000_000)
        return {STALE_HEADER: "true", INDEX_HEADER: str(status.applied), AGE_HEADER: str(age_ms)}


def _may_detour(request: web.Request, spec: RouteSpec) -> bool:
    who = caller_of(request)
    own = spec.access == "member" or (spec.own and not request.query.get("target"))
    return not (own or who.detoured or who.forwarded)


def no_quorum(consensus: Consensus, routing: Routing, reason: UnavailableError) -> UnavailableError:
    """Return the error of CONTRACT 18, completed by who is missing."""
    status = consensus.status()
    if status.halted or status.disk_full:
        return reason  # nobody is missing: it says itself what keeps this member from answering
    linked = _linked(status)
    lacking = []
    for voters in out_of_reach(status):
        here, needed = voters & linked, len(voters) // 2 + 1
        reachable = ", ".join(_named(routing, member_id) for member_id in sorted(here)) or "none"
        missing = ", ".join(_named(routing, member_id) for member_id in sorted(voters - linked))
        lacking.append(f"needs {needed} of {len(voters)} voters, reachable: {reachable}; missing: {missing}")
    if lacking and status.refused_by and not linked - {status.member_id}:
        others = ", ".join(_named(routing, member_id) for member_id in status.refused_by)
        return UnavailableError(
            "Failed to begin transaction: no available leader found: this server is no member of its cluster any more: "
            f'refused by {others}. If they still list it, run "incus-actorsd cluster rejoin" with this daemon stopped; '
            "if it was removed, move its state directory aside, start it, and let it join with a new token",
        )
    detail = "; ".join(dict.fromkeys(lacking)) or str(reason)
    return UnavailableError(
        f"Failed to begin transaction: no available leader found: {detail}",
        remedy="start the missing members, or add ?consistency=stale to read what is here",
    )


def _in_vain(status: ConsensusStatus) -> bool:
    """Whether waiting for a leader helps nothing: this member itself can't go on, or no quorum is in reach."""
    return bool(status.halted or status.disk_full or out_of_reach(status))


def _linked(status: ConsensusStatus) -> set[int]:
    return {peer.id for peer in status.peers if peer.link} | {status.member_id}


def out_of_reach(status: ConsensusStatus) -> list[frozenset[int]]:
    """Return the sets of voters (two while joint) of which this member can't reach a majority."""
    linked = _linked(status)
    return [voters for voters in status.configuration.voter_sets() if 2 * len(voters & linked) <= len(voters)]


def _named(routing: Routing, member_id: int) -> str:
    return f"{routing.name_of(member_id) or f'member {member_id}'} ({routing.address_of(member_id) or 'no address'})"


# -- the order of things ------------------------------------------------------------------------------------------------


def _for_everybody(gateway: Gateway) -> bool:
    """Whether strangers may see the metrics (`core.metrics_authentication`)."""
    return not is_true(gateway.services.config.value("core.metrics_authentication") or "true")


def endpoint(spec: RouteSpec, freshness: Freshness) -> Handler:
    """Return the aiohttp handler of one route."""

    async def handle(request: web.Request) -> web.StreamResponse:
        gateway = request.app[GATEWAY]
        if gateway.phase != "ready" and not spec.during_shutdown:
            raise UnavailableError("Shutting down" if gateway.phase == "stopping" else "Daemon is starting up")
        who = caller_of(request)
        if not (spec.access == "metrics" and _for_everybody(gateway)):
            authorize(request, spec, who)
        try:
            headers = await freshness.barrier(request, spec) if who.trusted else {}
        except LeaderElsewhereError as better:
            return await gateway.forwarder.detour(request, better.member_id, upgrades=spec.upgrades)
        authorize_shared(request, spec, who, gateway.routing)
        member_id = _elsewhere(request, spec, gateway, who)
        if member_id is not None:
            return await gateway.forwarder.forward(request, member_id, upgrades=spec.upgrades)
        response = await spec.handler(request)
        if headers and not response.prepared:
            response.headers.update(headers)
        return response

    return handle


def _elsewhere(request: web.Request, spec: RouteSpec, gateway: Gateway, who: Caller) -> int | None:
    """Return the member that must answer instead of us. Raises NotFoundError for an unknown one."""
    if spec.forward == "none" or not who.trusted:
        return None
    if spec.forward == "target":
        name = request.query.get("target", "")
        if not name:
            return None
        member_id = gateway.routing.member_named(name)
    else:
        member_id = gateway.routing.instance_location(project_of(request), request.match_info["name"])
    return None if gateway.routing.is_here(member_id) else member_id


@web.middleware
async def envelope(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The outermost layer: identify the caller, turn every exception into an answer."""
    try:
        request[CALLER] = await identify(request, request.app[GATEWAY])
        return await handler(request)
    except Exception as failure:
        if isinstance(failure, ConnectionResetError):
            raise  # the client left in the middle: nobody is there to read an answer
        if STARTED in request:
            _log.warning("%s %s broke off: %s", request.method, request.path, failure, exc_info=failure)
            if request.transport is not None:
                request.transport.abort()  # anything more would look like a part of the answer
            raise ConnectionResetError("the answer broke off") from failure
        return _answer(request, failure)


def _answer(request: web.Request, failure: Exception) -> web.Response:
    """Return the error envelope for an exception."""
    if isinstance(failure, ApiError):
        if failure.status >= 500:
            remedy = {"remedy": failure.remedy}
            _log.info("%s %s: %s %s", request.method, request.path, failure.status, failure, extra=remedy)
        return error(failure.status, str(failure))
    if isinstance(failure, web.HTTPNotFound):
        return error(404, "not found")
    if isinstance(failure, web.HTTPMethodNotAllowed):
        return error(501, "not implemented")
    if isinstance(failure, web.HTTPException):
        return error(failure.status, failure.reason)
    _log.error("%s %s failed", request.method, request.path, exc_info=failure)
    return error(500, str(failure) or type(failure).__name__)


async def note_start(request: web.Request, _response: web.StreamResponse) -> None:
    """Signal handler of aiohttp's on_response_prepare."""
    request[STARTED] = True
