"""Proposals of this member until they are applied here, and the leader's intake of everybody's.

Owns pending proposals with their retries: forwarded to the leader, held while there is none, sent again with the
same id after every change of leader (CONSENSUS 3.12). It must never answer "applied" before the entry has been
applied on this member, nor anything else to a client whose entry may still be committed, except "unknown" at the
deadline.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from incus_actors.consensus import features
from incus_actors.consensus.candidate import disks_are_full
from incus_actors.consensus.effects import Resolve
from incus_actors.consensus.events import Propose as LocalProposal
from incus_actors.consensus.messages import Envelope, Propose, ProposeResponse
from incus_actors.consensus.node import NEVER, Node
from incus_actors.consensus.quorum import is_lost
from incus_actors.consensus.types import NOBODY, EntryKind, Index, MemberId, RaftRole

if TYPE_CHECKING:
    from incus_actors.consensus.leader import Leadership

PROPOSABLE = frozenset(
    {EntryKind.SQL, EntryKind.SCHEMA, EntryKind.EXPIRE, EntryKind.FEATURE, EntryKind.CHECK, EntryKind.DELETE}
)
#: what a full disk refuses; the rest is small and helps to get out of it
DATA = frozenset({EntryKind.SQL, EntryKind.SCHEMA})
#: a voter with less than this part of the least space can't be counted on to write anything
HELPLESS_PART = 16
FINAL_REFUSALS = frozenset({"busy", "disk_full", "too_large", "invalid", "unsupported"})
FIRST_ATTEMPTS = 1 << 62
SPREAD = 0x9E3779B97F4A7C15  #: odd: incarnations that differ begin far apart
#: every leader at any time refuses these
HOPELESS = frozenset({"too_large", "invalid"})


@dataclass(slots=True)
class Pending:
    """A local proposal without an answer. `sends`: how often it was given to a leader; each may be in its log."""

    kind: EntryKind
    body: bytes
    wall_ms: int
    deadline_ms: int
    sends: int = 0
    attempt: int = 0  #: the last one, by which its refusal is known
    retry_at_ms: int = NEVER


@dataclass(slots=True)
class ProposalBook:
    """Local proposals by id, in the order in which they came."""

    node: Node
    pending: dict[bytes, Pending] = field(default_factory=dict)
    size: int = 0  #: bytes of all bodies
    attempt: int = 0  #: the last number given

    def __post_init__(self) -> None:
        # Far from what an earlier process of this member has used: its refusals may still be on their way.
        self.attempt = self.node.incarnation * SPREAD % FIRST_ATTEMPTS

    def __len__(self) -> int:
        return len(self.pending)

    def add(self, event: LocalProposal) -> None:
        """Take a local proposal, or refuse it at once."""
        node, limits = self.node, self.node.limits
        size = len(event.body)
        known = self.pending.get(event.proposal_id)
        if known is not None:
            known.deadline_ms = max(known.deadline_ms, event.deadline_ms)
            return
        status = ""
        if size > limits.body_bytes:
            status = "too_large"
        elif event.kind not in PROPOSABLE or len(event.proposal_id) != 16:
            status = "invalid"
        elif len(self.pending) >= limits.pending_proposals or self.size + size > limits.uncommitted_bytes:
            status = "busy"
        if status:
            node.count("proposals_refused", status=status)
            node.emit(Resolve(event.proposal_id, status))
            return
        pending = Pending(event.kind, event.body, event.wall_ms, event.deadline_ms)
        self.pending[event.proposal_id] = pending
        self.size += size
        node.wake_at(event.deadline_ms)
        self._dispatch(event.proposal_id, pending)

    def dispatch_all(self) -> None:
        """Leadership has changed, or can't be had: send everything without an answer again, under the same ids, or
        refuse it."""
        for proposal_id, pending in list(self.pending.items()):
            self._dispatch(proposal_id, pending)

    def _dispatch(self, proposal_id: bytes, pending: Pending) -> None:
        node = self.node
        if node.leadership is not None:
            status = take(node, node.leadership, proposal_id, pending.kind, pending.body, node.id)
            pending.retry_at_ms = NEVER
            if status in HOPELESS or (status in FINAL_REFUSALS and not pending.sends):
                self._end(proposal_id, status)
            elif status in FINAL_REFUSALS:
                self._try_later(pending)
            elif not status:
                pending.sends += 1
        elif node.leader not in (NOBODY, node.id):
            pending.sends += 1
            self.attempt += 1
            pending.attempt = self.attempt
            pending.retry_at_ms = node.now + node.timing.proposal_retry_ms
            node.wake_at(pending.retry_at_ms)
            node.send(node.leader, Propose(proposal_id, pending.kind, pending.body, pending.wall_ms, self.attempt))
        elif pending.kind in DATA and not pending.sends and disks_are_full(node):
            self._end(proposal_id, "disk_full")

    def _end(self, proposal_id: bytes, status: str, index: Index = 0, result: object = None) -> None:
        ended = self.pending.pop(proposal_id, None)
        if ended is not None:
            self.size -= len(ended.body)
            self.node.emit(Resolve(proposal_id, status, index, result))

    def applied(self, index: Index, results: tuple[tuple[bytes, object], ...]) -> None:
        """Entries have been applied here: answer whoever proposed them here."""
        for proposal_id, result in results:
            if proposal_id in self.pending:
                self._end(proposal_id, "applied", index, result)

    def refused(self, message: ProposeResponse) -> None:
        """The leader does not take it. That is final only if nobody can have logged it: not when it was sent
        before, to this leader or to another one, and that answer has not come. A late refusal of something earlier, which
        was refused and proposed again under the same id, says nothing about what is on its way now."""
        pending = self.pending.get(message.proposal_id)
        if pending is None or message.attempt not in (0, pending.attempt):
            return
        if message.status in HOPELESS or (message.status in FINAL_REFUSALS and pending.sends <= 1):
            self._end(message.proposal_id, message.status)
        else:
            self._try_later(pending)

    def _try_later(self, pending: Pending) -> None:
        pending.retry_at_ms = self.node.now + self.node.timing.heartbeat_ms
        self.node.wake_at(pending.retry_at_ms)

    def fail_all(self) -> None:
        """This process stops: nobody will ever answer here."""
        for proposal_id, pending in list(self.pending.items()):
            self._end(proposal_id, "unknown" if pending.sends else "timeout")

    def tick(self) -> None:
        """End what is past its deadline, ask again what has had no answer."""
        if not self.pending:
            return
        now, wake = self.node.now, NEVER
        for proposal_id, pending in list(self.pending.items()):
            if pending.deadline_ms <= now:
                self._end(proposal_id, "unknown" if pending.sends else "timeout")
                continue
            if pending.retry_at_ms <= now:
                self._dispatch(proposal_id, pending)
            wake = min(wake, pending.deadline_ms, pending.retry_at_ms)
        self.node.wake_at(wake)


def take(node: Node, leadership: Leadership, proposal_id: bytes, kind: EntryKind, body: bytes, origin: MemberId) -> str:
    """Append a proposal on the leader. Returns "" when it is, or already was, in the log; else why not."""
    if leadership.transfer is not None:
        return "dropped"
    known = node.log.proposals.get(proposal_id)
    if known is not None and not _is_applied_at(node, leadership, known, origin):
        return ""
    refused = features.refusal(node, body) if kind is EntryKind.FEATURE else ""
    if refused:
        return refused
    limits = node.limits
    if leadership.uncommitted_bytes + len(body) > limits.uncommitted_bytes:
        return "busy"
    if node.log.last - node.commit >= 2 * limits.pending_proposals:
        return "busy"
    if kind in DATA and disk_refuses(node, leadership):
        return "disk_full"
    entry = node.log.make(node.term, kind, node.wall_ms(), proposal_id, body)
    node.stage_entry(entry)
    leadership.uncommitted_bytes += len(body)
    if origin != node.id:
        leadership.origins.append((entry.index, origin))
    return ""


def _is_applied_at(node: Node, leadership: Leadership, index: Index, origin: MemberId) -> bool:
    """Whether the asker has applied that entry and yet asks: it must have missed the result (a snapshot, a
    restart), so it needs another entry, which the state's own dedup answers with the first result."""
    if origin == node.id:
        return index <= node.applied
    progress = leadership.progress.get(origin)
    return progress is not None and index <= progress.applied


