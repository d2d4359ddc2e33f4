"""The leader's sending half of replication: entries out, answers in, commit forward.

Owns the order probe → replicate, the windows and fast backtracking; called by leader.py and the dispatcher.
Commit counts only entries of the own term, and the leader itself only up to what it has made durable (R-LEAD).
"""

from __future__ import annotations

from incus_actors.consensus import membership, snapshots
from incus_actors.consensus.messages import Append, AppendResponse, Goodbye, HeartbeatResponse, WireEntry
from incus_actors.consensus.node import Node
from incus_actors.consensus.progress import Progress, ProgressState
from incus_actors.consensus.quorum import agreed, has_majority
from incus_actors.consensus.types import NOBODY, Entry, Index, MemberId

LOST_AFTER_MS = 50  #: an Append this much older than an answered heartbeat was lost
CAUGHT_UP_ENTRIES = 64
DISK_RETRY_MS = 1000


def send_appends(node: Node, progress: Progress) -> None:
    """Send this member what it lacks, as far as its window allows."""
    if progress.excluded or progress.retry_ms > node.now:
        return
    while progress.may_send(node.limits):
        if progress.next - 1 < node.log.mark.index:
            snapshots.start(node, progress)
            return
        if progress.state is ProgressState.REPLICATE and progress.next > node.log.last:
            return
        _send_one(node, progress)


def _send_one(node: Node, progress: Progress) -> None:
    log, leadership = node.log, node.leadership
    previous = progress.next - 1
    last, size = _batch(node, progress.next)
    key = (progress.next, last)
    if leadership is not None and leadership.wire_key == key:
        wire = leadership.wire
    else:
        wire = tuple(_wire(entry) for entry in log.slice(progress.next, last)) if last > previous else ()
        if leadership is not None:
            leadership.wire_key, leadership.wire = key, wire
    sequence = progress.sent(previous, last, size, node.now)
    progress.commit_told = max(progress.commit_told, min(node.commit, last))
    node.send(
        progress.id,
        Append(previous, log.term_at(previous) or 0, log.chain_at(previous) or b"", node.commit, sequence, wire),
    )


def _batch(node: Node, low: Index) -> tuple[Index, int]:
    """Return the last index that fits in one Append from `low` on, and the bytes of the bodies."""
    log, limits = node.log, node.limits
    size, index = 0, low
    high = min(log.last, low + limits.append_entries - 1)
    while index <= high:
        size += len(log.entries[index - log.first].body)
        if size > limits.append_bytes and index > low:
            return index - 1, size
        index += 1
    return index - 1, size


def _wire(entry: Entry) -> WireEntry:
    return WireEntry(entry.term, entry.kind, entry.timestamp_ms, entry.proposal_id, entry.body)


def probe_silent(node: Node, progress: Progress) -> None:
    """Ask a member that has answered nothing for a while where it is, by an Append without entries.

    A member that was away while the configuration changed does not know this leader and drops its heartbeats (3.2),
    so that no answer to them shows that the first Append was lost: only another Append brings it back.
    """
    patience = max(node.timing.offer_retry_ms, 2 * progress.heartbeat_ms)
    if progress.state is ProgressState.SNAPSHOT or node.now - progress.silent_since_ms() < patience:
        return
    if progress.state is ProgressState.REPLICATE:
        progress.become_probe()
    progress.forget_flight()
    log = node.log
    previous = min(max(progress.next - 1, log.mark.index), log.last)
    sequence = progress.sent(previous, previous, 0, node.now)
    node.send(
        progress.id,
        Append(previous, log.term_at(previous) or 0, log.chain_at(previous) or b"", node.commit, sequence, ()),
    )


def broadcast_appends(node: Node) -> None:
    """Send everybody what it lacks."""
    if node.leadership is not None:
        for progress in node.leadership.progress.values():
            send_appends(node, progress)


def on_append_response(node: Node, progress: Progress, message: AppendResponse) -> None:
    """A member took entries, or says why not."""
    progress.heard(node.now)
    progress.free_kib = message.free_kib
    progress.applied = max(progress.applied, message.applied)
    if not message.ok:
        _on_refusal(node, progress, message)
        return
    _on_match(node, progress, message.match, message.sequence)


def _on_match(node: Node, progress: Progress, match: Index, sequence: int) -> None:
    if match > node.log.last:
        node.fatal(f"member {progress.id} acknowledges {match}, our log ends at {node.log.last}")
        return
    gained = progress.acknowledged(match, sequence)
    progress.count_round(node.log.last, node.now)
    if node.leadership is not None and match >= node.leadership.accusers.get(progress.id, match + 1):
        del node.leadership.accusers[progress.id]
    if progress.state is ProgressState.PROBE or _needs_no_snapshot(node, progress):
        progress.become_replicate()
    if gained:
        maybe_commit(node)
        if node.leadership is not None:
            node.leadership.progressed(progress)
    if progress.match < node.log.last and node.leadership is not None:
        send_appends(node, progress)


