"""Historic bugs of reads and proposals."""

from __future__ import annotations

from .mutation import mutant

CLIENTS = (
    mutant(
        "read_without_quorum",
        "dqlite #258",
        "a leader answers reads because it believes to lead",
        "read_needs_a_quorum read_after_a_pause",
        ("reads.ReadRounds._confirm", "confirmed = agreed(self.node.voter_sets, values)", "confirmed = self.sequence"),
    ),
    mutant(
        "read_round_number_reused",
        "etcd #20418, etcd/raft #397",
        "an answer to an older round confirms the newer one",
        "read_after_a_pause",
        ("follower.on_heartbeat", "            message.read_sequence,\n", "            message.read_sequence + 1,\n"),
    ),
    mutant(
        "read_before_own_term_commit",
        "etcd PR 14258; rqlite strong read first",
        "a new leader answers reads with an old commit index",
        "read_before_the_first_commit_of_a_term",
        ("reads.ReadRounds._start", "or not node.has_own_term_commit()", ""),
    ),
    mutant(
        "read_before_apply",
        "etcd ReadIndex without waiting for the applied index",
        "a confirmed read is answered from a state that lags",
        "read_waits_for_apply",
        ("reads.ReadQueue.applied", "if index > applied:", "if False:"),
    ),
    mutant(
        "only_the_last_question_counts",
        "a fresh reader's script",
        "a read is answered only when the way there and back is shorter than the reader's patience",
        "read_on_a_long_way",
        ("reads.ReadQueue._ask_again", "if batch.readers and self._can_ask():", "if False:"),
    ),
    mutant(
        "read_never_asked_again",
        "P-LIVE",
        "a reader whose question was lost waits for its deadline",
        "read_asked_again_elsewhere",
        ("reads.ReadQueue.tick", "if batch.asked_ms + patience <= now:", "if False:"),
        ("reads.ReadQueue.leader_changed", "self.waiting.extend(batch.readers)", "pass"),
    ),
    mutant(
        "proposal_taken_twice",
        "PySyncObj (a forwarded command may be applied twice)",
        "a retried proposal is appended again although it is in the log",
        "proposal_asked_twice_runs_once",
        ("proposals.take", "if known is not None and", "if False and"),
    ),
    mutant(
        "proposal_forgotten_with_its_leader",
        "P-LIVE; hashicorp ErrLeadershipLost",
        "what was sent to a leader that is gone is never sent to the next one",
        "proposal_goes_to_the_next_leader",
        ("proposals.ProposalBook.dispatch_all", "in list(self.pending.items()):", "in ():"),
        ("proposals.ProposalBook.tick", "if pending.retry_at_ms <= now:", "if False:"),
    ),
    mutant(
        "lost_proposal_not_sent_again",
        "P-LIVE",
        "a forwarded proposal that was lost on the way waits for its deadline",
        "proposal_lost_on_the_way",
        ("proposals.ProposalBook.tick", "if pending.retry_at_ms <= now:", "if False:"),
    ),
    mutant(
        "unknown_called_failed",
        "Jepsen: a timeout is no failure",
        "a proposal that may have happened is reported as one that has not",
        "proposal_outcome_unknown",
        ("proposals.ProposalBook.tick", '"unknown" if pending.sends else "timeout"', '"timeout"'),
    ),
    mutant(
        "answered_before_apply_here",
        "R-CLIENT",
        "a proposal is answered when it is committed, before it is applied on the member that was asked",
        "proposal_forwarded",
        (
            "node.Node.advance_commit",
            "    self.apply_ready()\n",
            (
                "    for proposal_id in list(self.proposals.pending):\n"
                "        if self.log.proposals.get(proposal_id, index + 1) <= index:\n"
                "            self.proposals._end(proposal_id, 'applied', index)\n"
                "    self.apply_ready()\n"
            ),
        ),
    ),
    mutant(
        "internal_kinds_can_be_proposed",
        "CONSENSUS 3.11 (typed kinds are the core's own)",
        "a client proposes a configuration behind the back of membership",
        "proposal_bad",
        ("proposals.ProposalBook.add", "event.kind not in PROPOSABLE or", ""),
    ),
    mutant(
        "no_bound_on_proposals",
        "hashicorp/raft saturation; etcd MaxUncommittedEntriesSize",
        "what waits is not bounded",
        "proposal_backpressure",
        ("proposals.ProposalBook.add", "len(self.pending) >= limits.pending_proposals or", ""),
    ),
    mutant(
        "no_bound_on_bytes",
        "etcd MaxUncommittedEntriesSize",
        "uncommitted bytes grow without a bound",
        "proposal_bytes_are_bounded",
        ("proposals.take", "if leadership.uncommitted_bytes + len(body) > limits.uncommitted_bytes:", "if False:"),
    ),
    mutant(
        "late_refusal_counts",
        "our simulator, seed 958320",
        "a doubled refusal ends a proposal that was made again under the same id, and takes place",
        "proposal_refused_once_more",
        ("proposals.ProposalBook.refused", "or message.attempt not in (0, pending.attempt)", ""),
    ),
)
