"""Full, slow, hung and failing disks as the core treats them (CONSENSUS 3.4)."""

from __future__ import annotations

from incus_actors.consensus import effects as fx
from incus_actors.consensus import events as ev
from incus_actors.consensus import messages as m
from incus_actors.consensus.types import EntryKind, RaftRole

from .harness import FAR, World, pid

LOW = 1000  #: KiB


def test_io_error_on_the_leader_is_fail_stop_with_goodbye_and_unknown_results() -> None:
    world = World(3)
    leader = world.elect(1)
    world.run(200)
    world.slow_disks.add(1)
    world.cut |= {(1, 2), (1, 3)}
    world.propose(1, 1)
    write = world.writes[1][0]
    effects = leader.step(world.now, ev.LogFailed(write.write_id, "io"))
    goodbyes = [e.envelope.message for e in effects if isinstance(e, fx.Send)]
    assert goodbyes
    assert all(isinstance(message, m.Goodbye) and message.why == "diskfail" for message in goodbyes)
    assert [e.status for e in effects if isinstance(e, fx.Resolve)] == ["unknown"]
    assert [e.kind for e in effects if isinstance(e, fx.Fatal)] == ["io"]
    assert leader.step(world.now + 1000, ev.LogWritten(99)) == []


def test_a_leader_with_a_hung_disk_is_replaced() -> None:
    """hashicorp/raft #503."""
    world = World(3)
    leader = world.elect(1)
    world.run(200)
    world.slow_disks.add(1)
    world.cut |= {(2, 1), (3, 1)}  # nobody acknowledges either, so the write waits
    world.propose(1, 1, deadline=FAR)
    world.cut.clear()
    world.run(2500)
    assert leader.role is RaftRole.FOLLOWER
    other = world.leader()
    assert other is not None
    assert other.id != 1
    term = other.term
    world.run(3000)
    assert other.term == term, "the one with the hung disk does not campaign"
    world.propose(2, 2)
    world.settle()
    world.run(50)
    assert world.status(2, pid(2)) == "applied"


def test_a_hung_disk_on_an_idle_leader_is_no_reason_to_leave() -> None:
    world = World(3)
    leader = world.elect(1)
    world.run(5000)
    assert leader.role is RaftRole.LEADER


def test_after_a_hang_three_fast_writes_lift_the_ban() -> None:
    world = World(3)
    core = world.elect(1)
    world.run(200)
    world.slow_disks.add(1)
    world.propose(1, 1)
    world.run(2500)
    assert core.disk_ban_until_ms > world.now
    world.slow_disks.clear()
    world.settle()
    for number in range(10, 14):
        world.propose(2, number)
        world.settle()
        world.run(20)
    assert core.disk_ban_until_ms == 0


def test_a_candidate_with_a_hung_disk_never_leads() -> None:
    world = World(3)
    world.slow_disks.add(1)
    core = world.cores[1]
    core.become_candidate("timeout")
    world.tick(1)
    for _ in range(20):
        world.now += 50
        world.tick(1)
        world.settle()
    assert core.role is not RaftRole.LEADER


def test_low_disk_on_the_leader_refuses_data_and_hands_leadership_away() -> None:
    world = World(3)
    leader = world.elect(1)
    world.run(200)
    for _ in range(60):
        world.now += 10
        world.tick(1, free_kib=LOW)
        for other in (2, 3):
            world.tick(other)
        world.settle()
    other = world.leader()
    assert other is not None
    assert other is not leader
    world.propose(1, 1)
    world.settle()
    world.run(20)
    assert world.status(1, pid(1)) == "applied"


def test_low_disk_on_a_majority_refuses_data_but_not_what_frees_space() -> None:
    world = World(3)
    world.elect(1)
    world.run(200)
    for _ in range(30):
        world.now += 10
        world.tick(1)
        for other in (2, 3):
            world.tick(other, free_kib=LOW)
        world.settle()
    world.propose(1, 1)
    assert world.status(1, pid(1)) == "disk_full"
    world.step(1, ev.Propose(pid(2), EntryKind.EXPIRE, b"x", 0, FAR))
    world.settle()
    assert world.status(1, pid(2)) == "applied"
    world.step(1, ev.Propose(pid(4), EntryKind.DELETE, b"x", 0, FAR))
    world.step(2, ev.Propose(pid(5), EntryKind.DELETE, b"x", 0, FAR))
    world.settle()
    assert (world.status(1, pid(4)), world.status(2, pid(5))) == ("applied", "applied")
    world.run(200)
    world.propose(1, 3)
    world.settle()
    assert world.status(1, pid(3)) == "applied", "there is space again"


def test_a_full_log_disk_is_a_clean_rollback_and_is_retried_not_fatal() -> None:
    world = World(1)
    world.elect(1)
    world.slow_disks.add(1)
    world.propose(1, 1)
    world.step(1, ev.LogFailed(world.writes[1][0].write_id, "full"))
    world.propose(1, 2)
    assert world.status(1, pid(2)) == "disk_full"
    world.slow_disks.clear()
    world.settle()
    assert world.status(1, pid(1)) == "applied"
    world.propose(1, 3)
    world.settle()
    assert world.status(1, pid(3)) == "applied"
