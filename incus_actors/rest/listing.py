"""What a list shows: the things of one project or, with ?all-projects, of all that the caller may see.

Owns that rule for handlers of GET on a collection; must never show a thing of a project that is closed to the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from aiohttp import web

from incus_actors.rest.context import caller
from incus_actors.rest.filters import filter_objects
from incus_actors.rest.http import all_projects, project_of


class OfProject(Protocol):
    """Something that belongs to a project."""

    @property
    def project(self) -> str:
        """Its name."""


T = TypeVar("T", bound=OfProject)


def visible(request: web.Request, find: Callable[[str | None], Iterable[T]], *, exclusive: bool = True) -> list[T]:
    """Return what `find` gives for a project (None: for all) as the caller may see it, and as ?filter= lets it through.

    `exclusive`: see `all_projects`. Raises BadRequestError, MemberError.
    """
    if all_projects(request, exclusive=exclusive):
        allowed = caller(request).projects
        found = [each for each in find(None) if allowed is None or each.project in allowed]
    else:
        found = list(find(project_of(request)))
    return filter_objects(found, request.query.get("filter"))
