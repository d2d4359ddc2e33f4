"""Historic bugs of membership and leadership transfer."""

from __future__ import annotations

from .mutation import mutant

MEMBERSHIP = (
    mutant(
        "change_before_own_term_commit",
        "single-server change bug announced in 2015; cowsql by reading",
        "members are changed before the leader has committed anything in its term",
        "membership_own_term_commit_first",
        ("membership._busy", "if not node.has_own_term_commit():", "if False:"),
    ),
    mutant(
        "two_changes_in_flight",
        "etcd/raft #80",
        "a change begins before the one before it is committed",
        "membership_one_change_at_a_time",
        (
            "membership._busy",
            "if node.log.configuration.joint or node.log.configuration_index > node.commit:",
            "if False:",
        ),
    ),
    mutant(
        "change_towards_the_dead",
        "CONSENSUS 3.9, rule 8",
        "a change begins that the new voters can't commit, and its joint entry costs the old ones their leader",
        "membership_not_towards_silent_voters",
        ("membership._silent_majority", "if not is_lost((voters,), silent):", "if True:"),
    ),
    mutant(
        "joint_counts_the_new_half_only",
        "Raft paper section 6",
        "while joint the new voters alone commit and elect",
        "membership_joint_needs_the_old_majority",
        ("types.Configuration.voter_sets", "else (self.old, self.new)", "else (self.new,)"),
    ),
    mutant(
        "joint_counts_the_old_half_only",
        "Raft paper section 6; etcd change on apply",
        "while joint the old voters alone commit and elect",
        "membership_joint_needs_the_new_majority membership_election_while_joint",
        (
            "types.Configuration.voter_sets",
            "halves = (self.old,) if self.new is None else (self.old, self.new)",
            "halves = (self.old,)",
        ),
    ),
    mutant(
        "truncated_change_stays_active",
        "canonical/raft rollback of configurations; PySyncObj",
        "a change whose entry was truncated stays in force",
        "membership_truncated_change_is_undone",
        (
            "log.RaftLog.truncate",
            "    while self.configurations[-1][0] >= index:\n        self.configurations.pop()\n",
            "    self.configurations[-1] = (min(self.configurations[-1][0], index - 1), self.configurations[-1][1])\n",
        ),
    ),
    mutant(
        "joint_is_never_left",
        "etcd/raft auto-leave",
        "a new leader does not finish the change that it finds in its log",
        "membership_new_leader_finishes_joint",
        (
            "membership.on_commit",
            "if current.new is not None:",
            "if current.new is not None and leadership.change_request is None:\n        return\n    if current.new is not None:",
        ),
    ),
    mutant(
        "leader_counts_itself_outside",
        "Raft paper section 6",
        "a leader that will not vote any more counts its own copy for the new voters",
        "membership_leader_outside_does_not_count_itself",
        (
            "replication.maybe_commit",
            "    index = agreed(node.voter_sets, values)\n",
            (
                "    sets = tuple(\n"
                "        half if node.id in half else frozenset(sorted(half)[:-1]) | {node.id} for half in node.voter_sets\n"
                "    )\n"
                "    index = agreed(sets, values)\n"
            ),
        ),
    ),
    mutant(
        "removed_leader_goes_on",
        "etcd/raft #83, confchange_v1_remove_leader; cowsql 55051f3f",
        "a leader that is no voter any more keeps leading",
        "membership_leader_removes_itself",
        ("membership.on_commit", "if not node.is_voter:", "if False:"),
    ),
    mutant(
        "removed_member_disturbs",
        "cowsql/raft 806f1a4c",
        "who was removed without knowing it forces elections",
        "membership_removed_member_does_not_disturb",
        ("candidate.campaign", "node.become_pre_candidate(why)", "node.become_candidate(why)"),
        (
            "voting.is_sticky",
            "    if node.role is RaftRole.LEADER:",
            "    return False\n    if node.role is RaftRole.LEADER:",
        ),
    ),
    mutant(
        "ids_come_back",
        "etcd 17814",
        "an id that was removed may be used again",
        "membership_ids_are_never_reused",
        ("membership._reused", "again = sorted({member.id for member in target} & set(current.removed))", "again = []"),
    ),
    mutant(
        "address_change_promotes",
        "etcd 21736 (MemberUpdate)",
        "an update of an address falls back to the default role",
        "membership_address_change_keeps_the_role",
        (
            "membership.change",
            "target = tuple(sorted(event.target, key=lambda member: member.id))",
            (
                "known = {member.id: member.address for member in current.old}\n"
                "    target = tuple(\n"
                "        member if known.get(member.id) in (None, member.address) else Member(member.id, member.address)\n"
                "        for member in sorted(event.target, key=lambda member: member.id)\n"
                "    )"
            ),
        ),
    ),
    mutant(
        "unknown_candidate_dropped",
        "etcd/raft 10998, the other way round",
        "requests of a candidate that this member does not know are dropped",
        "membership_unknown_candidate",
        ("reception._refusal", "not isinstance(envelope.message, FROM_ANYONE)", "True"),
    ),
    mutant(
        "who_leaves_goes_on_asking",
        "etcd/raft 17814, the other way round",
        "a member that was removed proposes and reads as long as the leader tells it so",
        "membership_removed_member_asks_in_vain",
        ("reception._refusal", "leaving and not isinstance(envelope.message, FROM_MEMBERS)", "leaving"),
    ),
    mutant(
        "transfer_to_a_member_that_lags",
        "hashicorp/raft #570",
        "leadership is handed to a member that does not have everything",
        "transfer_waits_until_the_target_has_everything",
        ("leader.Leadership.send_timeout_now", "elif target.match == self.node.log.last:", "else:"),
        (
            "candidate.on_timeout_now",
            "if (node.log.last, node.log.last_term) == (message.last_index, message.last_term):",
            "if True:",
        ),
    ),
    mutant(
        "proposals_during_a_transfer",
        "hashicorp/raft #581",
        "the leader goes on taking proposals, so that the target never catches up",
        "transfer_proposals_wait",
        ("proposals.take", "if leadership.transfer is not None:", "if False:"),
    ),
    mutant(
        "transfer_never_ends",
        "etcd/raft (transfer aborted after an election timeout)",
        "a transfer to a dead member blocks the leader for ever",
        "transfer_target_dies",
        ("leader.Leadership.tick", "if self.transfer is not None and now >= self.transfer.deadline_ms:", "if False:"),
    ),
    mutant(
        "stale_timeout_now",
        "hashicorp/raft #570 (race of transfers)",
        "a TimeoutNow of another time, or of somebody who does not lead, starts an election",
        "transfer_stale_timeout_now",
        ("candidate.on_timeout_now", "envelope.source != node.leader or envelope.term != node.term", "False"),
    ),
)
