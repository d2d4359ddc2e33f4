"""Followers: taking entries and heartbeats from the leader of the term.

Owns the receiving half of replication with its conflict, gap and corruption answers; called by the dispatcher
with messages of the present term only. It must never acknowledge what is not durable (R-ACK), and never commit
what this leader's stream has not verified.
"""

from __future__ import annotations

from incus_actors.consensus.configuration import decode_configuration
from incus_actors.consensus.messages import Append, AppendResponse, Envelope, Heartbeat, HeartbeatResponse, WireEntry
from incus_actors.consensus.node import Node
from incus_actors.consensus.types import NOBODY, Entry, EntryKind, Index, MemberId, RaftRole, chain_hash


def accept_leader(node: Node, source: MemberId) -> bool:
    """Take `source` as the leader of the present term; F6: also after having forgotten it.

    Returns False, and stops the process, if the term already has another leader.
    """
    if node.role is RaftRole.LEADER or node.term_leader not in (NOBODY, source):
        node.fatal(f"two leaders in term {node.term}: {node.term_leader or node.id} and {source}")
        return False
    node.term_leader = source
    if node.role is not RaftRole.FOLLOWER or node.leader != source:
        node.become_follower(node.term, source, "leader_found")
    node.leader_heard_ms = node.leader_contact_ms = node.now
    node.heard_any_leader = True
    node.set_election_deadline(node.now + node.election_timeout_ms)
    return True


def tick(node: Node) -> None:
    """Campaign when the leader has been silent for too long."""
    from incus_actors.consensus.candidate import campaign

    if node.now >= node.election_deadline_ms:
        campaign(node, node.campaign_waits or node.suspicion.why)
    node.wake_at(node.election_deadline_ms)


def on_heartbeat(node: Node, envelope: Envelope, message: Heartbeat) -> None:
    """The leader lives; learn how far it has committed and confirm its reads."""
    if not accept_leader(node, envelope.source):
        return
    node.heir = message.heir
    node.advance_commit(min(message.commit, node.verified))
    ours = node.digests.get(message.digest_at)
    if ours is not None and message.digest:
        node.differs = ours != message.digest
        if node.differs:
            node.count("digest_mismatches")  # the leader hears of it in our answer, and decides who is wrong
    if node.amnesia:
        return
    node.send(
        envelope.source,
        HeartbeatResponse(
            message.read_sequence,
            node.applied,
            node.digest,
            node.disk_lag_ms(),
            node.free_kib,
            node.visible_voters,
            node.verified,
            message.sent_ms,
            min(node.verified, node.log.durable),
        ),
    )


def on_append(node: Node, envelope: Envelope, message: Append) -> None:
    """Verify that the entries follow what we have, take them, acknowledge when they are durable."""
    if not accept_leader(node, envelope.source) or node.amnesia:
        return
    if node.receiver.installing:
        return  # the log is about to be replaced; the leader asks again
    if not _well_formed(message):
        node.count("messages_dropped", reason="configuration")
        return
    previous, entries = _skip_compacted(node, message)
    if previous < 0:
        _acknowledge(node, envelope.source, message.sequence, min(node.commit, node.log.durable))
        return
    log = node.log
    if log.term_at(previous) != message.previous_term and previous == message.previous_index:
        _refuse_conflict(node, envelope.source, message)
        return
    if previous == message.previous_index and log.chain_at(previous) != message.previous_chain:
        _refuse_corrupt(node, envelope.source, message, previous)
        return
    made = _extend(node, previous, entries)
    if made is None:
        _refuse_corrupt(node, envelope.source, message, previous)
        return
    verified = previous + len(entries)
    node.verified = max(node.verified, verified)
    if made:
        _acknowledge(node, envelope.source, message.sequence, verified, durable=True)
    else:
        _acknowledge(node, envelope.source, message.sequence, min(verified, log.durable))
    node.advance_commit(min(message.commit, verified))


def _well_formed(message: Append) -> bool:
    """Whether every configuration among the entries can be read, before anything is changed by them."""
    for item in message.entries:
        if item.kind == EntryKind.CONFIG:
            try:
                decode_configuration(item.body)
            except ValueError:
                return False
    return True


def _skip_compacted(node: Node, message: Append) -> tuple[Index, tuple[WireEntry, ...]]:
    """Return where the entries begin that are still to be compared: -1 when all of them are in the snapshot."""
    start = node.log.mark.index
    if message.previous_index >= start:
        return message.previous_index, message.entries
    skip = start - message.previous_index
    if skip > len(message.entries):
        return -1, ()
    return start, message.entries[skip:]


def _extend(node: Node, previous: Index, wire: tuple[WireEntry, ...]) -> bool | None:
    """Append what is new, replacing what conflicts. Returns whether something was; None on a broken chain or a
    conflict with what is committed, which is no Raft conflict but damage (D8)."""
    log = node.log
    chain = log.chain_at(previous) or b""
    index = previous
    made = False
    for item in wire:
        index += 1
        chain = chain_hash(chain, item.term, item.kind, item.timestamp_ms, item.proposal_id, item.body)
        if index <= log.last:
            if log.term_at(index) == item.term:
                if log.chain_at(index) != chain:
                    return None
                continue
            if index <= node.commit:
                return None
            node.stage_truncate(index)
        node.stage_entry(Entry(index, item.term, item.kind, item.timestamp_ms, item.proposal_id, item.body, chain))
        made = True
    return made


def _acknowledge(node: Node, to: MemberId, sequence: int, match: Index, *, durable: bool = False) -> None:
    node.send(
        to,
        AppendResponse(True, match, sequence, 0, 0, node.applied, node.digest, node.free_kib),
        durable=durable,
    )


def _refuse_conflict(node: Node, to: MemberId, message: Append) -> None:
    hint_index, hint_term = node.log.last_not_after_term(message.previous_index, message.previous_term)
    if message.previous_index <= node.commit:
        _refuse_corrupt(node, to, message, message.previous_index)
        return
    node.count("append_conflicts")
    node.send(
        to,
        AppendResponse(
            False,
            0,
            message.sequence,
            hint_index,
            hint_term,
            node.applied,
            node.digest,
            node.free_kib,
            "conflict",
        ),
    )


def _refuse_corrupt(node: Node, to: MemberId, message: Append, index: Index) -> None:
    """Equal index and term but another history: never truncated silently, the leader finds out who is wrong."""
    node.count("chain_mismatches")
    term = node.log.term_at(index) or 0
    node.send(
        to,
        AppendResponse(False, 0, message.sequence, index, term, node.applied, node.digest, node.free_kib, "corrupt"),
    )
