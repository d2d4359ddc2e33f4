"""The apply thread: committed entries into the state file, beside the consensus loop.

Owns the thread that has the state's writer connection; the driver submits to it and hears back through its inbox.
A full disk pauses applying (the log goes on); any other trouble stops the process. Must never skip an entry.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TypeAlias

from incus_actors.consensus.log_format import is_damage
from incus_actors.consensus.log_thread import JobDone
from incus_actors.consensus.priority import raise_priority
from incus_actors.consensus.types import Entry
from incus_actors.state.apply import Applier, Batch, is_disk_full

log = logging.getLogger(__name__)

MAX_BATCH = 128
CHECKPOINT_IDLE_BYTES = 4 << 20
CHECKPOINT_FORCED_BYTES = 32 << 20
FULL_RETRY_S = (0.05, 0.1, 0.25, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class ApplyDone:
    """Entries are applied and visible to readers."""

    batch: Batch
    entries: int
    took_ms: float


@dataclass(frozen=True, slots=True)
class ApplyTrouble:
    """`kind` "full": paused and retried, said once per episode; "fatal": applying has ended; "damaged": so it has,
    because the state file is not what it was."""

    kind: str
    reason: str


_Item: TypeAlias = "tuple[Entry, ...] | Callable[[], Callable[[], None]] | None"


class _Nothing:
    """No item, where None is one (the end)."""


_NOTHING = _Nothing()


class ApplyThread:
    """Applies what it is given, in order. `post` is called on the apply thread."""

    def __init__(self, applier: Applier, post: Callable[[ApplyDone | ApplyTrouble | JobDone], None]) -> None:
        self.applier = applier
        self._post = post
        self._queue: SimpleQueue[_Item] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="consensus-apply", daemon=True)
        self._stopping = threading.Event()
        self._failed = False

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def depth(self) -> int:
        """Return how many batches wait."""
        return self._queue.qsize()

    @property
    def feature_level(self) -> int:
        """What the state has switched on."""
        return self.applier.level

    def submit(self, entries: tuple[Entry, ...]) -> None:
        """Queue entries; answered by ApplyDone or ApplyTrouble."""
        self._queue.put(entries)

    def run_job(self, job: Callable[[ApplyThread], Callable[[], None]]) -> None:
        """Run `job` between two batches; what it returns is called on the consensus loop."""
        self._queue.put(lambda: job(self))

    def stop(self) -> None:
        """Apply what is queued, end the thread and close the file. Blocks."""
        self._stopping.set()
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout=30)
        self.applier.close()

    def _run(self) -> None:
        raise_priority()
        waiting: _Item | _Nothing = _NOTHING
        while True:
            item = self._queue.get() if isinstance(waiting, _Nothing) else waiting
            waiting = _NOTHING
            if item is None:
                return
            if isinstance(item, tuple):
                item, waiting = self._gather(item)
            if self._failed:
                continue
            try:
                if callable(item):
                    self._post(JobDone(item()))
                else:
                    self._apply(item)
                    self._checkpoint()
            except Exception as exc:
                # Whatever it is: no entry may be skipped, and nobody else would hear of a dead thread.
                log.exception("applying stopped")
                self._failed = True
                kind = "damaged" if is_damage(exc) else "fatal"
                self._post(ApplyTrouble(kind, f"{type(exc).__name__}: {exc}"))

    def _gather(self, first: tuple[Entry, ...]) -> tuple[tuple[Entry, ...], _Item | _Nothing]:
        """Return what can be applied together: one transaction costs more than one entry. And the item behind."""
        parts = [first]
        size = len(first)
        while size < MAX_BATCH:
            try:
                item = self._queue.get_nowait()
            except Empty:
                break
            if not isinstance(item, tuple):
                return sum(parts, ()), item
            parts.append(item)
            size += len(item)
        return (sum(parts, ()) if len(parts) > 1 else first), _NOTHING

    def _apply(self, entries: tuple[Entry, ...]) -> None:
        for start in range(0, len(entries), MAX_BATCH):
            part = entries[start : start + MAX_BATCH]
            began = time.monotonic_ns()
            batch = self._until_space(part)
            if batch is None:
                return
            self._post(ApplyDone(batch, len(part), (time.monotonic_ns() - began) / 1e6))

    def _until_space(self, entries: tuple[Entry, ...]) -> Batch | None:
        """Apply, waiting for disk space as long as it takes; None when the daemon stops meanwhile."""
        attempt = 0
        while True:
            try:
                return self.applier.apply(entries)
            except sqlite3.Error as exc:
                if not is_disk_full(exc):
                    raise
                if attempt == 0:
                    self._post(ApplyTrouble("full", str(exc)))
                if self._stopping.wait(FULL_RETRY_S[min(attempt, len(FULL_RETRY_S) - 1)]):
                    return None
                attempt += 1

    def _checkpoint(self) -> None:
        size = self.applier.wal_bytes()
        if size > CHECKPOINT_FORCED_BYTES or (size > CHECKPOINT_IDLE_BYTES and self._queue.empty()):
            try:
                self.applier.checkpoint()
            except sqlite3.Error as exc:
                if not is_disk_full(exc):
                    raise  # without space the write-ahead log just grows on; the next batch tries again
