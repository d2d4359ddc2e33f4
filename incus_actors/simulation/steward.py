"""What the leader's daemon does about members: the role policy, and new ids for those that have forgotten.

Owns what actors/leader.py does in the daemon, against the core of whoever leads now: where the members shall go is
said by the same functions of consensus/policy.py, on the same view of their health. Called by the world twice a second.
Must never touch a voter set that cannot decide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from incus_actors.consensus.core import Core
from incus_actors.consensus.policy import PlanPacer, plan, swapped
from incus_actors.consensus.types import Member, MemberId, Role

if TYPE_CHECKING:
    from incus_actors.simulation.host import Host
    from incus_actors.simulation.world import World

EVERY_US = 500_000
MAX_VOTERS = 3
MAX_STANDBY = 2


class Steward:
    """Looks after the members."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.successors: dict[MemberId, MemberId] = {}
        self.pacer = PlanPacer()

    def look(self) -> None:
        """Do one thing, if there is one to do."""
        self.world.after(EVERY_US, self.look)
        leader = self.world.leader()
        if leader is None or leader.core is None or leader.frozen:
            return
        configuration = leader.core.configuration
        if configuration.joint:
            return
        target = self._replace_burnt(leader, leader.core)
        if target is None and self.world.plan.policy:
            target = self._by_policy(leader, leader.core)
        if target is not None and target != configuration.old:
            self.world.change(leader, target)

    def _replace_burnt(self, leader: Host, core: Core) -> tuple[Member, ...] | None:
        """A machine that has lost its promises comes back under a new id (CONSENSUS 3.5)."""
        members = core.configuration.old
        for member in members:
            if not self.world.hosts[member.id].burnt:
                continue
            successor = self.successors.get(member.id)
            gone = successor in core.configuration.removed
            if successor is None or gone or self.world.hosts[successor].burnt:
                successor = self.successors[member.id] = self.world.join(leader).id
            newcomer = Member(successor, f"m{successor}", Role.SPARE, member.domain)
            return swapped(members, member.id, newcomer, core.health(), MAX_VOTERS)
        return None

    def _by_policy(self, leader: Host, core: Core) -> tuple[Member, ...] | None:
        since = core.leading_since_ms()
        now = leader.local_ms()
        present = core.configuration.old
        target = plan(core.configuration, core.health(), MAX_VOTERS, MAX_STANDBY, leader=leader.id)
        if target is None or since is None or not self.pacer.may_go(present, target, now, since):
            return None
        self.pacer.went(present, target, now)
        return target
