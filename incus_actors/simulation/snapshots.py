"""Compaction and transfer snapshots of a virtual member: what consensus/snapshot_files.py does with files.

Owns the steps between an order of the core and its answer, each of which a crash can separate; used by host.py. A
received snapshot counts only from the one durable commit that switches log and state (R-SNAP).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from incus_actors.consensus import effects as fx
from incus_actors.consensus import events as ev
from incus_actors.consensus.log import LogDamagedError
from incus_actors.consensus.types import SnapshotMark
from incus_actors.simulation.machine import Image

if TYPE_CHECKING:
    from incus_actors.simulation.host import Host

KEEP_US = 600_000_000
CHUNKS_MOST = 5


@dataclass(frozen=True, slots=True)
class _Made:
    snapshot_id: str
    image: Image
    mark: SnapshotMark
    size: int
    made_us: int


class SnapshotWork:
    """The file thread of one host."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.made: _Made | None = None
        self.waiting: list[int] = []
        self.first = 0
        self.stored: dict[str, int] = {}
        self.busy_until_us = 0

    def forget(self) -> None:
        """The process has died; the next one sweeps the files."""
        self.made = None
        self.waiting = []
        self.stored = {}
        self.first = 0
        self.busy_until_us = 0

    def _delay(self) -> int:
        return 200 + int(self.host.rng.random() * 20_000)

    def _fails(self) -> bool:
        chance = self.host.disk.plan.snapshot_fails
        return bool(chance) and self.host.rng.random() < chance

    # -- compaction -----------------------------------------------------------------------------------------------

    def compact(self, effect: fx.Compact) -> None:
        """Checkpoint the state on the apply thread, then drop entries on the log thread."""
        self.host.soon(self._delay(), self._checkpoint, effect.index)

    def _checkpoint(self, index: int) -> None:
        disk = self.host.disk
        disk.checkpoint = disk.machine.image()
        durable = disk.checkpoint.index
        disk.submit(lambda: self._drop(min(index, durable)))

    def _drop(self, index: int) -> None:
        disk = self.host.disk
        disk.compact(index)
        self.first = disk.mark.index
        self.host.now_or_later(self.host.life, self.host.step, ev.Compacted(disk.mark.index))

    # -- sending --------------------------------------------------------------------------------------------------

    def take(self, effect: fx.TakeSnapshot) -> None:
        """Make a transfer snapshot, or use the one that is there."""
        host, made = self.host, self.made
        if made is not None and made.image.index >= self.first and host.world.now_us - made.made_us < KEEP_US:
            host.soon(50, self._ready, effect.peer, made)
            return
        self.waiting.append(effect.peer)
        if len(self.waiting) == 1:
            host.soon(self._delay(), self._back_up)

    def _back_up(self) -> None:
        host = self.host
        waiting, self.waiting = self.waiting, []
        if self._fails():
            for peer in waiting:
                host.step(ev.SnapshotFailed(peer, "", "disk"))
            return
        image = host.disk.machine.image()
        mark = host.disk.mark_at(image.index)
        limits = host.world.plan.limits
        size = host.rng.randint(1, CHUNKS_MOST) * min(limits.snapshot_chunk_bytes, 1_000)
        host.world.images_made += 1
        made = _Made(f"s{host.id}-{image.index}-{host.world.images_made}", image, mark, size, host.world.now_us)
        host.world.images[made.snapshot_id] = image
        if host.diverged:
            host.world.tainted.add(image.digest)
        self.made = made
        for peer in waiting:
            self._ready(peer, made)

    def _ready(self, peer: int, made: _Made) -> None:
        mark = made.mark
        self.host.step(
            ev.SnapshotReady(
                peer,
                made.snapshot_id,
                mark.index,
                mark.term,
                mark.chain,
                mark.configuration,
                mark.configuration_index,
                made.size,
                made.image.digest,
            )
        )

    def read(self, effect: fx.ReadSnapshotChunk) -> None:
        """Read some bytes of the snapshot."""
        if self.made is None or self.made.snapshot_id != effect.snapshot_id:
            self.host.soon(1, self.host.step, ev.SnapshotFailed(effect.peer, effect.snapshot_id, "gone"))
            return
        event = ev.SnapshotChunkRead(effect.peer, effect.snapshot_id, effect.offset, b"." * effect.length, 0)
        self.host.soon(50 + int(self.host.rng.random() * 300), self.host.step, event)

    # -- receiving ------------------------------------------------------------------------------------------------

    def store(self, effect: fx.StoreSnapshotChunk) -> None:
        """Write received bytes, one after the other: there is one thread for files."""
        now = self.host.world.now_us
        self.busy_until_us = max(self.busy_until_us + 1, now + 50 + int(self.host.rng.random() * 300))
        self.host.soon(self.busy_until_us - now, self._stored, effect)

    def _stored(self, effect: fx.StoreSnapshotChunk) -> None:
        snapshot_id, end = effect.offer.snapshot_id, effect.offset + len(effect.data)
        if self._fails():
            self.host.step(ev.SnapshotFailed(self.host.id, snapshot_id, "damaged"))
            return
        if effect.offset == 0:
            self.stored[snapshot_id] = 0
        if self.stored.get(snapshot_id) == effect.offset:
            self.stored[snapshot_id] = end
        self.host.step(ev.SnapshotChunkStored(snapshot_id, end))

    def install(self, effect: fx.InstallSnapshot) -> None:
        """Verify the file, switch by one commit, open the new state, report: with time in between."""
        disk = self.host.disk
        unfinished = any(isinstance(item, fx.WriteLog) for item in (*disk.writing, *disk.queue))
        if unfinished or self.host.applying or self.host.apply_busy:
            raise LogDamagedError("a snapshot is installed while something is being written or applied")
        self.host.soon(self._delay(), self._verify, effect)

    def _verify(self, effect: fx.InstallSnapshot) -> None:
        offer = effect.offer
        image = self.host.world.images.get(offer.snapshot_id)
        complete = self.stored.pop(offer.snapshot_id, 0) == offer.size
        if self._fails() or image is None or not complete or image.digest != offer.digest:
            self.host.step(ev.SnapshotFailed(self.host.id, offer.snapshot_id, "not what was offered"))
            return
        if self.host.world.upgrades.image_too_new(self.host, image):
            self.host.world.upgrades.stop(self.host, f"snapshot {offer.index}")
            return
        mark = SnapshotMark(offer.index, offer.term, offer.chain, offer.configuration, offer.configuration_index)
        self.host.disk.submit(lambda: self._commit(effect, mark, image))

    def _commit(self, effect: fx.InstallSnapshot, mark: SnapshotMark, image: Image) -> None:
        """On the log thread."""
        host = self.host
        host.disk.install(mark, image, keep_suffix=effect.keep_suffix)
        host.world.monitor.installed(host, image)
        host.soon(self._delay(), self._switched, effect)

    def _switched(self, effect: fx.InstallSnapshot) -> None:
        self.made = None
        self.first = effect.offer.index
        self.host.step(
            ev.SnapshotInstalled(effect.offer.snapshot_id, effect.offer.index, self.host.disk.machine.digest)
        )
