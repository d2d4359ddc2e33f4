"""Who gets our vote, and our word in a pre-vote (CONSENSUS 3.6).

Owns the rules of granting: log check, stickiness, start-up hold, one durable vote a term; called by the
dispatcher for every role. A vote must never leave before it is durable, and whether we are a voter is never
asked: the candidate's configuration decides who counts (D6).
"""

from __future__ import annotations

from incus_actors.consensus.messages import NO_SPACE, Envelope, PreVote, PreVoteResponse, Vote, VoteResponse
from incus_actors.consensus.node import Node
from incus_actors.consensus.types import NOBODY, MemberId, RaftRole


def is_sticky(node: Node) -> bool:
    """Return whether we have good reason to believe in a leader: we are it and a quorum answers, or we heard it
    within the shortest election timeout and have not forgotten it."""
    if node.role is RaftRole.LEADER:
        return node.leadership is not None and node.leadership.has_contact()
    if node.role is not RaftRole.FOLLOWER or node.leader == NOBODY:
        return False
    return node.now - node.leader_heard_ms < node.timing.election_min_ms


def in_startup_hold(node: Node) -> bool:
    """F8: a fresh process that has heard no leader yet must not complete a majority against one that exists."""
    return not node.heard_any_leader and node.now - node.started_ms < node.timing.election_min_ms


def on_prevote(node: Node, envelope: Envelope) -> None:
    """Somebody asks whether it could win. Changes neither term nor vote (P-PV)."""
    if envelope.source == node.leader and envelope.term > node.term and node.role is RaftRole.FOLLOWER:
        node.suspicion.forget("E3")  # the leader itself campaigns, so it leads no more (hashicorp/raft #605)
    answer_prevote(node, envelope, look=True)


def answer_prevote(node: Node, envelope: Envelope, *, look: bool) -> None:
    """Grant, refuse, or (F2) look first."""
    message = envelope.message
    if not isinstance(message, PreVote):
        raise TypeError(message)
    refusal = _prevote_refusal(node, envelope, message)
    if refusal == "has_leader" and look and message.why in ("lost", "heir") and node.role is RaftRole.FOLLOWER:
        node.suspicion.look(envelope)
        return
    if refusal:
        node.count("prevotes_refused", reason=refusal)
        # Our own term may never get to that disk, so a refusal for want of space names the future one, as a yes does.
        term = envelope.term if refusal == NO_SPACE else None
        node.send(envelope.source, PreVoteResponse(False, refusal, node.leader, envelope.term), term=term)
        return
    node.send(envelope.source, PreVoteResponse(True, "", NOBODY, envelope.term), term=envelope.term)
    _make_way(node, envelope.source, message)


def _prevote_refusal(node: Node, envelope: Envelope, message: PreVote) -> str:
    if node.amnesia:
        return "amnesia"
    if envelope.term <= node.term:
        return "term"
    if node.disk_full and not is_sticky(node):
        return NO_SPACE  # we could not write the vote: an election would only use up terms
    if not node.log.is_up_to_date(message.last_index, message.last_term):
        return "log"
    if is_sticky(node):
        return "has_leader"
    return "startup" if in_startup_hold(node) else ""


def _make_way(node: Node, candidate: MemberId, message: PreVote) -> None:
    """Give a candidate that we would vote for a head start, so that two do not split the vote.

    Who yields to whom must look the same to everybody (so the heir does not count: views of it differ), and
    whoever yields comes back at a random time: else all of them can go on yielding to each other for ever.
    """
    retry = node.timing.prevote_retry_ms
    if node.role is RaftRole.PRE_CANDIDATE:
        theirs = (message.last_term, message.last_index, -candidate)
        ours = (node.log.last_term, node.log.durable, -node.id)
        if theirs > ours:
            node.become_follower(node.term, NOBODY, "yielded")
            node.set_election_deadline(node.now + node.rng.randint(retry[-1], 2 * retry[-1]))
    elif node.role is RaftRole.FOLLOWER and node.leader == NOBODY:
        node.set_election_deadline(max(node.election_deadline_ms, node.now + retry[len(retry) // 2]))


def on_vote(node: Node, envelope: Envelope, message: Vote) -> None:
    """Somebody asks for our vote in `envelope.term`."""
    if node.amnesia:
        node.count("votes_refused", reason="amnesia")
        return
    if envelope.term < node.term:
        node.send(envelope.source, VoteResponse(False, "term", envelope.term))
        return
    asked_by_leader = envelope.source == node.leader and envelope.term > node.term
    if not message.transfer and not asked_by_leader and is_sticky(node):
        node.count("votes_ignored", reason="has_leader")  # not even our term moves
        return
    if envelope.term > node.term:
        node.become_follower(envelope.term, NOBODY, "higher_term")
    refusal = ""
    if node.vote not in (NOBODY, envelope.source):
        refusal = "voted"
    elif not node.log.is_up_to_date(message.last_index, message.last_term):
        refusal = "log"
    if refusal:
        node.count("votes_refused", reason=refusal)
        node.send(envelope.source, VoteResponse(False, refusal, envelope.term))
        return
    node.set_hard(envelope.term, envelope.source)
    node.reset_election_timer()
    node.send(envelope.source, VoteResponse(True, "", envelope.term), durable=True)
