"""Forgetting a leader on connection loss: rules F1 to F8 of CONSENSUS 3.7, and what must not follow from them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from incus_actors.consensus import effects as fx
from incus_actors.consensus import events as ev
from incus_actors.consensus import messages as m
from incus_actors.consensus.types import NOBODY, RaftRole

from .harness import FatalError, World, envelope, pid


def led_by_one(count: int = 3) -> World:
    """Member 1 leads, member 2 is the heir, everybody knows both."""
    world = World(count)
    world.elect(1)
    for _ in range(6):
        world.now += 50
        world.tick(1)
        world.settle()
    assert {core.heir for core in world.cores.values() if core.id != 1} == {2}
    world.sent.clear()
    return world


def test_f1_the_heir_campaigns_at_once_and_wins_within_milliseconds() -> None:
    world = led_by_one()
    term = world.cores[1].term
    world.crash(1)
    world.links_down(1, "E2")
    assert world.cores[2].leader == NOBODY
    assert (world.cores[2].term, world.cores[2].vote) != (term + 1, NOBODY)
    world.run(30, until=lambda: world.cores[2].role is RaftRole.LEADER)
    assert world.cores[2].term == term + 1


@pytest.mark.parametrize("evidence", ["E1", "E2"])
def test_f1_forgetting_touches_neither_term_nor_vote_nor_log(evidence: str) -> None:
    world = led_by_one()
    core = world.cores[3]
    before = (core.term, core.vote, core.last_index, core.commit)
    effects = world.step(3, ev.LinkDown(1, evidence))
    assert core.leader == NOBODY
    assert (core.term, core.vote, core.last_index, core.commit) == before
    assert not [effect for effect in effects if isinstance(effect, fx.WriteLog)]
    assert 15 <= core.election_deadline_ms - world.now <= 40, "not the heir: a little later"


def test_f1_one_broken_link_or_a_broken_link_to_another_follower_proves_nothing() -> None:
    world = led_by_one()
    world.step(3, ev.LinkDown(1, "E0"))
    world.step(3, ev.LinkDown(2, "E2"))
    assert world.cores[3].leader == 1


def test_f1_a_new_incarnation_under_the_leaders_id_proves_that_it_is_gone() -> None:
    world = led_by_one()
    hello = envelope(world, 1, 3, m.Hello(1, 1, 0, 0, 0), term=world.cores[1].term)
    world.step(3, ev.Receive(replace(hello, incarnation=777)))
    assert world.cores[3].leader == NOBODY
    # what the old process had sent before counts no more
    beat = envelope(world, 1, 3, m.Heartbeat(0, 0, 2, 0, b"", 0), term=world.cores[1].term)
    world.step(3, ev.Receive(beat))
    assert world.cores[3].leader == NOBODY


def test_f1_goodbye_names_who_goes_first() -> None:
    world = led_by_one()
    world.step(1, ev.Shutdown())
    assert world.cores[1].step(world.now, ev.Tick(0)) == []
    world.deliver()
    assert world.cores[2].leader == NOBODY
    world.run(20, until=lambda: world.cores[2].role is RaftRole.LEADER)


def test_f2_a_peers_word_is_not_evidence_the_leader_is_asked_and_the_prevote_refused() -> None:
    world = led_by_one()
    world.step(2, ev.LinkDown(1, "E2"))
    world.cut |= {(1, 2), (2, 1)}
    world.tick(2)
    world.deliver(lambda e: isinstance(e.message, m.PreVote))
    assert not world.messages(m.PreVoteResponse, source=3), "held"
    assert [e for e in world.messages(m.Hello, source=3, to=1) if not e.message.answer], "the leader is asked"
    world.settle()
    answers = world.messages(m.PreVoteResponse, source=3)
    assert [(e.message.granted, e.message.reason) for e in answers] == [(False, "has_leader")]
    assert world.cores[3].leader == 1


def test_f2_a_held_prevote_is_answered_after_30_ms_when_the_leader_is_silent() -> None:
    world = led_by_one()
    world.cut |= {(1, 2), (2, 1), (3, 1), (1, 3)}
    world.step(2, ev.LinkDown(1, "E2"))
    world.tick(2)
    world.settle()
    start = world.now
    assert not world.messages(m.PreVoteResponse, source=3)
    while not world.messages(m.PreVoteResponse, source=3):
        world.now += 5
        world.tick(3)
        assert world.now < start + 40
    assert world.now - start == 30
    assert [e.message.granted for e in world.messages(m.PreVoteResponse, source=3)] == [False]


def test_f2_a_held_prevote_is_granted_as_soon_as_the_own_links_break() -> None:
    world = led_by_one()
    world.crash(1)
    world.step(2, ev.LinkDown(1, "E2"))
    world.tick(2)
    world.settle()
    assert not world.messages(m.PreVoteResponse, source=3)
    world.now += 8
    world.step(3, ev.LinkDown(1, "E2"))
    assert [e.message.granted for e in world.messages(m.PreVoteResponse, source=3)] == [True]
    world.settle()
    assert world.cores[2].role is RaftRole.LEADER


def test_f3_a_leader_that_serves_a_majority_is_not_deposed() -> None:
    world = led_by_one()
    term = world.cores[1].term
    world.cut |= {(1, 2), (2, 1)}
    world.step(2, ev.LinkDown(1, "E2"))
    world.run(5000)
    assert world.cores[1].role is RaftRole.LEADER
    assert {core.term for core in world.cores.values()} == {term}, "no term growth either"
    world.propose(1, 1)
    world.settle()
    assert world.status(1, pid(1)) == "applied"


def test_f4_prevotes_are_repeated_without_term_growth_or_writes() -> None:
    world = led_by_one()
    term = world.cores[2].term
    world.isolate(2)
    world.step(2, ev.LinkDown(1, "E2"))
    world.sent.clear()
    world.writes[2].clear()
    times: list[int] = []
    start = world.now
    while world.now < start + 450:
        count = len(world.messages(m.PreVote, source=2, to=3))
        world.tick(2)
        if len(world.messages(m.PreVote, source=2, to=3)) > count:
            times.append(world.now - start)
        world.now += 1
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert len(times) == 5
    for gap, base in zip(gaps, (25, 50, 100, 150), strict=True):
        assert base * 0.8 <= gap <= base * 1.2
    assert world.cores[2].term == term
    assert not world.writes[2]


def test_f5_the_budget_of_an_incarnation_is_two_then_only_timeouts_count() -> None:
    world = led_by_one()
    core = world.cores[3]
    outcomes = []
    for _ in range(3):
        world.step(3, ev.LinkDown(1, "E1"))
        outcomes.append(core.leader)
        world.step(3, ev.LinkUp(1))
        world.now += 50
        world.tick(1)
        world.settle()
        assert core.leader == 1
    assert outcomes == [NOBODY, NOBODY, 1]


def test_f5_the_budget_of_a_minute_is_four() -> None:
    world = led_by_one()
    core = world.cores[3]
    forgotten = 0
    for incarnation in range(10, 16):
        core.incarnations[1] = incarnation
        core.become_follower(core.term, 1, "leader_found")
        forgotten += core.suspicion.forget("E2")
    assert forgotten == 4
    world.now += 61_000
    core.now = world.now
    core.become_follower(core.term, 1, "leader_found")
    assert core.suspicion.forget("E2")


def test_f5_who_was_rightly_forgotten_costs_no_budget() -> None:
    """Ten crashes in a minute are ten fast elections; only false alarms are counted."""
    world = led_by_one()
    for _ in range(10):
        leader = world.leader()
        assert leader is not None
        world.crash(leader.id)
        world.links_down(leader.id, "E2")
        start = world.now
        world.run(500, until=lambda: world.leader() is not None)
        assert world.now - start <= 60
        world.start(leader.id)
        for other in sorted(world.cores):
            if other != leader.id:
                world.step(leader.id, ev.LinkUp(other))
                world.step(other, ev.LinkUp(leader.id))
        world.run(600)


def test_f6_a_heartbeat_of_the_same_term_ends_the_suspicion() -> None:
    world = led_by_one()
    core = world.cores[2]
    world.step(2, ev.LinkDown(1, "E2"))
    world.network.clear()
    world.tick(2)
    assert core.role is RaftRole.PRE_CANDIDATE
    world.network.clear()
    world.now += 50
    world.tick(1)
    world.settle()
    assert (core.role, core.leader, core.term) == (RaftRole.FOLLOWER, 1, world.cores[1].term)
    assert world.cores[1].role is RaftRole.LEADER


def test_f7_a_leader_without_links_leads_until_check_quorum_and_confirms_no_read() -> None:
    world = led_by_one()
    leader = world.cores[1]
    world.isolate(1)
    world.step(1, ev.LinkDown(2, "E2"))
    world.step(1, ev.LinkDown(3, "E2"))
    assert leader.role is RaftRole.LEADER
    world.step(1, ev.ReadIndex(4, world.now + 5000))
    world.propose(1, 1)
    world.run(800)
    assert leader.role is not RaftRole.LEADER
    assert world.status(1, 4) is None
    assert world.status(1, pid(1)) is None
    world.heal()
    world.run(1000)
    assert world.status(1, pid(1)) == "applied", "sent again under the same id"


def test_f8_a_freshly_started_voter_does_not_lend_itself_to_a_coup() -> None:
    world = led_by_one()
    world.restart(3)
    world.tick(3)
    world.step(2, ev.LinkDown(1, "E2"))  # only this one connection broke; the leader lives
    world.cut |= {(1, 2), (2, 1), (1, 3)}
    world.tick(2)
    world.settle()
    answers = world.messages(m.PreVoteResponse, source=3)
    assert answers
    assert {(e.message.granted, e.message.reason) for e in answers} == {(False, "startup")}


def test_prevote_changes_neither_term_nor_vote_of_anybody() -> None:
    world = led_by_one()
    before = [(core.term, core.vote) for core in world.cores.values()]
    world.isolate(3)
    world.cores[3].suspicion.forget("E2")
    world.run(3000)
    world.heal()
    world.run(1000)
    assert [(core.term, core.vote) for core in world.cores.values()] == before


def test_two_leaders_in_one_term_stop_the_process() -> None:
    world = led_by_one()
    beat = envelope(world, 2, 3, m.Heartbeat(0, 0, 0, 0, b"", 0), term=world.cores[3].term)
    with pytest.raises(FatalError):
        world.step(3, ev.Receive(beat))


def test_everything_reset_at_once_costs_no_term_when_the_leader_lives() -> None:
    """RST storm (4.3): all links break for an instant, the leader is alive and reachable again."""
    world = led_by_one()
    term = world.cores[1].term
    for observer in (1, 2, 3):
        for peer in (1, 2, 3):
            if peer != observer:
                world.step(observer, ev.LinkDown(peer, "E1"))
    assert world.cores[2].leader == NOBODY
    for observer in (1, 2, 3):
        for peer in (1, 2, 3):
            if peer != observer:
                world.step(observer, ev.LinkUp(peer))
    world.settle()
    world.run(2000)
    leader = world.leader()
    assert leader is not None
    assert leader.term <= term + 1
