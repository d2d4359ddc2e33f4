"""The virtual disk of one member: log.db with its witness, and the state file, at the level of rows.

Owns what survives a crash and what does not. Writes gather while one is being synced, exactly as in
consensus/log_thread.py; a crash keeps or loses the writes under way, a power cut also takes the state file back to
its last checkpoint (it runs at `synchronous=NORMAL`). Must never report a write that is not durable, and like the
real log store it notices damage and lost tails only when it is opened.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from incus_actors.consensus.configuration import decode_configuration
from incus_actors.consensus.effects import WriteLog
from incus_actors.consensus.log import LogDamagedError, verify_chain
from incus_actors.consensus.types import (
    Configuration,
    DurableState,
    Entry,
    EntryKind,
    HardState,
    Index,
    MemberId,
    SnapshotMark,
)
from incus_actors.simulation.machine import Image, Machine
from incus_actors.simulation.plan import DiskPlan

FULL_RETRY_US = 100_000
UNDO_KEPT = 6


class ForgottenError(Exception):
    """The disk has lost or damaged something that was durable once: amnesia (CONSENSUS 3.5)."""


class Clock(Protocol):
    """The part of the world that a disk needs."""

    def after(self, us: int, call: Callable[..., None], *values: object) -> None:
        """Call later."""


class Writer(Protocol):
    """Who is told when writes are done: the host."""

    def log_written(self, writes: list[WriteLog]) -> None:
        """These, in order, are durable."""

    def log_failed(self, write: WriteLog | None, kind: str) -> None:
        """ "full": will be tried again; "io": nothing is written any more."""


@dataclass(slots=True)
class _Undo:
    """How to take one durable write back: what a lost tail of the write-ahead log does."""

    hard: HardState
    last: Index
    dropped: tuple[Entry, ...]


@dataclass(slots=True)
class _Witness:
    index: Index
    chain: bytes
    hard: HardState


class Disk:
    """`entries` follow `mark`. All methods are called by the one host that owns it."""

    def __init__(
        self,
        clock: Clock,
        rng: random.Random,
        plan: DiskPlan,
        member: MemberId,
        cluster_id: bytes,
        mark: SnapshotMark,
        machine: Machine,
    ) -> None:
        self.clock = clock
        self.rng = rng
        self.plan = plan
        self.member = member
        self.cluster_id = cluster_id
        self.writer: Writer | None = None
        self.hard = HardState()
        self.mark = mark
        self.entries: list[Entry] = []
        self.machine = machine
        self.checkpoint: Image = machine.image()
        self.witness = _Witness(0, mark.chain, HardState())
        self.amnesia = False
        self.features = 0  #: the highest feature level of the release that is installed here
        self.undo: deque[_Undo] = deque(maxlen=UNDO_KEPT)
        # what dies with the process
        self.life = 0
        self.queue: list[WriteLog | Callable[[], None]] = []
        self.writing: list[WriteLog | Callable[[], None]] = []
        # faults
        self.slow_us = 0
        self.hung = False
        self.hung_batch = False
        self.full = False
        self.told_full = False
        self.fail_next = False
        self.failed = False
        self.free_kib = 1 << 30

    # -- questions ------------------------------------------------------------------------------------------------

    @property
    def last(self) -> Index:
        """The last durable entry."""
        return self.mark.index + len(self.entries)

    def chain_at(self, index: Index) -> bytes | None:
        """Return the chain of a durable entry, None when it is compacted away or not there."""
        if index == self.mark.index:
            return self.mark.chain
        offset = index - self.mark.index - 1
        return self.entries[offset].chain if 0 <= offset < len(self.entries) else None

    def entry(self, index: Index) -> Entry | None:
        """Return a durable entry."""
        offset = index - self.mark.index - 1
        return self.entries[offset] if 0 <= offset < len(self.entries) else None

    def mark_at(self, index: Index) -> SnapshotMark:
        """Return what a snapshot of the state at a durable index says about the log. Raises LogDamagedError."""
        if index == self.mark.index:
            return self.mark
        entry = self.entry(index)
        if entry is None:
            raise LogDamagedError(f"entry {index} is not in the log")
        decided, configuration = self.mark.configuration_index, self.mark.configuration
        for found in self.entries[: index - self.mark.index]:
            if found.kind is EntryKind.CONFIG:
                decided, configuration = found.index, decode_configuration(found.body)
        return SnapshotMark(index, entry.term, entry.chain, configuration, decided)

    def configurations(self) -> list[Configuration]:
        """Return all configurations in the durable log, oldest first."""
        found = [decode_configuration(entry.body) for entry in self.entries if entry.kind is EntryKind.CONFIG]
        return [self.mark.configuration, *found]

    # -- life -----------------------------------------------------------------------------------------------------

    def open(self, incarnation: int) -> DurableState:
        """Read everything back with the checks of consensus/log_store.py. Raises ForgottenError."""
        if self.amnesia:
            raise ForgottenError("burnt")
        self.machine.reopen()
        try:
            last = verify_chain(self.mark, self.entries)
        except LogDamagedError as error:
            raise ForgottenError(str(error)) from error
        seen = self.witness
        if seen.index > last:
            raise ForgottenError(f"the log ends at {last}, but {seen.index} was durable once")
        known = self.chain_at(seen.index)
        if known is not None and known != seen.chain:
            raise ForgottenError(f"entry {seen.index} is not the one that was durable once")
        if seen.hard.term > self.hard.term or (
            seen.hard.term == self.hard.term and seen.hard.vote and seen.hard.vote != self.hard.vote
        ):
            raise ForgottenError("term or vote are older than they were once")
        if not self.mark.index <= self.machine.index <= last:
            raise ForgottenError(f"the state is at {self.machine.index}, the log from {self.mark.index} to {last}")
        self.failed = False
        return self.durable(incarnation)

    def consistent(self) -> bool:
        """Whether a core could be started on what is left, if only to say that it is burnt."""
        try:
            last = verify_chain(self.mark, self.entries)
        except LogDamagedError:
            return False
        return self.mark.index <= self.machine.index <= last

    def durable(self, incarnation: int) -> DurableState:
        """Return what a core is started from, without looking."""
        return DurableState(
            member_id=self.member,
            cluster_id=self.cluster_id,
            epoch=1,
            hard=self.hard,
            snapshot=self.mark,
            entries=tuple(self.entries),
            applied=self.machine.index,
            incarnation=incarnation,
            amnesia=self.amnesia,
            features=self.features,
        )

    def crash(self, *, power: bool) -> None:
        """The process has died: what was being written is kept, in part, or lost; with `power` so is everything
        that the state file had not checkpointed."""
        self.life += 1
        if self.rng.random() >= self.plan.lost_on_crash:
            under_way = [item for item in self.writing if isinstance(item, WriteLog)]
            for write in under_way[: self.rng.randint(0, len(under_way))]:
                self._store(write)
        self.queue.clear()
        self.writing.clear()
        self.hung_batch = False
        self.told_full = False
        if power and self.machine.index > self.checkpoint.index:
            self._lose_state(self.rng.randint(self.checkpoint.index, self.machine.index))

    def _lose_state(self, index: Index) -> None:
        """Take the state file back: to its checkpoint, then forward again by what the log has."""
        self.machine.restore(self.checkpoint)
        have = tuple(self.entries[self.machine.index - self.mark.index : index - self.mark.index])
        self.machine.apply(have)

    # -- writing --------------------------------------------------------------------------------------------------

    def submit(self, item: WriteLog | Callable[[], None]) -> None:
        """Queue a write, or a job that runs between writes."""
        self.queue.append(item)
        if not self.writing:
            self._begin()

    def _begin(self) -> None:
        if not self.queue or self.failed:
            return
        self.writing, self.queue = self.queue, []
        self.clock.after(self._sync_us(), self._finish, self.life)

    def _sync_us(self) -> int:
        plan, rng = self.plan, self.rng
        took = plan.sync_us + int(rng.expovariate(1 / plan.sync_jitter_us))
        if plan.tail and rng.random() < plan.tail:
            took *= 50
        if self.slow_us:
            took += self.slow_us
        return took

    def _finish(self, life: int) -> None:
        if life != self.life:
            return
        if self.hung:
            self.hung_batch = True
            return
        writes = [item for item in self.writing if isinstance(item, WriteLog)]
        if self.fail_next and writes:
            self._fail(writes[0])
            return
        if self.full and any(write.entries for write in writes):
            if not self.told_full and self.writer is not None:
                self.told_full = True
                self.writer.log_failed(writes[0], "full")
            if life == self.life:
                self.clock.after(FULL_RETRY_US, self._finish, life)
            return
        self.told_full = False
        batch, self.writing = self.writing, []
        done: list[WriteLog] = []
        for item in batch:
            if isinstance(item, WriteLog):
                self._store(item)
                done.append(item)
        self._testify()
        if done and self.writer is not None:
            self.writer.log_written(done)
        for item in batch:
            if not isinstance(item, WriteLog) and life == self.life:
                item()
        if life == self.life and not self.writing:
            self._begin()

    def _fail(self, write: WriteLog) -> None:
        """fsync has failed: what it was for may be there or not, and the process must stop."""
        self.fail_next = False
        self.failed = True
        if self.writer is not None:
            self.writer.log_failed(write, "io")

    def _store(self, write: WriteLog) -> None:
        before = _Undo(self.hard, self.last, ())
        if write.hard is not None:
            self.hard = write.hard
        if write.truncate_from is not None and write.truncate_from <= self.last:
            keep = write.truncate_from - 1 - self.mark.index
            if keep < 0:
                raise LogDamagedError(f"truncation to {write.truncate_from - 1} below {self.mark.index}")
            before.dropped = tuple(self.entries[keep:])
            before.last = write.truncate_from - 1
            del self.entries[keep:]
            if self.witness.index > self.last:
                self.witness.index, self.witness.chain = self.last, self.chain_at(self.last) or b""
        if write.entries:
            if write.entries[0].index != self.last + 1:
                raise LogDamagedError(f"entry {write.entries[0].index} can't follow {self.last}")
            self.entries.extend(write.entries)
        self.undo.append(before)

    def _testify(self) -> None:
        self.witness = _Witness(self.last, self.chain_at(self.last) or b"", self.hard)

    def unhang(self) -> None:
        """What hung is done after all."""
        self.hung = False
        if self.hung_batch:
            self.hung_batch = False
            self.clock.after(1, self._finish, self.life)

    # -- compaction and snapshots ---------------------------------------------------------------------------------

    def compact(self, index: Index) -> None:
        """Drop entries up to `index`, which the state file's checkpoint covers (R-TRUNC)."""
        if index <= self.mark.index:
            return
        if index > self.checkpoint.index:
            raise LogDamagedError(f"compaction to {index}, but the state is durable only to {self.checkpoint.index}")
        mark = self.mark_at(index)
        del self.entries[: index - self.mark.index]
        self.mark = mark
        self.undo.clear()

    def install(self, mark: SnapshotMark, image: Image, *, keep_suffix: bool) -> None:
        """Switch log and state to an installed snapshot, at once and durably (R-SNAP)."""
        mine = self.entry(mark.index)
        keep = keep_suffix and mine is not None and (mine.term, mine.chain) == (mark.term, mark.chain)
        self.entries = self.entries[mark.index - self.mark.index :] if keep else []
        self.mark = mark
        self.machine.restore(image)
        self.checkpoint = image
        self.undo.clear()
        self._testify()

    # -- faults ---------------------------------------------------------------------------------------------------

    def flip_bit(self) -> None:
        """Damage one durable entry, or term and vote when there is none."""
        if not self.entries:
            self.lose_tail()
            return
        position = self.rng.randrange(len(self.entries))
        entry = self.entries[position]
        self.entries[position] = replace(entry, timestamp_ms=entry.timestamp_ms ^ 1)

    def lose_tail(self) -> None:
        """The write-ahead log ends earlier than it did: the last writes are undone, and nobody says so."""
        for _ in range(self.rng.randint(1, UNDO_KEPT)):
            if not self.undo:
                return
            undo = self.undo.pop()
            del self.entries[undo.last - self.mark.index :]
            self.entries.extend(undo.dropped)
            self.hard = undo.hard
