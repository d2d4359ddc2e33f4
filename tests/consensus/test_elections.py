"""Elections: who gets a vote, who may campaign, check-quorum, stickiness, transfer (CONSENSUS 3.6)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from incus_actors.consensus import effects as fx
from incus_actors.consensus import events as ev
from incus_actors.consensus import messages as m
from incus_actors.consensus.types import NOBODY, RaftRole, Role

from .harness import FAR, World, envelope, pid


def answer(world: World, member: int) -> m.VoteResponse | None:
    found = world.messages(m.VoteResponse, source=member)
    return found[-1].message if found else None


def test_no_second_vote_in_one_term() -> None:
    world = World(3)
    world.step(3, ev.Receive(envelope(world, 1, 3, m.Vote(0, 0, False), term=1)))
    world.settle()
    world.step(3, ev.Receive(envelope(world, 2, 3, m.Vote(5, 1, False), term=1)))
    assert answer(world, 3) == m.VoteResponse(False, "voted", 1)


def test_a_transfer_vote_skips_stickiness_and_nothing_else() -> None:
    """cowsql ad19f79a."""
    world = World(3)
    leader = world.elect(1)
    world.propose(1, 1)
    world.settle()
    term, last = leader.term, leader.last_index
    # sticky: a normal request is not even noticed
    world.sent.clear()
    world.step(3, ev.Receive(envelope(world, 2, 3, m.Vote(last, term, False), term=term + 1)))
    assert answer(world, 3) is None
    assert world.cores[3].term == term
    # a transfer with a shorter log is refused, although the term moves
    world.step(3, ev.Receive(envelope(world, 2, 3, m.Vote(last - 1, term, True), term=term + 1)))
    world.settle()
    assert answer(world, 3) == m.VoteResponse(False, "log", term + 1)
    # and one for a term in which the vote is given is refused
    world.step(3, ev.Receive(envelope(world, 2, 3, m.Vote(last, term, True), term=term + 1)))
    world.settle()
    world.step(3, ev.Receive(envelope(world, 1, 3, m.Vote(last, term, True), term=term + 1)))
    assert answer(world, 3) == m.VoteResponse(False, "voted", term + 1)


def test_a_prevote_answer_is_never_counted_as_a_vote() -> None:
    """canonical/raft 0ed45532."""
    world = World(3)
    core = world.cores[1]
    while core.role is not RaftRole.PRE_CANDIDATE:
        world.now += 10
        world.tick(1)
    world.network.clear()
    granted = m.VoteResponse(True, "", core.term + 1)
    world.step(1, ev.Receive(envelope(world, 2, 1, granted, term=core.term)))
    assert core.role is RaftRole.PRE_CANDIDATE
    world.step(1, ev.Receive(envelope(world, 2, 1, m.PreVoteResponse(True, "", 0, core.term + 1), term=core.term + 1)))
    assert core.role is RaftRole.CANDIDATE
    world.settle_disk_only(1)
    late = m.PreVoteResponse(True, "", 0, core.term)
    world.step(1, ev.Receive(envelope(world, 3, 1, late, term=core.term)))
    assert core.role is RaftRole.CANDIDATE


def test_prevote_answers_of_an_earlier_round_do_not_count() -> None:
    world = World(3)
    core = world.cores[1]
    while core.role is not RaftRole.PRE_CANDIDATE:
        world.now += 10
        world.tick(1)
    for term in (core.term, core.term + 2):
        world.step(1, ev.Receive(envelope(world, 2, 1, m.PreVoteResponse(True, "", 0, term), term=core.term + 1)))
    assert core.role is RaftRole.PRE_CANDIDATE


def test_votes_of_another_term_do_not_count() -> None:
    world = World(3)
    core = world.cores[1]
    world.cut |= {(1, 2), (1, 3)}
    core.become_candidate("timeout")
    world.tick(1)
    world.settle()
    stale = m.VoteResponse(True, "", core.term - 1)
    world.step(1, ev.Receive(envelope(world, 2, 1, stale, term=core.term)))
    assert core.role is RaftRole.CANDIDATE


@pytest.mark.parametrize("role", [Role.STANDBY, Role.SPARE])
def test_learner_must_vote(role: Role) -> None:
    """A member that was promoted and does not know it yet can be the missing vote (D6)."""
    world = World(3, roles={3: role})
    core = world.cores[3]
    world.now += 1000
    world.tick(3)
    assert core.role is RaftRole.FOLLOWER, "it does not campaign"
    world.step(3, ev.Receive(envelope(world, 1, 3, m.PreVote(0, 0, "timeout"), term=1)))
    world.step(3, ev.Receive(envelope(world, 1, 3, m.Vote(0, 0, False), term=1)))
    world.settle()
    assert world.messages(m.PreVoteResponse, source=3)[-1].message.granted
    assert world.messages(m.VoteResponse, source=3)[-1].message.granted


def test_non_voters_never_campaign_and_their_votes_do_not_elect() -> None:
    world = World(4, roles={3: Role.STANDBY, 4: Role.SPARE})
    world.elect(1)
    world.crash(1)
    world.run(4000)
    assert world.leader() is None
    assert not [e for e in world.messages(m.PreVote) if e.source in (3, 4)]
    world.restart(1)
    world.run(3000)
    assert world.leader() is not None


def test_an_amnesiac_grants_acknowledges_and_campaigns_nothing() -> None:
    world = World(3)
    world.elect(1)
    world.crash(3)
    world.machines[3].durable = replace(world.machines[3].durable, amnesia=True)
    core = world.start(3)
    world.sent.clear()
    world.propose(1, 1)
    world.settle()
    world.run(100)
    world.step(3, ev.Receive(envelope(world, 2, 3, m.Vote(99, 9, True), term=9)))
    world.step(3, ev.Receive(envelope(world, 2, 3, m.PreVote(99, 9, "timeout"), term=9)))
    world.crash(1)
    world.crash(2)
    world.run(3000)
    assert core.role is RaftRole.FOLLOWER
    for kind in (m.AppendResponse, m.HeartbeatResponse, m.VoteResponse, m.PreVote):
        assert not world.messages(kind, source=3)
    assert [e.message.reason for e in world.messages(m.PreVoteResponse, source=3)] == ["amnesia"]


def test_check_quorum_a_leader_without_a_majority_steps_down() -> None:
    world = World(3)
    leader = world.elect(1)
    world.isolate(1)
    world.run(600)
    assert leader.role is RaftRole.LEADER, "not before the longest election timeout"
    world.run(200)
    assert leader.role is not RaftRole.LEADER
    changes = [e.cause for owner, e in world.log if owner == 1 and isinstance(e, fx.RoleChanged)]
    assert "check_quorum" in changes


def test_a_former_leader_can_be_the_first_to_campaign() -> None:
    """hashicorp/raft #605: its followers still believe in it when it asks them."""
    world = World(3)
    leader = world.elect(1)
    term = leader.term
    leader.become_follower(term, NOBODY, "check_quorum")
    leader.set_election_deadline(world.now)
    world.now += 10
    world.tick(1)
    world.settle()
    assert world.cores[1].role is RaftRole.LEADER
    assert world.cores[1].term == term + 1


