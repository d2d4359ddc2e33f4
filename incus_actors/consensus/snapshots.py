"""Bringing a member up to date whose entries are gone: offer, chunks, install (CONSENSUS 3.10).

Owns the bookkeeping on both sides: what has been offered, how far it got, when to resume; files are the
driver's. A received snapshot is acknowledged only when the generation switch is durable (R-SNAP), and one that
is not ahead of our commit index is never installed.
"""

from __future__ import annotations

from dataclasses import dataclass

from incus_actors.consensus.effects import InstallSnapshot, ReadSnapshotChunk, StoreSnapshotChunk, TakeSnapshot
from incus_actors.consensus.events import (
    SnapshotChunkRead,
    SnapshotChunkStored,
    SnapshotFailed,
    SnapshotInstalled,
    SnapshotReady,
)
from incus_actors.consensus.messages import AppendResponse, Envelope, SnapshotAck, SnapshotChunk, SnapshotOffer
from incus_actors.consensus.node import Node
from incus_actors.consensus.progress import Progress, ProgressState
from incus_actors.consensus.types import SnapshotMark

FAILED_RETRY_MS = 1000
TAKE_PATIENCE_MS = 30_000


# -- the leader's side ----------------------------------------------------------------------------------------------


def start(node: Node, progress: Progress) -> None:
    """Ask the driver for a snapshot; entries wait until it is installed."""
    progress.become_snapshot(node.now)
    node.count("snapshots_started")
    node.emit(TakeSnapshot(progress.id))
    node.wake_at(node.now + node.timing.offer_retry_ms)


def ready(node: Node, event: SnapshotReady) -> None:
    """The driver has one: offer it, unless what it covers is no longer what the member needs."""
    progress = _sending(node, event.peer)
    if progress is None or progress.snapshot is None:
        return
    if event.index < node.log.mark.index:
        _failed(node, progress, "too_old")
        return
    offer = SnapshotOffer(
        event.snapshot_id,
        event.index,
        event.term,
        event.chain,
        event.configuration,
        event.configuration_index,
        event.size,
        event.digest,
    )
    progress.snapshot.offer = offer
    progress.snapshot.heard_ms = node.now
    node.send(progress.id, offer)


def on_ack(node: Node, progress: Progress, message: SnapshotAck) -> None:
    """The member says how far it is."""
    progress.heard(node.now)
    sending = progress.snapshot
    if progress.state is not ProgressState.SNAPSHOT or sending is None or sending.offer is None:
        return
    offer = sending.offer
    if message.snapshot_id != offer.snapshot_id:
        return
    sending.heard_ms = node.now
    if message.state == "installed":
        from incus_actors.consensus.replication import maybe_commit, send_appends

        progress.acknowledged(offer.index, progress.sequence)
        progress.become_replicate()
        node.count("snapshots_installed")
        node.measured["snapshot_sending"].add(float(node.now - sending.since_ms))
        maybe_commit(node)
        send_appends(node, progress)
    elif message.state == "abort":
        _failed(node, progress, message.reason)
    else:
        if message.next_offset <= sending.acked_offset or message.next_offset > sending.asked_offset:
            sending.asked_offset = message.next_offset  # it asks again from there: resume, or something was lost
        sending.acked_offset = message.next_offset
        _read_on(node, progress)


def _read_on(node: Node, progress: Progress) -> None:
    sending = progress.snapshot
    if sending is None or sending.offer is None:
        return
    chunk = node.limits.snapshot_chunk_bytes
    window = sending.acked_offset + node.limits.snapshot_inflight * chunk
    while sending.asked_offset < min(sending.offer.size, window):
        length = min(chunk, sending.offer.size - sending.asked_offset)
        node.emit(ReadSnapshotChunk(progress.id, sending.offer.snapshot_id, sending.asked_offset, length))
        sending.asked_offset += length


def chunk_read(node: Node, event: SnapshotChunkRead) -> None:
    """Bytes to send, on the bulk lane so that no heartbeat waits for them."""
    progress = _sending(node, event.peer)
    sending = None if progress is None else progress.snapshot
    if sending is not None and sending.offer is not None and sending.offer.snapshot_id == event.snapshot_id:
        node.count_many("snapshot_bytes_sent", len(event.data))
        node.send(event.peer, SnapshotChunk(event.snapshot_id, event.offset, event.data, event.crc), bulk=True)


def tick(node: Node) -> None:
    """Offer again when the member has been silent: the offer, a chunk or its answer was lost."""
    leadership = node.leadership
    if leadership is None:
        return
    patience = node.timing.offer_retry_ms
    for progress in leadership.progress.values():
        sending = progress.snapshot
        if sending is None:
            continue
        node.wake_at(node.now + patience)
        if sending.offer is None:
            if node.now - sending.since_ms >= TAKE_PATIENCE_MS:
                _failed(node, progress, "slow")
        elif node.now - sending.heard_ms >= patience:
            sending.heard_ms = node.now
            sending.asked_offset = sending.acked_offset
            node.send(progress.id, sending.offer)


