"""The nemesis: carries out the strikes of a plan against a world, and takes them back when their time is over.

Owns the choice of targets (from the roll of each strike, at the moment it happens) and the rule that damage leaves
an undamaged majority, unless the plan is careless. Called by the world. Must never break what no cluster could
survive and then complain.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from incus_actors.consensus import events as ev
from incus_actors.consensus.types import Configuration, Member, MemberId, Role
from incus_actors.simulation.plan import NemesisEvent
from incus_actors.simulation.upgrades import NEW, OLD

if TYPE_CHECKING:
    from incus_actors.simulation.host import Host
    from incus_actors.simulation.world import World

MOST_MEMBERS = 9
Pairs = list[tuple[MemberId, MemberId]]


class Nemesis:
    """One method per kind of strike, named after it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.strikes = 0

    def strike(self, event: NemesisEvent) -> None:
        """Do it."""
        if not self.world.chaos:
            return
        rng = random.Random(event.roll)
        handler: Callable[[random.Random, int], str] = getattr(self, f"_{event.kind}")
        done = handler(rng, event.ms)
        self.strikes += bool(done)
        self.world.note("nemesis", 0, f"{event.kind} {event.ms} ms: {done or 'nothing to do'}")

    def _later(self, ms: int, call: Callable[..., None], *values: object) -> None:
        self.world.after(ms * 1_000, call, *values)

    # -- targets --------------------------------------------------------------------------------------------------

    def _target(self, rng: random.Random, *, running: bool = True) -> Host | None:
        """The leader as often as anybody else together."""
        hosts = [host for host in self.world.hosts.values() if host.running or not running]
        leader = self.world.leader()
        if leader is not None and rng.random() < 0.5:
            return leader
        return rng.choice(hosts) if hosts else None

    def _ids(self) -> list[MemberId]:
        return sorted(self.world.hosts)

    def _between(self, one: set[MemberId], other: set[MemberId]) -> Pairs:
        pairs = [(a, b) for a in sorted(one) for b in sorted(other)]
        return pairs + [(b, a) for a, b in pairs]

    def _cut(self, rng: random.Random, ms: int, pairs: Pairs) -> str:
        network = self.world.network
        network.cut(pairs)
        if rng.random() < 0.2:
            for one, other in pairs:
                network.reset(one, other)
        self._later(ms, network.mend, pairs)
        return f"cut {pairs}"

    # -- processes ------------------------------------------------------------------------------------------------

    def _kill(self, rng: random.Random, ms: int) -> str:
        return self._stop(rng, ms, power=False)

    def _power(self, rng: random.Random, ms: int) -> str:
        return self._stop(rng, ms, power=True)

    def _stop(self, rng: random.Random, ms: int, *, power: bool) -> str:
        host = self._target(rng)
        if host is None:
            return ""
        host.stop(power=power, silent=power)
        self._later(ms, host.start)
        return f"member {host.id}"

    def _upgrade(self, rng: random.Random, ms: int) -> str:
        """Another release on one machine: the new one as a rule, the old one again at times."""
        host = self._target(rng)
        if host is None:
            return ""
        return self.world.upgrades.install(host, OLD if rng.random() < 0.2 else NEW, ms)

    def _power_all(self, rng: random.Random, ms: int) -> str:
        for host in list(self.world.hosts.values()):
            host.stop(power=True, silent=True)
            self._later(ms + rng.randint(0, 300), host.start)
        return "all members"

    def _shutdown(self, rng: random.Random, ms: int) -> str:
        host = self._target(rng)
        if host is None or host.frozen:
            return ""
        host.step(ev.Shutdown())
        self._later(20, self._stopped, host, host.life)
        self._later(20 + ms, host.start)
        return f"member {host.id}"

    def _stopped(self, host: Host, life: int) -> None:
        if host.life == life:
            host.stop()

    def _freeze(self, rng: random.Random, ms: int) -> str:
        host = self._target(rng)
        if host is None or host.frozen:
            return ""
        host.freeze()
        self._later(ms, self._thawed, host, host.life)
        return f"member {host.id}"

    def _thawed(self, host: Host, life: int) -> None:
        if host.life == life:
            host.thaw()

    _stall = _freeze

    # -- network --------------------------------------------------------------------------------------------------

    def _isolate(self, rng: random.Random, ms: int) -> str:
        host = self._target(rng)
        if host is None:
            return ""
        return self._cut(rng, ms, self._between({host.id}, set(self._ids()) - {host.id}))

    def _split(self, rng: random.Random, ms: int) -> str:
        ids = self._ids()
        rng.shuffle(ids)
        size = rng.randint(1, max(1, len(ids) - 1))
        return self._cut(rng, ms, self._between(set(ids[:size]), set(ids[size:])))

    def _one_way(self, rng: random.Random, ms: int) -> str:
        """One member can't send, or can't receive, to or from all or some."""
        host = self._target(rng)
        if host is None:
            return ""
        others = [other for other in self._ids() if other != host.id and rng.random() < 0.8]
        out = rng.random() < 0.5
        return self._cut(rng, ms, [(host.id, other) if out else (other, host.id) for other in others])

    def _bridge(self, rng: random.Random, ms: int) -> str:
        """Two halves that share one member."""
        ids = self._ids()
        if len(ids) < 3:
            return ""
        rng.shuffle(ids)
        middle = len(ids) // 2
        return self._cut(rng, ms, self._between(set(ids[1 : middle + 1]), set(ids[middle + 1 :])))

    def _ring(self, rng: random.Random, ms: int) -> str:
        """Everybody sees only two others."""
        ids = self._ids()
        if len(ids) < 4:
            return ""
        rng.shuffle(ids)
        near = {(ids[i], ids[(i + 1) % len(ids)]) for i in range(len(ids))}
        near |= {(b, a) for a, b in near}
        return self._cut(rng, ms, [(a, b) for a in sorted(ids) for b in sorted(ids) if a != b and (a, b) not in near])

    def _cut_link(self, rng: random.Random, ms: int) -> str:
        host = self._target(rng)
        others = [other for other in self._ids() if host is not None and other != host.id]
        if host is None or not others:
            return ""
        return self._cut(rng, ms, self._between({host.id}, {rng.choice(others)}))

    def _flaky(self, rng: random.Random, ms: int) -> str:
        pairs = [(a, b) for a in self._ids() for b in self._ids() if a != b and rng.random() < 0.5]
        loss = rng.choice((0.1, 0.3, 0.6))
        for pair in pairs:
            self.world.network.path(*pair).loss = loss
        self._later(ms, self._steady, pairs)
        return f"loss {loss} on {len(pairs)} paths"

    def _steady(self, pairs: Pairs) -> None:
        for pair in pairs:
            self.world.network.path(*pair).loss = 0.0

    def _clog(self, rng: random.Random, ms: int) -> str:
        pairs = [(a, b) for a in self._ids() for b in self._ids() if a != b and rng.random() < 0.4]
        for pair in pairs:
            self.world.network.path(*pair).clogged_until_us = self.world.now_us + ms * 1_000
        return f"{len(pairs)} paths"

    def _reset(self, rng: random.Random, ms: int) -> str:
        """A firewall is loaded again: connections break, processes live."""
        everywhere = rng.random() < 0.5
        host = self._target(rng)
        if host is None:
            return ""
        for one in self._ids():
            for other in self._ids():
                if one < other and (everywhere or host.id in (one, other)):
                    self.world.network.reset(one, other)
        return "all links" if everywhere else f"links of member {host.id}"

    # -- disks ----------------------------------------------------------------------------------------------------

    def _disk_slow(self, rng: random.Random, ms: int) -> str:
        host = self._target(rng)
        if host is None:
            return ""
        host.disk.slow_us = rng.choice((20_000, 100_000, 400_000))
        self._later(ms, self._disk_fast, host)
        return f"member {host.id}, {host.disk.slow_us // 1000} ms"

    def _disk_fast(self, host: Host) -> None:
        host.disk.slow_us = 0

    def _disk_hang(self, rng: random.Random, ms: int) -> str:
        host = self._target(rng)
        if host is None or host.disk.hung:
            return ""
        host.disk.hung = True
        self._later(ms, host.disk.unhang)
        return f"member {host.id}"

    def _disk_fail(self, rng: random.Random, ms: int) -> str:
        host = self._target(rng)
        if host is None:
            return ""
        host.disk.fail_next = True
        return f"member {host.id}"

    def _disk_full(self, rng: random.Random, ms: int) -> str:
        host = self._target(rng)
        if host is None:
            return ""
        host.disk.full = True
        self._low_space_on(host, ms)
        self._later(ms, self._space, host)
        return f"member {host.id}"

    def _low_space(self, rng: random.Random, ms: int) -> str:
        host = self._target(rng)
        if host is None:
            return ""
        self._low_space_on(host, ms)
        return f"member {host.id}"

    def _low_space_on(self, host: Host, ms: int) -> None:
        host.disk.free_kib = 1_000
        self._later(ms, self._space, host)

    def _space(self, host: Host) -> None:
        host.disk.full = False
        host.disk.free_kib = 1 << 30

    # -- damage ---------------------------------------------------------------------------------------------------

    def may_damage(self, host: Host) -> bool:
        """Whether every quorum that may be asked for would still have a member of each kind undamaged."""
        if host.damaged:
            return False
        if self.world.careless:
            return True
        spoilt = {member for member, other in self.world.hosts.items() if other.damaged or other.burnt} | {host.id}
        for configuration in self._configurations():
            for voters in configuration.voter_sets():
                if 2 * len(voters - spoilt) <= len(voters):
                    return False
        return True

    def _configurations(self) -> list[Configuration]:
        found: list[Configuration] = []
        for host in self.world.hosts.values():
            found += host.disk.configurations()
            if host.core is not None:
                found += [configuration for _, configuration in host.core.log.configurations]
        return found + [configuration for leader, configuration in self.world.unread if leader.frozen]

    def _damage(self, rng: random.Random, ms: int) -> str:
        host = self._target(rng, running=False)
        if host is None or not self.may_damage(host):
            return ""
        host.damaged = True
        host.stop(power=rng.random() < 0.5)
        if rng.random() < 0.5:
            host.disk.flip_bit()
        else:
            host.disk.lose_tail()
        self._later(ms, host.start)
        return f"member {host.id}"

    def _diverge(self, rng: random.Random, ms: int) -> str:
        """A bit of the state flips, and nobody notices until digests are compared."""
        host = self._target(rng)
        if host is None or not self.may_damage(host) or host.disk.machine.index == 0:
            return ""
        host.damaged = host.diverged = True
        host.disk.machine.diverge(rng.getrandbits(64))
        return f"member {host.id}"

    # -- clocks ---------------------------------------------------------------------------------------------------

    def _clock_jump(self, rng: random.Random, ms: int) -> str:
        host = self._target(rng)
        if host is None:
            return ""
        host.wall_offset_ms += rng.choice((-1, 1)) * ms
        return f"member {host.id}"

    # -- members --------------------------------------------------------------------------------------------------

    def _transfer(self, rng: random.Random, ms: int) -> str:
        leader = self.world.leader()
        if leader is None:
            return ""
        target = rng.choice([0, *self._ids()])
        self.world.ask(leader, lambda key: ev.Transfer(key, target))
        return f"from {leader.id} to {target}"

    def _members(self) -> tuple[Host, tuple[Member, ...]] | None:
        leader = self.world.leader()
        if leader is None or leader.core is None:
            return None
        return leader, leader.core.configuration.target

    def _change(self, leader: Host, members: tuple[Member, ...]) -> str:
        self.world.change(leader, members)
        return ", ".join(f"{member.id} {member.role}" for member in members)

    def _add(self, rng: random.Random, ms: int) -> str:
        found = self._members()
        if found is None or len(self.world.hosts) >= MOST_MEMBERS:
            return ""
        leader, members = found
        joiner = self.world.join(leader)
        role = rng.choice((Role.VOTER, Role.STANDBY, Role.STANDBY, Role.SPARE))
        return self._change(leader, (*members, Member(joiner.id, f"m{joiner.id}", role)))

    def _remove(self, rng: random.Random, ms: int) -> str:
        found = self._members()
        if found is None or len(found[1]) < 2:
            return ""
        leader, members = found
        gone = rng.choice(members)
        return self._keep_sane(leader, tuple(member for member in members if member.id != gone.id))

    def _roles(self, rng: random.Random, ms: int) -> str:
        found = self._members()
        if found is None:
            return ""
        leader, members = found
        roles = (Role.VOTER, Role.VOTER, Role.STANDBY, Role.SPARE)
        return self._keep_sane(
            leader, tuple(replace(m, role=rng.choice(roles)) if rng.random() < 0.5 else m for m in members)
        )

    def _replace(self, rng: random.Random, ms: int) -> str:
        """One voter out, another one in, by one joint step."""
        found = self._members()
        if found is None or len(self.world.hosts) >= MOST_MEMBERS:
            return ""
        leader, members = found
        voters = [member for member in members if member.role is Role.VOTER]
        gone = rng.choice(voters)
        others = [member for member in members if member.role is not Role.VOTER]
        known = bool(others) and rng.random() < 0.5
        coming = rng.choice(others).id if known else self.world.join(leader).id
        rest = [member for member in members if member.id not in (gone.id, coming)]
        return self._keep_sane(leader, (*rest, Member(coming, f"m{coming}", Role.VOTER)))

    def _keep_sane(self, leader: Host, members: tuple[Member, ...]) -> str:
        """Never ask for a set of voters that could not decide anything: burnt ones don't count."""
        voters = [member.id for member in members if member.role is Role.VOTER]
        sound = [member for member in voters if not self.world.hosts[member].damaged]
        if 2 * len(sound) <= len(voters):
            return ""
        return self._change(leader, members)
