"""A nemesis run: real daemons in namespaces, faults drawn from a seed, clients that note everything.

Owns the cluster, the schedule and the collection of what happened; cli/chaos.py judges it. Must never stop a fault
half-way: whatever was broken is mended before the end is looked at.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from incus_actors.lab import clock_daemon, debris
from incus_actors.lab.client import RequestFailedError
from incus_actors.lab.cluster import LabCluster, wait_for
from incus_actors.lab.disks import FreezableDisk, SmallDisk, can_loop
from incus_actors.lab.nemesis import Fault, Stage
from incus_actors.lab.processes import CLOCK_DAEMON, LabMember
from incus_actors.lab.registers import Operation, RegisterClient, Registers
from incus_actors.lab.schedule import NEED_LOOP, NEED_TRACE, WEIGHTS, choose
from incus_actors.lab.tracing import can_trace
from incus_actors.lab.writers import Attempt, LostWrite, Writer, lost_writes

FINAL_READS = 2
#: lines of a log that must not be there: the daemon contradicted itself
ALARMS = ("InvariantError", "DriverError", "two leaders in term", "acknowledges", "twice within ten minutes")
#: counters that must stay 0 unless a fault damaged a disk
COUNTERS = ("digest_mismatches", "chain_mismatches")
HEAL_S = 120.0
SETTLE_S = 60.0
DISK_MIB = 192


@dataclass
class ChaosResult:
    """What a run left behind. `problems`: what is wrong before any history is judged."""

    seed: int
    faults: list[str]
    operations: list[Operation]
    attempts: list[list[Attempt]]
    failures: dict[str, int]
    lost: list[LostWrite] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    healthy_after_s: float = 0.0


def run_chaos(
    seconds: float,
    *,
    seed: int,
    members: int = 5,
    clients: int = 6,
    say: Callable[[str], None] = print,
    keep_logs: Path | None = None,
    only: Collection[type[Fault]] = tuple(WEIGHTS),
) -> ChaosResult:
    """Run faults for `seconds`, mend everything, collect. Needs root. Logs go to `keep_logs` if something is wrong."""
    rng = random.Random(seed)  # noqa: S311 - the seed decides everything
    lab = LabCluster.in_namespaces(members, prefix="cha")
    assert lab.network is not None
    assert lab.directory is not None
    disks = _disks(lab.members)
    for member in lab.members:
        member.command = CLOCK_DAEMON
        member.environment = {clock_daemon.VARIABLE: str(clock_daemon.offset_file(member.directory))}
        clock_daemon.set_offset(clock_daemon.offset_file(member.directory), 0)
    try:
        for disk in disks.values():
            disk.mount()
        lab.form()
        lab.wait_until_healthy()
        stage = Stage(lab, lab.network, rng, disks, say)
        result = _run(stage, seconds, seed, clients, only)
        if (result.problems or result.lost) and keep_logs is not None:
            _keep(lab, keep_logs)
        return result
    except BaseException:
        if keep_logs is not None:
            _keep(lab, keep_logs)
        raise
    finally:
        for disk in disks.values():
            if isinstance(disk, FreezableDisk):
                disk.thaw()  # whoever waits for a frozen one can't even be killed
        lab.destroy()
        debris.remove(lab.directory)


def _disks(members: list[LabMember]) -> dict[str, SmallDisk | FreezableDisk]:
    """Two members get disks that can hang and fail, where this machine can make such; the others' only run full."""
    loops = 2 if can_loop() else 0
    found: dict[str, SmallDisk | FreezableDisk] = {
        member.name: FreezableDisk(member.directory, member.directory.with_suffix(".img"), DISK_MIB)
        for member in members[:loops]
    }
    return found | {member.name: SmallDisk(member.directory, DISK_MIB) for member in members[loops:]}


