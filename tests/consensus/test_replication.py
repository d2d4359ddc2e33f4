"""Replication: commit rules, backtracking, lost messages, windows, corruption, proposals (CONSENSUS 3.6, 3.12)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from incus_actors.consensus import effects as fx
from incus_actors.consensus import events as ev
from incus_actors.consensus import messages as m
from incus_actors.consensus.log import RaftLog
from incus_actors.consensus.types import (
    GENESIS_CHAIN,
    Configuration,
    DurableState,
    EntryKind,
    HardState,
    Limits,
    RaftRole,
    SnapshotMark,
)

from .harness import CLUSTER, FAR, FatalError, World, envelope, members, pid


def give_log(world: World, member: int, terms: list[int], term: int) -> None:
    """Start `member` with a log whose entries have these terms."""
    mark = SnapshotMark(0, 0, GENESIS_CHAIN, Configuration(members(len(world.machines))), 0)
    log = RaftLog(mark, ())
    for number, entry_term in enumerate(terms):
        log.append(log.make(entry_term, EntryKind.SQL, number, pid(1000 * entry_term + number), b"%d" % entry_term))
    world.machines[member].durable = DurableState(member, CLUSTER, 1, HardState(term), mark, tuple(log.entries))
    world.restart(member)


def test_figure_8_entries_of_old_terms_are_not_committed_by_counting() -> None:
    """Raft paper figure 8; canonical/raft 524f7354."""
    world = World(5)
    for member in (1, 2, 3):
        give_log(world, member, [1, 2], 3)
    for member in (4, 5):
        give_log(world, member, [1], 3)
    world.cut |= {(a, b) for a in (4, 5) for b in range(1, 6)} | {(b, a) for a in (4, 5) for b in range(1, 6)}
    world.hold = lambda e: isinstance(e.message, m.Append) and len(e.message.entries) > 0
    core = world.cores[1]
    world.now += 1000
    for _ in range(100):
        world.now += 10
        world.tick(1)
        world.settle()
        if core.role is RaftRole.LEADER:
            break
    # index 2 (term 2) is on three of five: a majority, but not of the leader's own term
    for other in (2, 3):
        done = m.AppendResponse(True, 2, 1, 0, 0, 0, b"", 1 << 30)
        world.step(1, ev.Receive(envelope(world, other, 1, done, term=core.term)))
    assert core.leadership is not None
    assert [core.leadership.progress[i].match for i in (2, 3)] == [2, 2]
    assert core.commit == 0
    world.hold = lambda e: False
    world.run(300)
    assert core.commit == 3, "committed together with the first entry of the own term"


@pytest.mark.parametrize(
    ("leader_terms", "follower_terms"),
    [
        ([1, 1, 1, 4, 4, 5, 5, 6, 6, 6], [1, 1, 1, 4, 4, 5, 5, 6, 6]),  # figure 7 a
        ([1, 1, 1, 4, 4, 5, 5, 6, 6, 6], [1, 1, 1, 4]),  # b
        ([1, 1, 1, 4, 4, 5, 5, 6, 6, 6], [1, 1, 1, 4, 4, 4, 4]),  # e
        ([1, 1, 1, 4, 4, 5, 5, 6, 6, 6], [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3]),  # f
        ([1, 3, 3, 3, 3, 3, 3, 3, 5], [1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]),
        ([1] * 50 + [6], [1] * 3 + [2] * 60),
    ],
)
def test_logs_of_figure_7_converge_within_a_few_messages(leader_terms: list[int], follower_terms: list[int]) -> None:
    world = World(3, limits=Limits(append_entries=200))
    give_log(world, 1, leader_terms, 7)
    give_log(world, 2, leader_terms, 7)
    give_log(world, 3, follower_terms, 7)
    world.elect(1)
    world.run(100)
    assert [e.chain for e in world.cores[3].log.entries] == [e.chain for e in world.cores[1].log.entries]
    refused = [e for e in world.messages(m.AppendResponse, source=3) if not e.message.ok]
    assert len(refused) <= 3, "whole terms are skipped at a time, by both sides"


def test_a_delayed_duplicate_append_removes_nothing() -> None:
    """PySyncObj truncates after prev even when everything matches."""
    world = World(3)
    world.elect(1)
    world.propose(1, 1)
    early = world.messages(m.Append, to=2)[-1]
    world.settle()
    for number in range(2, 6):
        world.propose(1, number)
        world.settle()
    before = world.cores[2].last_index
    world.step(2, ev.Receive(early))
    world.settle()
    assert world.cores[2].last_index == before
    assert world.cores[2].durable_index == before


def test_a_follower_commits_only_what_this_leaders_stream_has_verified() -> None:
    """canonical/raft 000eacf2."""
    world = World(3)
    give_log(world, 2, [1, 1, 1], 1)
    core = world.cores[2]
    world.step(2, ev.Receive(envelope(world, 1, 2, m.Heartbeat(3, 0, 0, 0, b"", 0), term=2)))
    assert core.commit == 0
    first = core.log.entry(1)
    probe = m.Append(1, 1, first.chain, 3, 1, ())
    world.step(2, ev.Receive(envelope(world, 1, 2, probe, term=2)))
    assert core.commit == 1


def test_a_lost_append_is_repaired_by_the_next_heartbeats() -> None:
    world = World(3)
    world.elect(1)
    world.run(200)
    world.propose(1, 1)
    world.deliver(lambda e: isinstance(e.message, m.Append) and e.destination == 3, drop=True)
    world.settle()
    assert world.cores[3].last_index < world.cores[1].last_index
    world.run(250)
    assert world.cores[3].last_index == world.cores[1].last_index
    assert world.bodies(3) == [b"x"]


def test_a_lost_acknowledgement_is_repaired_on_an_idle_cluster() -> None:
    """etcd: follower stuck in probing until the next write."""
    world = World(3)
    leader = world.elect(1)
    world.run(200)
    world.crash(3)
    world.propose(1, 1)
    world.deliver(lambda e: isinstance(e.message, m.Append))
    world.complete(2)
    world.complete(1)
    world.deliver(lambda e: isinstance(e.message, m.AppendResponse), drop=True)
    assert leader.commit < leader.last_index
    world.run(200)
    assert leader.commit == leader.last_index
    assert world.status(1, pid(1)) == "applied"


def test_the_window_bounds_what_is_under_way_and_a_slow_disk_does_not_cause_resends() -> None:
    world = World(3, limits=Limits(inflight_appends=3, append_entries=2))
    world.elect(1)
    world.run(200)
    world.slow_disks.add(3)
    world.sent.clear()
    for number in range(1, 21):
        world.propose(1, number)
    world.settle()
    assert len(world.messages(m.Append, to=3)) == 3
    world.run(500)
    assert len(world.messages(m.Append, to=3)) == 3
    world.slow_disks.clear()
    world.settle()
    world.run(100)
    assert world.cores[3].last_index == world.cores[1].last_index
    assert len(world.bodies(3)) == 20


def test_a_member_that_comes_back_catches_up() -> None:
    world = World(3)
    world.elect(1)
    world.crash(3)
    for number in range(1, 301):
        world.propose(1, number)
    world.settle()
    world.start(3)
    world.step(3, ev.LinkUp(1))
    world.step(1, ev.LinkUp(3))
    world.settle()
    world.run(50)
    assert len(world.bodies(3)) == 300


def test_equal_index_and_term_with_another_history_is_corruption_not_conflict() -> None:
    """D8: never truncated silently; the odd one out must come back under a new id."""
    world = World(3)
    world.elect(1)
    for number in range(1, 4):
        world.propose(1, number)
    world.settle()
    world.run(50)
    world.crash(3)
    durable = world.machines[3].durable
    twisted = replace(durable.entries[-1], body=b"bit flip", chain=b"12345678")
    world.machines[3].durable = replace(durable, entries=(*durable.entries[:-1], twisted), applied=0)
    world.machines[3].applied = world.machines[3].applied[:-1]
    world.start(3)
    before = world.cores[3].last_index
    with pytest.raises(FatalError, match="corrupt"):
        world.run(500)
    assert world.cores[3].last_index == before
    assert world.cores[1].peers()[1].state == "excluded"
    fatal = [e for owner, e in world.log if owner == 3 and isinstance(e, fx.Fatal)]
    assert [e.kind for e in fatal] == ["amnesia"]


@pytest.mark.parametrize("where", ["entry", "committed"])
def test_other_entries_where_ours_are_final_are_corruption(where: str) -> None:
    """A different entry of the same term, or any different entry below the commit index."""
    world = World(3)
    leader = world.elect(1)
    for number in range(1, 4):
        world.propose(1, number)
    world.settle()
    world.run(50)
    core = world.cores[3]
    last = core.commit if where == "committed" else core.last_index
    term = leader.term + 1
    wire = m.WireEntry(term if where == "committed" else leader.term, EntryKind.SQL, 5, pid(77), b"other")
    before = core.log.entry(last - 1)
    message = m.Append(last - 1, before.term, before.chain, last, 1, (wire,))
    world.sent.clear()
    world.step(3, ev.Receive(envelope(world, 2, 3, message, term=term)))
    world.complete(3, len(world.writes[3]))
    assert [(e.message.ok, e.message.reason) for e in world.messages(m.AppendResponse)] == [(False, "corrupt")]
    assert core.last_index == core.durable_index == leader.last_index


def test_a_leader_whose_history_a_majority_contradicts_goes_itself() -> None:
    world = World(3)
    leader = world.elect(1)
    corrupt = m.AppendResponse(False, 0, 1, 1, 1, 0, b"", 1, "corrupt")
    world.step(1, ev.Receive(envelope(world, 2, 1, corrupt, term=leader.term)))
    with pytest.raises(FatalError, match="majority disagrees"):
        world.step(1, ev.Receive(envelope(world, 3, 1, corrupt, term=leader.term)))


def test_a_diverged_state_is_noticed_and_taken_out() -> None:
    world = World(3)
    world.elect(1)
    world.propose(1, 1)
    world.settle()
    world.run(200)
    leader = world.cores[1]
    differs = m.HeartbeatResponse(0, leader.applied, b"another!", 0, 1 << 30, (), leader.last_index, 0, 0)
    world.step(1, ev.Receive(envelope(world, 3, 1, differs, term=leader.term)))
    with pytest.raises(FatalError, match="diverged"):
        world.settle()


def test_a_leader_that_has_diverged_itself_takes_nobody_out() -> None:
    """Simulator, seed 114: the first follower to contradict was taken out because the other had agreed, before."""
    world = World(3)
    world.elect(1)
    world.propose(1, 1)
    world.settle()
    world.run(200)
    leader = world.cores[1]
    assert leader.digests
    world.propose(1, 2)
    world.settle()
    leader.digests[leader.applied] = b"gone bad"

    def contradict(follower: int) -> list[fx.Effect]:
        answer = m.HeartbeatResponse(0, leader.applied, b"the good", 0, 1 << 30, (), leader.last_index, 0, 0)
        return world.step(1, ev.Receive(envelope(world, follower, 1, answer, term=leader.term)))

    contradict(3)
    assert not [e for e in world.messages(m.Goodbye) if e.destination == 3]
    with pytest.raises(FatalError, match="differs from a majority"):
        contradict(2)


def test_malformed_configurations_change_nothing() -> None:
    world = World(3)
    leader = world.elect(1)
    core = world.cores[2]
    before = core.last_index
    for body in (b"", b"{}", b'{"old":[],"new":null}', b'{"old":[[2,"a","voter","d"],[1,"a","voter","d"]],"new":null}'):
        wire = m.WireEntry(leader.term, EntryKind.CONFIG, 5, b"", body)
        bad = m.Append(before, leader.term, core.log.chain_at(before) or b"", before, 99, (wire,))
        world.step(2, ev.Receive(envelope(world, 1, 2, bad, term=leader.term)))
    assert core.last_index == before


# -- proposals ------------------------------------------------------------------------------------------------------


def test_proposals_are_held_while_nobody_leads_and_sent_after_the_election() -> None:
    world = World(3)
    world.propose(2, 1)
    world.settle()
    assert world.status(2, pid(1)) is None
    world.run(2000, until=lambda: world.status(2, pid(1)) is not None)
    assert world.status(2, pid(1)) == "applied"


def test_unanswered_proposals_are_sent_again_with_the_same_id_to_the_next_leader() -> None:
    world = World(3)
    world.elect(1)
    world.run(200)
    world.propose(3, 1)
    world.deliver(drop=True)
    world.crash(1)
    world.links_down(1)
    world.run(200, until=lambda: world.status(3, pid(1)) is not None)
    assert world.status(3, pid(1)) == "applied"
    assert world.bodies(3) == [b"x"]


def test_a_retried_proposal_is_in_the_log_once() -> None:
    world = World(3)
    leader = world.elect(1)
    world.slow_disks |= {1, 2}
    world.propose(3, 1)
    world.settle()
    last = leader.last_index
    world.run(1000)
    assert len(world.messages(m.Propose, source=3)) >= 2
    assert leader.last_index == last


def test_a_retry_with_the_same_id_on_another_member_is_answered_by_both() -> None:
    world = World(3)
    leader = world.elect(1)
    world.slow_disks |= {1, 2}
    world.propose(2, 1)
    world.propose(3, 1)
    world.settle()
    world.slow_disks.clear()
    world.settle()
    world.run(20)
    assert world.status(2, pid(1)) == world.status(3, pid(1)) == "applied"
    assert sum(entry.proposal_id == pid(1) for entry in leader.log.entries) == 1


def test_who_missed_the_result_gets_it_from_a_second_entry() -> None:
    """The asker has applied the entry and still asks: the state's own dedup answers with the first result."""
    world = World(3)
    world.elect(1)
    world.propose(1, 1)
    world.settle()
    world.resolved[1].clear()
    world.propose(1, 1)
    world.settle()
    assert world.status(1, pid(1)) == "applied"


