"""Where a new instance goes: the named member, or the emptiest of those that may have it (CONTRACT 8.3).

Owns targets, groups, what a project allows, and asking the leader who comes next; called by rest/instance_routes.py
before anything is made. Without an answer of the leader the rows that this member knows decide.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final

from incus_actors.actors.host import Host
from incus_actors.actors.leader import PLACEMENT, leader_ref
from incus_actors.actors.leader_messages import PlaceInstance
from incus_actors.actors.system import ActorSystem
from incus_actors.domain.placement import Candidate, candidates
from incus_actors.domain.project_rules import allowed_groups, check_target
from incus_actors.errors import BadRequestError, ForbiddenError, MemberError, NotFoundError, UnavailableError
from incus_actors.services import project_guard
from incus_actors.services.instances import Members

log = logging.getLogger(__name__)

ASK_S: Final = 1.0
EVACUATED: Final = 2


class InstancePlacer:
    """Chooses members; makes nothing."""

    def __init__(self, host: Host, system: ActorSystem, members: Members, *, clustered: Callable[[], bool]) -> None:
        self._host = host
        self._system = system
        self._members = members
        self._clustered = clustered

    async def place(
        self, target: str, name: str, *, architecture: str | None = None, project: str = "default"
    ) -> list[int]:
        """Return the ids of the members for the new instance `name`, best first. `target`: a member, "@group" or "".

        Raises NotFoundError, BadRequestError, ForbiddenError (evacuated), MemberError when none will do.
        """
        if not self._clustered():
            if target:
                raise BadRequestError("Target only allowed when clustered")
            return [self._host.member_id()]
        members = self._members.candidates()
        config = project_guard.config_of(self._host.database(), project)
        if target and not target.startswith("@"):
            return [_named(members, target, config)]
        group = target.removeprefix("@") or None
        if group is not None and not self._group_exists(group):
            raise BadRequestError(f'Cluster group "{group}" doesn\'t exist')
        check_target(config, target, ())
        allowed = allowed_groups(config)
        if allowed is not None:
            members = [member for member in members if member.groups & allowed]
        fit = [member.member_id for member in candidates(members, architecture=architecture, group=group)]
        if not fit:
            raise MemberError("Couldn't find a cluster member for the instance")
        return await self._spread(PlaceInstance(project, name, tuple(fit))) if len(fit) > 1 else fit

    def _group_exists(self, group: str) -> bool:
        return bool(self._host.database().scalar("SELECT COUNT(*) FROM cluster_groups WHERE name = ?", (group,)))

    async def _spread(self, wish: PlaceInstance) -> list[int]:
        """Let the leader, who knows what else is being placed, say the order."""
        try:
            answer = await leader_ref(self._system, self._host.consensus(), child=PLACEMENT).ask(wish, deadline_s=ASK_S)
        except UnavailableError as error:
            log.info("placing %s without the leader: %s", wish.name, error)
            return list(wish.members)
        return list(answer.members)


def _named(members: list[Candidate], target: str, config: Mapping[str, str]) -> int:
    named = next((member for member in members if member.name == target), None)
    if named is None:
        raise NotFoundError(f'Cluster member "{target}" not found')
    check_target(config, target, named.groups)
    if named.state == EVACUATED:
        raise ForbiddenError("Cluster member is evacuated")
    return named.member_id
