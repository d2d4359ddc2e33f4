"""Membership: joint consensus on append, gates, rollback, leaving (CONSENSUS 3.9)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from incus_actors.consensus import effects as fx
from incus_actors.consensus import events as ev
from incus_actors.consensus import messages as m
from incus_actors.consensus.configuration import decode_configuration, encode_configuration
from incus_actors.consensus.types import Configuration, EntryKind, Member, RaftRole, Role

from .harness import World, envelope, members, pid


def change(world: World, leader: int, target: tuple[Member, ...], request: int = 70) -> None:
    world.step(leader, ev.ChangeConfiguration(request, target))


def with_roles(count: int, **roles: Role) -> tuple[Member, ...]:
    return members(count, {int(name[1:]): role for name, role in roles.items()})


def test_a_joiner_is_added_as_spare_and_catches_up() -> None:
    world = World(1)
    world.elect(1)
    world.propose(1, 1)
    world.settle()
    target = with_roles(2, m2=Role.SPARE)
    change(world, 1, target)
    world.settle()
    assert world.status(1, 70) == "applied"
    assert world.cores[1].configuration == Configuration(target)
    world.add(2, Configuration(members(1)))  # it knows only whom it asked
    world.step(1, ev.LinkUp(2))
    world.settle()
    world.run(50)
    assert world.cores[2].configuration == Configuration(target)
    assert world.bodies(2) == [b"x"]
    assert not world.cores[2].is_voter


def test_from_one_voter_to_three_in_one_joint_step() -> None:
    world = World(3, roles={2: Role.STANDBY, 3: Role.STANDBY})
    world.elect(1)
    world.run(100)
    change(world, 1, members(3))
    kinds = [e for _, e in world.log if isinstance(e, fx.ConfigurationChanged)]
    assert kinds[-1].configuration.joint, "active on append"
    assert not kinds[-1].committed
    world.settle()
    world.run(20)
    assert world.status(1, 70) == "applied"
    assert all(core.configuration == Configuration(members(3)) for core in world.cores.values())
    world.crash(1)
    world.run(2000, until=lambda: world.leader() is not None)


def test_a_dead_voter_is_replaced_in_one_joint_step() -> None:
    world = World(4, roles={4: Role.STANDBY})
    leader = world.elect(1)
    world.run(100)
    world.crash(3)
    target = with_roles(4, m3=Role.STANDBY)
    change(world, 1, target)
    world.settle()
    assert world.status(1, 70) == "applied"
    assert leader.configuration.voters() == {1, 2, 4}
    # one more failure is survived now
    world.crash(2)
    world.propose(1, 1)
    world.run(100)
    assert world.status(1, pid(1)) == "applied"


def test_while_joint_both_majorities_are_needed() -> None:
    world = World(6, roles={4: Role.STANDBY, 5: Role.STANDBY, 6: Role.STANDBY})
    leader = world.elect(1)
    world.run(100)
    for dead in (4, 5):
        world.crash(dead)
    target = with_roles(6, m2=Role.STANDBY, m3=Role.STANDBY)
    change(world, 1, tuple(replace(t, role=Role.VOTER) if t.id in (4, 5) else t for t in target))
    world.run(100)
    assert leader.configuration.joint
    assert world.status(1, 70) is None, "1, 2, 3 are a majority of the old half, 1 alone none of the new"
    world.start(4)
    world.step(1, ev.LinkUp(4))
    world.run(300)
    assert world.status(1, 70) == "applied"


def test_one_change_at_a_time_and_only_after_an_own_term_commit() -> None:
    world = World(3)
    world.elect(1)
    world.isolate(1)
    change(world, 1, with_roles(3, m3=Role.STANDBY), 70)
    change(world, 1, with_roles(3, m2=Role.STANDBY), 71)
    assert world.status(1, 71) == "busy"
    world.heal()
    world.run(300)
    assert world.status(1, 70) == "applied"
    # a fresh leader whose first entry is not committed yet (the bug announced in 2015)
    world.crash(1)
    world.hold = lambda e: isinstance(e.message, m.Append)
    world.cores[2].become_candidate("timeout")
    world.restart(1)
    world.tick(2)
    world.run(400, until=lambda: world.cores[2].role is RaftRole.LEADER)
    change(world, 2, members(3), 72)
    assert world.status(2, 72) == "busy"


def test_a_change_that_leaves_the_voters_alone_is_also_one_at_a_time() -> None:
    world = World(4, roles={4: Role.SPARE})
    world.elect(1)
    world.isolate(1)
    change(world, 1, with_roles(4, m4=Role.STANDBY), 70)
    change(world, 1, with_roles(3), 71)
    assert world.status(1, 71) == "busy"


def test_a_truncated_change_is_undone() -> None:
    world = World(3)
    old = world.elect(1)
    world.isolate(1)
    change(world, 1, with_roles(3, m3=Role.STANDBY))
    assert old.configuration.joint
    world.run(1500)
    world.heal()
    world.run(500)
    assert world.cores[1].role is not RaftRole.LEADER
    assert world.cores[1].configuration == Configuration(members(3))
    told = [e for owner, e in world.log if owner == 1 and isinstance(e, fx.ConfigurationChanged)]
    assert told[-1].configuration == Configuration(members(3))
    assert world.status(1, 70) == "unknown"


def test_a_new_leader_finishes_a_joint_change() -> None:
    world = World(4, roles={4: Role.STANDBY})
    world.elect(1)
    world.run(100)
    # the joint entry is on all, the final one on nobody but the leader
    world.hold = lambda e: (
        isinstance(e.message, m.Append)
        and any(
            entry.kind is EntryKind.CONFIG and not decode_configuration(entry.body).joint for entry in e.message.entries
        )
    )
    change(world, 1, with_roles(4, m3=Role.STANDBY))
    world.settle()
    assert world.cores[2].configuration.joint
    world.network.clear()
    world.hold = lambda e: False
    world.crash(1)
    world.run(3000, until=lambda: (found := world.leader()) is not None and not found.configuration.joint)
    leader = world.leader()
    assert leader is not None
    assert leader.configuration.voters() == {1, 2, 4}


def test_a_leader_that_is_removed_leads_until_it_is_committed_and_then_steps_down() -> None:
    """confchange_v1_remove_leader, raft #83."""
    world = World(4)
    leader = world.elect(1)
    world.run(200)
    target = tuple(member for member in members(4) if member.id != 1)
    world.slow_disks |= {2, 3, 4}
    change(world, 1, target)
    world.settle()
    assert leader.role is RaftRole.LEADER
    world.slow_disks.clear()
    world.settle()
    assert leader.role is RaftRole.FOLLOWER
    assert world.status(1, 70) == "applied"
    world.run(500, until=lambda: (found := world.leader()) is not None and found.id != 1)
    final = world.leader()
    assert final is not None
    assert final.configuration == Configuration(target, None, (1,))
    term = final.term
    world.run(3000)
    assert {core.term for core in world.cores.values() if core.id != 1} == {term}, "the removed one does not disturb"