def test_a_forwarding_follower_learns_of_the_commit_at_once() -> None:
    world = World(3)
    world.elect(1)
    world.run(200)
    world.propose(3, 1)
    world.settle()  # no time passes
    assert world.status(3, pid(1)) == "applied"


def test_a_lone_write_takes_the_fewest_steps() -> None:
    world = World(3)
    leader = world.elect(1)
    world.run(200)
    steps = []
    original = leader.step
    leader.step = lambda now, event: steps.append(type(event).__name__) or original(now, event)  # type: ignore
    world.sent.clear()
    world.propose(1, 1)
    world.settle()
    assert sorted(steps) == ["Applied", "LogWritten", "Propose", "Receive", "Receive"]
    assert [type(e.message).__name__ for e in world.sent if e.source == 1] == ["Append", "Append"]


@pytest.mark.parametrize(
    ("event", "status"),
    [
        (ev.Propose(pid(1), EntryKind.SQL, b"x" * 2000, 0, FAR), "too_large"),
        (ev.Propose(b"short", EntryKind.SQL, b"x", 0, FAR), "invalid"),
        (ev.Propose(pid(1), EntryKind.CONFIG, b"x", 0, FAR), "invalid"),
        (ev.Propose(pid(1), EntryKind.NOOP, b"x", 0, FAR), "invalid"),
    ],
)
def test_bad_proposals_are_refused_at_once(event: ev.Propose, status: str) -> None:
    world = World(3, limits=Limits(body_bytes=1000))
    world.elect(1)
    for member in (1, 2):
        world.step(member, event)
        assert world.status(member, event.proposal_id) == status