def test_a_partitioned_member_comes_back_without_disturbing() -> None:
    """prevote_checkquorum."""
    world = World(3)
    leader = world.elect(1)
    term = leader.term
    world.isolate(3)
    world.run(5000)
    world.heal()
    world.run(1000)
    assert leader.role is RaftRole.LEADER
    assert {core.term for core in world.cores.values()} == {term}


def test_a_member_stuck_in_a_higher_term_is_freed() -> None:
    world = World(3)
    leader = world.elect(1)
    world.cores[3].become_candidate("timeout")
    world.run(3000)
    assert leader.term > 1
    assert len({core.term for core in world.cores.values()}) == 1
    assert world.leader() is not None


def test_a_silent_leader_is_replaced_within_a_second() -> None:
    world = World(3)
    world.elect(1)
    world.run(200)
    world.isolate(1)
    start = world.now
    world.run(1000, until=lambda: any(world.cores[i].role is RaftRole.LEADER for i in (2, 3)))
    assert world.now - start <= 900


def test_many_silent_failovers_never_take_long() -> None:
    """Two that time out together do not split the vote for ever."""
    for seed in range(30):
        world = World(3, seed=seed)
        world.run(3000, until=lambda: world.leader() is not None)  # noqa: B023
        first = world.leader()
        assert first is not None
        world.run(200)
        world.isolate(first.id)
        start = world.now
        others = [core for core in world.cores.values() if core is not first]
        world.run(2000, until=lambda: any(core.role is RaftRole.LEADER for core in others))  # noqa: B023
        assert world.now - start <= 1000, seed


