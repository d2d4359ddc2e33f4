"""What the consensus thread measures and shows (CONSENSUS 3.14)."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from incus_actors.clock import SystemClock
from incus_actors.consensus import effects as fx
from incus_actors.consensus import events as ev
from incus_actors.consensus.runtime import ConsensusRuntime
from incus_actors.consensus.types import HardState, Limits
from incus_actors.consensus.witness import Witness

from .harness import World
from .runtime_kit import Network, add, applied, grown, insert, leading, stop_all, until


def counted(world: World, member: int, name: str) -> dict[str, int]:
    """A counter by its labels."""
    found: dict[str, int] = {}
    for who, effect in world.log:
        if who == member and isinstance(effect, fx.Count) and effect.name == name:
            key = ",".join(f"{key}={value}" for key, value in effect.labels)
            found[key] = found.get(key, 0) + effect.amount
    return found


def test_an_election_is_measured_from_its_pre_vote_and_the_pre_vote_is_counted() -> None:
    world = World(3)
    core = world.elect(1)
    started = counted(world, 1, "prevotes_started")
    assert counted(world, 1, "prevotes_won") == {"why=timeout": 1}, started
    (took_ms,) = core.measured["election"]._values
    assert 0 <= took_ms < 200


def test_late_heartbeats_are_measured() -> None:
    world = World(3)
    core = world.elect(1)
    world.settle()
    due = min(progress.heartbeat_due_ms for progress in core.leadership.progress.values())
    world.now = due + 23
    world.tick(1)
    assert core.measured["heartbeat_late"].summary()["max"] == 23


def test_the_budget_of_the_fast_path_is_shown() -> None:
    world = World(3)
    world.elect(1)
    core = world.cores[2]
    assert core.suspicion.spent() == 0
    world.step(2, ev.LinkDown(1, "E2"))
    assert core.suspicion.spent() == 1
    world.now += 61_000
    world.step(2, ev.Tick(world.now))
    assert core.suspicion.spent() == 0


def test_the_witness_lags_until_it_is_synced(tmp_path: Path) -> None:
    witness = Witness(tmp_path / "tail.wit")
    witness.write(7, b"\0" * 8, HardState(1, 1), 0)
    assert witness.synced_index == 0
    witness.sync()
    assert witness.synced_index == 7
    witness.close()


async def test_a_leader_shows_disks_windows_and_snapshots(tmp_path: Path) -> None:
    limits = Limits(retained_entries=32, snapshot_chunk_bytes=16384)
    network = Network()
    runtimes = await grown(tmp_path, network, size=2, limits=limits)
    try:
        leader = leading(runtimes)
        for number in range(150):
            await leader.propose(insert(random.getrandbits(40) + number))
        await until(lambda: leader.status().first > 50)
        await add(tmp_path, network, runtimes, 3, limits=limits)
        await until(lambda: runtimes[3].status().counters.get("snapshots_received") == 1)
        await until(lambda: "snapshot_bytes_sent" in leader.status().counters)  # published a little later
        sent = leader.status().counters["snapshot_bytes_sent"]
        got = runtimes[3].status().counters["snapshot_bytes_received"]
        assert sent >= got > 0
        await until(lambda: leader.status().latency_ms["snapshot_sending"].get("count") == 1)
        await until(lambda: runtimes[3].status().latency_ms["snapshot_receiving"].get("count") == 1)
        await until(lambda: leader.status().latency_ms["heartbeat_late"].get("count", 0) > 0)
        status = leader.status()
        assert status.free_kib > 0
        assert "witness" in status.queue_depths
        await until(lambda: all(peer.free_kib > 0 for peer in leader.status().peers))
        assert {peer.state for peer in leader.status().peers} == {"replicate"}
        assert all(peer.in_flight >= 0 for peer in leader.status().peers)
        network.cut.add(3)
        await leader.propose(insert(-1))
        await until(lambda: any(peer.in_flight for peer in leader.status().peers if peer.id == 3))
    finally:
        network.cut.clear()
        await stop_all(runtimes)


def age_ms(runtime: ConsensusRuntime) -> int:
    return runtime.status().age_ms(SystemClock().monotonic_ms())


async def test_how_old_the_state_may_be_is_known_without_a_single_read(tmp_path: Path) -> None:
    network = Network()
    runtimes = await grown(tmp_path, network)
    try:
        leader = leading(runtimes)
        left = next(runtime for runtime in runtimes.values() if runtime is not leader)
        written_ms = SystemClock().monotonic_ms()
        await applied(leader, insert(1))
        await asyncio.sleep(1.2)
        assert age_ms(leader) == 0
        assert age_ms(left) < 1000, "idle, but it hears its leader"
        member = runtimes.pop(left.member_id).member_id
        await stop_all(runtimes)
        stopped_ms = SystemClock().monotonic_ms()
        await until(lambda: age_ms(left) > 600)
        assert age_ms(left) <= SystemClock().monotonic_ms() - stopped_ms + 1000
        await left.stop()
        left = runtimes[member] = ConsensusRuntime(tmp_path / str(member), network.lane, realtime=False)
        await left.start()
        now_ms = SystemClock().monotonic_ms()
        assert now_ms - stopped_ms <= age_ms(left) <= now_ms - written_ms + 1000, "as old as its last entry"
    finally:
        await stop_all(runtimes)
