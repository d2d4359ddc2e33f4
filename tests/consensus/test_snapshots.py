"""Compaction and snapshot catch-up: windows, loss, resume, install, crash points (CONSENSUS 3.10, R-SNAP, R-TRUNC)."""

from __future__ import annotations

import pytest

from incus_actors.consensus import effects as fx
from incus_actors.consensus import events as ev
from incus_actors.consensus import messages as m
from incus_actors.consensus.types import Limits, RaftRole

from .harness import World, pid

SMALL = Limits(retained_entries=8, append_entries=4, snapshot_chunk_bytes=100, snapshot_inflight=3)


def behind(limits: Limits = SMALL) -> World:
    """Member 3 was away so long that what it needs is compacted."""
    world = World(3, limits=limits)
    world.elect(1)
    world.run(100)
    world.crash(3)
    world.now += 20_000
    for member in (1, 2):
        world.step(member, ev.Stalled(2000))
    world.run(1500)
    assert world.leader() is not None
    for number in range(1, 61):
        world.propose(1, number, b"%d" % number)
        world.settle()
    leader = world.leader()
    assert leader is not None
    assert leader.first_index > 20
    world.log.clear()
    world.sent.clear()
    return world


def bring_back(world: World) -> None:
    leader = world.leader()
    assert leader is not None
    world.start(3)
    world.tick(3)
    world.step(leader.id, ev.LinkUp(3))
    world.step(3, ev.LinkUp(leader.id))


def test_the_log_stays_bounded_and_keeps_what_it_should() -> None:
    world = World(1, limits=SMALL)
    world.elect(1)
    for number in range(1, 500):
        world.propose(1, number)
        world.settle()
    log = world.cores[1].log
    assert 8 <= log.last - log.first + 1 <= 20
    assert world.machines[1].durable.snapshot.index == log.mark.index
    assert world.machines[1].durable.snapshot == log.mark
    world.restart(1)
    world.tick(1)
    world.settle()
    world.propose(1, 1000)
    world.settle()
    assert world.status(1, pid(1000)) == "applied"


def test_compaction_waits_for_online_members_until_the_log_is_too_long() -> None:
    world = World(3, limits=Limits(retained_entries=8))
    world.elect(1)
    world.run(100)
    world.slow_disks.add(3)
    for number in range(1, 61):
        world.propose(1, number)
        world.settle()
    assert world.cores[1].first_index == 2, "3 is online and has only the first"
    for number in range(61, 161):
        world.propose(1, number)
        world.settle()
    assert world.cores[1].first_index > 100, "sixteen times what is kept is enough"


def test_compaction_by_weight() -> None:
    world = World(1, limits=Limits(log_bytes=10_000))
    world.elect(1)
    for number in range(1, 40):
        world.propose(1, number, b"x" * 1000)
        world.settle()
    assert world.cores[1].log.bytes <= 12_000


def test_a_member_whose_entries_are_gone_catches_up_by_snapshot() -> None:
    world = behind()
    bring_back(world)
    world.settle()
    world.run(100)
    assert world.bodies(3) == [b"%d" % number for number in range(1, 61)]
    assert [type(e).__name__ for owner, e in world.log if owner == 3 and isinstance(e, fx.InstallSnapshot)]
    assert {
        e.bulk for owner, e in world.log if isinstance(e, fx.Send) and isinstance(e.envelope.message, m.SnapshotChunk)
    } == {True}
    world.propose(3, 99, b"after")
    world.settle()
    assert world.status(3, pid(99)) == "applied"
    leadership = world.cores[1].leadership
    assert leadership is not None
    assert leadership.progress[3].state == "replicate"


def test_chunks_in_flight_are_bounded() -> None:
    world = behind()
    bring_back(world)
    world.hold = lambda e: isinstance(e.message, m.SnapshotChunk)
    world.settle()
    assert len(world.messages(m.SnapshotChunk)) == 3
    world.hold = lambda e: False
    world.settle()
    assert len(world.messages(m.SnapshotChunk)) == 10


@pytest.mark.parametrize("kind", [m.SnapshotOffer, m.SnapshotChunk, m.SnapshotAck])
def test_a_lost_offer_chunk_or_ack_only_costs_time(kind: type) -> None:
    world = behind()
    bring_back(world)
    lost = 0
    for _ in range(400):
        lost += world.deliver(lambda e: isinstance(e.message, kind) and lost == 0, drop=True)  # noqa: B023
        world.deliver()
        for member in sorted(world.cores):
            world.complete(member, len(world.writes[member]))
            world.apply(member)
        world.now += 10
        for member in sorted(world.cores):
            world.tick(member)
    assert lost >= 1
    assert len(world.bodies(3)) == 60


