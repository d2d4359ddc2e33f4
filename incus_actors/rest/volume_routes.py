"""/1.0/storage-pools/<pool>/volumes: list, create, show, state, change, rename, delete (CONTRACT 13).

Owns the shapes of requests and answers; handlers parse and call VolumeService, they hold no rule. What only reads
rows is answered by any member, everything else by the one that has the volume.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from aiohttp import web

from incus_actors.errors import BadRequestError, ForbiddenError, MemberError
from incus_actors.gateway.volume_transfer import STREAM_PATH, read_request
from incus_actors.model.volumes import Volume, VolumePost, VolumePut, VolumesPost
from incus_actors.rest.context import caller, gateway
from incus_actors.rest.filters import filter_objects
from incus_actors.rest.http import (
    Handler,
    RouteSpec,
    accepted,
    all_projects,
    check_etag,
    created,
    decode_json,
    etag_of,
    project_of,
    read_body,
    read_json,
    recursion,
    sync,
)
from incus_actors.rest.volume_backup_routes import post_upload
from incus_actors.rest.volume_requests import ALL, OF_TYPE, ONE, address, here, start, use_cases
from incus_actors.services.urls import url_of
from incus_actors.services.volume_rules import check_new_name
from incus_actors.services.volumes import editable

if TYPE_CHECKING:
    from incus_actors.gateway.operations import Operation


def routes() -> list[RouteSpec]:
    """Return the routes of this module."""
    return [
        RouteSpec("GET", ALL, get_volumes, project_scoped=True),
        RouteSpec("POST", ALL, post_volumes, project_scoped=True, forward="target", own=True),
        RouteSpec("GET", OF_TYPE, get_volumes, project_scoped=True),
        RouteSpec("POST", OF_TYPE, post_volumes, project_scoped=True, forward="target", own=True),
        RouteSpec("GET", ONE, get_volume, project_scoped=True),
        RouteSpec("PUT", ONE, _no_snapshot(here(put_volume)), project_scoped=True),
        RouteSpec("PATCH", ONE, _no_snapshot(here(patch_volume)), project_scoped=True),
        RouteSpec("POST", ONE, _no_snapshot(post_volume), project_scoped=True),
        RouteSpec("DELETE", ONE, _no_snapshot(here(delete_volume)), project_scoped=True),
        RouteSpec("GET", f"{ONE}/state", here(get_state), project_scoped=True),
        RouteSpec("GET", STREAM_PATH, send_to_member, access="member"),
    ]


def _no_snapshot(handler: Handler) -> Handler:
    """Refuse what snapshots, which can be read here as "volume/snapshot", are only told below their volumes."""

    async def handle(request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if "/" not in name:
            return await handler(request)
        if request.method == "PUT":
            raise MemberError("Volume name cannot be a snapshot")
        text = f'Invalid storage volume "{name}"' if request.method == "DELETE" else "Invalid volume name"
        raise BadRequestError(text)

    return handle


async def get_volumes(request: web.Request) -> web.StreamResponse:
    """URLs or volumes of a pool with their snapshots, from every member."""
    pool, type_ = request.match_info["pool"], request.match_info.get("type")
    everything = all_projects(request)
    target = request.query.get("target", "")
    found = use_cases(request).life.all_of(
        pool,
        None if everything else project_of(request),
        type_,
        gateway(request).routing.member_named(target) if target else None,
    )
    allowed = caller(request).projects
    if everything and allowed is not None:
        found = [volume for volume in found if volume.project in allowed]
    try:
        found = filter_objects(found, request.query.get("filter"))
    except BadRequestError as error:
        raise MemberError(str(error)) from None  # of volumes Incus answers 500
    if recursion(request):
        return sync(found)
    clustered = gateway(request).identity.clustered
    return sync([_url(pool, volume, volume.location if clustered else "") for volume in found])


def _url(pool: str, volume: Volume, member: str) -> str:
    name, _, snapshot = volume.name.partition("/")
    parts = ("storage-pools", pool, "volumes", volume.type, name)
    return url_of(*parts, *(("snapshots", snapshot) if snapshot else ()), project=volume.project, target=member)


async def post_volumes(request: web.Request) -> web.StreamResponse:
    """Create a custom volume: an empty one at once, anything else as an operation."""
    if request.content_type == "application/octet-stream":
        use_cases(request).life.check_pool(request.match_info["pool"], request.match_info.get("type", "custom"))
        return await post_upload(request)
    body = await read_body(request)
    post = decode_json(body, VolumesPost)
    pool, project = request.match_info["pool"], project_of(request)
    service = use_cases(request).life
    service.check_new(pool, request.match_info.get("type") or post.type, post)
    if post.source.type:
        return await _copy(request, body, post)
    await service.create(pool, project, post, caller(request))
    return sync()


async def _copy(request: web.Request, body: bytes, post: VolumesPost) -> web.StreamResponse:
    service, who = use_cases(request).copies, caller(request)
    pool, project = request.match_info["pool"], project_of(request)
    service.check(post.source)
    if who.projects is not None and (post.source.project or project) not in who.projects:
        raise ForbiddenError
    if not request.query.get("target") and not who.forwarded:
        member_id = service.member_for(project, post.source)
        if member_id is not None and not gateway(request).routing.is_here(member_id):
            return await gateway(request).forwarder.forward(request, member_id, body=body)
    use_cases(request).life.check_free(pool, project, post.name)

    async def run(operation: Operation) -> None:
        await service.copy(pool, project, post, operation.progress, who)

    return accepted(start(request, "Copying storage volume", {}, run))


async def get_volume(request: web.Request) -> web.StreamResponse:
    """One volume."""
    found = use_cases(request).life.get(address(request))
    return sync(found, etag=etag_of(editable(found)))


async def get_state(request: web.Request) -> web.StreamResponse:
    """What a volume uses."""
    return sync(await use_cases(request).life.state(address(request)))


async def put_volume(request: web.Request) -> web.StreamResponse:
    """Replace description and config, or restore a snapshot."""
    return await _change(request, patch=False)


async def patch_volume(request: web.Request) -> web.StreamResponse:
    """Change single keys."""
    return await _change(request, patch=True)


async def _change(request: web.Request, *, patch: bool) -> web.StreamResponse:
    put = await read_json(request, VolumePut)
    await use_cases(request).life.update(
        address(request),
        put,
        patch=patch,
        expect=lambda current: check_etag(request, current),
        caller=caller(request),
    )
    return sync()


async def post_volume(request: web.Request) -> web.StreamResponse:
    """Rename a volume, or move it to another pool or project."""
    body = await read_body(request)
    post = decode_json(body, VolumePost)
    check_new_name(request.match_info["type"], post)
    volume, who, cases = address(request), caller(request), use_cases(request)
    member_id = cases.life.locate(volume)
    if member_id is not None and not gateway(request).routing.is_here(member_id):
        return await gateway(request).forwarder.forward(request, member_id, body=body)
    if post.pool in ("", volume.pool) and post.project in ("", volume.project):
        await cases.life.rename(volume, post, who)
        return created(url_of("storage-pools", volume.pool, "volumes", volume.type, post.name, project=volume.project))
    if who.projects is not None and post.project and post.project not in who.projects:
        raise ForbiddenError
    cases.life.check_move(volume, post)

    async def run(operation: Operation) -> None:
        await cases.copies.move(volume, post, operation.progress, who)

    return accepted(start(request, "Moving storage volume", {}, run))


async def send_to_member(request: web.Request) -> web.StreamResponse:
    """The bytes of a volume for another member."""
    wanted = read_request(request.match_info["id"], request.query)
    response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
    async with aclosing(use_cases(request).sender.open(wanted)) as chunks:
        first = await anext(chunks)  # an error at the beginning is an answer still
        await response.prepare(request)
        await response.write(first)
        async for chunk in chunks:
            await response.write(chunk)
    await response.write_eof()
    return response


async def delete_volume(request: web.Request) -> web.StreamResponse:
    """Remove a volume."""
    await use_cases(request).life.delete(address(request), caller(request))
    return sync()