def _needs_no_snapshot(node: Node, progress: Progress) -> bool:
    """Whether entries can go on from its match, or the snapshot on its way has nothing that it lacks: its word that it
    was installed was lost, and by now the log may have left it behind again, so that it needs another one."""
    if progress.state is not ProgressState.SNAPSHOT or progress.snapshot is None:
        return False
    offer = progress.snapshot.offer
    return progress.match >= node.log.mark.index or (offer is not None and progress.match >= offer.index)


def _on_refusal(node: Node, progress: Progress, message: AppendResponse) -> None:
    if message.reason == "corrupt":
        on_corrupt(node, progress, message.hint_index)
        return
    sent = progress.refused(message.sequence)
    if sent is None:
        return
    if message.reason == "disk":
        progress.become_probe()
        progress.retry_ms = node.now + DISK_RETRY_MS
        node.wake_at(progress.retry_ms)
        return
    # Both sides skip whole terms: the member said the last place where it could agree with our previous term;
    # we skip our own entries of terms newer than that. What it has confirmed since it refused is not sent again, but
    # the refused entries must be: no answer to them will come.
    index, _ = node.log.last_not_after_term(min(message.hint_index, sent.previous), message.hint_term)
    if message.hint_index < node.log.mark.index:
        index = message.hint_index
    progress.become_probe()
    progress.next = max(progress.match, min(index, sent.previous - 1)) + 1
    send_appends(node, progress)


def on_corrupt(node: Node, progress: Progress, index: Index) -> None:
    """Same index and term, another history. Whoever a majority disagrees with is damaged (D8, 3.6)."""
    leadership = node.leadership
    if leadership is None:
        return
    leadership.accusers[progress.id] = index
    if has_majority(node.voter_sets, leadership.accusers):
        node.fatal(f"a majority disagrees with the history of this leader at index {index}", "amnesia")
        return
    values = {member: peer.match for member, peer in leadership.progress.items()}
    values[node.id] = node.log.durable
    if agreed(node.voter_sets, values) >= index:
        exclude(node, progress, "corrupt")


def exclude(node: Node, progress: Progress, why: str) -> None:
    """Tell a damaged member to go. It gets nothing more, and hears it again with every answer until it is gone."""
    if not progress.excluded:
        node.count("members_excluded", reason=why)
    progress.excluded = why
    node.send(progress.id, Goodbye(why, NOBODY))


def on_heartbeat_response(node: Node, progress: Progress, message: HeartbeatResponse) -> None:
    """A member lives: confirm reads, notice lost appends, go on sending."""
    leadership = node.leadership
    if leadership is None:
        return
    progress.heard(node.now)
    progress.applied = max(progress.applied, message.applied)
    progress.digest, progress.free_kib, progress.links = message.digest, message.free_kib, message.links
    progress.round_trip_ms = float(max(0, node.now - message.sent_ms))
    leadership.rounds.acknowledged(progress, message.read_sequence)
    leadership.compare_digest(progress, message)
    progress.count_round(node.log.last, node.now)
    near = progress.match + CAUGHT_UP_ENTRIES >= node.commit
    progress.caught_up_rounds = progress.caught_up_rounds + 1 if near else 0
    if progress.state is ProgressState.SNAPSHOT:
        return
    progress.verified = message.last_index
    if message.match > progress.match:
        _on_match(node, progress, message.match, 0)
        if node.leadership is not leadership:
            return
    newest = progress.in_flight[-1].sent_ms if progress.in_flight else node.now
    if message.last_index < progress.match:
        progress.become_probe()  # it has restarted and knows nothing of this term's stream
        send_appends(node, progress)
    elif progress.in_flight and newest + LOST_AFTER_MS <= message.sent_ms:
        if progress.state is ProgressState.PROBE:
            progress.forget_flight()
            send_appends(node, progress)
        elif message.last_index < progress.next - 1:
            progress.become_probe()
            send_appends(node, progress)
    elif progress.match < node.log.last or progress.state is ProgressState.PROBE:
        send_appends(node, progress)


def maybe_commit(node: Node) -> bool:
    """Commit what a quorum has durably, if it is of our own term (figure 8); return whether anything was."""
    leadership = node.leadership
    if leadership is None:
        return False
    values: dict[MemberId, int] = {node.id: node.log.durable}
    for member, progress in leadership.progress.items():
        values[member] = progress.match
    index = agreed(node.voter_sets, values)
    if index <= node.commit or node.log.term_at(index) != node.term:
        return False
    first = not node.has_own_term_commit()
    before = node.commit
    node.advance_commit(index)
    leadership.committed(before, index, first=first)
    membership.on_commit(node)
    return True