def disk_refuses(node: Node, leadership: Leadership) -> bool:
    """Return whether the leader, or so many voters that no quorum has space, are low on disk (3.4).

    A voter whose disk was full before this term can't answer in it, and so doesn't say why it is silent. Silence
    alone is no reason to refuse, but it is one beside a voter that has nothing left: no entry would be committed.
    """
    if node.low_on_disk():
        return True
    minimum, peers = node.limits.min_free_kib, leadership.progress.items()
    low = {member for member, progress in peers if progress.free_kib < minimum}
    if not low:
        return False  # every proposal comes by here, and as a rule this far
    heard_since = node.now - node.timing.election_max_ms
    helpless = {member for member, progress in peers if progress.free_kib < minimum // HELPLESS_PART}
    silent = {member for member, progress in peers if progress.contact_ms < heard_since}
    return any(2 * len(voters & low) > len(voters) for voters in node.voter_sets) or (
        bool(helpless) and is_lost(node.voter_sets, helpless | silent)
    )


def on_propose(node: Node, envelope: Envelope, message: Propose) -> None:
    """Another member forwards a proposal."""
    status = "not_leader"
    if node.role is RaftRole.LEADER and node.leadership is not None:
        if message.kind not in PROPOSABLE or len(message.proposal_id) != 16:
            status = "invalid"
        elif len(message.body) > node.limits.body_bytes:
            status = "too_large"
        else:
            leadership = node.leadership
            status = take(node, leadership, message.proposal_id, message.kind, message.body, envelope.source)
    if status:
        node.count("proposals_refused", status=status)
        node.send(envelope.source, ProposeResponse(message.proposal_id, status, node.leader, message.attempt))
