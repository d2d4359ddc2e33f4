"""Seeded chaos over the little world: drop, duplicate, reorder, crash, partition, slow disks, membership changes.

Checks after every step: election safety, leader completeness, state machine safety; at the end: liveness and
that nothing acknowledged is lost. The big simulator is elsewhere; this one is small, fast and always run.
"""

from __future__ import annotations

from incus_actors.consensus import events as ev
from incus_actors.consensus.core import Core
from incus_actors.consensus.types import EntryKind, Limits, Member, MemberId, RaftRole, Role

from .harness import World, pid

SMALL = Limits(retained_entries=8, append_entries=4, snapshot_chunk_bytes=400, inflight_appends=3)


class Chaos(World):
    """A world in which the seed decides what happens next."""

    def __init__(self, seed: int, count: int = 3, *, change_members: bool = False) -> None:
        roles = {4: Role.STANDBY, 5: Role.SPARE} if count == 5 and seed % 2 else {}
        super().__init__(count, seed=seed, roles=roles, limits=SMALL)
        self.known_commit: dict[int, bytes] = {}
        self.checked_commit: dict[MemberId, int] = {}
        self.led: dict[tuple[MemberId, int], bool] = {}
        self.next_number = 0
        self.acked: set[int] = set()
        self.asked: dict[MemberId, list[int]] = {}
        self.change_members = change_members
        self.drop = self.rng.choice((0.0, 0.05, 0.2))
        self.duplicate = self.rng.choice((0.0, 0.1))
        self.crash_rate = self.rng.choice((0.0, 0.003, 0.006))
        self.read_floor: dict[tuple[MemberId, int], int] = {}
        self.next_read = 1
        self.low_disk = self.rng.choice((0.0, 0.0, 0.3))

    # -- checks ---------------------------------------------------------------------------------------------------

    def observe(self, core: Core) -> None:
        super().observe(core)
        low = self.checked_commit.get(core.id, 0)
        for index in range(max(low + 1, core.log.first), core.commit + 1):
            chain = core.log.entry(index).chain
            assert self.known_commit.setdefault(index, chain) == chain, f"commit differs at {index}"
        self.checked_commit[core.id] = core.commit
        if core.role is RaftRole.LEADER and (core.id, core.term) not in self.led:
            self.led[core.id, core.term] = True
            for index, chain in self.known_commit.items():
                if index > core.log.mark.index:
                    assert core.log.chain_at(index) == chain, f"leader of {core.term} lacks committed {index}"

    def check_logs_match(self) -> None:
        cores = list(self.cores.values())
        for one in cores:
            for other in cores:
                for index in range(max(one.log.first, other.log.first), min(one.log.last, other.log.last) + 1):
                    if one.log.term_at(index) == other.log.term_at(index):
                        assert one.log.chain_at(index) == other.log.chain_at(index), "log matching"

    # -- actions --------------------------------------------------------------------------------------------------

    def action(self) -> None:
        rng = self.rng
        member = rng.choice(sorted(self.machines))
        dice = rng.random()
        if dice < 0.62:
            self.some_message()
        elif dice < 0.74:
            if member in self.cores and self.writes[member]:
                self.complete(member, rng.randint(1, len(self.writes[member])))
        elif dice < 0.80:
            if member in self.cores:
                self.apply(member)
        elif dice < 0.87:
            self.now += rng.choice((1, 5, 10, 30, 60))
            for each in sorted(self.cores):
                if rng.random() < 0.02:
                    self.step(each, ev.Stalled(rng.randint(50, 700)))
                if rng.random() < 0.9:
                    self.tick(each, 1000 if rng.random() < self.low_disk else 1 << 30)
        elif dice < 0.90:
            self.client(member)
        elif dice < 0.90 + self.crash_rate:
            if member in self.cores:
                self.crash(member)
                self.rewind(member)
                for other in sorted(self.cores):
                    if rng.random() < 0.7:
                        self.step(other, ev.LinkDown(member, rng.choice(("E1", "E2"))))
        elif dice < 0.94:
            if member not in self.cores:
                self.start(member)
                for other in sorted(self.cores):
                    if other != member and rng.random() < 0.7:
                        self.step(other, ev.LinkUp(member))
                        self.step(member, ev.LinkUp(other))
        elif dice < 0.95:
            self.cut.clear()
            if rng.random() < 0.6:
                one, other = rng.sample(sorted(self.machines), 2)
                self.cut.add((one, other))
                if rng.random() < 0.5:
                    self.isolate(one)
        elif dice < 0.96 and self.change_members:
            self.reconfigure()
        elif dice < 0.965:
            leader = self.leader()
            if leader is not None:
                self.step(leader.id, ev.Transfer(9000 + self.now, 0))
        self.note_answers()

    def rewind(self, member: MemberId) -> None:
        """The state file is not synced: after a crash it may be older, but never older than the log begins."""
        machine = self.machines[member]
        target = self.rng.randint(machine.durable.snapshot.index, machine.state_index)
        machine.applied = [entry for entry in machine.applied if entry.index <= target]

    def some_message(self) -> None:
        if not self.network:
            return
        rng = self.rng
        place = rng.randrange(min(len(self.network), 6)) if rng.random() < 0.8 else rng.randrange(len(self.network))
        envelope = self.network.pop(place)
        if rng.random() < self.drop:
            return
        if rng.random() < self.duplicate:
            self.network.append(envelope)
        if (envelope.source, envelope.destination) not in self.cut:
            self.step(envelope.destination, ev.Receive(envelope))

    def client(self, member: MemberId) -> None:
        if member not in self.cores:
            return
        if self.rng.random() < 0.3:
            self.next_read += 1
            self.read_floor[member, self.next_read] = max(self.known_commit, default=0) if self.acked else 0
            self.step(member, ev.ReadIndex(self.next_read, self.now + 2000))
            return
        self.next_number += 1
        self.asked.setdefault(member, []).append(self.next_number)
        body = self.next_number.to_bytes(4, "big")
        deadline = self.now + self.rng.choice((300, 3000, 30_000))
        self.step(member, ev.Propose(pid(self.next_number), EntryKind.SQL, body, 0, deadline))

    def reconfigure(self) -> None:
        leader = self.leader()
        if leader is None or leader.configuration.joint:
            return
        current = list(leader.configuration.old)
        place = self.rng.randrange(len(current))
        role = self.rng.choice((Role.VOTER, Role.VOTER, Role.STANDBY))
        current[place] = Member(current[place].id, current[place].address, role)
        self.step(leader.id, ev.ChangeConfiguration(50_000 + self.now, tuple(current)))

    def note_answers(self) -> None:
        for member in self.resolved:
            for key, resolve in self.resolved[member].items():
                if resolve.status != "applied":
                    continue
                if isinstance(key, bytes):
                    self.acked.add(int.from_bytes(key, "big"))
                elif (member, key) in self.read_floor:
                    floor = self.read_floor.pop((member, key))
                    assert resolve.index >= floor, f"stale read: {resolve.index} < {floor}"

    # -- a whole run ----------------------------------------------------------------------------------------------

    def play(self, steps: int) -> None:
        for count in range(steps):
            self.action()
            if count % 50 == 0:
                self.check_logs_match()
        self.heal_and_check()

    def heal_and_check(self) -> None:
        self.heal()
        for member in sorted(self.machines):
            if member not in self.cores:
                self.start(member)
        for one in sorted(self.cores):
            for other in sorted(self.cores):
                if one != other:
                    self.step(one, ev.LinkUp(other))
        self.run(3000, until=lambda: self.leader() is not None)
        self.run(4000)
        leader = self.leader()
        assert leader is not None
        self.propose(leader.id, 1 << 40, b"last")
        self.run(1500)
        assert self.status(leader.id, pid(1 << 40)) == "applied"
        self.check_logs_match()
        chains = {member: self.machines[member].digest() for member in self.machines}
        assert len(set(chains.values())) == 1, f"states differ after healing: {self.states()}"
        in_log = {int.from_bytes(e.proposal_id, "big") for e in self.machines[leader.id].applied if e.proposal_id}
        assert self.acked <= in_log, f"acknowledged and lost: {sorted(self.acked - in_log)}"

    def states(self) -> str:
        return " ".join(
            f"{c.id}:{c.role}/{c.term} last {c.log.last} durable {c.log.durable} commit {c.commit} applied {c.applied}"
            for c in self.cores.values()
        )
