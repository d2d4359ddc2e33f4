"""Where a new instance goes: filter the candidates, take the one with the fewest instances.

Owns the pure rule; services/instance_placement.py asks it, and transactions_instances puts the choice's preconditions into its transaction as
guards (`eligible_guard`), because a member may change between the choice and the commit. Must never look at the
cluster itself. Requests that run at the same time are spread by `Reservations`: an instance counts from the moment at
which it is placed, not only from when its row is committed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from incus_actors.domain.members import MemberState
from incus_actors.model.transaction import Guard

#: An instance that has no row after so long has failed, or waits for an image: it counts no more.
RESERVED_S: Final = 60.0
RESERVATIONS_MAX: Final = 4096


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


class Reservations:
    """Instances that have been placed and have no row yet."""

    def __init__(self) -> None:
        self._placed: dict[tuple[str, str], tuple[int, float]] = {}

    def choose(
        self,
        key: tuple[str, str],
        members: Sequence[int],
        counts: Mapping[int, int],
        *,
        has_row: Callable[[tuple[str, str]], bool],
        now_s: float,
    ) -> list[int]:
        """Return `members` with the emptiest first (of equals the lowest id), and count `key` there from now on.

        `key`: project and name of the new instance; `counts`: rows of each member; `has_row`: whether such an
        instance is among them; `now_s`: a monotonic clock.
        """
        self._placed.pop(key, None)
        self.settle(has_row=has_row, now_s=now_s)
        load = dict(counts)
        for member, _ in self._placed.values():
            load[member] = load.get(member, 0) + 1
        order = sorted(members, key=lambda member: (load.get(member, 0), member))
        if order and len(self._placed) < RESERVATIONS_MAX:
            self._placed[key] = (order[0], now_s + RESERVED_S)
        return order

    def settle(self, *, has_row: Callable[[tuple[str, str]], bool], now_s: float) -> None:
        """Forget what has a row by now, or will never have one. To be called whenever instances have changed: one that
        comes and goes unseen would count until its time is up."""
        self._placed = {
            key: (member, until) for key, (member, until) in self._placed.items() if until > now_s and not has_row(key)
        }
