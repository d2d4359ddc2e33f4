"""/1.0/images: import, list, show, change, export, delete; aliases; and the copies between members (CONTRACT 11).

Owns the shapes of requests and answers: bodies that stream in and out. Handlers parse and call services; they must
hold no rule, nor a whole image in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, cast
from urllib.parse import parse_qsl, quote

from aiohttp import BodyPartReader, MultipartReader, web
from aiohttp import ClientError as ClientError_
from aiohttp.http_exceptions import HttpProcessingError

from incus_actors.errors import BadRequestError, ClientError, MemberError, NotFoundError, NotImplementedHereError
from incus_actors.gateway.image_transfer import send_image, write_file
from incus_actors.model.images import (
    ImageAliasPatch,
    ImageAliasPost,
    ImageAliasPut,
    ImageAliasRename,
    ImagePatch,
    ImagePut,
    ImagesPost,
)
from incus_actors.rest.context import caller, gateway
from incus_actors.rest.filters import filter_objects
from incus_actors.rest.http import (
    RouteSpec,
    accepted,
    check_etag,
    created,
    etag_of,
    project_of,
    read_json,
    recursion,
    sync,
    url_of,
)
from incus_actors.rest.listing import visible
from incus_actors.services.images import ImageService, Upload, editable

if TYPE_CHECKING:
    from incus_actors.drivers.images import ImageFiles
    from incus_actors.gateway.operations import Operation

_ONE = "/1.0/images/{fingerprint:[^/]+}"
_ALIAS = "/1.0/images/aliases/{name:.+}"
_CHUNK_BYTES = 256 << 10
_BROKEN = (ConnectionError, asyncio.IncompleteReadError, ClientError_, HttpProcessingError)
_EXTENSIONS = {"": "tar", "gz": "tar.gz", "xz": "tar.xz", "bz2": "tar.bz2", "zst": "tar.zst", "lzma": "tar.lzma"}


def routes() -> list[RouteSpec]:
    """Return the routes of this module; aliases before images, whose pattern would take them."""
    return [
        RouteSpec("GET", "/1.0/images", get_images, project_scoped=True),
        RouteSpec("POST", "/1.0/images", post_images, forward="target", project_scoped=True),
        RouteSpec("GET", "/1.0/images/aliases", get_aliases, project_scoped=True),
        RouteSpec("POST", "/1.0/images/aliases", post_aliases, project_scoped=True),
        RouteSpec("GET", _ALIAS, get_alias, project_scoped=True),
        RouteSpec("PUT", _ALIAS, put_alias, project_scoped=True),
        RouteSpec("PATCH", _ALIAS, patch_alias, project_scoped=True),
        RouteSpec("POST", _ALIAS, post_alias, project_scoped=True),
        RouteSpec("DELETE", _ALIAS, delete_alias, project_scoped=True),
        RouteSpec("GET", _ONE, get_image, project_scoped=True),
        RouteSpec("PUT", _ONE, put_image, project_scoped=True),
        RouteSpec("PATCH", _ONE, patch_image, project_scoped=True),
        RouteSpec("DELETE", _ONE, delete_image, project_scoped=True),
        RouteSpec("GET", f"{_ONE}/export", export_image, project_scoped=True),
        RouteSpec("POST", f"{_ONE}/refresh", refresh_image, project_scoped=True),
        RouteSpec(
            "GET", "/internal/images/{fingerprint}/export", export_to_member, access="member", consistency="local"
        ),
    ]


def _service(request: web.Request) -> ImageService:
    return cast("ImageService", gateway(request).services.images)


def _fingerprint(request: web.Request) -> str:
    return request.match_info["fingerprint"]


# --- list and show ----------------------------------------------------------------------------------------------


async def get_images(request: web.Request) -> web.StreamResponse:
    """URLs or images, filtered."""
    found = visible(request, _service(request).list_images)
    return sync(found if recursion(request) else [url_of("images", image.fingerprint) for image in found])


async def get_image(request: web.Request) -> web.StreamResponse:
    """One image; the beginning of its fingerprint is enough."""
    image = _service(request).get(project_of(request), _fingerprint(request))
    return sync(image, etag=etag_of(editable(image)))


# --- import -----------------------------------------------------------------------------------------------------


class _Body:
    """A request body on its way into an operation: the answer waits until it has been read, or given up."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self.over = asyncio.Event()

    async def whole(self) -> AsyncIterator[bytes]:
        """Yield a plain body."""
        async for chunk in self._request.content.iter_chunked(_CHUNK_BYTES):
            yield chunk
        self.over.set()

    async def drain(self) -> None:
        """Read what nobody wants any more, so that the client gets its answer."""
        with contextlib.suppress(*_BROKEN):  # the client has gone: it doesn't wait for an answer
            while await self._request.content.read(_CHUNK_BYTES):
                pass


