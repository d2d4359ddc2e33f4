"""The log thread: group commit for log.db.

Owns the one thread that writes log.db; the driver submits to it and hears back through its inbox. While one
transaction is being synced, everything submitted meanwhile gathers for the next (CONSENSUS 3.4): no timer, no added
latency for a lone write. Must never reorder writes.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from incus_actors.consensus.effects import WriteLog
from incus_actors.consensus.log_files import LogError, LogFullError
from incus_actors.consensus.log_format import BALLAST_NAME
from incus_actors.consensus.log_store import LogStore
from incus_actors.consensus.priority import raise_priority

log = logging.getLogger(__name__)

MAX_BATCH_ENTRIES = 256
MAX_BATCH_BYTES = 1 << 20
WITNESS_SYNC_S = 5.0
CHECKPOINT_IDLE_BYTES = 4 << 20
CHECKPOINT_FORCED_BYTES = 32 << 20
FULL_RETRY_S = (0.05, 0.1, 0.25, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class LogDone:
    """Every write up to `write_id` is durable."""

    write_id: int
    writes: int
    waited_ms: float  #: from submission of the first write of the batch to its begin
    took_ms: float  #: transaction and sync
    witness_lagged: int = 0  #: how often the witness could not follow for want of space, since the start


@dataclass(frozen=True, slots=True)
class LogTrouble:
    """`kind` "full": being retried, said once per episode; "io": nothing will be written any more."""

    write_id: int
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class JobDone:
    """A job ran on a disk thread; `deliver` must be called on the consensus loop."""

    deliver: Callable[[], None]


@dataclass(frozen=True, slots=True)
class _Job:
    run: Callable[[], Callable[[], None]]


@dataclass(frozen=True, slots=True)
class _Submitted:
    write: WriteLog
    at_ns: int


class LogThread:
    """Writes what it is given, in order. `post` is called on the log thread."""

    def __init__(self, store: LogStore, post: Callable[[LogDone | LogTrouble | JobDone], None]) -> None:
        self._store = store
        self._post = post
        self._queue: SimpleQueue[_Submitted | _Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="consensus-log", daemon=True)
        self._stopping = threading.Event()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def depth(self) -> int:
        """Return how many writes wait."""
        return self._queue.qsize()

    def witness_lag(self) -> int:
        """Return how many durable entries the witness would not know of after a power cut."""
        return self._store.witness_lag

    def submit(self, write: WriteLog) -> None:
        """Queue a write; answered by LogDone or LogTrouble."""
        self._queue.put(_Submitted(write, time.monotonic_ns()))

    def run_job(self, job: Callable[[LogStore], Callable[[], None]]) -> None:
        """Run `job` between two batches; what it returns is called on the consensus loop."""
        self._queue.put(_Job(lambda: job(self._store)))

    def stop(self) -> None:
        """Write what is queued, then end the thread. Blocks; the store stays open."""
        self._stopping.set()
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def _run(self) -> None:
        raise_priority()
        try:
            self._serve()
        except Exception as exc:
            log.exception("the log thread failed")
            self._fail(0, exc)

    def _serve(self) -> None:
        next_sync = time.monotonic() + WITNESS_SYNC_S
        carried: _Job | None = None
        running = True
        while running:
            item = self._next(next_sync - time.monotonic())
            if time.monotonic() >= next_sync:
                self._upkeep()
                next_sync = time.monotonic() + WITNESS_SYNC_S
            if item is None:
                running = not self._stopping.is_set()
            elif isinstance(item, _Job):
                self._run_job(item)
            else:
                batch, carried, running = self._gather(item)
                if not self._commit(batch):
                    return
                if carried is not None:
                    self._run_job(carried)
                self._checkpoint()

    def _next(self, timeout_s: float) -> _Submitted | _Job | None:
        try:
            return self._queue.get(timeout=max(0.0, timeout_s))
        except Empty:
            return None

    def _gather(self, first: _Submitted) -> tuple[list[_Submitted], _Job | None, bool]:
        """Return a batch that begins with `first`, a job found behind it, and whether to go on after it."""
        batch = [first]
        entries, size = len(first.write.entries), sum(len(e.body) for e in first.write.entries)
        while entries < MAX_BATCH_ENTRIES and size < MAX_BATCH_BYTES:
            try:
                item = self._queue.get_nowait()
            except Empty:
                break
            if item is None:
                return batch, None, False
            if isinstance(item, _Job):
                return batch, item, True
            batch.append(item)
            entries += len(item.write.entries)
            size += sum(len(e.body) for e in item.write.entries)
        return batch, None, True

    def _commit(self, batch: list[_Submitted]) -> bool:
        """Write a batch, waiting for disk space as long as it takes. False when told to stop meanwhile: what is
        behind it can't be written without it."""
        writes = [item.write for item in batch]
        started = time.monotonic_ns()
        attempt = 0
        while True:
            try:
                self._store.write(writes)
            except LogFullError as exc:
                if attempt == 0:
                    self._post(LogTrouble(writes[0].write_id, "full", str(exc)))
                    (self._store.directory / BALLAST_NAME).unlink(missing_ok=True)
                if self._stopping.wait(FULL_RETRY_S[min(attempt, len(FULL_RETRY_S) - 1)]):
                    return False
                attempt += 1
            except (LogError, OSError) as exc:
                self._fail(writes[0].write_id, exc)
                return True
            else:
                break
        ended = time.monotonic_ns()
        waited_ms, took_ms = (started - batch[0].at_ns) / 1e6, (ended - started) / 1e6
        self._post(LogDone(writes[-1].write_id, len(writes), waited_ms, took_ms, self._store.witness_lagged()))
        return True

    def _run_job(self, job: _Job) -> None:
        try:
            deliver = job.run()
        except (LogError, OSError, sqlite3.Error) as exc:
            self._fail(0, exc)
            return
        self._post(JobDone(deliver))

    def _checkpoint(self) -> None:
        size = self._store.wal_bytes()
        if size > CHECKPOINT_FORCED_BYTES or (size > CHECKPOINT_IDLE_BYTES and self._queue.empty()):
            self._guarded(self._store.checkpoint)

    def _upkeep(self) -> None:
        self._guarded(self._store.sync_witness)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except LogFullError as exc:  # rolled back cleanly; there is another time
            log.debug("upkeep of log.db waits for space: %s", exc)
        except (LogError, OSError) as exc:
            self._fail(0, exc)

    def _fail(self, write_id: int, error: Exception) -> None:
        """Fail-stop: nothing is written any more, and the next start is told to look closely."""
        self._store.failed = True
        self._post(LogTrouble(write_id, "io", str(error)))
        try:
            self._store.mark_suspect(str(error))
        except OSError as exc:
            log.error("the suspect marker can't be written either: %s", exc)
