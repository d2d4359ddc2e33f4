"""What every REST handler writes with: RouteSpec, envelopes, bodies, ETags, query parameters.

Owns the shape of requests and answers (CONTRACT 2). Used by all `rest/*_routes.py`; it must never touch the
database or an actor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar
from urllib.parse import quote

import msgspec
from aiohttp import web

from incus_actors.errors import BadRequestError, ClientError, PreconditionFailedError
from incus_actors.gateway.operations import Operation
from incus_actors.rest.filters import filter_objects as filter_objects  # for route modules: one import

T = TypeVar("T")
Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]
Access: TypeAlias = Literal["untrusted", "metrics", "trusted", "admin", "member"]
Consistency: TypeAlias = Literal["linearizable", "fallback", "local"]
Forward: TypeAlias = Literal["none", "target", "instance"]

JSON_LIMIT_BYTES = 1 << 20
_JSON = msgspec.json.Encoder()
_SORTED_JSON = msgspec.json.Encoder(order="sorted")


@dataclass(frozen=True, slots=True)
class RouteSpec:
    """One method on one path. `path` is in aiohttp's syntax: "/1.0/instances/{name}/state".

    access: "untrusted" anybody (the handler looks at `caller(request)`); "metrics" also metrics certificates;
        "trusted" every trusted caller, where one that is limited to projects may only GET unless `project_scoped`;
        "admin" trusted and not limited to projects; "member" only members and the unix socket.
    project_scoped: a caller limited to projects must name one of its own (?project=); use it for instances, images,
        profiles, ... With `all-projects` the handler filters by `caller(request).projects`.
    consistency: "linearizable" a read barrier runs before the handler (any method: handlers look things up);
        "fallback" the same, but without a quorum the handler runs on what is here; "local" never a barrier.
    forward: "target" ?target=<member> sends the whole request to that member (unknown: 404 "Cluster member not
        found"); "instance" the member that has the instance `{name}` of the request's project gets the request.
    own: without ?target= the request is about the member that is asked, so no other stands in while that one is cut off
        from the leader (gateway/detour.py); nor does one for access "member".
    during_shutdown: answer also while the daemon stops (operations, events, internal).
    upgrades: how many websockets the client connects next, as a rule: the ways to a member that has the instance
        are made at once.
    """

    method: str
    path: str
    handler: Handler
    access: Access = "trusted"
    consistency: Consistency = "linearizable"
    forward: Forward = "none"
    project_scoped: bool = False
    own: bool = False
    during_shutdown: bool = False
    upgrades: int = 0


def _envelope(head: bytes, metadata: Any, status: int, headers: dict[str, str] | None) -> web.Response:
    body = b"".join((head, _JSON.encode(metadata), b"}\n"))
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")


_SYNC = b'{"type":"sync","status":"Success","status_code":200,"operation":"","error_code":0,"error":"","metadata":'


def sync(metadata: Any = msgspec.UNSET, *, etag: str | None = None) -> web.Response:
    """Return 200 with `metadata` (`{}` when not given: the empty success of PUT, PATCH and DELETE).

    `etag` is the hex digest from `etag_of`; it goes out quoted.
    """
    headers = {"Etag": f'"{etag}"'} if etag is not None else None
    return _envelope(_SYNC, {} if metadata is msgspec.UNSET else metadata, 200, headers)


def created(location: str) -> web.Response:
    """Return 201 with a Location header; the body's metadata is null (CONTRACT 2.1)."""
    return _envelope(_SYNC, None, 201, {"Location": location})


def accepted(operation: Operation) -> web.Response:
    """Return 202 with the operation, as it is now (usually already Running)."""
    return accepted_rendered(operation.id, operation.render())


def accepted_rendered(operation_id: str, rendered: Any) -> web.Response:
    """Return 202 for an operation that is not in the local registry, such as a token row."""
    url = f"/1.0/operations/{operation_id}"
    head = (
        '{"type":"async","status":"Operation created","status_code":100,"operation":"'
        f'{url}","error_code":0,"error":"","metadata":'
    ).encode()
    return _envelope(head, rendered, 202, {"Location": url})


def error(status: int, text: str) -> web.Response:
    """Return the error envelope; the client prints `text` behind "Error: "."""
    head = (
        b'{"type":"error","status":"","status_code":0,"operation":"","error_code":'
        + str(status).encode()
        + b',"error":'
        + _JSON.encode(text)
        + b',"metadata":'
    )
    return _envelope(head, None, status, {"X-Content-Type-Options": "nosniff"})


# -- requests ---------------------------------------------------------------------------------------------------


async def read_body(request: web.Request, *, limit_bytes: int = JSON_LIMIT_BYTES) -> bytes:
    """Return the whole body. Raises ClientError 413 when it is larger than `limit_bytes`."""
    too_large = ClientError(f"Request body is larger than {limit_bytes // 1024} KiB", status=413)
    if request.content_length is not None and request.content_length > limit_bytes:
        raise too_large
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > limit_bytes:
            raise too_large
    return bytes(body)


async def read_json(request: web.Request, type_: type[T], *, limit_bytes: int = JSON_LIMIT_BYTES) -> T:
    """Return the body as `type_` (a msgspec struct, dict[str, Any], ...).

    Unknown keys are ignored (Go clients send capitalised ones); a null counts as absent, inside `config` and other
    maps of strings as "". Raises BadRequestError when the body is empty, no JSON, or of wrong types.
    """
    return decode_json(await read_body(request, limit_bytes=limit_bytes), type_)


def decode_json(body: bytes, type_: type[T]) -> T:
    """Return a body that was read already as `type_`; see `read_json`. Raises BadRequestError."""
    if not body.strip():
        raise BadRequestError("EOF")
    try:
        return msgspec.json.decode(body, type=type_)
    except msgspec.ValidationError as error_:
        return _convert_without_nulls(body, type_, error_)
    except (msgspec.DecodeError, UnicodeDecodeError) as error_:
        raise BadRequestError(f"Invalid JSON: {error_}") from None


def _convert_without_nulls(body: bytes, type_: type[T], first: msgspec.ValidationError) -> T:
    """Go leaves a field alone when it is null; msgspec refuses it. Raises BadRequestError."""
    try:
        raw = msgspec.json.decode(body)
    except msgspec.DecodeError as error_:
        raise BadRequestError(f"Invalid JSON: {error_}") from None
    except RecursionError:
        raise BadRequestError("Invalid JSON: nested too deeply") from None
    if b"null" not in body:
        raise BadRequestError(f"Invalid JSON: {first}")
    try:
        return msgspec.convert(_without_nulls(raw), type_)
    except msgspec.ValidationError as error_:
        raise BadRequestError(f"Invalid JSON: {error_}") from None


_STRING_MAPS = frozenset({"config", "environment", "properties"})


def _without_nulls(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        if key in _STRING_MAPS:
            return {k: "" if v is None else v for k, v in value.items()}
        return {k: _without_nulls(v, k) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(v) for v in value if v is not None]
    return value


_TRUE = frozenset({"1", "t", "true", "yes", "on"})


def flag(request: web.Request, name: str) -> bool:
    """Return whether the query parameter `name` is set to something true (1, true, yes, on)."""
    return request.query.get(name, "").lower() in _TRUE


def recursion(request: web.Request) -> int:
    """Return ?recursion= as 0, 1 or 2; nonsense counts as 0, as in Incus."""
    value = request.query.get("recursion", "0")
    return min(int(value), 2) if value.isascii() and value.isdigit() else 0


def project_of(request: web.Request) -> str:
    """Return the request's project, "default" when it names none."""
    return request.query.get("project") or "default"


def all_projects(request: web.Request, *, exclusive: bool = True) -> bool:
    """Return whether the request asks for every project. Raises BadRequestError when it also names one, unless not
    `exclusive` (Incus: profiles take both, instances, images and operations do not)."""
    if not flag(request, "all-projects"):
        return False
    if exclusive and request.query.get("project"):
        raise BadRequestError("Cannot specify a project when requesting all projects")
    return True


def url_of(*parts: str, project: str | None = None) -> str:
    """Return "/1.0/instances/c1" for ("instances", "c1"), with ?project= unless that is None or "default"."""
    path = "/1.0/" + "/".join(quote(part, safe="") for part in parts)
    return path if project in (None, "default") else f"{path}?project={quote(str(project), safe='')}"


# -- ETags ------------------------------------------------------------------------------------------------------


def etag_of(editable: Any) -> str:
    """Return 64 hex digits that are the same on every member. Sort lists whose order means nothing first."""
    return hashlib.sha256(_SORTED_JSON.encode(editable)).hexdigest()


def check_etag(request: web.Request, editable: Any) -> None:
    """Raise PreconditionFailedError when If-Match is there and isn't `etag_of(editable)`."""
    given = request.headers.get("If-Match", "").strip().strip('"')
    if not given:
        return
    current = etag_of(editable)
    if given != current:
        raise PreconditionFailedError(f"ETag doesn't match: {current} vs {given}")