def failed(node: Node, event: SnapshotFailed) -> None:
    """The driver could not take, read, store or install."""
    if event.peer == node.id or (node.receiver.offer and node.receiver.offer.snapshot_id == event.snapshot_id):
        node.receiver.failed(event.reason)
        return
    progress = _sending(node, event.peer)
    if progress is not None:
        _failed(node, progress, event.reason)


def _failed(node: Node, progress: Progress, reason: str) -> None:
    node.count("snapshots_failed", reason=reason)
    progress.become_probe()
    progress.retry_ms = node.now + FAILED_RETRY_MS
    node.wake_at(progress.retry_ms)


def _sending(node: Node, peer: int) -> Progress | None:
    progress = None if node.leadership is None else node.leadership.progress.get(peer)
    return progress if progress is not None and progress.state is ProgressState.SNAPSHOT else None


# -- the receiver's side --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class SnapshotReceiver:
    """At most one snapshot is received at a time; the newest offer of the present leader wins."""

    node: Node
    offer: SnapshotOffer | None = None
    leader: int = 0
    expected_offset: int = 0  #: what has been handed to the driver
    stored_offset: int = 0  #: what the driver has in the file
    gap_offset: int = -1  #: asked for again: chunks behind one gap are many, one request for it is enough
    installing: bool = False
    began_ms: int = 0

    @property
    def busy(self) -> bool:
        """Whether a complete snapshot is being put in place: no campaign meanwhile."""
        return self.installing

    def offered(self, envelope: Envelope, offer: SnapshotOffer) -> None:
        """The leader offers a snapshot."""
        node = self.node
        if node.amnesia:
            return
        if self.installing:
            return
        if offer.index <= node.commit:
            match = min(node.commit, node.log.durable)
            node.send(
                envelope.source,
                AppendResponse(True, match, 0, 0, 0, node.applied, node.digest, node.free_kib),
            )
            self.offer = None
            return
        self.leader = envelope.source
        if self.offer is None or self.offer.snapshot_id != offer.snapshot_id:
            self.offer, self.expected_offset, self.stored_offset = offer, 0, 0
            self.began_ms = node.now
        self.expected_offset, self.gap_offset = self.stored_offset, -1
        self._ack("receiving", self.stored_offset)

    def chunk(self, message: SnapshotChunk) -> None:
        """Some bytes; out of order ones are asked for again."""
        offer = self.offer
        if offer is None or self.installing or message.snapshot_id != offer.snapshot_id:
            return
        if message.offset != self.expected_offset or not message.data:
            if message.offset > self.expected_offset and self.gap_offset != self.expected_offset:
                self.gap_offset = self.expected_offset
                self._ack("receiving", self.expected_offset)
            return
        self.expected_offset += len(message.data)
        if self.expected_offset > offer.size:
            self.failed("size")
            return
        self.node.count_many("snapshot_bytes_received", len(message.data))
        self.node.emit(StoreSnapshotChunk(offer, message.offset, message.data, message.crc))

    def stored(self, event: SnapshotChunkStored) -> None:
        """The driver has the file up to `event.next_offset`."""
        if self.offer is None or self.offer.snapshot_id != event.snapshot_id or self.installing:
            return
        self.stored_offset = event.next_offset
        self._ack("receiving", event.next_offset)
        self.try_install()

    def try_install(self) -> None:
        """Install when all bytes are there, no write of the log is under way and nothing is being applied."""
        node, offer = self.node, self.offer
        if offer is None or self.installing or self.stored_offset < offer.size:
            return
        if node.writes or node.applied < node.apply_sent:
            return
        if offer.index <= node.commit:
            self.offer = None  # entries were faster
            return
        self.installing = True
        node.applying_paused = True
        log = node.log
        keep = log.term_at(offer.index) == offer.term and log.chain_at(offer.index) == offer.chain
        node.emit(InstallSnapshot(offer, keep))

    def installed(self, event: SnapshotInstalled) -> None:
        """The generation switch is durable: the log begins after it."""
        node, offer = self.node, self.offer
        if offer is None or not self.installing or offer.snapshot_id != event.snapshot_id:
            return
        node.log.restore(
            SnapshotMark(offer.index, offer.term, offer.chain, offer.configuration, offer.configuration_index)
        )
        node.commit = max(node.commit, offer.index)
        node.applied = node.apply_sent = max(node.applied, offer.index)
        node.note_digest(offer.index, event.digest)
        node.verified = max(node.verified, offer.index)
        node.applying_paused = False
        node.configuration_activated()
        self._ack("installed", offer.size)
        self.offer = None
        self.installing = False
        node.count("snapshots_received")
        node.measured["snapshot_receiving"].add(float(node.now - self.began_ms))
        node.apply_ready()
        node.reads.applied()

    def failed(self, reason: str) -> None:
        """Give up; the leader starts again later."""
        if self.offer is not None:
            self._ack("abort", 0, reason)
        self.offer = None
        self.installing = False
        self.node.applying_paused = False
        self.node.apply_ready()

    def _ack(self, state: str, offset: int, reason: str = "") -> None:
        offer, node = self.offer, self.node
        to = node.leader or self.leader
        if offer is not None and to not in (0, node.id):
            node.send(to, SnapshotAck(offer.snapshot_id, offset, state, reason))