class _Parts(_Body):
    """A multipart body: `metadata`, then `rootfs`."""

    def __init__(self, request: web.Request) -> None:
        super().__init__(request)
        self._reader: MultipartReader | None = None

    async def metadata(self) -> AsyncIterator[bytes]:
        """Yield the first part."""
        self._reader = await self._request.multipart()
        part = await self._reader.next()
        if not isinstance(part, BodyPartReader) or part.name != "metadata":
            raise BadRequestError("Invalid multipart image")
        async for chunk in self._part(part):
            yield chunk

    async def rootfs(self) -> AsyncIterator[bytes]:
        """Yield the second part."""
        part = None if self._reader is None else await self._reader.next()
        name = getattr(part, "name", None)
        if name == "rootfs.img":
            raise NotImplementedHereError("Virtual machine images are not supported yet")
        if not isinstance(part, BodyPartReader) or name != "rootfs":
            raise BadRequestError("Invalid multipart image")
        async for chunk in self._part(part):
            yield chunk
        self.over.set()

    @staticmethod
    async def _part(part: BodyPartReader) -> AsyncIterator[bytes]:
        while chunk := await part.read_chunk(_CHUNK_BYTES):
            yield chunk


async def post_images(request: web.Request) -> web.StreamResponse:
    """Take an image in; the operation ends when it is checked and registered."""
    if request.content_type == "application/json":
        return await _post_json(request)
    service, who, project = _service(request), caller(request), project_of(request)
    body: _Body
    if request.content_type == "multipart/form-data":
        parts = _Parts(request)
        body, metadata, rootfs = parts, parts.metadata(), parts.rootfs()
    else:
        body = _Body(request)
        metadata, rootfs = body.whole(), None
    properties = dict(parse_qsl(request.headers.get("X-Incus-properties", ""), keep_blank_values=True))

    async def run(operation: Operation) -> None:
        def found(fingerprint: str, size_bytes: int) -> None:
            operation.update({"fingerprint": fingerprint, "size": str(size_bytes)})

        upload = Upload(
            project=project,
            metadata=metadata,
            rootfs=rootfs,
            found=found,
            filename=request.headers.get("X-Incus-filename", ""),
            public=request.headers.get("X-Incus-public", "").lower() in ("1", "t", "true"),
            properties=properties,
            expected_fingerprint=request.headers.get("X-Incus-fingerprint", ""),
        )
        try:
            await service.add(upload, who)
        except _BROKEN as error:
            raise ClientError(f"The upload was interrupted: {error}") from error
        except ValueError as error:  # aiohttp about a malformed multipart body
            raise BadRequestError(f"Invalid multipart image: {error}") from error
        finally:
            body.over.set()

    operation = gateway(request).operations.create(
        kind="task", description="Downloading image", project=project, run=run, caller=who
    )
    await body.over.wait()
    await body.drain()
    return accepted(operation)


async def _post_json(request: web.Request) -> web.StreamResponse:
    post = await read_json(request, ImagesPost)
    if post.source.type not in ("image", "instance", "snapshot", "url"):
        raise MemberError("Invalid images JSON")
    raise NotImplementedHereError(f'Images from source type "{post.source.type}" are not supported yet')


# --- change and delete ------------------------------------------------------------------------------------------


async def put_image(request: web.Request) -> web.StreamResponse:
    """Replace what can be changed."""
    service, project, fingerprint = _service(request), project_of(request), _fingerprint(request)
    put = await read_json(request, ImagePut)
    check_etag(request, service.editable(project, fingerprint))
    await service.update(project, fingerprint, put, caller(request))
    return sync()


async def patch_image(request: web.Request) -> web.StreamResponse:
    """Change single fields and properties."""
    service, project, fingerprint = _service(request), project_of(request), _fingerprint(request)
    patch = await read_json(request, ImagePatch)
    check_etag(request, service.editable(project, fingerprint))
    await service.patch(project, fingerprint, patch, caller(request))
    return sync()


async def delete_image(request: web.Request) -> web.StreamResponse:
    """Remove an image, also one that instances were made from."""
    service, project, fingerprint, who = _service(request), project_of(request), _fingerprint(request), caller(request)
    service.editable(project, fingerprint)

    async def run(_operation: Operation) -> None:
        await service.delete(project, fingerprint, who)

    operation = gateway(request).operations.create(
        kind="task",
        description="Deleting image",
        project=project,
        resources={"images": [url_of("images", fingerprint)]},
        run=run,
        caller=who,
    )
    return accepted(operation)


async def refresh_image(request: web.Request) -> web.StreamResponse:
    """No image has a source to refresh it from yet."""
    project = project_of(request)
    image = _service(request).get(project, _fingerprint(request))

    async def run(_operation: Operation) -> None:
        raise BadRequestError(
            f'Failed to update image "{image.fingerprint}" in project "{project}": Image source not found'
        )

    operation = gateway(request).operations.create(
        kind="task", description="Refreshing image", project=project, run=run, caller=caller(request)
    )
    return accepted(operation)


# --- export -----------------------------------------------------------------------------------------------------