def test_a_leader_not_in_the_new_voters_does_not_count_itself_for_them() -> None:
    world = World(3)
    leader = world.elect(1)
    world.run(100)
    world.crash(3)
    target = with_roles(3, m1=Role.STANDBY)  # new voters 2, 3 of which 3 is dead
    change(world, 1, target)
    world.run(300)
    assert leader.configuration.joint
    assert leader.commit < leader.last_index


def test_a_removed_member_is_told_before_it_is_dropped() -> None:
    world = World(4, roles={4: Role.SPARE})
    world.elect(1)
    world.run(100)
    change(world, 1, members(3))
    world.settle()
    world.run(300)
    assert 4 not in world.cores[4].configuration.members()
    assert world.cores[4].commit >= world.cores[4].log.configuration_index
    leadership = world.cores[1].leadership
    assert leadership is not None
    assert 4 not in leadership.progress


def test_ids_are_never_reused() -> None:
    world = World(4, roles={4: Role.SPARE})
    world.elect(1)
    world.run(100)
    change(world, 1, members(3), 70)
    world.settle()
    change(world, 1, with_roles(4, m4=Role.SPARE), 71)
    assert world.status(1, 71) == "invalid"
    assert "never re-used" in world.resolved[1][71].detail


@pytest.mark.parametrize(
    "target",
    [
        (),
        (Member(1, "a", Role.STANDBY),),
        (Member(1, "a"), Member(1, "b")),
        (Member(0, "a"),),
    ],
)
def test_targets_that_are_no_configuration_are_invalid(target: tuple[Member, ...]) -> None:
    world = World(3)
    leader = world.elect(1)
    last = leader.last_index
    change(world, 1, target)
    assert world.status(1, 70) == "invalid"
    assert leader.last_index == last


def test_only_the_leader_changes_members_and_the_present_target_is_a_success() -> None:
    world = World(3)
    world.elect(1)
    change(world, 2, members(3))
    assert world.status(2, 70) == "not_leader"
    change(world, 1, members(3))
    assert world.status(1, 70) == "applied"


