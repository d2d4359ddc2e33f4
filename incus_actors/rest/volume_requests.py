"""What all routes below a storage volume share: the volume that is meant, and the member that must answer.

Owns the reading of path and query. Used by the volume route modules; must never touch a driver.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from aiohttp import web

from incus_actors.rest.context import caller, gateway
from incus_actors.rest.http import Handler, project_of, url_of
from incus_actors.services.volume_tools import VolumeAddress

if TYPE_CHECKING:
    from incus_actors.gateway.operations import Operation
    from incus_actors.services.volume_use_cases import VolumeUseCases

ALL = "/1.0/storage-pools/{pool}/volumes"
OF_TYPE = f"{ALL}/{{type}}"
ONE = f"{OF_TYPE}/{{name}}"

Work = Callable[["Operation"], Awaitable[None]]


def use_cases(request: web.Request) -> VolumeUseCases:
    """Return the services of volumes."""
    found: VolumeUseCases = gateway(request).services.volumes
    return found


def address(request: web.Request) -> VolumeAddress:
    """Return the volume that a request names; with ?target= the one of that member. Raises NotFoundError."""
    target = request.query.get("target", "")
    member_id = gateway(request).routing.member_named(target) if target else None
    info = request.match_info
    return VolumeAddress(info["pool"], project_of(request), info["type"], info["name"], member_id)


def here(handler: Handler) -> Handler:
    """Have a request answered by the member that has the volume."""

    async def handle(request: web.Request) -> web.StreamResponse:
        member_id = use_cases(request).life.locate(address(request))
        if member_id is not None and not gateway(request).routing.is_here(member_id):
            return await gateway(request).forwarder.forward(request, member_id)
        return await handler(request)

    return handle


def volume_url(request: web.Request, *parts: str) -> str:
    """Return the URL of the volume that a request names, or of something below it."""
    info = request.match_info
    path = ("storage-pools", info["pool"], "volumes", info["type"], info["name"], *parts)
    return url_of(*path, project=project_of(request))


def start(request: web.Request, description: str, resources: dict[str, list[str]], work: Work) -> Operation:
    """Begin an operation of this request's caller and project."""
    return gateway(request).operations.create(
        kind="task",
        description=description,
        project=project_of(request),
        resources=resources,
        run=work,
        caller=caller(request),
    )
