"""Whether this member leads, and the actors that it has while it does.

Owns LeadershipActor, which is always there and starts and stops its children with leadership; started by the daemon. Must
never let the work of one term go on in the next.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from incus_actors.actors.actor import Actor, ChildSpec
from incus_actors.actors.leader import PLACEMENT, WORK, LeaderActor, LeaderTools
from incus_actors.actors.placement import PlacementActor
from incus_actors.consensus.api import RoleChange
from incus_actors.consensus.types import RaftRole

log = logging.getLogger(__name__)


class RoleSeen(msgspec.Struct, frozen=True):
    """The role of this member may have changed."""

    leads: bool
    term: int


class LeadershipActor(Actor):
    """Starts a LeaderActor when this member begins to lead a term and stops it when it doesn't any more."""

    def __init__(self, tools: LeaderTools) -> None:
        self._tools = tools
        self._term = 0
        self._unsubscribe: Callable[[], None] | None = None

    async def started(self) -> None:
        """Follow the role."""
        own = self.context.self_ref

        def told(change: RoleChange) -> None:
            own.tell(RoleSeen(change.role is RaftRole.LEADER, change.term))

        self._unsubscribe = self._tools.consensus.subscribe_role(told)

    async def stopped(self, reason: str) -> None:
        """Follow it no more."""
        if self._unsubscribe is not None:
            self._unsubscribe()

    async def receive(self, message: object) -> object:
        """Start or stop the work."""
        if not isinstance(message, RoleSeen):
            return self.unhandled(message)
        term = message.term if message.leads else 0
        if term != self._term:
            self._term = term
            tools = self._tools
            for child in (WORK, PLACEMENT):
                await self.context.stop_child(child)
            if term:
                log.info("leading term %d", term)
                await self.context.spawn_child(ChildSpec(WORK, lambda: LeaderActor(tools, term), "permanent"))
                await self.context.spawn_child(
                    ChildSpec(
                        PLACEMENT,
                        lambda: PlacementActor(tools.consensus, tools.database, tools.monotonic_s),
                        "permanent",
                    )
                )
        return None
