"""Each durability rule of CONSENSUS 3.4 that is the core's, with the violation it forbids."""

from __future__ import annotations

from incus_actors.consensus import effects as fx
from incus_actors.consensus import events as ev
from incus_actors.consensus import messages as m
from incus_actors.consensus.types import HardState, RaftRole

from .harness import World, envelope, pid


def test_r_vote_no_vote_leaves_before_it_is_durable() -> None:
    world = World(3)
    world.slow_disks.add(2)
    world.tick(2)
    world.step(2, ev.Receive(envelope(world, 1, 2, m.Vote(0, 0, True), term=4)))
    assert (world.cores[2].term, world.cores[2].vote) == (4, 1)
    assert not world.messages(m.VoteResponse, source=2)
    assert world.machines[2].durable.hard == HardState(0, 0), "a crash now forgets it, so nobody may have seen it"
    world.complete(2)
    assert world.machines[2].durable.hard == HardState(4, 1)
    assert [e.message.granted for e in world.messages(m.VoteResponse, source=2)] == [True]


def test_r_vote_waits_also_when_the_term_is_durable_already() -> None:
    world = World(3)
    world.slow_disks.add(2)
    world.step(2, ev.Receive(envelope(world, 1, 2, m.Heartbeat(0, 0, 0, 0, b"", 0), term=4)))
    world.complete(2)
    world.now += 1000
    world.step(2, ev.Receive(envelope(world, 3, 2, m.Vote(0, 0, True), term=4)))
    assert not world.messages(m.VoteResponse, source=2)
    world.complete(2)
    assert [e.message.granted for e in world.messages(m.VoteResponse, source=2)] == [True]


def test_r_vote_survives_a_restart() -> None:
    world = World(3)
    world.step(2, ev.Receive(envelope(world, 1, 2, m.Vote(0, 0, True), term=4)))
    world.complete(2)
    world.restart(2)
    world.sent.clear()
    world.step(2, ev.Receive(envelope(world, 3, 2, m.Vote(9, 3, True), term=4)))
    assert [e.message.granted for e in world.messages(m.VoteResponse, source=2)] == [False]


def test_r_vote_a_repeated_request_while_the_write_is_under_way_waits_too() -> None:
    world = World(3)
    world.slow_disks |= {1, 2, 3}
    world.tick(2)
    world.now += 700
    vote = envelope(world, 1, 2, m.Vote(0, 0, True), term=4)
    world.step(2, ev.Receive(vote))
    world.step(2, ev.Receive(vote))
    assert not world.messages(m.VoteResponse, source=2)
    world.complete(2, len(world.writes[2]))
    assert [e.message.granted for e in world.messages(m.VoteResponse, source=2)] == [True, True]


def test_r_self_votes_are_asked_for_at_once_but_the_own_vote_counts_only_when_durable() -> None:
    world = World(3)
    world.slow_disks.add(1)
    core = world.cores[1]
    for _ in range(100):
        world.now += 10
        world.tick(1)
        world.settle()
        if core.role is RaftRole.CANDIDATE:
            break
    assert world.messages(m.Vote, source=1), "the requests leave in parallel to the write"
    world.settle()
    assert core.role is RaftRole.CANDIDATE, "both others have granted, the own vote is not durable"
    world.complete(1)
    assert core.role is RaftRole.LEADER


def test_r_term_nothing_but_vote_requests_carries_a_term_that_is_not_durable() -> None:
    world = World(3)
    leader = world.elect(1)
    world.slow_disks.add(2)
    newer = leader.term + 1
    beat = envelope(world, 3, 2, m.Heartbeat(0, 0, 0, 0, b"", 0), term=newer)
    world.step(2, ev.Receive(beat))
    world.sent.clear()
    world.step(2, ev.Receive(beat))
    assert not world.sent, "a later answer in the same term waits as well"
    assert world.cores[2].term == newer
    world.complete(2)
    assert {e.term for e in world.messages(m.HeartbeatResponse, source=2)} == {newer}


def test_r_ack_an_append_is_acknowledged_only_when_all_of_it_is_durable() -> None:
    world = World(3)
    leader = world.elect(1)
    world.slow_disks |= {2, 3}
    world.propose(1, 1)
    world.propose(1, 2)
    world.settle()
    before = leader.commit
    assert len(world.writes[2]) == 2
    world.sent.clear()
    world.settle()
    assert not world.messages(m.AppendResponse)
    world.complete(2)
    assert [e.message.match for e in world.messages(m.AppendResponse, source=2)] == [before + 1]
    world.settle()
    assert leader.commit == before + 1


