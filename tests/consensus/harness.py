"""A deterministic little world for the core: scripted network, disk with explicit completion, instant state.

Used by the scenario tests of this directory. Nothing happens unless the test says so; `settle` runs everything
that is possible without time passing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from hashlib import blake2b

from incus_actors.consensus import effects as fx
from incus_actors.consensus import events as ev
from incus_actors.consensus.core import Core
from incus_actors.consensus.messages import PROTOCOL_VERSION, Envelope, Message
from incus_actors.consensus.types import (
    GENESIS_CHAIN,
    NOBODY,
    Configuration,
    DurableState,
    Entry,
    EntryKind,
    HardState,
    Limits,
    Member,
    MemberId,
    RaftRole,
    Role,
    SnapshotMark,
    Timing,
)

CLUSTER = b"0123456789abcdef"
FAR = 1 << 40


def members(count: int, roles: dict[int, Role] | None = None) -> tuple[Member, ...]:
    return tuple(Member(i, f"m{i}", (roles or {}).get(i, Role.VOTER)) for i in range(1, count + 1))


def pid(number: int) -> bytes:
    return number.to_bytes(16, "big")


@dataclass
class Machine:
    """What survives a crash of one member, and what its state machine has done."""

    durable: DurableState
    applied: list[Entry] = field(default_factory=list)
    snapshot_digest: bytes = b""

    @property
    def state_index(self) -> int:
        return self.applied[-1].index if self.applied else self.durable.snapshot.index

    def digest(self) -> bytes:
        return self.applied[-1].chain if self.applied else self.durable.snapshot.chain

    def write(self, write: fx.WriteLog) -> None:
        entries = list(self.durable.entries)
        if write.truncate_from is not None:
            entries = [entry for entry in entries if entry.index < write.truncate_from]
        entries += write.entries
        hard = write.hard or self.durable.hard
        self.durable = replace(self.durable, hard=hard, entries=tuple(entries))

    def compact(self, index: int) -> SnapshotMark:
        mark = self.mark_at(index)
        self.durable = replace(
            self.durable, snapshot=mark, entries=tuple(e for e in self.durable.entries if e.index > index)
        )
        return mark

    def mark_at(self, index: int) -> SnapshotMark:
        from incus_actors.consensus.log import RaftLog

        log = RaftLog(self.durable.snapshot, self.durable.entries)
        if index > self.durable.snapshot.index:
            log.compact(index)
        return log.mark


class World:
    """Members by id; `auto_disk` completes writes as soon as the queue is run."""

    def __init__(
        self,
        count: int = 3,
        *,
        roles: dict[int, Role] | None = None,
        seed: int = 1,
        timing: Timing | None = None,
        limits: Limits | None = None,
        present: Iterable[int] | None = None,
    ) -> None:
        self.rng = random.Random(seed)
        self.timing = timing or Timing()
        self.limits = limits or Limits()
        self.now = 1000
        self.machines: dict[MemberId, Machine] = {}
        self.cores: dict[MemberId, Core] = {}
        self.network: list[Envelope] = []
        self.writes: dict[MemberId, list[fx.WriteLog]] = {}
        self.slow_disks: set[MemberId] = set()
        self.cut: set[tuple[MemberId, MemberId]] = set()
        self.log: list[tuple[MemberId, fx.Effect]] = []
        self.resolved: dict[MemberId, dict[bytes | int, fx.Resolve]] = {}
        self.sent: list[Envelope] = []
        self.hold: Callable[[Envelope], bool] = lambda envelope: False
        self.incarnation = 0
        self.committed: dict[int, Entry] = {}
        self.leaders: dict[int, MemberId] = {}
        self.snapshot_files: dict[str, list[Entry]] = {}
        self.install_crash: set[MemberId] = set()
        self.hold_apply: set[MemberId] = set()
        self.applies: dict[MemberId, list[fx.Apply]] = {}
        configuration = Configuration(members(count, roles))
        for member in configuration.old:
            if present is None or member.id in present:
                self.add(member.id, configuration)

    # -- members --------------------------------------------------------------------------------------------------

    def add(self, member: MemberId, configuration: Configuration, durable: DurableState | None = None) -> None:
        mark = SnapshotMark(0, 0, GENESIS_CHAIN, configuration, 0)
        self.machines[member] = Machine(durable or DurableState(member, CLUSTER, 1, HardState(), mark, ()))
        self.start(member)

    def start(self, member: MemberId) -> Core:
        self.incarnation += 1
        machine = self.machines[member]
        machine.durable = replace(machine.durable, applied=machine.state_index, incarnation=self.incarnation)
        core = Core(
            machine.durable,
            rng=random.Random(self.rng.random()),
            timing=self.timing,
            limits=self.limits,
            now_ms=self.now,
            wall_ms=self.now + 10**12,
            checks=True,
        )
        self.cores[member] = core
        self.writes[member] = []
        self.applies[member] = []
        self.resolved.setdefault(member, {})
        return core

    def crash(self, member: MemberId) -> None:
        """Memory and unfinished writes are gone; what it sent is on its way."""
        del self.cores[member]
        self.writes[member] = []
        self.applies[member] = []

    def restart(self, member: MemberId) -> Core:
        if member in self.cores:
            self.crash(member)
        return self.start(member)

    # -- stepping -------------------------------------------------------------------------------------------------

    def step(self, member: MemberId, event: ev.Event) -> list[fx.Effect]:
        core = self.cores.get(member)
        if core is None:
            return []
        effects = core.step(self.now, event)
        self.observe(core)
        for effect in effects:
            self.log.append((member, effect))
            self.carry_out(member, effect)
        return effects

    def carry_out(self, member: MemberId, effect: fx.Effect) -> None:
        if isinstance(effect, fx.Send):
            self.sent.append(effect.envelope)
            self.network.append(effect.envelope)
        elif isinstance(effect, fx.WriteLog):
            self.writes[member].append(effect)
        elif isinstance(effect, fx.Resolve):
            self.resolved[member][effect.key] = effect
        elif isinstance(effect, fx.Apply):
            self.applies[member].append(effect)
        elif isinstance(effect, fx.Fatal):
            raise FatalError(f"{member}: {effect.reason}")
        else:
            self.snapshot_effect(member, effect)

    def snapshot_effect(self, member: MemberId, effect: fx.Effect) -> None:
        machine = self.machines[member]
        if isinstance(effect, fx.Compact):
            machine.compact(effect.index)
            self.step(member, ev.Compacted(effect.index))
        elif isinstance(effect, fx.TakeSnapshot):
            mark = machine.mark_at(machine.state_index)
            name = f"s{member}-{mark.index}"
            self.snapshot_files[name] = list(machine.applied)
            size = 1000
            self.step(
                member,
                ev.SnapshotReady(
                    effect.peer, name, mark.index, mark.term, mark.chain, mark.configuration,
                    mark.configuration_index, size, mark.chain,
                ),
            )  # fmt: skip
        elif isinstance(effect, fx.ReadSnapshotChunk):
            data = b"x" * effect.length
            self.step(member, ev.SnapshotChunkRead(effect.peer, effect.snapshot_id, effect.offset, data, 0))
        elif isinstance(effect, fx.StoreSnapshotChunk):
            end = effect.offset + len(effect.data)
            self.step(member, ev.SnapshotChunkStored(effect.offer.snapshot_id, end))
        elif isinstance(effect, fx.InstallSnapshot) and member not in self.install_crash:
            self.install(member, effect)

    def install(self, member: MemberId, effect: fx.InstallSnapshot) -> None:
        machine, offer = self.machines[member], effect.offer
        mark = SnapshotMark(offer.index, offer.term, offer.chain, offer.configuration, offer.configuration_index)
        keep = tuple(e for e in machine.durable.entries if e.index > offer.index) if effect.keep_suffix else ()
        machine.durable = replace(machine.durable, snapshot=mark, entries=keep)
        machine.applied = list(self.snapshot_files[offer.snapshot_id])
        self.step(member, ev.SnapshotInstalled(offer.snapshot_id, offer.index, offer.digest))

    def observe(self, core: Core) -> None:
        """Election safety and log matching, after every step."""
        if core.role is RaftRole.LEADER:
            known = self.leaders.setdefault(core.term, core.id)
            assert known == core.id, f"two leaders in term {core.term}"

    def tick(self, member: MemberId, free_kib: int = 1 << 30) -> list[fx.Effect]:
        return self.step(member, ev.Tick(self.now + 10**12, free_kib))

    # -- disk and state -------------------------------------------------------------------------------------------

    def complete(self, member: MemberId, count: int = 1) -> None:
        """Make the oldest writes of a member durable."""
        for _ in range(count):
            write = self.writes[member].pop(0)
            self.machines[member].write(write)
            self.step(member, ev.LogWritten(write.write_id))
            for send in write.then:
                self.carry_out(member, send)

    def settle_disk_only(self, member: MemberId) -> None:
        self.complete(member, len(self.writes[member]))

    def apply(self, member: MemberId) -> None:
        while self.applies[member]:
            entries = self.applies[member].pop(0).entries
            machine = self.machines[member]
            for entry in entries:
                assert entry.index == machine.state_index + 1
                on_disk = {e.index: e for e in machine.durable.entries}
                assert on_disk.get(entry.index) == entry, "R-APPLY: applied what is not durable here"
                known = self.committed.setdefault(entry.index, entry)
                assert known == entry, f"state machine safety at {entry.index}"
                machine.applied.append(entry)
            results = tuple((e.proposal_id, e.body) for e in entries if e.proposal_id)
            self.step(member, ev.Applied(entries[-1].index, machine.digest(), results))

    # -- network --------------------------------------------------------------------------------------------------

    def deliver(self, match: Callable[[Envelope], bool] = lambda envelope: True, *, drop: bool = False) -> int:
        """Deliver (or drop) what is under way now and matches; return how many messages."""
        found = [envelope for envelope in self.network if match(envelope)]
        self.network = [envelope for envelope in self.network if not match(envelope)]
        for envelope in found:
            if not drop and (envelope.source, envelope.destination) not in self.cut:
                self.step(envelope.destination, ev.Receive(envelope))
        return len(found)

    def settle(self, rounds: int = 200) -> None:
        """Run network, disks and state until nothing happens any more without time."""
        for _ in range(rounds):
            busy = self.deliver(lambda envelope: not self.hold(envelope))
            for member in sorted(self.cores):
                if member not in self.slow_disks and self.writes[member]:
                    self.complete(member, len(self.writes[member]))
                    busy += 1
                if member not in self.hold_apply and self.applies[member]:
                    self.apply(member)
                    busy += 1
            if not busy:
                return
        raise AssertionError("does not settle")

    def isolate(self, *group: MemberId) -> None:
        """Cut every path between `group` and the rest, silently."""
        for one in self.machines:
            for other in self.machines:
                if (one in group) != (other in group):
                    self.cut.add((one, other))

    def heal(self) -> None:
        self.cut.clear()

    def links_down(self, member: MemberId, evidence: str = "E2", observers: Iterable[MemberId] | None = None) -> None:
        """The process `member` is gone and everyone notices."""
        for other in sorted(self.cores if observers is None else observers):
            if other != member and other in self.cores:
                self.step(other, ev.LinkDown(member, evidence))

    # -- time -----------------------------------------------------------------------------------------------------

    def run(self, ms: int, *, tick_ms: int = 10, until: Callable[[], bool] | None = None) -> None:
        """Let time pass, everybody ticking, everything settling in between."""
        end = self.now + ms
        while self.now < end:
            if until is not None and until():
                return
            self.now += tick_ms
            for member in sorted(self.cores):
                self.tick(member)
            self.settle()
        assert until is None or until(), "did not happen in time"

    def elect(self, member: MemberId) -> Core:
        """Make `member` the leader by letting only it time out."""
        for _ in range(300):
            if self.cores[member].role is RaftRole.LEADER:
                break
            self.now += 10
            self.tick(member)
            self.settle()
        core = self.cores[member]
        assert core.role is RaftRole.LEADER, f"{member} is {core.role}"
        self.settle()
        self.now += self.timing.heartbeat_ms
        self.tick(member)
        self.settle()
        return core

    # -- questions ------------------------------------------------------------------------------------------------

    def leader(self) -> Core | None:
        found = [c for c in self.cores.values() if c.role is RaftRole.LEADER]
        return max(found, key=lambda core: core.term) if found else None

    def propose(self, member: MemberId, number: int, body: bytes = b"x", *, deadline: int = FAR) -> None:
        self.step(member, ev.Propose(pid(number), EntryKind.SQL, body, 0, deadline))

    def status(self, member: MemberId, key: bytes | int) -> str | None:
        found = self.resolved[member].get(key)
        return None if found is None else found.status

    def bodies(self, member: MemberId) -> list[bytes]:
        return [entry.body for entry in self.machines[member].applied if entry.kind is EntryKind.SQL]

    def messages(self, kind: type, *, source: MemberId = NOBODY, to: MemberId = NOBODY) -> list[Envelope]:
        return [
            e
            for e in self.sent
            if isinstance(e.message, kind) and source in (NOBODY, e.source) and to in (NOBODY, e.destination)
        ]


def envelope(world: World, source: int, to: int, message: Message, *, term: int) -> Envelope:
    """A message as `source` would send it now, in a term of the test's choice."""
    durable = world.machines[source].durable
    return Envelope(PROTOCOL_VERSION, CLUSTER[:8], durable.epoch, source, to, durable.incarnation, term, message)


class FatalError(Exception):
    """A core has asked for its process to stop."""


def fingerprint(world: World) -> str:
    """Return a hash of everything that happened, for determinism tests."""
    return blake2b(repr(world.log).encode()).hexdigest()
