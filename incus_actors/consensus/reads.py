"""Linearizable reads by ReadIndex, batched, on every member (CONSENSUS 3.12). There are no leases.

Owns both halves: rounds of heartbeats on the leader, and the queue of local readers on every member. A read is
registered before the heartbeats of its round leave, a retry gets a new number, and nothing is confirmed before
an entry of the leader's own term is committed (etcd #20418, PR 14258).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from incus_actors.consensus.effects import Resolve
from incus_actors.consensus.events import ReadIndex as LocalRead
from incus_actors.consensus.messages import ReadIndex, ReadIndexResponse
from incus_actors.consensus.node import NEVER, Node
from incus_actors.consensus.quorum import agreed
from incus_actors.consensus.types import NOBODY, Index, MemberId, RaftRole

if TYPE_CHECKING:
    from incus_actors.consensus.leader import Leadership
    from incus_actors.consensus.progress import Progress

ROUNDS_IN_FLIGHT = 2
BATCHES_IN_FLIGHT = 4
ASKED_AT_MOST = 8  #: times that an answer to an earlier question is waited for
INFINITE = 1 << 62


@dataclass(slots=True)
class Round:
    """Readers that are confirmed together once a quorum has answered `sequence`."""

    sequence: int
    index: Index
    readers: list[tuple[MemberId, int]]


class ReadRounds:
    """The leader's half."""

    def __init__(self, node: Node, leadership: Leadership) -> None:
        self.node = node
        self.leadership = leadership
        self.sequence = 0  #: of the newest round; grows for ever, heartbeats carry it
        self.waiting: list[tuple[MemberId, int]] = []
        self.rounds: deque[Round] = deque()

    def add(self, member: MemberId, request_id: int) -> None:
        """Register a reader; its round starts now or when one before it is done."""
        if len(self.waiting) >= self.node.limits.pending_reads:
            self._answer(member, request_id, 0, ok=False)
            return
        self.waiting.append((member, request_id))
        self._start()

    def gate_opened(self) -> None:
        """The first entry of our term is committed: from now on our commit index is up to date."""
        self._start()

    def _start(self) -> None:
        node = self.node
        if not self.waiting or len(self.rounds) >= ROUNDS_IN_FLIGHT or not node.has_own_term_commit():
            return
        self.sequence += 1
        self.rounds.append(Round(self.sequence, node.commit, self.waiting))
        self.waiting = []
        self.leadership.heartbeat_voters()
        self._confirm()

    def acknowledged(self, progress: Progress, sequence: int) -> None:
        """A member has answered the heartbeats of round `sequence`, and with it of all rounds before."""
        if sequence > progress.read_sequence:
            progress.read_sequence = min(sequence, self.sequence)
            if self.rounds:
                self._confirm()

    def _confirm(self) -> None:
        values = {member: progress.read_sequence for member, progress in self.leadership.progress.items()}
        values[self.node.id] = INFINITE
        confirmed = agreed(self.node.voter_sets, values)
        while self.rounds and self.rounds[0].sequence <= confirmed:
            done = self.rounds.popleft()
            for member, request_id in done.readers:
                self._answer(member, request_id, done.index, ok=True)
        self._start()

    def _answer(self, member: MemberId, request_id: int, index: Index, *, ok: bool) -> None:
        if member == self.node.id:
            self.node.reads.answered(request_id, index, ok=ok)
        else:
            leader = self.node.id if ok else NOBODY
            self.node.send(member, ReadIndexResponse(request_id, index, ok, leader))

    def abandon(self) -> None:
        """Leadership is over: members that wait must ask the next leader."""
        readers = [reader for done in self.rounds for reader in done.readers] + self.waiting
        self.rounds.clear()
        self.waiting = []
        for member, request_id in readers:
            if member != self.node.id:
                self._answer(member, request_id, 0, ok=False)


@dataclass(slots=True)
class Batch:
    """Local readers that share one request to the leader. It is asked again, under a new number, when no answer comes;
    an answer to any of them will do: all of them were asked after the readers had come. (If only the last one counted,
    a way that takes longer than our patience would answer no reader at all.)"""

    readers: list[int]
    asked_ms: int = 0
    request_ids: list[int] = field(default_factory=list)