def test_transfer_moves_leadership_without_a_gap() -> None:
    world = World(3)
    leader = world.elect(1)
    world.propose(1, 1)
    world.settle()
    start = world.now
    world.step(1, ev.Transfer(77, 3))
    world.propose(1, 2)
    world.settle()
    assert world.cores[3].role is RaftRole.LEADER
    assert world.now == start, "no time passes but that of messages"
    assert world.status(1, 77) == "applied"
    assert world.cores[3].term == leader.term
    world.run(20)
    assert world.status(1, pid(2)) == "applied", "held during the transfer, then forwarded"
    assert world.bodies(3) == [b"x", b"x"]


def test_transfer_waits_until_the_target_has_everything() -> None:
    world = World(3)
    world.elect(1)
    world.hold = lambda e: e.destination == 3 and isinstance(e.message, m.Append)
    world.propose(1, 1)
    world.settle()
    world.step(1, ev.Transfer(77, 3))
    world.settle()
    assert not world.messages(m.TimeoutNow)
    world.hold = lambda e: False
    world.settle()
    assert world.cores[3].role is RaftRole.LEADER


def test_transfer_to_a_dead_target_is_given_up_and_writes_go_on() -> None:
    world = World(3)
    leader = world.elect(1)
    world.crash(3)
    world.step(1, ev.Transfer(77, 3))
    world.propose(1, 5)
    world.run(400)
    assert world.status(1, pid(5)) is None, "held"
    world.run(200)
    assert world.status(1, 77) == "timeout"
    assert world.status(1, pid(5)) == "applied"
    assert leader.role is RaftRole.LEADER


@pytest.mark.parametrize("target", [1, 4, 99])
def test_transfer_to_who_cannot_lead_is_invalid(target: int) -> None:
    world = World(4, roles={4: Role.STANDBY})
    world.elect(1)
    world.step(1, ev.Transfer(77, target))
    assert world.status(1, 77) == "invalid"
    world.step(2, ev.Transfer(78, 3))
    assert world.status(2, 78) == "not_leader"


def test_timeout_now_needs_exactly_the_same_durable_log() -> None:
    world = World(3)
    leader = world.elect(1)
    core = world.cores[2]
    other = m.TimeoutNow(core.last_index + 1, leader.term)
    world.step(2, ev.Receive(envelope(world, 1, 2, other, term=leader.term)))
    assert core.role is RaftRole.FOLLOWER
    stranger = m.TimeoutNow(core.last_index, leader.term)
    world.step(2, ev.Receive(envelope(world, 3, 2, stranger, term=leader.term)))
    assert core.role is RaftRole.FOLLOWER


def test_own_stalls_are_forgiven_but_not_for_ever() -> None:
    world = World(3)
    world.elect(1)
    core = world.cores[2]
    world.now = core.election_deadline_ms + 300
    world.step(2, ev.Stalled(500))
    world.tick(2)
    assert core.role is RaftRole.FOLLOWER, "the stall was ours"
    for _ in range(10):
        world.now += 500
        world.step(2, ev.Stalled(500))
        world.tick(2)
    assert core.role is RaftRole.PRE_CANDIDATE, "2 s in any 10 s, no more"
    counted = [e for member, e in world.log if member == 2 and isinstance(e, fx.Count)]
    assert sum(e.amount for e in counted if e.name == "stalls") == 11
    assert sum(e.amount for e in counted if e.name == "stall_ms_forgiven") == 2000


