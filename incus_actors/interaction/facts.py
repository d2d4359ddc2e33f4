"""Facts about members, as `expect` and `run … until` compare them.

Owns the names of facts and how each is found; used by expectations.py. Must never change what it looks at.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from incus_actors.consensus.core import Core
from incus_actors.consensus.types import MemberId, Role
from incus_actors.interaction.errors import StepFailedError
from incus_actors.interaction.files import job_name

if TYPE_CHECKING:
    from incus_actors.interaction.world import World

CoreFact = Callable[["World", Core], object]


def _ids(core: Core, role: Role) -> tuple[MemberId, ...]:
    return tuple(sorted(member.id for member in core.configuration.target if member.role is role))


def _old_voters(core: Core) -> object:
    return frozenset(core.configuration.voter_sets()[0]) if core.configuration.joint else None


def _state(world: World, member: MemberId) -> tuple[str, ...]:
    return tuple(world.names.get(key, key.hex()) for key in world.machines[member].state.executed)


#: facts that only a running member has
CORE_FACTS: dict[str, CoreFact] = {
    "term": lambda world, core: core.term,
    "vote": lambda world, core: core.vote or None,
    "leader": lambda world, core: core.leader or None,
    "heir": lambda world, core: core.heir or None,
    "commit": lambda world, core: core.commit,
    "applied": lambda world, core: core.applied,
    "durable": lambda world, core: core.durable_index,
    "last_term": lambda world, core: core.log.last_term,
    "first": lambda world, core: core.first_index,
    "log": lambda world, core: tuple(entry.term for entry in core.log.entries),
    "proposals": lambda world, core: len(core.proposals),
    "voters": lambda world, core: _ids(core, Role.VOTER),
    "standbys": lambda world, core: _ids(core, Role.STANDBY),
    "spares": lambda world, core: _ids(core, Role.SPARE),
    "members": lambda world, core: tuple(sorted(core.configuration.members())),
    "removed": lambda world, core: tuple(sorted(core.configuration.removed)),
    "joint": lambda world, core: core.configuration.joint,
    "old_voters": lambda world, core: _old_voters(core),
    "config_index": lambda world, core: core.log.configuration_index,
    "config_committed": lambda world, core: core.log.configuration_index <= core.commit,
    "installing": lambda world, core: core.receiver.installing,
    "timeout": lambda world, core: core.election_timeout_ms,
    "incarnation": lambda world, core: core.incarnation,
    "features": lambda world, core: core.features,
}
#: facts that outlive the process
MACHINE_FACTS: dict[str, Callable[[World, MemberId], object]] = {
    "role": lambda world, member: "down" if member not in world.cores else world.cores[member].role.value,
    "running": lambda world, member: member in world.cores,
    "state": _state,
    "feature_level": lambda world, member: world.machines[member].state.level,
    "writes": lambda world, member: len(world.writes[member]),
    "applies": lambda world, member: len(world.applies[member]),
    "jobs": lambda world, member: tuple(job_name(job) for job in world.jobs[member]),
    "clock": lambda world, member: world.clocks[member],
    "amnesia": lambda world, member: world.machines[member].durable.amnesia,
    "durable_term": lambda world, member: world.machines[member].durable.hard.term,
    "durable_vote": lambda world, member: world.machines[member].durable.hard.vote or None,
    "disk_last": lambda world, member: world.machines[member].last,
    "cause": lambda world, member: (world.role_causes.get(member) or ["none"])[-1],
}
#: what a leader knows about another member: `match.2=5`
PEER_FACTS = ("match", "next", "progress", "in_flight", "caught_up", "peer_applied", "link")
_DOTTED = re.compile(r"^([a-z_]+)\.([a-z_0-9]+)$")


def known_fact(name: str) -> bool:
    """Return whether scripts may ask for this fact."""
    if name in CORE_FACTS or name in MACHINE_FACTS or name == "last":
        return True
    match = _DOTTED.match(name)
    return match is not None and (match[1] == "counter" or (match[1] in PEER_FACTS and match[2].isdigit()))


def fact_names() -> list[str]:
    """Return every name, for suggestions and for the documentation."""
    return [*MACHINE_FACTS, *CORE_FACTS, "last", *(f"{name}.ID" for name in PEER_FACTS), "counter.NAME"]


def fact(world: World, member: MemberId, name: str, value: str) -> object:
    """Return a fact about a member. `value`: what it will be compared with, for facts of two forms.

    Raises StepFailedError when the member has no such fact now.
    """
    if name in MACHINE_FACTS:
        return MACHINE_FACTS[name](world, member)
    match = _DOTTED.match(name)
    if match is not None and match[1] == "counter":
        return world.counters.get((member, match[2]), 0)
    core = world.running(member)
    if name == "last":
        return f"{core.last_index}/{core.log.last_term}" if "/" in value else core.last_index
    if match is not None:
        return _peer_fact(core, match[1], int(match[2]))
    return CORE_FACTS[name](world, core)


def _peer_fact(core: Core, name: str, peer: MemberId) -> object:
    view = next((view for view in core.peers() if view.id == peer), None)
    if view is None:
        raise StepFailedError(f"member {core.id} has no progress of member {peer}: it is {core.role.value}")
    values: dict[str, object] = {
        "match": view.match,
        "next": view.next,
        "progress": view.state,
        "in_flight": view.in_flight,
        "caught_up": view.caught_up,
        "peer_applied": view.applied,
        "link": view.link,
    }
    return values[name]
