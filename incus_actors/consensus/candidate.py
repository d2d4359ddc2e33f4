"""Pre-candidates and candidates: asking for votes and counting them.

Owns one campaign at a time; entered from the election timer, from forgetting a leader and from TimeoutNow. A
vote counts only if it was asked for in this very campaign: right kind, right term, from a voter of our
configuration, and our own only once it is durable (R-SELF).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from incus_actors.consensus.messages import NO_SPACE, Envelope, PreVote, PreVoteResponse, TimeoutNow, Vote, VoteResponse
from incus_actors.consensus.node import Node
from incus_actors.consensus.quorum import has_majority, is_lost
from incus_actors.consensus.types import NOBODY, HardState, MemberId, RaftRole

VOTE_RETRY_MS = 100
BAN_PATIENCE_TIMEOUTS = 3


@dataclass(slots=True)
class Campaign:
    """Votes of one pre-vote round or one election."""

    why: str
    started_ms: int  #: an election begins with its pre-vote
    transfer: bool = False
    attempts: int = 0
    granted: dict[MemberId, bool] = field(default_factory=dict)
    full: set[MemberId] = field(default_factory=set)  #: who can't vote for want of disk space
    retry_at_ms: int = 0


def may_campaign(node: Node) -> bool:
    """Return whether this member could lead at all: a voter, not burnt, with a log and a disk in order."""
    if node.stopped or node.amnesia or node.receiver.busy or not (node.is_voter or _was_voter(node)):
        return False
    return node.now >= node.disk_ban_until_ms or _nobody_better(node)


def _was_voter(node: Node) -> bool:
    """A member that is on its way out, by a change that it does not know to be committed, can be the only one with
    the log to win. It does not count itself, and hands over once the change is committed."""
    for index, configuration in reversed(node.log.configurations):
        if node.id in configuration.voters():
            return True
        if index <= node.commit:
            return False
    return False


def _nobody_better(node: Node) -> bool:
    """A member whose disk hung lets others go first. When nobody has led for a while it may be the only one with
    the log to win, and a disk that has finished everything is good enough."""
    patience = BAN_PATIENCE_TIMEOUTS * node.timing.election_max_ms
    return not node.writes and node.now - max(node.leader_heard_ms, node.led_until_ms) >= patience


def campaign(node: Node, why: str) -> None:
    """The election timer has fired, or a leader was forgotten. A member whose log is still being written waits:
    it would advertise what it may lose."""
    if not may_campaign(node):
        node.reset_election_timer()
        return
    if node.log.writing:
        node.campaign_waits = why
        node.set_election_deadline(node.now + node.timing.append_wait_ms)
        return
    node.campaign_waits = ""
    if node.voting_peers():
        node.become_pre_candidate(why)
    else:
        node.become_candidate(why)


def start_prevote(node: Node, why: str) -> None:
    """Ask all voters; nothing is written and no term moves."""
    node.campaign = Campaign(why, node.now)
    node.campaign.granted[node.id] = True
    node.count("prevotes_started", why=why)
    _ask_prevote(node, node.campaign)


def _ask_prevote(node: Node, running: Campaign) -> None:
    why = running.why if running.why in ("lost", "heir") else "timeout"
    message = PreVote(node.log.durable, node.log.last_term, why)
    for peer in node.voting_peers():
        node.send(peer, message, term=node.term + 1)
    retry = node.timing.prevote_retry_ms
    if running.attempts < len(retry):
        base = retry[running.attempts]
        node.set_election_deadline(node.now + base + node.rng.randint(-(base // 5), base // 5))
    else:
        node.election_timeout_ms = node.draw_election_timeout()
        node.set_election_deadline(node.now + node.election_timeout_ms)


def start_election(node: Node, why: str) -> None:
    """Ask all voters for this term; our own vote is being written at the same time."""
    began_ms = node.now if node.campaign is None else node.campaign.started_ms
    node.campaign = Campaign(why, began_ms, transfer=why == "transfer")
    node.election_timeout_ms = node.draw_election_timeout()
    node.count("elections_started", why=why)
    _ask_vote(node, node.campaign)
    node.reset_election_timer()


def _ask_vote(node: Node, running: Campaign) -> None:
    message = Vote(node.log.durable, node.log.last_term, running.transfer)
    for peer in node.voting_peers():
        if peer not in running.granted:
            node.send(peer, message)
    running.retry_at_ms = node.now + VOTE_RETRY_MS
    node.wake_at(running.retry_at_ms)


def tick(node: Node) -> None:
    """Ask again, and give up in the end."""
    running = node.campaign
    if running is None:
        return
    if node.now >= node.election_deadline_ms:
        if node.role is RaftRole.CANDIDATE:
            node.count("elections_lost", reason="timeout")
            campaign(node, "timeout")
        elif running.attempts >= len(node.timing.prevote_retry_ms):
            campaign(node, "timeout")
        else:
            running.attempts += 1
            _ask_prevote(node, running)
        return
    node.wake_at(node.election_deadline_ms)
    if node.role is RaftRole.CANDIDATE:
        if node.now >= running.retry_at_ms:
            _ask_vote(node, running)
        node.wake_at(running.retry_at_ms)


def on_prevote_response(node: Node, envelope: Envelope, message: PreVoteResponse) -> None:
    """Count a yes; a no says why. A higher term in a refusal has been adopted by the dispatcher already."""
    running = node.campaign
    if node.role is not RaftRole.PRE_CANDIDATE or running is None or message.for_term != node.term + 1:
        return
    if not message.granted:
        node.count("prevotes_denied", reason=message.reason)
        if message.reason == NO_SPACE:
            running.full.add(envelope.source)
            node.proposals.dispatch_all()
    running.granted[envelope.source] = message.granted
    if has_majority(node.voter_sets, _yes(running)) and not node.receiver.busy:
        node.count("prevotes_won", why=running.why)
        node.become_candidate(running.why)


def disks_are_full(node: Node) -> bool:
    """Return whether nobody can be elected because so many voters have no space to write a vote."""
    return node.campaign is not None and is_lost(node.voter_sets, node.campaign.full)


def on_vote_response(node: Node, envelope: Envelope, message: VoteResponse) -> None:
    """Count a vote of this term."""
    running = node.campaign
    if node.role is not RaftRole.CANDIDATE or running is None or message.for_term != node.term:
        return
    running.granted[envelope.source] = message.granted
    if message.granted:
        check_won(node)
    elif is_lost(node.voter_sets, [member for member, yes in running.granted.items() if not yes]):
        node.count("elections_lost", reason=message.reason)
        retry = node.timing.prevote_retry_ms
        node.become_follower(node.term, NOBODY, "lost_election")
        node.set_election_deadline(node.now + node.rng.randint(retry[0], retry[-1]))


def check_won(node: Node) -> None:
    """Lead once a majority has voted for us and our own vote is durable (R-SELF)."""
    running = node.campaign
    if node.role is not RaftRole.CANDIDATE or running is None:
        return
    if node.durable_hard != HardState(node.term, node.id):
        return
    running.granted[node.id] = True
    if has_majority(node.voter_sets, _yes(running)):
        node.become_leader()


def _yes(running: Campaign) -> set[MemberId]:
    return {member for member, granted in running.granted.items() if granted}


def on_timeout_now(node: Node, envelope: Envelope, message: TimeoutNow) -> None:
    """Our leader hands over: skip the pre-vote, but only with exactly its log, all of it durable."""
    if node.role is not RaftRole.FOLLOWER or envelope.source != node.leader or envelope.term != node.term:
        return
    if not may_campaign(node) or node.log.writing:
        return
    if (node.log.last, node.log.last_term) == (message.last_index, message.last_term):
        node.become_candidate("transfer")
