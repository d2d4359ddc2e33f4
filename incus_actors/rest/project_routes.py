"""/1.0/projects.

Owns the shapes of CONTRACT 12; handlers parse and call ProjectService, they hold no rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from incus_actors.errors import ForbiddenError
from incus_actors.model.resources import NamePost, ProjectPut, ProjectsPost
from incus_actors.rest.context import caller, gateway
from incus_actors.rest.http import (
    RouteSpec,
    accepted,
    check_etag,
    created,
    etag_of,
    filter_objects,
    flag,
    read_json,
    recursion,
    sync,
    url_of,
)

if TYPE_CHECKING:
    from incus_actors.gateway.operations import Operation

_PATH = "/1.0/projects"
_ONE = "/1.0/projects/{name}"


def routes() -> list[RouteSpec]:
    """Return the routes of this module."""
    return [
        RouteSpec("GET", _PATH, get_projects),
        RouteSpec("POST", _PATH, post_projects, access="admin"),
        RouteSpec("GET", _ONE, get_project),
        RouteSpec("PUT", _ONE, put_project, access="admin"),
        RouteSpec("PATCH", _ONE, patch_project, access="admin"),
        RouteSpec("POST", _ONE, post_project, access="admin"),
        RouteSpec("DELETE", _ONE, delete_project, access="admin"),
        RouteSpec("GET", f"{_ONE}/state", get_project_state),
    ]


def _name(request: web.Request) -> str:
    """Return the project's name. Raises ForbiddenError if the caller may not see it."""
    name = request.match_info["name"]
    if not caller(request).may_use(name):
        raise ForbiddenError
    return name


def _lifecycle(request: web.Request, action: str, name: str, **context: str) -> str:
    source = url_of("projects", name)
    gateway(request).events.lifecycle(
        action, source, project=name, caller=caller(request), name=name, context=context or None
    )
    return source


async def get_projects(request: web.Request) -> web.StreamResponse:
    """GET /1.0/projects."""
    who = caller(request)
    found = [project for project in gateway(request).services.projects.list() if who.may_use(project.name)]
    found = filter_objects(found, request.query.get("filter"))
    return sync(found if recursion(request) else [url_of("projects", project.name) for project in found])


async def post_projects(request: web.Request) -> web.StreamResponse:
    """POST /1.0/projects."""
    post = await read_json(request, ProjectsPost)
    await gateway(request).services.projects.create(post)
    return created(_lifecycle(request, "project-created", post.name))


async def get_project(request: web.Request) -> web.StreamResponse:
    """GET one."""
    found = gateway(request).services.projects.get(_name(request))
    return sync(found, etag=etag_of([found.config, found.description]))


async def get_project_state(request: web.Request) -> web.StreamResponse:
    """GET limits and usage."""
    return sync(gateway(request).services.projects.state(_name(request)))


async def put_project(request: web.Request) -> web.StreamResponse:
    """PUT one."""
    return await _change(request, patch=False)


async def patch_project(request: web.Request) -> web.StreamResponse:
    """PATCH one."""
    return await _change(request, patch=True)


async def _change(request: web.Request, *, patch: bool) -> web.StreamResponse:
    name = _name(request)
    put = await read_json(request, ProjectPut)
    service = gateway(request).services.projects
    await service.update(name, put, patch=patch, expect=lambda current: check_etag(request, current))
    _lifecycle(request, "project-updated", name)
    return sync()


async def post_project(request: web.Request) -> web.StreamResponse:
    """POST one: rename it, as an operation."""
    name = _name(request)
    post = await read_json(request, NamePost)
    here = gateway(request)
    here.services.projects.check_rename(name, post)

    async def run(_operation: Operation) -> None:
        await here.services.projects.rename(name, post)
        _lifecycle(request, "project-renamed", post.name, old_name=name)

    return accepted(
        here.operations.create(
            kind="task", description="Renaming project", project=None, run=run, caller=caller(request), resources={}
        )
    )


async def delete_project(request: web.Request) -> web.StreamResponse:
    """DELETE one."""
    name = _name(request)
    await gateway(request).services.projects.delete(name, force=flag(request, "force"))
    _lifecycle(request, "project-deleted", name)
    return sync()