def test_a_transfer_resumes_from_where_it_broke() -> None:
    world = behind()
    bring_back(world)
    delivered = 0

    def hold(envelope: m.Envelope) -> bool:
        nonlocal delivered
        if isinstance(envelope.message, m.SnapshotChunk):
            delivered += 1
            return delivered > 5
        return False

    world.hold = hold
    world.settle()
    world.network.clear()
    world.hold = lambda e: False
    world.sent.clear()
    world.run(1500)
    assert len(world.bodies(3)) == 60
    offsets = [e.message.offset for e in world.messages(m.SnapshotChunk)]
    assert min(offsets) >= 300, "the first chunks are not sent again"


def test_r_snap_nothing_is_acknowledged_before_the_switch_is_durable() -> None:
    world = behind()
    world.install_crash.add(3)
    bring_back(world)
    world.settle()
    assert world.cores[3].receiver.installing
    assert not [e for e in world.messages(m.SnapshotAck) if e.message.state == "installed"]
    leadership = world.cores[1].leadership
    assert leadership is not None
    assert leadership.progress[3].match == 1
    # no campaign while the snapshot is put in place
    world.cut = {(1, 3), (2, 3)}
    world.run(3000)
    assert world.cores[3].role is RaftRole.FOLLOWER
    # a crash at this point leaves the old world, and the next try succeeds
    world.heal()
    world.restart(3)
    world.install_crash.clear()
    world.run(2500)
    assert len(world.bodies(3)) == 60


def test_a_snapshot_that_is_not_ahead_is_never_installed() -> None:
    world = World(3, limits=SMALL)
    leader = world.elect(1)
    for number in range(1, 10):
        world.propose(1, number)
    world.settle()
    world.run(100)
    core = world.cores[3]
    chain = core.log.chain_at(5) or b""
    offer = m.SnapshotOffer("old", 5, 1, chain, core.configuration, 0, 100, b"")
    leader.send(3, offer)
    world.sent.clear()
    world.network.clear()
    for effect in leader.effects:
        if isinstance(effect, fx.Send):
            world.step(3, ev.Receive(effect.envelope))
    leader.effects.clear()
    assert core.receiver.offer is None
    assert [e.message.match for e in world.messages(m.AppendResponse, source=3)] == [core.commit]


def test_the_suffix_behind_a_snapshot_is_kept_when_it_goes_on_from_there() -> None:
    world = World(3, limits=SMALL)
    world.elect(1)
    for number in range(1, 10):
        world.propose(1, number)
    world.settle()
    log = world.cores[2].log
    mark = world.machines[2].mark_at(6)
    last = log.last
    log.restore(mark)
    assert (log.first, log.last, log.durable) == (7, last, last)
    log.restore(world.machines[2].mark_at(6).__class__(last + 5, 3, b"elsewher", log.configuration, 0))
    assert (log.first, log.last, log.durable) == (last + 6, last + 5, last + 5)


def test_a_failed_snapshot_is_tried_again_later() -> None:
    world = behind()
    bring_back(world)
    world.hold = lambda e: isinstance(e.message, m.SnapshotOffer)
    world.settle()
    world.network.clear()
    world.hold = lambda e: False
    world.step(1, ev.SnapshotFailed(3, "s", "disk"))
    world.run(2500)
    assert len(world.bodies(3)) == 60


def test_a_new_leader_starts_over_and_the_receiver_follows_it() -> None:
    world = behind()
    bring_back(world)
    world.hold = lambda e: isinstance(e.message, m.SnapshotChunk) and e.source == 1
    world.settle()
    world.crash(1)
    world.links_down(1)
    world.run(4000)
    assert world.cores[2].role is RaftRole.LEADER
    assert len(world.bodies(3)) == 60


def test_r_snap_install_waits_for_what_is_handed_over() -> None:
    """Found by chaos: the state jumped while entries handed over before were still on their way to it."""
    world = World(1)
    core = world.elect(1)
    offer = m.SnapshotOffer("s", 50, 1, b"chainchn", core.configuration, 0, 10, b"")
    core.receiver.offer, core.receiver.stored_offset = offer, 10
    world.hold_apply.add(1)
    world.propose(1, 1)
    world.settle()
    assert core.applied < core.apply_sent
    core.receiver.try_install()
    assert not core.receiver.installing
