"""/1.0/profiles.

Owns the shapes of CONTRACT 12; handlers parse and call ProfileService, they hold no rule.
"""

from __future__ import annotations

from aiohttp import web

from incus_actors.model.resources import NamePost, ProfilePut, ProfilesPost
from incus_actors.rest.context import caller, gateway
from incus_actors.rest.http import (
    RouteSpec,
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
from incus_actors.services.profiles import editable

_PATH = "/1.0/profiles"
_ONE = "/1.0/profiles/{name}"


def routes() -> list[RouteSpec]:
    """Return the routes of this module."""
    return [
        RouteSpec("GET", _PATH, get_profiles, project_scoped=True),
        RouteSpec("POST", _PATH, post_profiles, project_scoped=True),
        RouteSpec("GET", _ONE, get_profile, project_scoped=True),
        RouteSpec("PUT", _ONE, put_profile, project_scoped=True),
        RouteSpec("PATCH", _ONE, patch_profile, project_scoped=True),
        RouteSpec("POST", _ONE, post_profile, project_scoped=True),
        RouteSpec("DELETE", _ONE, delete_profile, project_scoped=True),
    ]


def _lifecycle(request: web.Request, action: str, name: str, **context: str) -> str:
    """Tell that a profile of the request's project changed; return its URL."""
    here = gateway(request)
    owner = here.services.profiles.owner(project_of(request))
    source = url_of("profiles", name, project=owner)
    here.events.lifecycle(action, source, project=owner, caller=caller(request), name=name, context=context or None)
    return source


async def get_profiles(request: web.Request) -> web.StreamResponse:
    """GET /1.0/profiles."""
    found = visible(request, gateway(request).services.profiles.list, exclusive=False)  # ?project= with it is ignored
    if recursion(request):
        return sync(found)
    return sync([url_of("profiles", profile.name, project=profile.project) for profile in found])


async def post_profiles(request: web.Request) -> web.StreamResponse:
    """POST /1.0/profiles."""
    post = await read_json(request, ProfilesPost)
    await gateway(request).services.profiles.create(project_of(request), post)
    return created(_lifecycle(request, "profile-created", post.name))


async def get_profile(request: web.Request) -> web.StreamResponse:
    """GET one."""
    found = gateway(request).services.profiles.get(project_of(request), request.match_info["name"])
    return sync(found, etag=etag_of(editable(found)))


async def put_profile(request: web.Request) -> web.StreamResponse:
    """PUT one."""
    return await _change(request, patch=False)


async def patch_profile(request: web.Request) -> web.StreamResponse:
    """PATCH one."""
    return await _change(request, patch=True)


async def _change(request: web.Request, *, patch: bool) -> web.StreamResponse:
    name = request.match_info["name"]
    put = await read_json(request, ProfilePut)
    service = gateway(request).services.profiles
    await service.update(
        project_of(request), name, put, patch=patch, expect=lambda current: check_etag(request, current)
    )
    _lifecycle(request, "profile-updated", name)
    return sync()


async def post_profile(request: web.Request) -> web.StreamResponse:
    """POST one: rename it."""
    name = request.match_info["name"]
    post = await read_json(request, NamePost)
    await gateway(request).services.profiles.rename(project_of(request), name, post)
    return created(_lifecycle(request, "profile-renamed", post.name, old_name=name))


async def delete_profile(request: web.Request) -> web.StreamResponse:
    """DELETE one."""
    name = request.match_info["name"]
    await gateway(request).services.profiles.delete(project_of(request), name)
    _lifecycle(request, "profile-deleted", name)
    return sync()
