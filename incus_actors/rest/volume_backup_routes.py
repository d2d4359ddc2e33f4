"""/1.0/storage-pools/<pool>/volumes/<type>/<volume>/backups, and volumes out of uploads (CONTRACT 13).

Owns the shapes of requests and answers: bodies that stream in and out. Handlers parse and call VolumeBackupService;
they must hold no rule, nor a whole archive in memory.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import web

from incus_actors.gateway.image_transfer import write_file
from incus_actors.model.resources import NamePost
from incus_actors.model.volumes import BackupsPost
from incus_actors.rest.context import caller
from incus_actors.rest.http import RouteSpec, accepted, project_of, read_json, recursion, sync, url_of
from incus_actors.rest.volume_requests import ONE, address, here, start, use_cases, volume_url
from incus_actors.services.volume_rules import check_name

if TYPE_CHECKING:
    from incus_actors.gateway.operations import Operation

_ALL = f"{ONE}/backups"
_BACKUP = f"{_ALL}/{{backup}}"
_CHUNK_BYTES = 256 << 10


def routes() -> list[RouteSpec]:
    """Return the routes of this module."""
    return [
        RouteSpec("GET", _ALL, here(get_backups), project_scoped=True),
        RouteSpec("POST", _ALL, here(post_backups), project_scoped=True),
        RouteSpec("GET", _BACKUP, here(get_backup), project_scoped=True),
        RouteSpec("POST", _BACKUP, here(post_backup), project_scoped=True),
        RouteSpec("DELETE", _BACKUP, here(delete_backup), project_scoped=True),
        RouteSpec("GET", f"{_BACKUP}/export", here(export_backup), project_scoped=True),
    ]


def _name(request: web.Request) -> str:
    return request.match_info["backup"]


def _resources(request: web.Request, name: str) -> dict[str, list[str]]:
    return {"backups": [volume_url(request, "backups", name)], "storage_volumes": [volume_url(request)]}


async def get_backups(request: web.Request) -> web.StreamResponse:
    """URLs or backups of a volume."""
    found = use_cases(request).backups.all_of(address(request))
    return sync(found if recursion(request) else [volume_url(request, "backups", backup.name) for backup in found])


async def post_backups(request: web.Request) -> web.StreamResponse:
    """Make a backup."""
    service, who, volume = use_cases(request).backups, caller(request), address(request)
    post = await read_json(request, BackupsPost)
    service.check_new(volume, post)

    async def run(_operation: Operation) -> None:
        await service.create(volume, post, who)

    return accepted(start(request, "Creating custom volume backup", _resources(request, post.name), run))


async def get_backup(request: web.Request) -> web.StreamResponse:
    """One backup."""
    return sync(use_cases(request).backups.get(address(request), _name(request)))


async def post_backup(request: web.Request) -> web.StreamResponse:
    """Rename a backup."""
    service, who, volume, name = use_cases(request).backups, caller(request), address(request), _name(request)
    post = await read_json(request, NamePost)
    service.get(volume, name)

    async def run(_operation: Operation) -> None:
        await service.rename(volume, name, post.name, who)

    return accepted(start(request, "Renaming custom volume backup", _resources(request, name), run))


async def delete_backup(request: web.Request) -> web.StreamResponse:
    """Remove a backup."""
    service, who, volume, name = use_cases(request).backups, caller(request), address(request), _name(request)
    service.get(volume, name)

    async def run(_operation: Operation) -> None:
        await service.delete(volume, name, who)

    return accepted(start(request, "Deleting custom volume backup", _resources(request, name), run))


async def export_backup(request: web.Request) -> web.StreamResponse:
    """The archive."""
    name = _name(request)
    path = use_cases(request).backups.file(address(request), name, caller(request))
    headers = {"Content-Type": "application/octet-stream", "Content-Disposition": f"inline;filename={path.name}"}
    response = web.StreamResponse(headers=headers)
    response.content_length = (await asyncio.to_thread(path.stat)).st_size
    await response.prepare(request)
    await write_file(response, path)
    await response.write_eof()
    return response


async def post_upload(request: web.Request) -> web.StreamResponse:
    """Make a volume of an uploaded backup or ISO image (POST …/volumes/custom with bytes instead of JSON)."""
    service, who, project = use_cases(request).backups, caller(request), project_of(request)
    pool, name = request.match_info["pool"], request.headers.get("X-Incus-name", "")
    is_iso = request.headers.get("X-Incus-type", "") == "iso"
    if name or is_iso:
        check_name(name or " ")
    upload = await service.save_upload(request.content.iter_chunked(_CHUNK_BYTES))

    async def run(_operation: Operation) -> None:
        try:
            make = service.import_iso if is_iso else service.import_backup
            await make(pool, project, name, upload, who)
        finally:
            upload.unlink(missing_ok=True)

    url = url_of("storage-pools", pool, "volumes", "custom", name, project=project)
    description = "Creating storage volume" if is_iso else "Restoring custom volume backup"
    return accepted(start(request, description, {"storage_volumes": [url]}, run))
