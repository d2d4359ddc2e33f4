"""/1.0/instances: list, create, show, state, update, rename, delete, logs (CONTRACT 8).

Owns the shapes of requests and answers; everything that takes time is an operation. Handlers parse and call
services; they must hold no rule. Requests on an instance arrive at the member that has it.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web

from incus_actors.errors import BadRequestError, MemberError, NotFoundError, NotImplementedHereError
from incus_actors.gateway.forwarding import NOT_READY
from incus_actors.model.instances import (
    InstancePatch,
    InstancePost,
    InstancePut,
    InstancesPost,
    InstancesPut,
    InstanceStatePut,
)
from incus_actors.rest.context import caller, gateway
from incus_actors.rest.filters import filter_objects
from incus_actors.rest.http import (
    Handler,
    RouteSpec,
    accepted,
    all_projects,
    check_etag,
    decode_json,
    etag_of,
    project_of,
    read_body,
    read_json,
    recursion,
    sync,
    url_of,
)

if TYPE_CHECKING:
    from incus_actors.gateway.operations import Operation, Run
    from incus_actors.services.instance_use_cases import InstanceUseCases

_ONE = "/1.0/instances/{name}"
_NOT_YET = {
    "/snapshots": "Snapshots of instances",
    "/snapshots/{snapshot}": "Snapshots of instances",
    "/backups": "Backups of instances",
    "/backups/{backup}": "Backups of instances",
    "/backups/{backup}/export": "Backups of instances",
    "/files": "Files of instances",
    "/sftp": "Files of instances",
    "/console": "Consoles of instances",
    "/metadata": "Image metadata and templates of instances",
    "/metadata/templates": "Image metadata and templates of instances",
}
_LOG_NAME = re.compile(r"(lxc|qemu)(\.early)?\.log|(fork|migration_|snapshot_)[A-Za-z0-9_.-]*\.log")


def routes() -> list[RouteSpec]:
    """Return the routes of this module."""

    def one(method: str, suffix: str, handler: Any) -> RouteSpec:
        return RouteSpec(method, f"{_ONE}{suffix}", handler, forward="instance", project_scoped=True)

    return [
        RouteSpec("GET", "/1.0/instances", get_instances, project_scoped=True),
        RouteSpec("POST", "/1.0/instances", post_instances, project_scoped=True),
        RouteSpec("PUT", "/1.0/instances", put_instances, project_scoped=True),
        one("GET", "", get_instance),
        one("PUT", "", put_instance),
        one("PATCH", "", patch_instance),
        one("POST", "", post_instance),
        one("DELETE", "", delete_instance),
        one("GET", "/state", get_state),
        one("PUT", "/state", put_state),
        one("GET", "/logs", get_logs),
        one("GET", "/logs/{file}", get_log),
        *(
            one(method, suffix, _not_yet(what))
            for suffix, what in _NOT_YET.items()
            for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
        ),
    ]


def _not_yet(what: str) -> Handler:
    """Return the handler of a part of instances that is not built: whether the instance is there is said truly."""

    async def handle(request: web.Request) -> web.StreamResponse:
        _use_cases(request).life.get(project_of(request), _name(request))
        if request.method == "GET" and request.path.endswith(("/snapshots", "/backups")):
            return sync([])  # none can have been made
        raise NotImplementedHereError(f"{what} are not supported yet")

    return handle


def _use_cases(request: web.Request) -> InstanceUseCases:
    return cast("InstanceUseCases", gateway(request).services.instances)


def _name(request: web.Request) -> str:
    return request.match_info["name"]


def _operation(request: web.Request, description: str, name: str, run: Run) -> web.Response:
    """Start a task on one instance and answer 202."""
    project = project_of(request)
    operation = gateway(request).operations.create(
        kind="task",
        description=description,
        project=project,
        resources={"instances": [url_of("instances", name, project=project)]},
        run=run,
        caller=caller(request),
    )
    return accepted(operation)


# --- all of them ------------------------------------------------------------------------------------------------


def projects_asked(request: web.Request) -> frozenset[str] | None:
    """Return the projects of a list request that the caller may see; None means all."""
    if all_projects(request):
        return caller(request).projects
    return frozenset((project_of(request),))


async def get_instances(request: web.Request) -> web.StreamResponse:
    """URLs, instances or full instances; filtered."""
    life = _use_cases(request).life
    projects = projects_asked(request)
    level, wanted = recursion(request), request.query.get("filter", "")
    if not level and not wanted:
        return sync([url_of("instances", name, project=project) for project, name in life.urls(projects)])
    found = await life.list_instances(projects, full=level == 2)
    found = filter_objects(found, wanted)
    if not level:
        return sync([url_of("instances", one.name, project=one.project) for one in found])
    return sync(found)


async def post_instances(request: web.Request) -> web.StreamResponse:
    """Create an instance, here or on the member that placement chooses."""
    if request.content_type == "application/octet-stream":
        raise NotImplementedHereError("Creating instances from backups is not supported yet")
    creator = _use_cases(request).creator
    who, project = caller(request), project_of(request)
    body = await read_body(request)
    post = decode_json(body, InstancesPost)
    if not who.forwarded:
        if not post.name:  # made up here, so that the leader and the member that makes it mean the same instance
            post.name = creator.free_name(project)
            body = json.dumps({**json.loads(body), "name": post.name}).encode()
        architecture = creator.image_architecture(project, post)
        members = await _use_cases(request).placer.place(
            request.query.get("target", ""), post.name, architecture=architecture, project=project
        )
        answer = await _create_elsewhere(request, members, body)
        if answer is not None:
            return answer
    creator.check(project, post)

    async def run(operation: Operation) -> None:
        await creator.create(project, post, operation.progress, who)

    return _operation(request, "Creating instance", post.name, run)


async def _create_elsewhere(request: web.Request, members: list[int], body: bytes) -> web.StreamResponse | None:
    """Return the answer of the best member that can be reached, None if that is this one.

    A member that has just died is still online for a while; nothing was done there, so the next one may do it.
    """
    for number, member in enumerate(members, start=1):
        if gateway(request).routing.is_here(member):
            return None
        try:
            return await gateway(request).forwarder.forward(request, member, body=body)
        except MemberError as error:
            if not str(error).startswith(NOT_READY) or number == len(members):
                raise
    return None


async def put_instances(request: web.Request) -> web.StreamResponse:
    """Do one thing to all instances of the project: on this member, and through it on every other."""
    put = await read_json(request, InstancesPut)
    if put.state is None:
        raise BadRequestError("No state change given")
    state, life, who = put.state, _use_cases(request).life, caller(request)
    life.check_action(state)
    projects = frozenset((project_of(request),))

    async def run(_operation_: Operation) -> None:
        await life.change_everywhere(projects, state)

    operation = gateway(request).operations.create(
        kind="task",
        description=f"{life.check_action(state)}s",
        project=project_of(request),
        run=run,
        caller=who,
    )
    return accepted(operation)


# --- one --------------------------------------------------------------------------------------------------------


async def get_instance(request: web.Request) -> web.StreamResponse:
    """One instance; with recursion=1 also its state, snapshots and backups."""
    life, project, name = _use_cases(request).life, project_of(request), _name(request)
    etag = etag_of(life.editable(project, name))
    if recursion(request):
        return sync(await life.get_full(project, name), etag=etag)
    return sync(life.get(project, name), etag=etag)


async def put_instance(request: web.Request) -> web.StreamResponse:
    """Replace what can be changed."""
    life, project, name, who = _use_cases(request).life, project_of(request), _name(request), caller(request)
    put = await read_json(request, InstancePut)
    check_etag(request, life.editable(project, name))
    life.check_put(project, put)

    async def run(_operation_: Operation) -> None:
        await life.update(project, name, put, who)

    return _operation(request, "Updating instance", name, run)


async def patch_instance(request: web.Request) -> web.StreamResponse:
    """Change single fields; answered when it is done."""
    life, project, name = _use_cases(request).life, project_of(request), _name(request)
    patch = await read_json(request, InstancePatch)
    check_etag(request, life.editable(project, name))
    await life.patch(project, name, patch, caller(request))
    return sync()


async def post_instance(request: web.Request) -> web.StreamResponse:
    """Rename; moving is not there yet."""
    life, project, name, who = _use_cases(request).life, project_of(request), _name(request), caller(request)
    post = await read_json(request, InstancePost)
    target = request.query.get("target", "")
    if post.migration or target:
        if target and target == gateway(request).identity.name:
            raise BadRequestError("Requested target server is the same as current server")
        raise NotImplementedHereError("Copying and moving instances is not supported yet")
    life.check_rename(project, name, post.name)

    async def run(_operation_: Operation) -> None:
        await life.rename(project, name, post.name, who)

    return _operation(request, "Renaming instance", name, run)


async def delete_instance(request: web.Request) -> web.StreamResponse:
    """Remove a stopped instance."""
    life, project, name, who = _use_cases(request).life, project_of(request), _name(request), caller(request)
    life.check_delete(project, name)

    async def run(_operation_: Operation) -> None:
        await life.delete(project, name, who)

    return _operation(request, "Deleting instance", name, run)


async def get_state(request: web.Request) -> web.StreamResponse:
    """What it is doing right now."""
    return sync(await _use_cases(request).life.state(project_of(request), _name(request)))


async def put_state(request: web.Request) -> web.StreamResponse:
    """Start, stop, restart, freeze, unfreeze."""
    life, project, name, who = _use_cases(request).life, project_of(request), _name(request), caller(request)
    put = await read_json(request, InstanceStatePut)
    description = life.check_action(put)
    life.place(project, name)

    async def run(_operation_: Operation) -> None:
        await life.change_state(project, name, put, who)

    return _operation(request, description, name, run)


# --- logs -------------------------------------------------------------------------------------------------------


async def get_logs(request: web.Request) -> web.StreamResponse:
    """URLs of the log files."""
    directory = _use_cases(request).life.log_directory(project_of(request), _name(request))
    names = sorted(path.name for path in directory.glob("*.log") if _LOG_NAME.fullmatch(path.name))
    return sync([f"/1.0/instances/{_name(request)}/logs/{name}" for name in names])


async def get_log(request: web.Request) -> web.StreamResponse:
    """One log file."""
    file = request.match_info["file"]
    directory = _use_cases(request).life.log_directory(project_of(request), _name(request))
    if not _LOG_NAME.fullmatch(file):
        raise BadRequestError(f'Log file name "{file}" not valid')
    path = directory / file
    if not path.is_file():
        raise NotFoundError
    headers = {"Content-Type": "application/octet-stream", "Content-Disposition": f"inline;filename={file}"}
    return web.FileResponse(path, headers=headers)
