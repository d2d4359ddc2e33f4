"""The core end to end in its little world: elections, replication, reads, restarts."""

from __future__ import annotations

from incus_actors.consensus import events as ev
from incus_actors.consensus.types import RaftRole

from .harness import FAR, World, pid


def test_single_voter_leads_at_once_and_answers_after_its_own_disk() -> None:
    world = World(1)
    world.tick(1)
    assert world.cores[1].role is RaftRole.CANDIDATE
    world.settle()
    assert world.cores[1].role is RaftRole.LEADER
    world.slow_disks.add(1)
    world.propose(1, 1)
    world.settle()
    assert world.status(1, pid(1)) is None
    world.complete(1)
    world.settle()
    assert world.status(1, pid(1)) == "applied"
    world.step(1, ev.ReadIndex(5, FAR))
    assert world.status(1, 5) == "applied"


def test_three_voters_elect_and_replicate() -> None:
    world = World(3)
    world.run(2000, until=lambda: world.leader() is not None)
    leader = world.leader()
    assert leader is not None
    for number, member in enumerate((1, 2, 3), start=1):
        world.propose(member, number, bytes([number]))
        world.settle()
        assert world.status(member, pid(number)) == "applied", member
    world.run(100)
    assert [world.bodies(member) for member in (1, 2, 3)] == [[b"\1", b"\2", b"\3"]] * 3
    term = leader.term
    world.run(20_000)
    assert world.leader() is leader
    assert leader.term == term