def test_an_address_change_keeps_id_and_role_and_needs_no_joint_step() -> None:
    """etcd 21736: a partial update must not promote by accident."""
    world = World(4, roles={4: Role.STANDBY})
    leader = world.elect(1)
    world.run(100)
    target = tuple(replace(t, address="elsewhere") if t.id == 4 else t for t in members(4, {4: Role.STANDBY}))
    change(world, 1, target)
    assert not leader.configuration.joint
    world.settle()
    assert leader.configuration.members()[4] == Member(4, "elsewhere", Role.STANDBY)


def test_a_candidate_that_was_promoted_can_be_elected_by_who_does_not_know() -> None:
    """campaign_learner_must_vote, the other way round: an unknown id asks, its log decides."""
    world = World(3)
    world.elect(1)
    world.crash(1)
    world.now += 1000
    last, term = world.cores[2].last_index, world.cores[2].log.last_term
    stranger = replace(envelope(world, 3, 2, m.PreVote(last, term, "timeout"), term=term + 1), source=9)
    world.step(2, ev.Receive(stranger))
    assert [e.message.granted for e in world.messages(m.PreVoteResponse, source=2, to=9)] == [True]


def test_configurations_as_bytes_round_trip() -> None:
    configuration = Configuration(members(3, {3: Role.SPARE}), members(2), (7, 9))
    assert decode_configuration(encode_configuration(configuration)) == configuration
    for bad in (b"", b"[]", b"{}", b'{"old":[[1,"a","king","d"]],"new":null}', b"\xff"):
        with pytest.raises(ValueError, match="not a configuration"):
            decode_configuration(bad)


def test_a_voter_on_its_way_out_may_have_to_lead_once_more() -> None:
    """Simulator, seed 2144: the leader alone had the entry that takes its vote away, and it did not campaign, while
    the new voter could not win without that entry."""
    world = World(2, roles={2: Role.STANDBY})
    leader = world.elect(1)
    world.run(100)
    target = with_roles(2, m1=Role.STANDBY)
    change(world, 1, target)
    joint_at = leader.log.configuration_index
    world.hold = lambda e: isinstance(e.message, m.Append) and e.message.previous_index >= joint_at
    world.settle()
    assert leader.configuration == Configuration(target), "the final configuration is appended"
    assert world.cores[2].configuration.joint, "and the other has not heard of it"
    world.crash(1)
    world.network.clear()
    world.hold = lambda e: False
    world.restart(2)
    world.restart(1)
    world.run(5000, until=lambda: world.cores[2].role is RaftRole.LEADER)
    assert world.cores[2].configuration == Configuration(target)
    world.run(200)
    assert world.cores[1].leader == 2


def test_a_member_that_has_left_for_good_does_not_campaign() -> None:
    world = World(3)
    world.elect(1)
    world.run(100)
    change(world, 1, with_roles(3, m3=Role.STANDBY))
    world.settle()
    world.run(100)
    world.isolate(3)
    world.run(3000)
    assert world.cores[3].role is RaftRole.FOLLOWER


def test_who_catches_up_too_slowly_is_no_candidate_for_a_vote() -> None:
    world = World(2, roles={2: Role.STANDBY})
    world.elect(1)

    def ready() -> bool:
        known = world.cores[1].health()[2]
        assert known.lag <= 1, "always near the end: only the time that it takes is at stake"
        return known.caught_up

    world.run(3 * world.timing.heartbeat_standby_ms)
    assert ready()
    world.slow_disks.add(2)
    world.propose(1, 1)
    world.run(world.timing.election_min_ms - 10)
    assert ready()
    world.run(20)
    assert not ready(), "this round takes too long already"
    world.complete(2)
    world.settle()
    assert not ready(), "it took too long"
    world.run(world.timing.heartbeat_standby_ms)
    assert ready(), "nothing is lacking any more, and nothing comes: it must not wait for ever"
    world.propose(1, 3)
    world.run(world.timing.election_min_ms + 10)
    world.complete(2)
    world.settle()
    assert not ready()
    world.slow_disks.clear()
    world.propose(1, 2)
    world.run(20)
    assert ready(), "the last round was a quick one"


def test_who_was_told_to_go_is_no_candidate_for_a_vote() -> None:
    world = World(2, roles={2: Role.STANDBY})
    core = world.elect(1)
    world.run(1000)
    assert core.health()[2].caught_up
    assert core.leadership is not None
    core.leadership.progress[2].excluded = "corrupt"
    assert not core.health()[2].caught_up