def _keep(lab: LabCluster, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for member in lab.members:
        if member.log.exists():
            (target / member.log.name).write_bytes(member.log.read_bytes())


def _run(stage: Stage, seconds: float, seed: int, clients: int, only: Collection[type[Fault]]) -> ChaosResult:
    registers = Registers(stage.members, random.Random(stage.rng.random()))  # noqa: S311
    callers = [RegisterClient(number, registers) for number in range(1, clients + 1)]
    writers = _Writers()
    for member in stage.members:
        writers.start(member)
    for caller in callers:
        caller.start()

    def retire(member: LabMember) -> None:
        writers.finish(member)
        registers.retire(member)

    def readmit(member: LabMember) -> None:
        registers.readmit(member)
        writers.start(member)

    stage.retire, stage.readmit = retire, readmit
    faults: list[str] = []
    problems: list[str] = []
    healed_s = 0.0
    try:
        _strike(stage, seconds, faults, only)
    except Exception as problem:
        problems.append(f"the nemesis could not go on: {type(problem).__name__}: {problem}")
    try:
        begin = time.monotonic()
        _restart_missing(stage, problems)
        stage.cluster.wait_until_healthy(HEAL_S)
        healed_s = time.monotonic() - begin
        wait_for(stage.cluster.settled, "all roles are taken", timeout_s=SETTLE_S, every_s=0.2)
        time.sleep(1)
    except TimeoutError as problem:
        problems.append(str(problem))
    operations = [operation for caller in callers for operation in caller.finish()]
    attempts = writers.finish_all()
    failures: dict[str, int] = {}
    for caller in callers:
        for text, count in caller.failures.items():
            failures[text] = failures.get(text, 0) + count
    result = ChaosResult(seed, faults, operations, attempts, failures, problems=problems, healthy_after_s=healed_s)
    if not problems:
        _look_at_the_end(stage, registers, result)
    return result


class _Writers:
    """One writer per member; a member that comes back gets a new one, with a key of its own."""

    def __init__(self) -> None:
        self._running: dict[str, Writer] = {}
        self._histories: list[list[Attempt]] = []

    def start(self, member: LabMember) -> None:
        key = f"user.chaos-{member.name}-{len(self._histories)}"
        self._running[member.name] = writer = Writer(member, key, timeout_s=5)
        self._histories.append(writer.history)
        writer.start()

    def finish(self, member: LabMember) -> None:
        self._running.pop(member.name).finish()

    def finish_all(self) -> list[list[Attempt]]:
        for writer in self._running.values():
            writer.finish()
        return [history for history in self._histories if history]


def _strike(stage: Stage, seconds: float, faults: list[str], only: Collection[type[Fault]]) -> None:
    begin = time.monotonic()
    rng = stage.rng
    without = {kind for kind in WEIGHTS if kind not in only}
    if not any(isinstance(disk, FreezableDisk) for disk in stage.disks.values()):
        without |= NEED_LOOP
    if not can_trace():
        without |= NEED_TRACE
    time.sleep(min(1.0, seconds / 10))
    while time.monotonic() - begin < seconds:
        chosen: list[Fault] = [kind() for kind in choose(rng, without=without)]
        begun: list[Fault] = []
        lasts = max(rng.uniform(*fault.lasts_s) for fault in chosen)
        try:
            for fault in chosen:
                text = f"{time.monotonic() - begin:7.1f} s  {fault.begin(stage)}"
                begun.append(fault)
                faults.append(text)
                stage.say(f"{text}, for {lasts:.1f} s")
            time.sleep(lasts)
        finally:
            for fault in reversed(begun):
                fault.end(stage)
        time.sleep(rng.uniform(0.2, 3.0))


def _restart_missing(stage: Stage, problems: list[str]) -> None:
    """A member that ended without having been told to is a finding, and is started again."""
    for member in stage.members:
        if not member.running:
            problems.append(f"{member.name} ended by itself: {member.log_tail(3)}")
            member.start()
        member.wait_until_ready(60)


def _look_at_the_end(stage: Stage, registers: Registers, result: ChaosResult) -> None:
    """Everybody must tell the same, and nobody may have contradicted itself."""
    for member in stage.members:
        config: dict[str, str] = member.client.get("/1.0")["config"]
        result.lost += lost_writes(result.attempts, config)
    for name in registers.all:
        for member in stage.rng.sample(stage.members, FINAL_READS):
            try:
                start = time.monotonic_ns()
                value = member.client.get(f"/1.0/profiles/{name}")["description"] or None
            except (OSError, RequestFailedError) as problem:
                result.problems.append(f"{name} can't be read through {member.name} at the end: {problem}")
            else:
                result.operations.append(Operation(name, "read", member.name, start, time.monotonic_ns(), result=value))
    damaged = any(word in fault for fault in result.faults for word in ("lost", "damaged"))
    for member in stage.members:
        status: dict[str, Any] = member.client.get("/internal/raft")["status"]
        for name in COUNTERS:
            if status["counters"].get(name) and not damaged:
                result.problems.append(f"{member.name}: {name} is {status['counters'][name]}")
        text = member.log.read_text(errors="replace")
        result.problems += [f"{member.name}: {line}" for line in text.splitlines() if any(a in line for a in ALARMS)]
