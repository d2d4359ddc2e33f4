"""The second phase of a run: everything works again, so the cluster must too (P-LIVE1, P-LIVE2, CONSENSUS 4.1).

Owns the liveness checks and the judgement of the clients' history; called once per seed after the chaos.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from incus_actors.simulation.linearizability import check
from incus_actors.simulation.list_append import anomalies
from incus_actors.simulation.properties import ViolationError

if TYPE_CHECKING:
    from incus_actors.simulation.clients import Operation
    from incus_actors.simulation.host import Host
    from incus_actors.simulation.world import World

LEADER_US = 3_000_000
ANSWER_US = 6_000_000
EQUAL_US = 6_000_000
STEP_US = 50_000


class BeyondRepairError(Exception):
    """Damage has spread after healing, to so many voters that no cluster could go on: only honesty is left to ask for.

    A snapshot of a state whose damage has not shown itself yet damages who installs it (`Monitor.installed`), whatever
    the core does; burnt members never vote again (CONSENSUS 3.5, D9).
    """


def run(world: World) -> None:
    """Run one seed to its end. Raises ViolationError, or what the core raises about itself."""
    chaos_us = world.plan.chaos_ms * 1_000
    if world.plan.calm:
        world.run_until(2_500_000)
        calm_leaders = dict(world.monitor.leaders)
        world.run_until(max(chaos_us, world.now_us))
        if calm_leaders != world.monitor.leaders:
            raise ViolationError("P-NOSPUR", f"leaders {world.monitor.leaders} without a reason")
    world.run_until(chaos_us)
    heal(world)
    if world.careless:
        world.run_until(world.now_us + LEADER_US)
    else:
        with suppress(BeyondRepairError):
            _live(world)
    judge(world)


def heal(world: World) -> None:
    """Make everything work, except what is damaged for good."""
    world.note("heal", 0, "everything works from now on")
    world.chaos = False
    world.asking = False
    network = world.network
    network.plan = replace(network.plan, loss=0.0, duplicate=0.0, late=0.0, notice_lost=0.0)
    network.mend_all()
    if world.plan.upgrades:
        world.upgrades.finish()
    for host in list(world.hosts.values()):
        disk = host.disk
        disk.slow_us, disk.full, disk.fail_next, disk.free_kib = 0, False, False, 1 << 30
        disk.plan = replace(disk.plan, tail=0.0, snapshot_fails=0.0)
        disk.unhang()
        host.thaw()
        if not host.burnt:
            host.start()


def _live(world: World) -> None:
    _until(world, LEADER_US, lambda: _leader(world) is not None, "P-LIVE1", "nobody leads")
    _until(world, ANSWER_US, lambda: not _waiting(world), "P-LIVE1", "questions are not answered")
    # A state that was damaged at rest shows itself by its digest at the next entry: an idle cluster can't notice.
    _write(world)
    for client in world.clients:
        client.read_everything()
    _until(world, ANSWER_US, lambda: not _waiting(world), "P-LIVE1", "reads after healing are not answered")
    _until(world, EQUAL_US, lambda: not _behind(world), "P-LIVE2", "members are not equal")
    _until(world, ANSWER_US, world.upgrades.done, "P-FEATURE", "the new feature level is not switched on")
    leaders = dict(world.monitor.leaders)
    world.run_until(world.now_us + world.plan.steady_ms * 1_000)
    if world.monitor.leaders != leaders:
        raise ViolationError("P-LIVE1", f"leadership moved after healing: {leaders}, then {world.monitor.leaders}")


def _write(world: World) -> None:
    """Have something written, through whoever leads: a client that asks a machine which is no member any more may give
    up there, and then nothing has been written."""
    tried: list[Operation] = []

    def written() -> bool:
        leader = _leader(world)
        if leader is not None and (not tried or tried[-1].status in ("failed", "unknown")):
            tried.append(world.clients[0].write_something(leader))
        return any(operation.logged for operation in tried)

    _until(world, ANSWER_US, written, "P-LIVE1", "a write after healing is not answered")


def _until(world: World, most_us: int, done: Callable[[], bool], name: str, what: str) -> None:
    limit = world.now_us + most_us
    while not done():
        if world.now_us >= limit:
            if beyond_repair(world):
                raise BeyondRepairError
            raise ViolationError(name, f"{what} {most_us / 1e6:.0f} s after healing: {_picture(world)}")
        world.run_until(world.now_us + STEP_US)


def beyond_repair(world: World) -> bool:
    """Whether damage has spread so far that some set of voters has no undamaged majority."""
    if not world.careless:
        return False
    cores = [host.core for host in world.hosts.values() if host.core is not None]
    newest = max(cores, key=lambda core: (core.term, core.log.configuration_index), default=None)
    spoilt = {member for member, host in world.hosts.items() if host.damaged or host.burnt}
    return newest is None or any(2 * len(voters - spoilt) <= len(voters) for voters in newest.voter_sets)


def _leader(world: World) -> Host | None:
    """A leader that can commit."""
    host = world.leader()
    return host if host is not None and host.core is not None and host.core.has_own_term_commit() else None


def _waiting(world: World) -> bool:
    return any(host.waiting for host in world.hosts.values()) or any(
        operation.status == "open" for operation in world.history.operations
    )


def _behind(world: World) -> list[int]:
    """Return the members of the active configuration that are not where the leader is."""
    leader = _leader(world)
    if leader is None or leader.core is None:
        return sorted(world.hosts)
    core = leader.core
    configuration = core.configuration
    settled = not configuration.joint and core.log.configuration_index <= core.commit
    behind = []
    for member in configuration.members():
        host = world.hosts[member]
        if (
            host.burnt
            or host.core is None
            or host.disk.machine.index != core.log.last
            or host.core.commit != core.commit
            or host.disk.machine.digest != leader.disk.machine.digest
        ):
            behind.append(member)
    return behind if settled else sorted({*behind, leader.id})


def _picture(world: World) -> str:
    parts = []
    for host in world.hosts.values():
        core = host.core
        if core is None:
            parts.append(f"{host.id}: {'burnt' if host.burnt else 'down'}")
        else:
            parts.append(
                f"{host.id}: {'burnt ' if host.burnt else ''}{core.role} term {core.term} leader {core.leader} "
                f"log {core.log.mark.index}..{core.log.last} commit {core.commit} applied {core.applied} "
                f"voters {[sorted(v) for v in core.voter_sets]} waiting {len(host.waiting)}"
            )
    return "; ".join(parts)


def judge(world: World) -> None:
    """P-LIN for registers, strict serializability for lists. Raises ViolationError."""
    calls = check(world.history.calls())
    if calls is not None:
        raise ViolationError("P-LIN", "not linearizable:\n" + "\n".join(f"  {call}" for call in calls))
    found = anomalies(world.history.exchanges())
    if found:
        raise ViolationError("P-LIN", "; ".join(found[:5]))
