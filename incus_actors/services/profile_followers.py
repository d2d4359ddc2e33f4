"""After a change of a profile: every member's instances take it over before the change is answered.

Owns the asking and the text of what went wrong; called by ProfileService. Must never undo the change: it is saved,
whatever instances make of it, and a member that is away follows when it is back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import Final

from incus_actors.actors.host import INSTANCES_PATH
from incus_actors.actors.instance_messages import FOLLOW_S, FollowProfile
from incus_actors.actors.system import ActorSystem
from incus_actors.errors import ApiError, MemberError
from incus_actors.identity import Identity
from incus_actors.state.queries import profiles as queries
from incus_actors.state.queries.profiles import ProfileUser
from incus_actors.state.reader import Reader

_log = logging.getLogger(__name__)

MEMBER_S: Final = FOLLOW_S + 10.0  #: longer than the instances of a member may take


class ProfileFollowers:
    """`online` tells whether a member was heard of lately."""

    def __init__(
        self, database: Reader, identity: Identity, actors: ActorSystem, online: Callable[[int], bool]
    ) -> None:
        self._database = database
        self._identity = identity
        self._actors = actors
        self._online = online

    async def follow(self, profile_id: int, devices: Collection[str]) -> None:
        """Return when all instances of a profile, of which these devices have changed, have taken it over. Raises
        MemberError with all that failed."""
        users = queries.users(self._database, profile_id)
        members = sorted({user.node_id for user in users if self._reachable(user.node_id)})
        answers = await asyncio.gather(*(self._ask(member, users, devices) for member in members))
        failed = {instance_id: text for answer in answers for instance_id, text in answer.items()}
        lines = [
            f" - Project: {user.project}, Instance: {user.name}: {failed[user.instance_id]}\n"
            for user in sorted(users, key=lambda user: (user.project, user.name))
            if user.instance_id in failed
        ]
        if lines:
            head = "The following instances failed to update (profile change still saved):\n"
            raise MemberError(head + "".join(lines))

    def _reachable(self, member_id: int) -> bool:
        return member_id == self._identity.member_id or self._online(member_id)

    async def _ask(self, member_id: int, users: Collection[ProfileUser], devices: Collection[str]) -> dict[int, str]:
        """Return instance id → why it failed."""
        ids = [user.instance_id for user in users if user.node_id == member_id]
        try:
            answer = await self._actors.ref(INSTANCES_PATH, member_id).ask(
                FollowProfile(ids, sorted(devices)), deadline_s=MEMBER_S
            )
        except ApiError as error:
            _log.info("the instances of member %d follow their profiles later: %s", member_id, error)
            return {}
        return {int(instance_id): str(text) for instance_id, text in answer}
