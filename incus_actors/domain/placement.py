"""Where a new instance goes: filter the candidates, take the one with the fewest instances.

Owns the pure rule; services/instances.py asks it, and puts the choice's preconditions into its transaction as
guards (`eligible_guard`), because a member may change between the choice and the commit. Must never look at the
cluster itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from incus_actors.domain.members import MemberState
from incus_actors.model.transaction import Guard


@dataclass(frozen=True, slots=True)
class Candidate:
    """A member as placement sees it."""

    member_id: int
    name: str
    instances: int
    online: bool
    state: int = MemberState.CREATED
    architectures: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset({"default"})
    scheduler: str = "all"  #: `scheduler.instance`: all, manual (only by name), group (only by name or group)


def candidates(
    members: Iterable[Candidate], *, architecture: str | None = None, group: str | None = None
) -> list[Candidate]:
    """Return the members that may get a new instance whose target is not named, best first.

    Not pending, evacuated or offline; able to run `architecture`; in `group` if one is asked for. Best: fewest
    instances, then lowest id.
    """
    fit = [
        member
        for member in members
        if member.state == MemberState.CREATED
        and member.online
        and member.scheduler != "manual"
        and (member.scheduler != "group" or group is not None)
        and (group is None or group in member.groups)
        and (architecture is None or architecture in member.architectures)
    ]
    return sorted(fit, key=lambda member: (member.instances, member.member_id))


def choose(
    members: Iterable[Candidate], *, architecture: str | None = None, group: str | None = None
) -> Candidate | None:
    """Return the best candidate, or None if no member may take the instance."""
    fit = candidates(members, architecture=architecture, group=group)
    return fit[0] if fit else None


def eligible_guard(member_id: int) -> Guard:
    """Return a guard (label "placement") that holds while the member is a full, not evacuated member."""
    return Guard("SELECT state FROM nodes WHERE id = ?", (member_id,), ((int(MemberState.CREATED),),), "placement")
