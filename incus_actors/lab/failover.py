"""Failover rounds: break the leader, measure from outside when work goes on.

Owns the measurement; `incus-actors bench failover` and benchmarks/failover.py report it. Times are the
observer's CLOCK_MONOTONIC, which all processes of one machine share; "noticed" and "elected" are read from the
survivors' journal of role changes in the same clock. Must never drop a round: failures are reported as such.
"""

from __future__ import annotations

import random
import signal
import time
from dataclasses import asdict, dataclass
from typing import Any

from incus_actors.lab.client import RequestFailedError
from incus_actors.lab.cluster import LabCluster, wait_for
from incus_actors.lab.disk_probe import DiskProbe
from incus_actors.lab.processes import LabMember
from incus_actors.lab.writers import Attempt, LostWrite, Writer, first_accepted_after, longest_gap_ns, lost_writes

HOWS = ("kill", "cut", "stop")
WRITERS_PER_MEMBER = 2
OBSERVER_LATE_MS = 100.0
BEFORE_STOP_NS = 200_000_000
AFTER_STOP_S = 1.0
NOT_BACK = "the cluster did not become healthy again"


@dataclass(frozen=True, slots=True)
class Round:
    """One measured round; milliseconds after the leader was broken, None where nothing was seen in time."""

    product: str
    how: str
    number: int
    victim: str
    noticed_ms: float | None
    elected_ms: float | None
    write_ms: float | None  #: for a planned stop: the longest gap between accepted writes
    acknowledged: int
    lost: int
    failure: str = ""
    disk_ms: float | None = None  #: the observer's longest synced write of 4 KiB meanwhile

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def break_leader(cluster: LabCluster, victim: LabMember, how: str) -> tuple[int, int]:
    """Kill, cut or stop the victim; return the monotonic times in ns from which on we count, and after which a write
    proves that work goes on: pulling a link takes some milliseconds, in which writes may still pass."""
    if how == "kill":
        moment = victim.kill()
        return moment, moment
    moment = time.monotonic_ns()
    if how == "cut":
        if cluster.network is None:
            raise ValueError("cutting a link needs namespaces")
        cluster.network.cut(cluster.members.index(victim) + 1)
    else:
        victim.signal(signal.SIGTERM)
    return moment, time.monotonic_ns()


def mend(cluster: LabCluster, victim: LabMember, how: str) -> None:
    """Bring the victim back."""
    if how == "cut":
        assert cluster.network is not None
        cluster.network.heal(cluster.members.index(victim) + 1)
        return
    if how == "stop":
        victim.stop(60)
    victim.start()
    victim.wait_until_ready(120)


def role_journal(members: list[LabMember]) -> list[dict[str, Any]]:
    """Return the role changes that members remember; empty for products without such a journal."""
    journal: list[dict[str, Any]] = []
    for member in members:
        try:
            journal += [{**row, "member": member.name} for row in member.client.get("/internal/raft")["journal"]]
        except (OSError, RequestFailedError, ValueError, KeyError, TypeError):
            continue
    return sorted(journal, key=lambda row: int(row["monotonic_ns"]))


def since(row: dict[str, Any], moment_ns: int) -> float | None:
    """Return how many ms after `moment_ns` a change of role was, None if it was before.

    The moment of a kill is read after the signal, and on a busy machine the survivors may be faster than we are.
    """
    after = (int(row["monotonic_ns"]) - moment_ns) / 1e6
    return max(0.0, after) if after > -OBSERVER_LATE_MS else None


def phases(journal: list[dict[str, Any]], moment_ns: int) -> tuple[float | None, float | None]:
    """Return (noticed, elected) in ms after `moment_ns` from a journal of survivors."""
    noticed = elected = None
    for row in journal:
        after = since(row, moment_ns)
        if after is None:
            continue
        if noticed is None and (row["role"] in {"pre-candidate", "candidate"} or row["cause"] == "forgot"):
            noticed = after
        if elected is None and row["role"] == "leader":
            elected = after
    return noticed, elected


def run_round(cluster: LabCluster, how: str, number: int, rng: random.Random, limit_s: float) -> Round:
    """Break the present leader once, measure, mend, wait for health."""
    victim = wait_for(cluster.leader, "a leader", timeout_s=90)
    survivors = [m for m in cluster.members if m is not victim]
    writers = [
        Writer(m, f"user.bench-{m.name}-{i}", timeout_s=limit_s) for m in survivors for i in range(WRITERS_PER_MEMBER)
    ]
    with DiskProbe(cluster.directory) as disk:
        for writer in writers:
            writer.start()
        time.sleep(0.3 + rng.random() * 0.3)
        moment, done = break_leader(cluster, victim, how)
        histories = _watch(writers, victim if how == "stop" else None, done, limit_s)
    begin, end = moment - BEFORE_STOP_NS, max(a.end_ns for h in histories for a in h)
    journal = role_journal(survivors)
    noticed, elected = phases(journal, moment)
    write: float | None
    if how == "stop":
        write = longest_gap_ns(histories, begin, end) / 1e6
    else:
        first = first_accepted_after(histories, done)
        write = None if first is None else (first - moment) / 1e6
    acknowledged = sum(a.acknowledged for h in histories for a in h)
    failure = "" if write is not None else f"no write accepted within {limit_s:g} s"
    lost: list[LostWrite] = []
    try:
        mend(cluster, victim, how)
        cluster.wait_until_healthy(180)
        lost = lost_writes(histories, survivors[0].client.get("/1.0")["config"])
    except (TimeoutError, RuntimeError, RequestFailedError, OSError) as problem:
        failure = failure or f"{NOT_BACK}: {problem}"
    return Round(
        cluster.product,
        how,
        number,
        victim.name,
        noticed,
        elected,
        write,
        acknowledged,
        len(lost),
        failure,
        disk.longest_ms(begin, end),
    )


def _watch(writers: list[Writer], stopping: LabMember | None, moment_ns: int, limit_s: float) -> list[list[Attempt]]:
    """Let the writers go on until work was accepted again (and a little longer), or the limit; while a member is
    stopping, until it has ended and a second has passed."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        time.sleep(0.05)
        if stopping is not None:
            if not stopping.running:
                time.sleep(AFTER_STOP_S)
                break
        elif first_accepted_after([list(w.history) for w in writers], moment_ns) is not None:
            time.sleep(0.2)
            break
    return [writer.finish() for writer in writers]