@dataclass(slots=True)
class ReadQueue:
    """The half of every member: local readers until their index is known and applied."""

    node: Node
    deadlines: dict[int, int] = field(default_factory=dict)
    waiting: list[int] = field(default_factory=list)
    asked: dict[int, Batch] = field(default_factory=dict)
    ready: list[tuple[Index, list[int]]] = field(default_factory=list)
    next_id: int = 0

    def __post_init__(self) -> None:
        # An answer to the process before this one must never be taken for an answer to us.
        self.next_id = (self.node.incarnation & 0x3FFFFFFF) << 32

    def add(self, event: LocalRead) -> None:
        """Take a local reader."""
        if len(self.deadlines) >= self.node.limits.pending_reads:
            self.node.emit(Resolve(event.request_id, "busy"))
            return
        self.deadlines[event.request_id] = event.deadline_ms
        self.node.wake_at(event.deadline_ms)
        self.waiting.append(event.request_id)
        self.ask()

    def ask(self) -> None:
        """Ask the leader for all that wait, with a number never used before."""
        if not self.waiting or len(self._batches()) >= BATCHES_IN_FLIGHT or not self._can_ask():
            return
        batch, self.waiting = Batch(self.waiting), []
        self._send(batch)

    def _can_ask(self) -> bool:
        node = self.node
        return node.leader != NOBODY and (node.role is not RaftRole.LEADER or node.leadership is not None)

    def _batches(self) -> list[Batch]:
        """Return every batch that has been asked, once, the oldest first."""
        return list({batch.request_ids[0]: batch for batch in self.asked.values()}.values())

    def _send(self, batch: Batch) -> None:
        node = self.node
        self.next_id += 1
        self.asked[self.next_id] = batch
        batch.asked_ms = node.now
        batch.request_ids.append(self.next_id)
        if len(batch.request_ids) > ASKED_AT_MOST:
            del self.asked[batch.request_ids.pop(0)]
        node.wake_at(node.now + 2 * node.timing.heartbeat_ms)
        if node.leadership is not None:
            node.leadership.rounds.add(node.id, self.next_id)
        else:
            node.send(node.leader, ReadIndex(self.next_id))

    def _close(self, batch: Batch) -> None:
        for request_id in batch.request_ids:
            del self.asked[request_id]

    def answered(self, request_id: int, index: Index, *, ok: bool) -> None:
        """The leader has answered a batch."""
        batch = self.asked.get(request_id)
        if batch is None:
            return
        self._close(batch)
        if ok:
            self.ready.append((index, batch.readers))
            self.applied()
        else:
            self.waiting = batch.readers + self.waiting
            self.node.wake_at(self.node.now + self.node.timing.prevote_retry_ms[0])
        if ok:
            self.ask()

    def applied(self) -> None:
        """The state has moved: readers whose index it has reached may read."""
        if not self.ready:
            return
        applied, still = self.node.applied, []
        for index, readers in self.ready:
            if index > applied:
                still.append((index, readers))
                continue
            for reader in readers:
                if self.deadlines.pop(reader, None) is not None:
                    self.node.emit(Resolve(reader, "applied", index))
        self.ready = still

    def leader_changed(self) -> None:
        """Whoever has no index yet asks again; indexes that we have stay valid."""
        for batch in self._batches():
            self.waiting.extend(batch.readers)
        self.asked.clear()
        self.ask()

    def tick(self) -> None:
        """Drop readers past their deadline; ask again when an answer does not come."""
        if not self.deadlines:
            return
        now = self.node.now
        late = [reader for reader, deadline in self.deadlines.items() if deadline <= now]
        for reader in late:
            del self.deadlines[reader]
            self.node.emit(Resolve(reader, "timeout"))
        if late:
            self._forget_late()
        patience = 2 * self.node.timing.heartbeat_ms
        if self.node.role is not RaftRole.LEADER:
            for batch in self._batches():
                if batch.asked_ms + patience <= now:
                    self._ask_again(batch)
        self.ask()
        self.node.wake_at(min(self.deadlines.values(), default=NEVER))
        if self.asked or self.waiting:
            self.node.wake_at(now + self.node.timing.heartbeat_ms)

    def _ask_again(self, batch: Batch) -> None:
        if batch.readers and self._can_ask():
            self._send(batch)
        else:
            self._close(batch)
            self.waiting.extend(batch.readers)

    def _forget_late(self) -> None:
        alive = self.deadlines
        self.waiting = [reader for reader in self.waiting if reader in alive]
        for batch in self._batches():
            batch.readers = [reader for reader in batch.readers if reader in alive]
        self.ready = [(index, [r for r in readers if r in alive]) for index, readers in self.ready]