def test_a_stall_after_which_the_leader_was_heard_first_postpones_nothing() -> None:
    """What waited in the sockets is read before the late timer says that there was a stall."""
    world = World(3)
    leader = world.elect(1)
    core = world.cores[2]
    world.now += 2000
    beat = m.Heartbeat(leader.commit, 0, 0, 0, b"", world.now)
    world.step(2, ev.Receive(envelope(world, 1, 2, beat, term=leader.term)))
    deadline = core.election_deadline_ms
    world.step(2, ev.Stalled(2000))
    assert core.election_deadline_ms == deadline
    assert core.leader_heard_ms == world.now


def test_a_stalled_leader_says_that_it_lives_before_it_judges() -> None:
    world = World(3)
    leader = world.elect(1)
    world.now += 700
    world.sent.clear()
    world.step(1, ev.Stalled(690))
    world.tick(1)
    assert world.messages(m.Heartbeat, source=1)
    world.settle()
    world.run(300)
    assert leader.role is RaftRole.LEADER


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cluster_id": b"another!"}, "cluster"),
        ({"epoch": 2}, "epoch"),
        ({"destination": 3}, "destination"),
        ({"version": 9}, "version"),
    ],
)
def test_messages_for_another_world_change_nothing(change: dict[str, object], reason: str) -> None:
    world = World(3)
    leader = world.elect(1)
    bad = replace(envelope(world, 2, 1, m.Vote(99, 99, True), term=99), **change)  # type: ignore[arg-type]
    effects = world.cores[1].step(world.now, ev.Receive(bad))
    assert leader.role is RaftRole.LEADER
    counted = [effect.labels for effect in effects if isinstance(effect, fx.Count)]
    assert counted == [(("reason", reason),)]


def test_a_wrong_epoch_is_answered_with_hello_so_that_the_operator_sees_it() -> None:
    world = World(3)
    world.elect(1)
    bad = replace(envelope(world, 2, 1, m.Heartbeat(0, 0, 0, 0, b"", 0), term=99), epoch=0)
    sent = [e for e in world.cores[1].step(world.now, ev.Receive(bad)) if isinstance(e, fx.Send)]
    assert [type(e.envelope.message) for e in sent] == [m.Hello]
    again = [e for e in world.cores[1].step(world.now, ev.Receive(bad)) if isinstance(e, fx.Send)]
    assert not again


def test_unknown_members_may_ask_for_votes_and_append_but_not_propose_or_read() -> None:
    world = World(3)
    leader = world.elect(1)
    for message in (m.Propose(pid(1), 2, b"x", 0), m.ReadIndex(5)):
        bad = replace(envelope(world, 2, 1, message, term=leader.term), source=42)
        effects = world.cores[1].step(world.now, ev.Receive(bad))
        assert not [e for e in effects if isinstance(e, fx.Send)]
    stranger = replace(envelope(world, 2, 3, m.Vote(99, 99, True), term=99), source=42)
    world.step(3, ev.Receive(stranger))
    assert world.cores[3].vote == 42


def test_a_restarted_process_under_the_same_id_introduces_itself_when_asked() -> None:
    world = World(3)
    world.elect(1)
    world.restart(3)
    world.run(200)
    assert world.cores[3].leader == 1
    world.propose(3, 1)
    world.settle()
    world.run(20)
    assert world.status(3, pid(1)) == "applied"
    world.step(3, ev.ReadIndex(1, FAR))
    world.settle()
    assert world.status(3, 1) == "applied"


def test_members_that_yield_to_each_other_do_not_do_so_for_ever() -> None:
    """Found by chaos: views of the heir differed, everybody yielded to somebody at the same pace."""
    for seed in range(20):
        world = World(5, seed=seed)
        for member, heir in ((1, 2), (2, 3), (3, 4), (4, 5), (5, 1)):
            world.cores[member].heir = heir
            world.tick(member)
        world.now += 1000
        world.run(1000, until=lambda: world.leader() is not None)  # noqa: B023