def test_backpressure_by_count_and_by_bytes() -> None:
    world = World(3, limits=Limits(pending_proposals=4, uncommitted_bytes=100))
    world.elect(1)
    world.slow_disks |= {1, 2, 3}
    for number in range(1, 6):
        world.propose(1, number)
    assert [world.status(1, pid(number)) for number in range(1, 6)] == [None] * 4 + ["busy"]
    world.propose(2, 7, b"y" * 99)
    world.settle()
    assert world.status(2, pid(7)) == "busy", "refused by the leader, so by the forwarder too"
    world.slow_disks.clear()
    world.settle()
    world.propose(1, 8)
    world.settle()
    assert world.status(1, pid(8)) == "applied"


def test_deadlines_unknown_when_it_may_have_happened_timeout_when_it_cannot() -> None:
    world = World(3)
    world.propose(1, 1, deadline=world.now + 100)
    world.run(200)
    assert world.status(1, pid(1)) == "timeout", "never left"
    world.elect(1)
    world.isolate(1)
    world.propose(1, 2, deadline=world.now + 100)
    world.run(200)
    assert world.status(1, pid(2)) == "unknown"


def test_timestamps_of_entries_grow_even_when_the_wall_clock_jumps_back() -> None:
    world = World(1)
    world.tick(1)
    world.settle()
    world.propose(1, 1)
    world.step(1, ev.Tick(5))
    world.propose(1, 2)
    world.settle()
    stamps = [entry.timestamp_ms for entry in world.cores[1].log.entries]
    assert stamps == sorted(set(stamps))


def test_group_commit_is_possible_every_proposal_is_its_own_write() -> None:
    world = World(1)
    world.tick(1)
    world.settle()
    world.slow_disks.add(1)
    for number in range(1, 6):
        world.propose(1, number)
    assert [len(write.entries) for write in world.writes[1]] == [1] * 5
    for write in world.writes[1]:
        world.machines[1].write(write)
    newest = world.writes[1][-1].write_id
    world.writes[1].clear()
    world.step(1, ev.LogWritten(newest))  # one fsync for all
    world.settle()
    assert {world.status(1, pid(number)) for number in range(1, 6)} == {"applied"}


def test_an_idle_leader_costs_next_to_nothing_between_its_heartbeats() -> None:
    world = World(3)
    leader = world.elect(1)
    world.run(200)
    busy = 0
    for _ in range(1000):
        world.now += 1
        before = len(world.sent)
        world.tick(1)
        busy += len(world.sent) != before
        for other in (2, 3):
            world.tick(other)
        world.settle()
    assert busy == 20
    assert leader.next_deadline_ms() > world.now