def test_r_ack_a_duplicate_of_an_append_under_way_acknowledges_only_what_is_durable() -> None:
    world = World(3)
    leader = world.elect(1)
    world.slow_disks |= {2, 3}
    world.propose(1, 1)
    append = world.messages(m.Append, to=2)[-1]
    world.settle()
    world.sent.clear()
    world.step(2, ev.Receive(append))
    assert [e.message.match for e in world.messages(m.AppendResponse, source=2)] == [leader.log.last - 1]


def test_r_ack_async_append_aba_race() -> None:
    """An old write that completes must not vouch for the entries that have replaced what it wrote."""
    world = World(3)
    old = world.elect(1)
    base = old.log.last
    world.slow_disks.add(2)
    world.isolate(1, 2)
    world.propose(1, 1, b"old")
    world.settle()
    assert len(world.writes[2]) == 1
    first = world.writes[2][0]
    assert first.entries[0].index == base + 1
    # another leader replaces the entry at the same index, the write for that is under way too
    wire = m.WireEntry(old.term + 1, 0, world.now, b"", b"")
    chain = world.cores[2].log.chain_at(base) or b""
    replacement = m.Append(base, old.term, chain, base, 1, (wire,))
    world.step(2, ev.Receive(envelope(world, 3, 2, replacement, term=old.term + 1)))
    core = world.cores[2]
    assert core.log.last == base + 1
    world.complete(2)  # the first write: the entry that is no longer there
    assert core.durable_index == base
    world.complete(2)
    assert core.durable_index == base + 1


def test_r_lead_the_leader_counts_itself_only_when_durable_and_appends_leave_in_parallel() -> None:
    world = World(3)
    leader = world.elect(1)
    before = leader.commit
    world.slow_disks.add(1)
    world.cut |= {(3, 1), (1, 3)}
    world.sent.clear()
    world.propose(1, 1)
    assert world.messages(m.Append, to=2), "not behind the leader's own fsync"
    world.settle()
    assert leader.commit == before, "one of three is not a majority"
    world.complete(1)
    assert leader.commit == before + 1


def test_r_lead_two_followers_commit_what_the_leader_has_not_stored() -> None:
    world = World(3)
    leader = world.elect(1)
    before = leader.commit
    world.slow_disks.add(1)
    world.propose(1, 1)
    world.settle()
    assert leader.commit == before + 1
    assert leader.durable_index == before


def test_r_apply_nothing_is_applied_before_it_is_durable_here() -> None:
    world = World(3)
    leader = world.elect(1)
    world.slow_disks.add(1)
    world.propose(1, 1)
    world.settle()
    assert leader.commit == leader.last_index
    assert world.status(1, pid(1)) is None
    assert leader.apply_sent == leader.durable_index == leader.last_index - 1
    world.complete(1)
    world.settle()
    assert world.status(1, pid(1)) == "applied"


def test_r_apply_single_voter_does_not_answer_before_its_fsync() -> None:
    """etcd #14370."""
    world = World(1)
    world.tick(1)
    world.settle()
    world.slow_disks.add(1)
    world.propose(1, 1)
    world.settle()
    assert world.cores[1].commit == world.cores[1].last_index - 1
    assert world.status(1, pid(1)) is None


def test_r_conf_a_follower_with_an_append_under_way_does_not_campaign() -> None:
    world = World(3)
    world.elect(1)
    world.slow_disks |= {2, 3}
    world.propose(1, 1)
    world.settle()
    world.crash(1)
    world.sent.clear()
    world.run(2000)
    assert not world.messages(m.PreVote)
    world.complete(2)
    assert world.messages(m.PreVote, source=2), "as soon as the write is done"
    assert {e.message.last_index for e in world.messages(m.PreVote)} == {world.cores[2].durable_index}


def test_r_client_applied_is_answered_only_after_commit_and_apply() -> None:
    world = World(3)
    world.elect(1)
    world.hold_apply.add(1)
    world.propose(1, 1)
    world.settle()
    assert world.cores[1].commit == world.cores[1].last_index
    assert world.status(1, pid(1)) is None
    world.hold_apply.clear()
    world.settle()
    assert world.status(1, pid(1)) == "applied"


def test_writes_carry_their_generation_and_nothing_is_sent_with_a_failed_write() -> None:
    world = World(3)
    world.elect(1)
    world.slow_disks.add(2)
    world.propose(1, 1)
    world.settle()
    write = world.writes[2][0]
    effects = world.cores[2].step(world.now, ev.LogFailed(write.write_id, "io"))
    assert [effect.kind for effect in effects if isinstance(effect, fx.Fatal)] == ["io"]
    assert not [effect for effect in effects if isinstance(effect, fx.Send)]
    assert world.cores[2].step(world.now + 5000, ev.Tick(0)) == [], "a stopped core stays stopped"