async def export_image(request: web.Request) -> web.StreamResponse:
    """The files, from this member or through it from one that has them."""
    service, project = _service(request), project_of(request)
    image = service.get(project, _fingerprint(request))
    files = service.files(image.fingerprint)
    if files is None:
        return await _export_elsewhere(request, image.fingerprint)
    with service.hold(image.fingerprint):
        if files.rootfs_file is None:
            name = f"{image.fingerprint}.{_EXTENSIONS.get(files.compression, 'tar')}"
            headers = {
                "Content-Type": "application/octet-stream",
                "Content-Disposition": f"inline;filename={name}",
                "X-Incus-Type": "incus",
            }
            response = web.StreamResponse(headers=headers)
            response.content_length = files.size_bytes
            await response.prepare(request)
            await write_file(response, files.metadata_file)
            await response.write_eof()
            return response
        return await _export_split(request, image.fingerprint, files)


async def _export_elsewhere(request: web.Request, fingerprint: str) -> web.StreamResponse:
    if not caller(request).forwarded:
        for member in _service(request).holders(fingerprint):
            if not gateway(request).routing.is_here(member):
                return await gateway(request).forwarder.forward(request, member)
    raise NotFoundError(f'Image "{fingerprint}" not found')


async def _export_split(request: web.Request, fingerprint: str, files: ImageFiles) -> web.StreamResponse:
    """Answer multipart/form-data with parts "metadata" and "rootfs", as written by Go."""
    boundary = f"incus-actors-{fingerprint[:32]}"
    squashfs = files.rootfs_format == "squashfs"
    names = {
        "metadata": f"meta-{fingerprint}.{_EXTENSIONS.get(files.compression, 'tar')}",
        "rootfs": f"{fingerprint}.{'squashfs' if squashfs else 'tar'}",
    }
    content_type = f"multipart/form-data; boundary={boundary}"
    response = web.StreamResponse(headers={"Content-Type": content_type, "X-Incus-Type": "incus"})
    await response.prepare(request)
    for part, path in (("metadata", files.metadata_file), ("rootfs", files.rootfs_file)):
        if path is None:
            continue
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="{part}"; filename="{names[part]}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        await response.write(head.encode())
        await write_file(response, path)
        await response.write(b"\r\n")
    await response.write(f"--{boundary}--\r\n".encode())
    await response.write_eof()
    return response


async def export_to_member(request: web.Request) -> web.StreamResponse:
    """The files for another member, in a private format; only full fingerprints."""
    service, fingerprint = _service(request), _fingerprint(request)
    files = service.files(fingerprint)
    if files is None:
        raise NotFoundError("Image not found")
    with service.hold(fingerprint):
        return await send_image(request, files)


# --- aliases ----------------------------------------------------------------------------------------------------


def _alias(request: web.Request) -> str:
    return request.match_info["name"]


async def get_aliases(request: web.Request) -> web.StreamResponse:
    """URLs or aliases."""
    found = filter_objects(_service(request).list_aliases(project_of(request)), request.query.get("filter"))
    if recursion(request):
        return sync(found)
    return sync([f"/1.0/images/aliases/{quote(alias.name, safe='')}" for alias in found])


async def post_aliases(request: web.Request) -> web.StreamResponse:
    """Create an alias."""
    post = await read_json(request, ImageAliasPost)
    await _service(request).create_alias(project_of(request), post, caller(request))
    return created(url_of("images", "aliases", post.name, project=project_of(request)))


async def get_alias(request: web.Request) -> web.StreamResponse:
    """One alias."""
    alias = _service(request).alias(project_of(request), _alias(request))
    return sync(alias, etag=etag_of({"description": alias.description, "target": alias.target}))


async def put_alias(request: web.Request) -> web.StreamResponse:
    """Replace description and target."""
    service, project, name = _service(request), project_of(request), _alias(request)
    put = await read_json(request, ImageAliasPut)
    alias = service.alias(project, name)
    check_etag(request, {"description": alias.description, "target": alias.target})
    await service.update_alias(project, name, put, caller(request))
    return sync()


async def patch_alias(request: web.Request) -> web.StreamResponse:
    """Change description or target."""
    service, project, name = _service(request), project_of(request), _alias(request)
    patch = await read_json(request, ImageAliasPatch)
    alias = service.alias(project, name)
    check_etag(request, {"description": alias.description, "target": alias.target})
    await service.patch_alias(project, name, patch, caller(request))
    return sync()


async def post_alias(request: web.Request) -> web.StreamResponse:
    """Rename an alias."""
    post = await read_json(request, ImageAliasRename)
    project = project_of(request)
    await _service(request).rename_alias(project, _alias(request), post.name, caller(request))
    return created(url_of("images", "aliases", post.name, project=project))


async def delete_alias(request: web.Request) -> web.StreamResponse:
    """Remove an alias."""
    await _service(request).delete_alias(project_of(request), _alias(request), caller(request))
    return sync()
