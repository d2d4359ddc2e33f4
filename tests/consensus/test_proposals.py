"""When a refusal is final: found by the simulator, seed 1691 (an operation that had been refused took place)."""

from __future__ import annotations

from incus_actors.consensus import events as ev
from incus_actors.consensus import messages as m
from incus_actors.consensus.types import EntryKind, RaftRole

from .harness import World, envelope, pid


def refuse(world: World, source: int, status: str) -> None:
    response = m.ProposeResponse(pid(1), status, source)
    world.step(3, ev.Receive(envelope(world, source, 3, response, term=world.cores[3].term)))


def test_the_only_leader_that_was_asked_may_refuse() -> None:
    world = World(3)
    world.elect(1)
    world.propose(3, 1)
    refuse(world, 1, "disk_full")
    assert world.status(3, pid(1)) == "disk_full"


def test_a_refusal_is_not_final_while_an_earlier_leader_may_have_logged_it() -> None:
    world = World(3)
    world.elect(1)
    deadline = world.now + 900
    world.propose(3, 1, deadline=deadline)
    heartbeat = m.Heartbeat(0, 0, 0, 0, b"")
    world.step(3, ev.Receive(envelope(world, 2, 3, heartbeat, term=world.cores[3].term + 1)))
    assert [e.destination for e in world.messages(m.Propose, source=3)] == [1]
    world.complete(3)
    assert [e.destination for e in world.messages(m.Propose, source=3)] == [1, 2]
    refuse(world, 2, "busy")
    assert world.status(3, pid(1)) is None
    refuse(world, 2, "disk_full")
    assert world.status(3, pid(1)) is None
    world.now = deadline
    world.tick(3)
    assert world.status(3, pid(1)) == "unknown"


def test_what_every_leader_refuses_is_final_at_once() -> None:
    world = World(3)
    world.elect(1)
    world.propose(3, 1)
    world.now += world.timing.proposal_retry_ms
    world.tick(3)
    assert len(world.messages(m.Propose, source=3)) == 2
    refuse(world, 1, "invalid")
    assert world.status(3, pid(1)) == "invalid"


def test_a_new_leader_that_is_full_does_not_refuse_its_own_earlier_proposal() -> None:
    world = World(3)
    world.elect(1)
    deadline = world.now + 5_000
    world.propose(3, 1, deadline=deadline)
    world.deliver(drop=True)
    for other in (1, 2):
        world.crash(other)
        world.restart(other)
    world.tick(3, free_kib=1)
    for _ in range(400):
        world.now += 10
        world.tick(3, free_kib=1)
        world.settle()
        if world.cores[3].role is RaftRole.LEADER:
            break
    assert world.cores[3].role is RaftRole.LEADER
    assert world.status(3, pid(1)) is None
    world.step(3, ev.Propose(pid(2), EntryKind.SQL, b"x", 0, deadline))
    assert world.status(3, pid(2)) == "disk_full"
