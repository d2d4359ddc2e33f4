"""Which process speaks under an id: found by the simulator, seed 985."""

from __future__ import annotations

from dataclasses import replace

from incus_actors.consensus import events as ev
from incus_actors.consensus import messages as m

from .harness import World, envelope


def test_a_late_hello_of_a_dead_process_does_not_shut_out_the_living_one() -> None:
    world = World(3)
    leader = world.elect(1)
    living = world.machines[3].durable.incarnation
    late = replace(envelope(world, 3, 1, m.Hello(1, 1, 0, 0, 0), term=0), incarnation=999)
    world.step(1, ev.Receive(late))
    assert leader.incarnations[3] == 999
    world.now += 200
    world.propose(1, 1)
    world.run(1000, until=lambda: world.machines[3].state_index == leader.last_index)
    assert leader.incarnations[3] == living
    assert leader.leadership is not None
    assert leader.leadership.progress[3].match == leader.last_index


def test_members_tell_each_other_their_sqlite() -> None:
    world = World(3)
    for member, version in ((1, "3.40.1"), (2, "3.46.0"), (3, "3.40.1")):
        world.machines[member].durable = replace(world.machines[member].durable, sqlite_version=version)
        world.start(member)
    world.elect(1)
    for member in (2, 3):
        world.step(1, ev.LinkUp(member))
    world.settle()
    assert world.cores[1].sqlite_versions == {2: "3.46.0", 3: "3.40.1"}
    assert world.cores[2].sqlite_versions == {1: "3.40.1"}


def test_what_a_dead_process_has_sent_counts_no_more() -> None:
    world = World(3)
    leader = world.elect(1)
    before = world.machines[3].durable.incarnation
    world.restart(3)
    world.step(3, ev.LinkUp(1))
    world.settle()
    living = world.machines[3].durable.incarnation
    assert leader.incarnations[3] == living != before
    assert leader.leadership is not None
    stale = m.AppendResponse(True, leader.last_index, 1, 0, 0, 0, b"", 0)
    world.step(1, ev.Receive(replace(envelope(world, 3, 1, stale, term=leader.term), incarnation=before)))
    hello = m.Hello(1, 1, 0, 0, 0)
    world.step(1, ev.Receive(replace(envelope(world, 3, 1, hello, term=leader.term), incarnation=before)))
    assert leader.incarnations[3] == living
