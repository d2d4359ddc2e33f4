"""Historic bugs of elections, votes and failure detection."""

from __future__ import annotations

from .mutation import mutant

ELECTIONS = (
    mutant(
        "vote_not_persisted",
        "PySyncObj #84",
        "term and vote are kept in memory only",
        "election_no_second_vote_after_crash",
        ("node.Node.set_hard", "self.staged_hard = True", "self.durable_hard = HardState(term, vote)"),
    ),
    mutant(
        "vote_answered_before_fsync",
        "R-VOTE; PySyncObj #201",
        "a vote leaves while it is still being written",
        "election_vote_only_when_durable",
        (
            "voting.on_vote",
            'VoteResponse(True, "", envelope.term), durable=True)',
            'VoteResponse(True, "", envelope.term), term=node.term)',
        ),
    ),
    mutant(
        "vote_reset_by_prevote",
        "canonical/raft 98d8f512",
        "a granted pre-vote resets the vote of the present term",
        "election_prevote_moves_nothing",
        ("voting.answer_prevote", "    _make_way(", "    node.vote = NOBODY\n    _make_way("),
    ),
    mutant(
        "prevote_answer_counted_as_vote",
        "canonical/raft 0ed45532",
        "what was promised in a pre-vote counts as a vote",
        "election_prevote_answer_is_no_vote",
        (
            "candidate.on_prevote_response",
            "if node.role is not RaftRole.PRE_CANDIDATE or running is None or message.for_term != node.term + 1:",
            (
                "if node.role is RaftRole.CANDIDATE and running is not None and message.for_term == node.term:\n"
                "        running.granted[envelope.source] = message.granted\n"
                "        check_won(node)\n"
                "    if node.role is not RaftRole.PRE_CANDIDATE or running is None or message.for_term != node.term + 1:"
            ),
        ),
    ),
    mutant(
        "transfer_target_gets_a_second_vote",
        "cowsql/raft ad19f79a",
        "a transfer's vote request is granted whatever was voted before",
        "transfer_vote_is_one_vote",
        (
            "voting.on_vote",
            "if node.vote not in (NOBODY, envelope.source):",
            "if not message.transfer and node.vote not in (NOBODY, envelope.source):",
        ),
    ),
    mutant(
        "repeated_vote_refused",
        "PySyncObj (by reading)",
        "the same candidate asking again is refused",
        "election_vote_is_repeated",
        ("voting.on_vote", "if node.vote not in (NOBODY, envelope.source):", "if node.vote != NOBODY:"),
    ),
    mutant(
        "learner_does_not_vote",
        "etcd/raft 10998, cowsql electionVote",
        "who is no voter by its own configuration refuses to vote",
        "election_learner_must_vote",
        (
            "voting._prevote_refusal",
            "    if envelope.term <= node.term:",
            "    if not node.is_voter:\n        return 'spare'\n    if envelope.term <= node.term:",
        ),
        ("voting.on_vote", "    if node.amnesia:", "    if node.amnesia or not node.is_voter:"),
    ),
    mutant(
        "votes_of_anybody_counted",
        "quorum arithmetic (hashicorp/raft #74)",
        "votes of standbys and spares elect",
        "election_votes_of_standbys_do_not_elect",
        (
            "candidate.on_prevote_response",
            "if has_majority(node.voter_sets, _yes(running)) and",
            "if len(_yes(running)) > len(node.voter_sets[0]) // 2 and",
        ),
    ),
    mutant(
        "half_is_a_majority",
        "hashicorp/raft 163a55f (off by one for even sizes)",
        "two of four voters elect and commit",
        "election_even_number_needs_more_than_half",
        ("quorum.has_majority", "if count < len(voters) // 2 + 1:", "if count < (len(voters) + 1) // 2:"),
    ),
    mutant(
        "no_log_check",
        "Raft paper 5.4.1",
        "votes are given without looking at the candidate's log",
        "election_log_decides election_last_term_before_length",
        (
            "log.RaftLog.is_up_to_date",
            "return last_term > self.last_term or (last_term == self.last_term and last_index >= self.last)",
            "return True",
        ),
    ),
    mutant(
        "longer_log_beats_later_term",
        "Raft paper 5.4.1",
        "logs are compared by length only",
        "election_last_term_before_length",
        (
            "log.RaftLog.is_up_to_date",
            "return last_term > self.last_term or (last_term == self.last_term and last_index >= self.last)",
            "return last_index >= self.last",
        ),
    ),
    mutant(
        "no_stickiness",
        "hashicorp docs/divergence.md; etcd CheckQuorum",
        "a vote request moves members that hear their leader",
        "election_stickiness",
        (
            "voting.is_sticky",
            "    if node.role is RaftRole.LEADER:",
            "    return False\n    if node.role is RaftRole.LEADER:",
        ),
    ),
    mutant(
        "no_check_quorum",
        "PySyncObj leaderFallbackTimeout; raft before CheckQuorum",
        "a leader that nobody answers leads for ever",
        "election_check_quorum",
        (
            "leader.Leadership.has_contact",
            "since = self.node.now - self.node.timing.election_max_ms",
            "since = -(1 << 62)",
        ),
    ),
    mutant(
        "no_prevote",
        "hashicorp/raft before 1.7",
        "who hears no leader starts an election at once, and its term grows while it is cut off",
        "election_prevote_keeps_terms_low",
        ("candidate.campaign", "node.become_pre_candidate(why)", "node.become_candidate(why)"),
    ),
    mutant(
        "prevote_moves_the_term",
        "canonical/raft 71b3c393",
        "a pre-vote request is taken for a message of its term",
        "election_prevote_moves_nothing",
        (
            "voting.on_prevote",
            "    answer_prevote(",
            "    if envelope.term > node.term:\n        node.become_follower(envelope.term - 1 or 1, NOBODY, 'higher_term')\n    answer_prevote(",
        ),
    ),
    mutant(
        "prevote_refusal_teaches_nothing",
        "canonical/raft 1086dbf9, da1ee059",
        "a candidate whose term is behind does not learn the term from a refusal",
        "election_prevote_refusal_teaches_the_term",
        ("reception._adopts", "return not message.names_future_term", "return False"),
    ),
    mutant(
        "own_vote_counted_before_fsync",
        "R-SELF; etcd #14370",
        "a candidate counts its own vote before it is on disk",
        "election_own_vote_only_when_durable",
        ("candidate.check_won", "if node.durable_hard != HardState(node.term, node.id):", "if False:"),
    ),
    mutant(
        "votes_of_old_terms_counted",
        "canonical/raft 35479fc5 (answers after the term has changed)",
        "a vote counts whatever term it was asked for",
        "election_vote_of_another_term_is_not_counted",
        ("candidate.on_vote_response", "or message.for_term != node.term", ""),
    ),
    mutant(
        "former_leader_refused",
        "hashicorp/raft #605",
        "followers refuse the pre-vote of the leader that they still believe in",
        "election_former_leader_may_be_first",
        ("voting.on_prevote", "if envelope.source == node.leader and", "if False and"),
    ),
    mutant(
        "campaign_while_writing",
        "cowsql src/timeout.c",
        "a member campaigns with entries that are still being written",
        "election_waits_for_the_disk",
        ("candidate.campaign", "if node.log.writing:", "if False:"),
    ),
    mutant(
        "no_startup_hold",
        "CONSENSUS F8",
        "a process that has just started completes a majority against a leader that exists",
        "election_startup_hold",
        ("voting.in_startup_hold", "return not node.heard_any_leader and", "return False and"),
    ),
    mutant(
        "amnesiac_votes",
        "cowsql auto-recovery; jepsen.dqlite 63929d5",
        "a member that lost its disk goes on under its old id",
        "election_amnesia",
        ("node.Node.__init__", "self.amnesia = durable.amnesia", "self.amnesia = False"),
    ),
    mutant(
        "forgets_on_hearsay",
        "CONSENSUS F2",
        "a member forgets its leader because another one says so",
        "fast_own_evidence_only",
        ("suspicion.Suspicion.look", "if not node.link_up(node.leader) and", "if"),
    ),
    mutant(
        "forgetting_resets_the_vote",
        "CONSENSUS F1; canonical/raft 98d8f512",
        "forgetting a leader forgets the vote of its term too",
        "fast_forgetting_keeps_promises",
        (
            "suspicion.Suspicion.forget",
            "    node.leader = NOBODY\n",
            "    node.leader = NOBODY\n    node.vote = NOBODY\n",
        ),
    ),
    mutant(
        "one_link_is_enough",
        "CONSENSUS 3.7 (E0)",
        "one broken link of two counts as evidence",
        "fast_one_link_proves_nothing",
        ("suspicion.Suspicion.link_down", 'if evidence == "E0":', "if False:"),
    ),
    mutant(
        "no_budget",
        "CONSENSUS F5",
        "a flapping link campaigns again and again",
        "fast_budget",
        ("suspicion.Suspicion._within_budget", "if evidence == CERTAIN:", "if True:"),
    ),
    mutant(
        "old_heartbeat_ignored_after_forgetting",
        "CONSENSUS F6",
        "a leader that was forgotten by mistake is not followed again",
        "fast_relink",
        (
            "follower.accept_leader",
            "    node.term_leader = source\n",
            "    node.term_leader = source\n    if node.suspicion.forgotten == source:\n        return False\n",
        ),
    ),
    mutant(
        "stall_counts_as_silence",
        "Vault #28009, Nomad #10437",
        "a member that did not run itself blames its leader",
        "stall_is_no_evidence",
        ("core.Core._on_stalled", "given = self._forgiveness.take(self.now, event.ms)", "given = 0"),
    ),
    mutant(
        "stalled_leader_gives_up",
        "Vault #28009",
        "a leader that did not run judges its quorum before anybody could answer",
        "stall_of_the_leader",
        ("leader.Leadership.stalled", "self.grace_until_ms = self.node.now + self.node.timing.check_quorum_ms", "pass"),
    ),
    mutant(
        "lower_term_not_answered",
        "etcd/raft prevote (member stuck in a higher term)",
        "a leader of the past is not told that it is one",
        "replication_old_leader_is_told",
        ("reception._on_lower_term", "if node.amnesia:", "if True:"),
    ),
    mutant(
        "two_leaders_tolerated",
        "raft.tla MoreThanOneLeader",
        "a second leader of the same term is simply followed",
        "envelope_two_leaders_of_a_term",
        (
            "follower.accept_leader",
            "if node.role is RaftRole.LEADER or node.term_leader not in (NOBODY, source):",
            "if node.role is RaftRole.LEADER:",
        ),
    ),
)
