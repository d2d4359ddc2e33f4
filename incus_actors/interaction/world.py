"""The world of one script: members, their disks, clocks and clients. Nothing happens unless the script says so.

Owns the running cores and everything around them; commands.py calls it. It carries effects out by the same rules as
the daemon's driver, looks after the safety properties at every step, and must never decide anything for a core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeAlias

from incus_actors.consensus import effects as fx
from incus_actors.consensus import events as ev
from incus_actors.consensus.core import Core
from incus_actors.consensus.messages import PROTOCOL_VERSION, Envelope, Message
from incus_actors.consensus.quorum import has_majority
from incus_actors.consensus.types import (
    GENESIS_CHAIN,
    Configuration,
    DurableState,
    Entry,
    HardState,
    Limits,
    Member,
    MemberId,
    RaftRole,
    Role,
    SnapshotMark,
    Term,
    Timing,
)
from incus_actors.interaction import files
from incus_actors.interaction.cast import Dice, MemberSpec, Request, Stopped
from incus_actors.interaction.errors import StepFailedError
from incus_actors.interaction.files import Job, SnapshotFile
from incus_actors.interaction.machine import Machine, build_entries
from incus_actors.interaction.network import Network
from incus_actors.interaction.patterns import show_value
from incus_actors.interaction.safety import Safety
from incus_actors.model.features import SUPPORTED

CLUSTER = b"interaction test"
START_MS = 10_000  #: members of the beginning have been running for so long
WALL_MS = 10**12
TICK_MS = 10
SETTLE_ROUNDS = 500
CoreFactory: TypeAlias = Callable[..., Core]


def _had_elections(specs: list[MemberSpec]) -> None:
    """Who wrote an entry was elected in its term. Where the script says too little for that, the voters whose term it
    does not give have been in the newest term that somebody has an entry of."""
    newest = max(spec.last_term for spec in specs)
    voters = {spec.id for spec in specs if spec.role is Role.VOTER}
    elected = {spec.id for spec in specs if max(spec.term, spec.last_term) >= newest}
    if not has_majority((frozenset(voters),), elected):
        for spec in specs:
            if spec.id in voters and not spec.term:
                spec.term = newest


class World:
    """Everything that a script acts on."""

    def __init__(self, make_core: CoreFactory = Core) -> None:
        self.make_core = make_core
        self.timing = Timing()
        self.limits = Limits()
        self.specs: dict[MemberId, MemberSpec] = {}
        self.genesis = Configuration(())
        self.booted = False
        self.line = 0
        self.machines: dict[MemberId, Machine] = {}
        self.cores: dict[MemberId, Core] = {}
        self.clocks: dict[MemberId, int] = {}
        self.dice: dict[MemberId, Dice] = {}
        self.free_kib: dict[MemberId, int] = {}
        self.writes: dict[MemberId, list[fx.WriteLog]] = {}
        self.applies: dict[MemberId, list[Entry]] = {}
        self.jobs: dict[MemberId, list[Job]] = {}
        self.manual: set[tuple[MemberId, str]] = set()
        self.names: dict[bytes, str] = {}
        self.network = Network(self.names)
        self.safety = Safety(self.machines)
        self.requests: dict[tuple[str, MemberId], Request] = {}
        self.asked: dict[bytes | int, list[Request]] = {}
        self.next_key = 1
        self.counters: dict[tuple[MemberId, str], int] = {}
        self.stopped: list[Stopped] = []
        self.ends: dict[MemberId, str] = {}  #: why those that have stopped by themselves are down
        self.snapshots: dict[str, SnapshotFile] = {}
        self.stored: dict[tuple[MemberId, str], int] = {}
        self.incarnation = 0
        self.notes: list[str] = []
        self.role_causes: dict[MemberId, list[str]] = {}

    # -- the beginning --------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Start the members of the beginning, once. Raises StepFailedError when there are none."""
        if self.booted:
            return
        if not self.specs:
            raise StepFailedError("there are no members yet: begin with `members N` or `member ID`")
        self.booted = True
        specs = [self.specs[member] for member in sorted(self.specs)]
        _had_elections(specs)
        self.genesis = Configuration(
            tuple(Member(spec.id, spec.address or f"m{spec.id}", spec.role, spec.domain) for spec in specs)
        )
        for spec in specs:
            self.machines[spec.id] = self._machine(spec)
            self.safety.booted(self.machines[spec.id])
        self._must_be_possible()
        for spec in specs:
            if not spec.down:
                self.start(spec.id, aged=True)

    def _must_be_possible(self) -> None:
        """What somebody has applied, a majority of voters has on disk; and who wrote an entry was elected in its term.
        No core can make good what such a script has done to it."""
        (voters,) = self.genesis.voter_sets()
        if not voters:
            raise StepFailedError("this beginning is impossible: nobody is a voter")
        for member, machine in self.machines.items():
            term = machine.last_term
            elected = {voter for voter in voters if self.machines[voter].durable.hard.term >= term}
            if not has_majority((voters,), elected):
                raise StepFailedError(
                    f"this beginning is impossible: member {member} has an entry of term {term}, so a majority of the "
                    f"voters has been in that term (term={term})",
                    expected=f"a majority of {show_value(voters)}",
                    found=show_value(elected),
                )
            index, chain = machine.state.index, machine.state.chain
            have = {voter for voter in voters if self.machines[voter].has(index, chain)}
            if index and not has_majority((voters,), have):
                raise StepFailedError(
                    f"this beginning is impossible: member {member} has applied {index}, so a majority of the voters "
                    f"must have that entry, in the same history",
                    expected=f"a majority of {show_value(voters)}",
                    found=show_value(have),
                )

    def _machine(self, spec: MemberSpec) -> Machine:
        entries = build_entries(spec.log)
        for entry, (_, text) in zip(entries, spec.log, strict=True):
            self.names[entry.proposal_id] = text or f"{entry.index}/{entry.term}"
        term = max(spec.term, spec.last_term)
        mark = SnapshotMark(0, 0, GENESIS_CHAIN, self.genesis, 0)
        hard = HardState(term, spec.vote)
        durable = DurableState(spec.id, CLUSTER, 1, hard, mark, entries, amnesia=spec.amnesia, features=spec.features)
        machine = Machine(durable, spec.applied)
        if spec.snapshot:
            machine.compact(spec.snapshot)
        return machine

    def join(self, member: MemberId, features: int = SUPPORTED) -> None:
        """Start a new machine that has nothing but the first configuration, with a release of that feature level."""
        if member in self.machines:
            raise StepFailedError(f"there is a member {member} already")
        mark = SnapshotMark(0, 0, GENESIS_CHAIN, self.genesis, 0)
        self.machines[member] = Machine(DurableState(member, CLUSTER, 1, HardState(), mark, (), features=features))
        self.start(member)

    def start(self, member: MemberId, *, aged: bool = False) -> None:
        """Start the process of a member. `aged`: it has been running for a while."""
        machine = self.machines[member]
        self.incarnation += 1
        self.ends.pop(member, None)
        machine.durable = replace(machine.durable, applied=machine.state.index, incarnation=self.incarnation)
        self.clocks.setdefault(member, START_MS)
        dice = self.dice.setdefault(member, Dice(member))
        now = self.clocks[member]
        for waiting in (self.writes, self.applies, self.jobs):
            waiting[member] = []
        core = self.make_core(
            machine.durable,
            rng=dice,
            timing=self.timing,
            limits=self.limits,
            now_ms=0 if aged else now,
            wall_ms=0 if aged else now + WALL_MS,
            checks=True,
        )
        if aged:
            core.now = now
            core.set_election_deadline(now + core.election_timeout_ms)
        self.cores[member] = core
        self.safety.started(core)
        self.tick(member)

    def crash(self, member: MemberId) -> None:
        """The process is gone, with its memory and the writes that were not finished."""
        self.cores.pop(member, None)
        for waiting in (self.writes, self.applies, self.jobs):
            waiting[member] = []
        for request in self.requests.values():
            if request.member == member and request.status == "pending":
                request.status = "lost"

    def running(self, member: MemberId) -> Core:
        """Return the core of a member. Raises StepFailedError when it is down or unknown."""
        self.boot()
        if member not in self.machines:
            raise StepFailedError(f"there is no member {member}")
        core = self.cores.get(member)
        if core is None:
            raise StepFailedError(f"member {member} is not running{self.ends.get(member, '')}")
        return core

    def select(self, ids: Iterable[MemberId]) -> list[MemberId]:
        """Return these members in order, or all that run when there are none."""
        self.boot()
        chosen = list(ids)
        for member in chosen:
            if member not in self.machines:
                raise StepFailedError(f"there is no member {member}")
        return chosen or sorted(self.cores)

    # -- stepping -------------------------------------------------------------------------------------------------

    def step(self, member: MemberId, event: ev.Event) -> None:
        """Step a core and carry out what it says."""
        core = self.cores.get(member)
        if core is None:
            return
        before = (core.term, core.vote)
        was_leader, commit_before = core.role is RaftRole.LEADER, core.commit
        kind = type(event.envelope.message) if isinstance(event, ev.Receive) else None
        try:
            effects = core.step(self.clocks[member], event)
        except StepFailedError:
            raise
        except Exception as error:
            raise StepFailedError(f"the core of member {member} failed: {type(error).__name__}: {error}") from error
        self.safety.after_step(core, before, kind)
        for effect in effects:
            if self.cores.get(member) is not core:
                return
            if isinstance(effect, fx.WriteLog):
                self.safety.writing(core, effect, was_leader=was_leader, commit_before=commit_before)
            self._carry_out(core, effect)

    def _carry_out(self, core: Core, effect: fx.Effect) -> None:
        member = core.id
        match effect:
            case fx.Send():
                self._send(member, effect)
            case fx.WriteLog():
                self.writes[member].append(effect)
            case fx.Apply():
                self.applies[member].extend(effect.entries)
            case fx.Resolve():
                self._resolve(member, effect)
            case fx.Count():
                key = (member, effect.name)
                self.counters[key] = self.counters.get(key, 0) + effect.amount
            case fx.Fatal():
                self._fatal(member, effect)
            case fx.RoleChanged():
                self.role_causes.setdefault(member, []).append(effect.cause)
            case fx.ConfigurationChanged():
                pass
            case _:
                self.jobs[member].append(effect)

    def _send(self, member: MemberId, effect: fx.Send) -> None:
        self.safety.sending(self.machines[member], effect.envelope)
        self._put_under_way(effect)

    def _put_under_way(self, effect: fx.Send) -> None:
        self.network.line = self.line
        self.network.send(effect.envelope)

    def _fatal(self, member: MemberId, effect: fx.Fatal) -> None:
        self.stopped.append(Stopped(member, effect.kind, effect.reason, self.line))
        self.ends[member] = f": it stopped in line {self.line} ({effect.kind}: {effect.reason})"
        if effect.kind == "amnesia":
            machine = self.machines[member]
            machine.durable = replace(machine.durable, amnesia=True)
        self.crash(member)

    def _resolve(self, member: MemberId, effect: fx.Resolve) -> None:
        for request in self.asked.get(effect.key, []):
            if request.member != member or request.status != "pending":
                continue
            request.status, request.index, request.detail = effect.status, effect.index, effect.detail
            request.result = effect.result
            if effect.status == "applied" and request.kind == "read":
                self.safety.read(member, effect.index, request.floor)

    def tick(self, member: MemberId) -> None:
        """Let a member look at its clock."""
        free = self.free_kib.get(member, 1 << 30)
        self.step(member, ev.Tick(self.clocks[member] + WALL_MS, free))

    def pass_time(self, member: MemberId, ms: int) -> None:
        """Move one clock forward, with a tick every 10 ms and one at the end."""
        end = self.clocks[member] + ms
        while self.clocks[member] < end:
            self.clocks[member] = min(end, self.clocks[member] + TICK_MS)
            self.tick(member)

    # -- requests -------------------------------------------------------------------------------------------------

    def ask(self, member: MemberId, label: str, kind: str, key: bytes | int | None = None) -> bytes | int:
        """Note a request of a client; return its key. Raises StepFailedError when the label is still in use."""
        known = self.requests.get((label, member))
        if known is not None and (known.kind != "propose" or kind != "propose"):
            raise StepFailedError(f"member {member} was asked for {label!r} before: choose another name")
        if key is None:
            key, self.next_key = self.next_key, self.next_key + 1
        if known is None or known.status != "pending":
            request = Request(label, member, kind, floor=self.safety.committed_last)
            self.requests[label, member] = request
            self.asked.setdefault(key, []).append(request)
        return key

    # -- disk, state and files ------------------------------------------------------------------------------------

    def complete(self, member: MemberId, count: int | None = None) -> int:
        """Make the oldest writes durable, as one transaction; return how many."""
        chosen = self.writes[member][:count]
        core = self.cores.get(member)
        if not chosen or core is None:
            return 0
        del self.writes[member][: len(chosen)]
        for write in chosen:
            self.machines[member].write(write)
            for send in write.then:  # what it promises is judged by this write: the next one may take entries back
                self.safety.sending(self.machines[member], send.envelope)
        self.step(member, ev.LogWritten(chosen[-1].write_id))
        for write in chosen:
            for send in write.then:
                if self.cores.get(member) is core:
                    self._put_under_way(send)
        return len(chosen)

    def apply(self, member: MemberId, count: int | None = None) -> int:
        """Execute what was handed over and report it; return how many entries."""
        chosen = self.applies[member][:count]
        if not chosen or member not in self.cores:
            return 0
        del self.applies[member][: len(chosen)]
        machine, results = self.machines[member], []
        for entry in chosen:
            self.safety.applying(machine, entry)
            too_new = machine.too_new(entry)
            if too_new:
                self._fatal(member, fx.Fatal(too_new, "fatal"))
                return len(chosen)
            outcome = machine.apply(entry)
            if outcome is not None:
                results.append(outcome)
        self.step(member, ev.Applied(chosen[-1].index, machine.state.digest(), tuple(results)))
        return len(chosen)

    def finish(self, member: MemberId, kind: str = "", count: int | None = None, *, failing: str = "") -> int:
        """Do (or fail) the oldest file jobs of a kind; return how many."""
        found = [job for job in self.jobs[member] if not kind or files.job_name(job) == kind][:count]
        for job in found:
            if job in self.jobs[member]:
                self.jobs[member].remove(job)
                if failing:
                    files.fail(self, member, job, failing)
                else:
                    files.run(self, member, job)
        return len(found)

    # -- network --------------------------------------------------------------------------------------------------

    def envelope(self, source: MemberId, destination: MemberId, message: Message, term: Term) -> Envelope:
        """Return a message as `source` would send it, in a term of the script's choice."""
        durable = self.machines[source].durable
        key = CLUSTER[:8]
        return Envelope(PROTOCOL_VERSION, key, durable.epoch, source, destination, durable.incarnation, term, message)

    def receive(self, envelope: Envelope) -> str:
        """Hand a message to its destination; return what became of it."""
        if envelope.destination not in self.cores:
            return "lost: not running"
        self.step(envelope.destination, ev.Receive(envelope))
        return "delivered"

    def deliver_round(self) -> int:
        """Deliver what is under way now and not held; return how many."""
        found = [flight for flight in self.network.under_way if not self.network.is_held(flight)]
        for flight in found:
            if flight in self.network.under_way:
                running = flight.envelope.destination in self.cores
                envelope = self.network.take(flight, "delivered" if running else "lost: not running")
                self.receive(envelope)
        return len(found)

    def settle(self) -> None:
        """Run network, disks, state and files until nothing happens any more without time."""
        self.boot()
        for _ in range(SETTLE_ROUNDS):
            busy = self.deliver_round()
            for member in sorted(self.cores):
                if (member, "disk") not in self.manual:
                    busy += self.complete(member)
                if (member, "state") not in self.manual:
                    busy += self.apply(member)
                if (member, "files") not in self.manual:
                    busy += self.finish(member)
            if not busy:
                return
        raise StepFailedError(f"does not settle: messages are still answered after {SETTLE_ROUNDS} rounds")

    def run(self, ms: int, members: list[MemberId], until: Callable[[], bool] | None = None) -> bool:
        """Let time pass in steps of 10 ms, everything settling in between; return whether `until` came true."""
        for _ in range(max(1, (ms + TICK_MS - 1) // TICK_MS)):
            if until is not None and until():
                return True
            for member in members:
                if member in self.cores:
                    self.clocks[member] += TICK_MS
                    self.tick(member)
            self.settle()
        return until is None or until()
