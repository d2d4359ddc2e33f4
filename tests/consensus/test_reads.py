"""Linearizable reads: gates, rounds, retries, every member (CONSENSUS 3.12)."""

from __future__ import annotations

from incus_actors.consensus import events as ev
from incus_actors.consensus import messages as m
from incus_actors.consensus.types import Limits, RaftRole

from .harness import FAR, World, envelope, pid


def test_a_new_leader_answers_no_read_before_it_has_committed_in_its_own_term() -> None:
    """etcd PR 14258, hashicorp's missing gate."""
    world = World(3)
    world.elect(1)
    world.propose(1, 1)
    world.settle()
    committed = world.cores[1].commit
    # member 2 leads next, but its first entry reaches nobody; it does not know how far 1 had committed
    world.isolate(1)
    world.hold = lambda e: isinstance(e.message, m.Append)
    world.run(2000, until=lambda: any(world.cores[i].role is RaftRole.LEADER for i in (2, 3)))
    new = next(world.cores[i] for i in (2, 3) if world.cores[i].role is RaftRole.LEADER)
    world.step(new.id, ev.ReadIndex(5, FAR))
    world.run(300)
    assert world.status(new.id, 5) is None
    world.hold = lambda e: False
    world.settle()
    assert world.status(new.id, 5) == "applied"
    assert world.resolved[new.id][5].index > committed


def test_a_deposed_leader_confirms_nothing() -> None:
    world = World(3)
    world.elect(1)
    world.isolate(1)
    world.step(1, ev.ReadIndex(5, world.now + 3000))
    world.run(2000)
    assert world.leader() is not world.cores[1]
    assert world.status(1, 5) is None
    world.heal()
    world.run(900)
    assert world.status(1, 5) == "applied", "by the leader that there is now"
    assert world.resolved[1][5].index >= world.cores[1].commit


def test_an_old_answer_does_not_confirm_a_newer_read() -> None:
    """etcd #20418: acks are positions, and a round's heartbeats leave after its reads were registered."""
    world = World(3)
    leader = world.elect(1)
    world.run(200)
    world.step(1, ev.ReadIndex(5, FAR))
    early = [e for e in world.network if isinstance(e.message, m.Heartbeat)]
    assert len(early) == 2
    world.deliver(lambda e: isinstance(e.message, m.Heartbeat))
    answers = [e for e in world.network if isinstance(e.message, m.HeartbeatResponse)]
    world.network.clear()
    world.step(1, ev.Receive(answers[0]))
    assert world.status(1, 5) == "applied"
    world.step(1, ev.ReadIndex(6, FAR))
    for _ in range(3):
        world.step(1, ev.Receive(answers[0]))
        world.step(1, ev.Receive(answers[1]))
    assert world.status(1, 6) is None
    sequences = [e.message.read_sequence for e in world.messages(m.Heartbeat, to=2)]
    assert sequences == sorted(sequences)
    world.settle()
    assert world.status(1, 6) == "applied"
    assert leader.role is RaftRole.LEADER


def test_reads_made_together_share_rounds() -> None:
    world = World(3)
    world.elect(1)
    world.run(200)
    world.sent.clear()
    for request in range(1, 101):
        world.step(1, ev.ReadIndex(request, FAR))
    world.settle()
    assert all(world.status(1, request) == "applied" for request in range(1, 101))
    assert len(world.messages(m.Heartbeat)) <= 2 * 4


def test_a_follower_reads_linearizably_in_one_round_trip_without_time_passing() -> None:
    world = World(3)
    world.elect(1)
    world.run(200)
    world.propose(1, 1)
    world.settle()
    # member 2 has the entry but has not heard that it is committed
    assert world.cores[2].commit < world.cores[1].commit
    world.step(2, ev.ReadIndex(5, FAR))
    world.settle()
    assert world.status(2, 5) == "applied"
    assert world.resolved[2][5].index == world.cores[1].commit
    assert world.bodies(2) == [b"x"]


def test_a_read_waits_until_its_index_is_applied_here() -> None:
    world = World(3)
    world.elect(1)
    world.hold_apply.add(2)
    world.propose(1, 1)
    world.settle()
    world.step(2, ev.ReadIndex(5, FAR))
    world.settle()
    assert world.status(2, 5) is None
    world.hold_apply.clear()
    world.settle()
    assert world.status(2, 5) == "applied"


def test_a_lost_request_is_asked_again_under_a_new_number() -> None:
    world = World(3)
    world.elect(1)
    world.run(200)
    world.step(2, ev.ReadIndex(5, FAR))
    world.deliver(lambda e: isinstance(e.message, m.ReadIndex), drop=True)
    world.run(250)
    assert world.status(2, 5) == "applied"
    numbers = [e.message.request_id for e in world.messages(m.ReadIndex, source=2)]
    assert len(numbers) == len(set(numbers)) >= 2


def test_an_answer_to_the_process_before_is_no_answer() -> None:
    world = World(3)
    world.elect(1)
    world.run(200)
    world.step(2, ev.ReadIndex(5, FAR))
    world.deliver(lambda e: isinstance(e.message, m.ReadIndex))
    world.hold = lambda e: isinstance(e.message, m.ReadIndexResponse)
    world.settle()
    late = [e for e in world.network if isinstance(e.message, m.ReadIndexResponse)]
    world.network.clear()
    world.restart(2)
    world.resolved[2].clear()
    world.run(200)
    world.step(2, ev.ReadIndex(5, FAR))
    assert late
    for message in late:
        world.step(2, ev.Receive(message))
    assert world.status(2, 5) is None


def test_reads_without_a_leader_wait_and_end_at_their_deadline() -> None:
    world = World(3)
    world.tick(1)
    world.step(1, ev.ReadIndex(5, world.now + 5000))
    world.step(1, ev.ReadIndex(6, world.now + 50))
    world.run(100)
    assert world.status(1, 6) == "timeout"
    world.run(1500)
    assert world.status(1, 5) == "applied"


def test_too_many_reads_are_refused() -> None:
    world = World(3, limits=Limits(pending_reads=3))
    for request in range(1, 6):
        world.step(1, ev.ReadIndex(request, FAR))
    assert [world.status(1, request) for request in range(1, 6)] == [None] * 3 + ["busy"] * 2


def test_a_follower_refuses_to_confirm_for_others() -> None:
    world = World(3)
    leader = world.elect(1)
    world.step(3, ev.Receive(envelope(world, 2, 3, m.ReadIndex(9), term=leader.term)))
    assert [(e.message.ok, e.message.leader) for e in world.messages(m.ReadIndexResponse, source=3)] == [(False, 1)]


def test_single_voter_confirms_after_its_first_own_entry() -> None:
    world = World(1)
    world.slow_disks.add(1)
    world.tick(1)
    world.complete(1)
    assert world.cores[1].role is RaftRole.LEADER
    world.step(1, ev.ReadIndex(5, FAR))
    world.settle()
    assert world.status(1, 5) is None
    world.complete(1)
    world.settle()
    assert world.status(1, 5) == "applied"
    world.slow_disks.clear()
    world.propose(1, 1)
    world.settle()
    assert world.status(1, pid(1)) == "applied"
