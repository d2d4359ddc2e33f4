"""Operations and events over REST (CONTRACT 3).

Owns /1.0/operations and /1.0/events. An operation of another member is asked for there; tokens are rows that every
member reads.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from aiohttp import WSMsgType, web

from incus_actors.errors import BadRequestError, ForbiddenError, MemberError, NotFoundError
from incus_actors.gateway.access import Caller
from incus_actors.gateway.events import SlowSubscriberError, Subscription
from incus_actors.gateway.operations import Operation, Scope, member_of
from incus_actors.gateway.upgrades import cancelled_when_gone
from incus_actors.gateway.websockets import accept_websocket, keepalive
from incus_actors.rest.context import caller, gateway
from incus_actors.rest.http import RouteSpec, all_projects, flag, project_of, recursion, sync
from incus_actors.tasks import spawn

EVENT_TYPES = frozenset({"operation", "lifecycle", "logging", "network-acl"})


def routes() -> list[RouteSpec]:
    """Return the routes of this module."""
    path = "/1.0/operations/{id}"
    return [
        RouteSpec("GET", "/1.0/operations", list_operations, consistency="fallback", during_shutdown=True),
        RouteSpec("GET", path, get_operation, consistency="fallback", during_shutdown=True),
        RouteSpec("DELETE", path, delete_operation, consistency="local", project_scoped=True, during_shutdown=True),
        RouteSpec("GET", f"{path}/wait", wait_operation, consistency="local", during_shutdown=True),
        RouteSpec("GET", f"{path}/websocket", connect_socket, consistency="local", during_shutdown=True),
        RouteSpec("GET", "/1.0/events", follow_events, consistency="local", during_shutdown=True),
    ]


async def list_operations(request: web.Request) -> web.StreamResponse:
    """GET /1.0/operations: a map of lower-case status to URLs, or with recursion to objects; of every member."""
    who = caller(request)
    projects = who.projects if all_projects(request) else frozenset({project_of(request)})
    if projects is not None and not all(who.may_use(project) for project in projects):
        raise ForbiddenError
    scope = Scope(projects, strict=who.projects is not None)
    operations = gateway(request).operations
    objects = operations.local(scope)
    if who.projects is None:
        objects = [*operations.token_objects(), *objects]
    if operations.elsewhere is not None:
        objects += await operations.elsewhere(scope)
    by_status: dict[str, list[Any]] = {}
    for found in objects:
        item = found if recursion(request) else f"/1.0/operations/{found['id']}"
        by_status.setdefault(str(found["status"]).lower(), []).append(item)
    return sync(by_status)


def _local(request: web.Request) -> Operation | None:
    """Return the local operation of the request. Raises ForbiddenError if it is of a project not the caller's."""
    operation = gateway(request).operations.get(request.match_info["id"])
    if operation is not None:
        _check_project(caller(request), operation)
    return operation


def _check_project(who: Caller, operation: Operation) -> None:
    if who.projects is not None and operation.project not in who.projects:
        raise ForbiddenError


async def _elsewhere(request: web.Request) -> web.StreamResponse:
    """Return the answer of the member that runs the operation. Raises NotFoundError if that isn't another one."""
    here = gateway(request)
    member_id = member_of(request.match_info["id"])
    if member_id is None or member_id not in here.routing.others() or caller(request).forwarded:
        raise NotFoundError("Operation not found")
    return await here.forwarder.forward(request, member_id)


async def get_operation(request: web.Request) -> web.StreamResponse:
    """GET /1.0/operations/<id>."""
    operation = _local(request)
    if operation is not None:
        return sync(operation.render())
    token = gateway(request).operations.rendered(request.match_info["id"])
    if token is not None and caller(request).projects is None:
        return sync(token)
    return await _elsewhere(request)


async def delete_operation(request: web.Request) -> web.StreamResponse:
    """DELETE /1.0/operations/<id>: cancel, or revoke a token."""
    here = gateway(request)
    operation_id = request.match_info["id"]
    if _local(request) is None and here.operations.rendered(operation_id) is None:
        return await _elsewhere(request)
    if here.operations.get(operation_id) is None and caller(request).projects is not None:
        raise ForbiddenError
    await here.operations.cancel(operation_id)
    return sync()


