"""What happens to a message before a role sees it: is it for us, from whom, and from which term?

Owns the envelope checks of CONSENSUS 3.2, incarnations, and the adoption of higher terms; called by Core for
every received envelope. Nothing that fails a check here may change anything.
"""

from __future__ import annotations

from incus_actors.consensus import candidate, follower, proposals, replication, snapshots, voting
from incus_actors.consensus import messages as msg
from incus_actors.consensus.messages import PROTOCOL_VERSION, Envelope
from incus_actors.consensus.node import Node
from incus_actors.consensus.suspicion import greeting
from incus_actors.consensus.types import NOBODY, RaftRole

#: an unknown sender may be a member that our configuration does not have yet
FROM_ANYONE = (
    msg.Hello,
    msg.PreVote,
    msg.Vote,
    msg.Append,
    msg.SnapshotOffer,
    msg.SnapshotChunk,
)
#: who leaves, and is still told so, asks for nothing any more
FROM_MEMBERS = (msg.Propose, msg.ReadIndex)
FROM_LEADER = (msg.Append, msg.Heartbeat, msg.SnapshotOffer, msg.SnapshotChunk)
#: these speak for a term that we must follow; the rest is a request or an answer outside of terms
CARRIES_TERM = (
    msg.Append,
    msg.AppendResponse,
    msg.Heartbeat,
    msg.HeartbeatResponse,
    msg.VoteResponse,
    msg.SnapshotOffer,
    msg.SnapshotAck,
)
HELLO_PAUSE_MS = 100


def receive(node: Node, envelope: Envelope) -> None:
    """Check one envelope and hand it to whom it concerns."""
    refusal = _refusal(node, envelope)
    if refusal:
        node.count("messages_dropped", reason=refusal)
        if refusal == "epoch":
            _other_epoch(node, envelope)
        return
    if not _known_incarnation(node, envelope):
        return
    message = envelope.message
    if isinstance(message, msg.PreVote):
        voting.on_prevote(node, envelope)
    elif isinstance(message, msg.Vote):
        voting.on_vote(node, envelope, message)
    elif envelope.term < node.term:
        _on_lower_term(node, envelope)
    else:
        if envelope.term > node.term and _adopts(message):
            leads = isinstance(message, FROM_LEADER)
            node.become_follower(envelope.term, NOBODY, "leader_found" if leads else "higher_term")
        _dispatch(node, envelope)


def _refusal(node: Node, envelope: Envelope) -> str:
    if envelope.version != PROTOCOL_VERSION:
        return "version"
    if envelope.cluster_id != node.cluster_key:
        return "cluster"
    if envelope.destination != node.id or envelope.source == node.id:
        return "destination"
    if envelope.epoch != node.epoch:
        return "epoch"
    source = envelope.source
    if source not in node.known_members and source != node.leader and not isinstance(envelope.message, FROM_ANYONE):
        leaving = node.leadership is not None and source in node.leadership.progress
        return "" if leaving and not isinstance(envelope.message, FROM_MEMBERS) else "unknown_member"
    return ""


def _adopts(message: msg.Message) -> bool:
    if isinstance(message, msg.PreVoteResponse):
        return not message.names_future_term
    return isinstance(message, CARRIES_TERM)


def _other_epoch(node: Node, envelope: Envelope) -> None:
    """Tell members of an earlier epoch that there is another one; and when we are told so, stop: our cluster was
    recovered without us, and going on would make a second one (CONSENSUS 3.13)."""
    if not isinstance(envelope.message, msg.Hello):
        _greet(node, envelope)
    elif envelope.epoch > node.epoch:
        node.fatal(f"{node.epoch} {envelope.epoch} {envelope.source}", "superseded")


def _greet(node: Node, envelope: Envelope) -> None:
    if node.now - node.greeted_ms.get(envelope.source, -HELLO_PAUSE_MS) >= HELLO_PAUSE_MS:
        node.greeted_ms[envelope.source] = node.now
        node.send(envelope.source, greeting(node))


def _known_incarnation(node: Node, envelope: Envelope) -> bool:
    """Return whether the sending process is the one that we know under this id.

    The first one is taken as it is; another one must introduce itself by Hello, and what an earlier one has sent
    and is still on its way counts no more.
    """
    source, incarnation = envelope.source, envelope.incarnation
    known = node.incarnations.get(source)
    if known == incarnation:
        return True
    if known is None:
        node.incarnations[source] = incarnation
        return True
    burnt = node.burnt_incarnations.setdefault(source, [])
    message = envelope.message
    taken_back = incarnation in burnt
    if taken_back:
        # A late Hello of a process long gone may have displaced the one that lives: whoever answers us, lives.
        if not (isinstance(message, msg.Hello) and message.answer):
            node.count("messages_dropped", reason="old_incarnation")
            _greet(node, envelope)
            return False
        burnt.remove(incarnation)
    if not isinstance(message, msg.Hello):
        node.count("messages_dropped", reason="incarnation")
        _greet(node, envelope)
        return False
    burnt.append(known)
    del burnt[:-8]
    node.incarnations[source] = incarnation
    node.suspicion.hello(envelope, message, changed=True)
    if node.leadership is not None and source in node.leadership.progress:
        node.leadership.welcome(source)
    if taken_back:
        node.features_of.pop(source, None)  # it may be the dead one after all: who leads asks again
    return not taken_back


