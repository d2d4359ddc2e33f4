"""The world of one seed: virtual time, members, clients and their history, from chaos to health.

Owns the heap of events ordered by (virtual time, seeded tie-break) and the two phases of a run: chaos, in which
only safety is asked for, then healing, in which the cluster must work again (CONSENSUS 4.1). Called by the runner;
accepts any factory of cores, so that broken ones can be tried. Must depend on nothing but its plan.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from heapq import heappop, heappush
from typing import Any, Protocol

from incus_actors.consensus import events as ev
from incus_actors.consensus.core import Core
from incus_actors.consensus.types import (
    GENESIS_CHAIN,
    Configuration,
    DurableState,
    Limits,
    Member,
    MemberId,
    RaftRole,
    Role,
    SnapshotMark,
    Timing,
)
from incus_actors.simulation.clients import Client, History
from incus_actors.simulation.disk import Disk
from incus_actors.simulation.host import Host
from incus_actors.simulation.machine import Image, Machine, MemoryMachine
from incus_actors.simulation.nemesis import Nemesis
from incus_actors.simulation.network import Network
from incus_actors.simulation.plan import Plan
from incus_actors.simulation.properties import Monitor
from incus_actors.simulation.steward import Steward
from incus_actors.simulation.upgrades import NEW, Upgrades

CLUSTER_ID = b"simulated-world!"
NOTES_KEPT = 300


class CoreFactory(Protocol):
    """Makes the core of a member: `Core` itself, or a mutant."""

    def __call__(
        self,
        durable: DurableState,
        *,
        rng: random.Random,
        timing: Timing,
        limits: Limits,
        now_ms: int,
        wall_ms: int,
        checks: bool,
    ) -> Core:
        """Return a core, as `Core(...)` does."""


@dataclass(frozen=True, slots=True)
class Note:
    """One line of a trace."""

    at_us: int
    kind: str
    member: MemberId
    text: str

    def __str__(self) -> str:
        who = f"member {self.member}" if self.member else "world"
        return f"{self.at_us / 1000:12.3f} ms  {who:<10} {self.kind:<8} {self.text}"


class World:
    """Everything there is. Times are virtual microseconds."""

    def __init__(
        self,
        plan: Plan,
        *,
        make_core: CoreFactory = Core,
        trace: bool = False,
        verbose: bool = False,
        fingerprint: bool = False,
    ) -> None:
        self.plan = plan
        self.make_core = make_core
        self.verbose = verbose
        self.fingerprint = blake2b(digest_size=16) if fingerprint else None
        self.notes: deque[Note] = deque(maxlen=None if trace else NOTES_KEPT)
        self.now_us = 0
        self._heap: list[tuple[int, float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._pushed = 0
        self._tie = random.Random(f"tie {plan.seed}")
        self.rng = random.Random(f"world {plan.seed}")
        self.steps = 0
        self.elections = 0
        self.answered = 0
        self.requests = 0
        self.numbers = 0
        self.incarnations = 0
        self.images: dict[str, Image] = {}
        self.images_made = 0
        self.tainted: set[bytes] = set()
        #: changes asked of a frozen leader, which it begins when it thaws
        self.unread: list[tuple[Host, Configuration]] = []
        self.careless = plan.careless
        self.chaos = True
        self.asking = True
        self.history = History()
        self.monitor = Monitor(self)
        self.network = Network(self, random.Random(f"network {plan.seed}"), plan.network)
        self.hosts: dict[MemberId, Host] = {}
        self.upgrades = Upgrades(self, random.Random(f"upgrades {plan.seed}"))
        self.next_id = 1
        self.clients = [Client(self, i + 1, random.Random(f"client {i} {plan.seed}")) for i in range(plan.clients)]
        self.nemesis = Nemesis(self)
        self.steward = Steward(self)
        self._found()

    def _found(self) -> None:
        """Found the cluster."""
        roles = [Role.VOTER] * self.plan.voters + [Role.STANDBY] * self.plan.standbys + [Role.SPARE] * self.plan.spares
        configuration = Configuration(tuple(Member(i + 1, f"m{i + 1}", role) for i, role in enumerate(roles)))
        for _ in roles:
            self._add_host(configuration)
        for host in self.hosts.values():
            self.after(self.rng.randint(0, 50_000), host.start)
        for client in self.clients:
            self.after(self.rng.randint(0, 500_000), client.next)
        for event in self.plan.events:
            self.at(event.at_ms * 1_000, self.nemesis.strike, event)
        self.after(self.rng.randint(0, 500_000), self.steward.look)

    def _add_host(self, configuration: Configuration) -> Host:
        member, self.next_id = self.next_id, self.next_id + 1
        mark = SnapshotMark(0, 0, GENESIS_CHAIN, configuration, 0)
        seed = self.plan.seed
        rng = random.Random(f"disk {member} {seed}")
        disk = Disk(self, rng, self.plan.disk, member, CLUSTER_ID, mark, self._make_machine())
        disk.features = self.upgrades.first_release
        host = self.hosts[member] = Host(self, member, disk, random.Random(f"host {member} {seed}"))
        self.network.endpoints[member] = host
        return host

    def _make_machine(self) -> Machine:
        if not self.plan.real_state:
            return MemoryMachine()
        from incus_actors.simulation.sql_machine import SqlMachine

        return SqlMachine()

    # -- time -----------------------------------------------------------------------------------------------------

    def at(self, us: int, call: Callable[..., None], *values: Any) -> None:
        """Call at a time; never in the past. Equal times are ordered by the seed."""
        self._pushed += 1
        heappush(self._heap, (us if us > self.now_us else self.now_us, self._tie.random(), self._pushed, call, values))

    def after(self, us: int, call: Callable[..., None], *values: Any) -> None:
        """Call later."""
        self.at(self.now_us + us, call, *values)

    def run_until(self, us: int) -> None:
        """Let everything happen up to a time."""
        heap = self._heap
        while heap and heap[0][0] <= us:
            self.now_us, _, _, call, values = heappop(heap)
            call(*values)
        self.now_us = us

    def note(self, kind: str, member: MemberId, text: str) -> None:
        """Add a line to the trace."""
        self.notes.append(Note(self.now_us, kind, member, text))

    def close(self) -> None:
        """Release what the machines hold."""
        for host in self.hosts.values():
            host.disk.machine.close()

    # -- questions ------------------------------------------------------------------------------------------------

    def leader(self) -> Host | None:
        """Return who leads the highest term, if anybody does."""
        found: Host | None = None
        for host in self.hosts.values():
            core = host.core
            leads = core is not None and core.role is RaftRole.LEADER
            if core is not None and leads and (found is None or found.core is None or core.term > found.core.term):
                found = host
        return found

    def any_host(self) -> Host:
        """Return a member that a client may ask; it may be down, nobody knows that before."""
        return self.hosts[self.rng.choice(list(self.hosts))]

    # -- changing the cluster -------------------------------------------------------------------------------------

    def join(self, leader: Host) -> Host:
        """Start a member under a new id; it belongs to nothing until the leader says so."""
        configuration = leader.core.configuration if leader.core is not None else leader.disk.mark.configuration
        host = self._add_host(configuration)
        self.note("join", host.id, f"told by member {leader.id}")
        host.disk.features = NEW  # a server that joins has the newest release; an older one would be refused
        host.start()
        return host

    def ask(self, host: Host, event: Callable[[int], ev.Event]) -> None:
        """Ask a core for something whose answer interests only the trace."""
        self.requests += 1
        key = self.requests

        def answer(status: str, outcome: object, index: int) -> None:
            self.note("answer", host.id, f"request {key}: {status}")

        host.request(key, event(key), answer)

    def change(self, leader: Host, members: tuple[Member, ...]) -> None:
        """Ask the leader to go to these members."""
        target = tuple(sorted(members, key=lambda member: member.id))
        text = ", ".join(f"{member.id} {member.role}" for member in target)
        self.note("change", leader.id, text)
        if leader.frozen:
            self.unread.append((leader, Configuration(target)))
        self.ask(leader, lambda key: ev.ChangeConfiguration(key, target))