def _timeout_of(request: web.Request) -> float | None:
    text = request.query.get("timeout", "")
    if not text:
        return None
    try:
        seconds = int(text)
    except ValueError:
        raise MemberError(f'strconv.Atoi: parsing "{text}": invalid syntax') from None  # Incus' status and words
    return None if seconds < 0 else float(seconds)


async def wait_operation(request: web.Request) -> web.StreamResponse:
    """GET /1.0/operations/<id>/wait?timeout=<s>: the object when it has ended, or as it is when time is over."""
    timeout_s = _timeout_of(request)
    operation = _local(request)
    if operation is not None:
        with cancelled_when_gone(request):
            await operation.wait(timeout_s)
        return sync(operation.render())
    token = gateway(request).operations.rendered(request.match_info["id"])
    if token is not None and caller(request).projects is None:
        return await _wait_token(request, timeout_s)
    return await _elsewhere(request)


async def _wait_token(request: web.Request, timeout_s: float | None) -> web.StreamResponse:
    """A token ends by being used or revoked: then it isn't there any more."""
    operation_id = request.match_info["id"]
    token = gateway(request).operations.rendered(operation_id)
    with cancelled_when_gone(request), contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while (current := gateway(request).operations.rendered(operation_id)) is not None:
                token = current
                await asyncio.sleep(0.5)
    return sync(token)


async def connect_socket(request: web.Request) -> web.StreamResponse:
    """GET /1.0/operations/<id>/websocket?secret=: one of the sockets of exec, console and the like."""
    operation = _local(request)
    if operation is None:
        return await _elsewhere(request)
    if operation.sockets is None or operation.final:
        raise BadRequestError(
            "This operation has no websockets" if operation.sockets is None else "Operation has ended"
        )
    return await operation.sockets.serve(request, request.query.get("secret", ""))


# -- events ---------------------------------------------------------------------------------------------------------


def _types_of(request: web.Request) -> frozenset[str] | None:
    asked = [part for part in request.query.get("type", "").split(",") if part]
    for part in asked:
        if part not in EVENT_TYPES:
            raise BadRequestError(f'"{part}" isn\'t a supported event type')
    return frozenset(asked) or None


def _projects_of(request: web.Request) -> frozenset[str] | None:
    who = caller(request)
    if flag(request, "all-projects"):
        return who.projects
    project = project_of(request)
    if not who.may_use(project):
        raise ForbiddenError
    return frozenset({project})


async def follow_events(request: web.Request) -> web.StreamResponse:
    """GET /1.0/events: a websocket of what happens on every member, from the moment of the upgrade on."""
    types, projects = _types_of(request), _projects_of(request)
    if request.headers.get("Upgrade", "").lower() != "websocket":
        raise BadRequestError("websocket: the client is not using the websocket protocol")
    forwarder, who = gateway(request).forwarder, caller(request)
    if not who.detoured and not who.forwarded and (instead := forwarder.stand_in()):
        # The leader's own events don't come here now, and clients wait for the ends of operations by events.
        return await forwarder.detour(request, instead)

    def drop() -> None:
        if request.transport is not None:
            request.transport.abort()  # it doesn't read: a close frame would wait behind everything else

    hub = gateway(request).events
    strict = caller(request).projects is not None
    subscription = hub.subscribe(types, projects, strict=strict, on_overflow=drop)
    try:
        ws = await accept_websocket(request)
        async with keepalive(ws):
            await _send_events(ws, subscription, request)
    finally:
        subscription.close()
    return ws


async def _send_events(ws: web.WebSocketResponse, subscription: Subscription, request: web.Request) -> None:
    """Send until the client leaves, the hub closes, or the client is too slow."""

    async def listen() -> None:
        while (await ws.receive()).type in (WSMsgType.TEXT, WSMsgType.BINARY):
            pass  # clients have nothing to say here
        subscription.close()

    listener = spawn(listen(), name="events listener")
    try:
        async for encoded in subscription:
            await ws.send_frame(encoded, WSMsgType.TEXT)
    except (ConnectionError, SlowSubscriberError):
        return
    finally:
        listener.cancel()
        if request.transport is not None:
            request.transport.close()  # Incus clients neither send nor expect a close frame