def _on_lower_term(node: Node, envelope: Envelope) -> None:
    """Tell a leader of the past, so that it, or a member stuck in a higher term, is freed; ignore the rest."""
    message, source = envelope.message, envelope.source
    if node.amnesia:
        return
    if isinstance(message, msg.Append):
        node.send(
            source,
            msg.AppendResponse(False, 0, message.sequence, 0, 0, node.applied, node.digest, node.free_kib, "term"),
        )
    elif isinstance(message, msg.Heartbeat):
        node.send(
            source,
            msg.HeartbeatResponse(0, node.applied, node.digest, 0, node.free_kib, (), 0, message.sent_ms),
        )
    elif isinstance(message, msg.SnapshotOffer):
        node.send(source, msg.SnapshotAck(message.snapshot_id, 0, "abort", "term"))
    elif isinstance(message, (msg.Hello, msg.Propose, msg.ReadIndex)):
        _dispatch(node, envelope)


def _dispatch(node: Node, envelope: Envelope) -> None:
    """Hand a message of our term (or outside of terms) to its handler."""
    message, source = envelope.message, envelope.source
    match message:
        case msg.Heartbeat():
            follower.on_heartbeat(node, envelope, message)
        case msg.Append():
            follower.on_append(node, envelope, message)
        case msg.AppendResponse() | msg.HeartbeatResponse() | msg.SnapshotAck():
            _to_leader(node, envelope, message)
        case msg.PreVoteResponse():
            candidate.on_prevote_response(node, envelope, message)
        case msg.VoteResponse():
            candidate.on_vote_response(node, envelope, message)
        case msg.Hello():
            node.sqlite_versions[source] = message.sqlite_version
            node.features_of[source] = message.features
            node.suspicion.hello(envelope, message, changed=False)
            if not message.answer:
                node.send(source, greeting(node, answer=True))
        case msg.Propose():
            proposals.on_propose(node, envelope, message)
        case msg.ProposeResponse():
            node.proposals.refused(message)
        case msg.ReadIndex():
            _on_read_index(node, envelope, message)
        case msg.ReadIndexResponse():
            if message.ok and source == node.leader and envelope.term == node.term:
                node.advance_commit(min(message.index, node.verified))
            node.reads.answered(message.request_id, message.index, ok=message.ok)
        case msg.SnapshotOffer():
            if follower.accept_leader(node, source):
                node.receiver.offered(envelope, message)
        case msg.SnapshotChunk():
            if envelope.term == node.term and source == node.leader:
                node.receiver.chunk(message)
        case msg.TimeoutNow():
            candidate.on_timeout_now(node, envelope, message)
        case msg.Goodbye():
            _on_goodbye(node, envelope, message)
        case _:
            node.count("messages_dropped", reason="kind")


def _to_leader(
    node: Node, envelope: Envelope, message: msg.AppendResponse | msg.HeartbeatResponse | msg.SnapshotAck
) -> None:
    leadership = node.leadership
    if node.role is not RaftRole.LEADER or leadership is None or envelope.term != node.term:
        return
    progress = leadership.progress.get(envelope.source)
    if progress is None:
        return
    if progress.excluded:
        if isinstance(message, msg.HeartbeatResponse):
            replication.exclude(node, progress, progress.excluded)  # it lives, so it has not heard it yet
        return
    if isinstance(message, msg.AppendResponse):
        replication.on_append_response(node, progress, message)
    elif isinstance(message, msg.HeartbeatResponse):
        replication.on_heartbeat_response(node, progress, message)
    else:
        snapshots.on_ack(node, progress, message)


def _on_read_index(node: Node, envelope: Envelope, message: msg.ReadIndex) -> None:
    if node.leadership is None:
        node.send(envelope.source, msg.ReadIndexResponse(message.request_id, 0, False, node.leader))
    else:
        node.leadership.rounds.add(envelope.source, message.request_id)


def _on_goodbye(node: Node, envelope: Envelope, message: msg.Goodbye) -> None:
    if message.why in ("corrupt", "diverged"):
        if envelope.source == node.leader and envelope.term == node.term:
            node.fatal(f"the leader finds this member {message.why}", "amnesia")
        return
    node.suspicion.goodbye(envelope, message)
