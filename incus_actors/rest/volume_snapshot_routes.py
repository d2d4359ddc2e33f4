"""/1.0/storage-pools/<pool>/volumes/<type>/<volume>/snapshots (CONTRACT 13).

Owns the shapes of requests and answers; handlers parse and call VolumeSnapshotService, they hold no rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from incus_actors.model.resources import NamePost
from incus_actors.model.volumes import SnapshotPut, SnapshotsPost
from incus_actors.rest.context import caller
from incus_actors.rest.http import RouteSpec, accepted, check_etag, etag_of, read_json, recursion, sync
from incus_actors.rest.volume_requests import ONE, address, here, start, use_cases, volume_url
from incus_actors.services.volume_snapshots import editable

if TYPE_CHECKING:
    from incus_actors.gateway.operations import Operation

_ALL = f"{ONE}/snapshots"
_SNAPSHOT = f"{_ALL}/{{snapshot}}"


def routes() -> list[RouteSpec]:
    """Return the routes of this module."""
    return [
        RouteSpec("GET", _ALL, get_snapshots, project_scoped=True),
        RouteSpec("POST", _ALL, here(post_snapshots), project_scoped=True),
        RouteSpec("GET", _SNAPSHOT, get_snapshot, project_scoped=True),
        RouteSpec("PUT", _SNAPSHOT, here(put_snapshot), project_scoped=True),
        RouteSpec("PATCH", _SNAPSHOT, here(patch_snapshot), project_scoped=True),
        RouteSpec("POST", _SNAPSHOT, here(post_snapshot), project_scoped=True),
        RouteSpec("DELETE", _SNAPSHOT, here(delete_snapshot), project_scoped=True),
    ]


def _name(request: web.Request) -> str:
    return request.match_info["snapshot"]


def _resources(request: web.Request, name: str) -> dict[str, list[str]]:
    return {"storage_volume_snapshots": [volume_url(request, "snapshots", name)]}


async def get_snapshots(request: web.Request) -> web.StreamResponse:
    """URLs or snapshots of a volume."""
    service = use_cases(request).snapshots
    if recursion(request):
        return sync(service.all_of(address(request)))
    return sync([volume_url(request, "snapshots", name) for name in service.names(address(request))])


async def post_snapshots(request: web.Request) -> web.StreamResponse:
    """Make a snapshot."""
    service, who, volume = use_cases(request).snapshots, caller(request), address(request)
    post = await read_json(request, SnapshotsPost)
    service.check_new(volume, post)

    async def run(_operation: Operation) -> None:
        await service.create(volume, post, who)

    resources = _resources(request, post.name) | {"storage_volumes": [volume_url(request)]}
    return accepted(start(request, "Creating storage volume snapshot", resources, run))


async def get_snapshot(request: web.Request) -> web.StreamResponse:
    """One snapshot."""
    found = use_cases(request).snapshots.get(address(request), _name(request))
    return sync(found, etag=etag_of(editable(found)))


async def put_snapshot(request: web.Request) -> web.StreamResponse:
    """Change description and expiry."""
    return await _change(request, patch=False)


async def patch_snapshot(request: web.Request) -> web.StreamResponse:
    """Change one of description and expiry."""
    return await _change(request, patch=True)


async def _change(request: web.Request, *, patch: bool) -> web.StreamResponse:
    put = await read_json(request, SnapshotPut)
    await use_cases(request).snapshots.update(
        address(request),
        _name(request),
        put,
        patch=patch,
        expect=lambda current: check_etag(request, current),
        caller=caller(request),
    )
    return sync()


async def post_snapshot(request: web.Request) -> web.StreamResponse:
    """Rename a snapshot."""
    service, who, volume, name = use_cases(request).snapshots, caller(request), address(request), _name(request)
    post = await read_json(request, NamePost)
    service.check_rename(post.name)

    async def run(_operation: Operation) -> None:
        await service.rename(volume, name, post.name, who)

    return accepted(start(request, "Renaming storage volume snapshot", _resources(request, name), run))


async def delete_snapshot(request: web.Request) -> web.StreamResponse:
    """Remove a snapshot."""
    service, who, volume, name = use_cases(request).snapshots, caller(request), address(request), _name(request)
    service.check_delete(volume, name)

    async def run(_operation: Operation) -> None:
        await service.delete(volume, name, who)

    return accepted(start(request, "Deleting storage volume snapshot", _resources(request, name), run))
