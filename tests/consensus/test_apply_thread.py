"""The apply thread: order, batches, full disks, trouble."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Queue

from incus_actors.consensus.apply_thread import MAX_BATCH, ApplyDone, ApplyThread, ApplyTrouble
from incus_actors.consensus.log_thread import JobDone
from incus_actors.consensus.types import Entry, EntryKind
from incus_actors.state.apply import Applier, Batch, Record
from incus_actors.state.position import Position


class State(Applier):
    """An applier that records batches and fails as told; `gate` holds it."""

    def __init__(self) -> None:
        self.position = Position()
        self.batches: list[list[int]] = []
        self.errors: list[Exception] = []
        self.gate = threading.Event()
        self.gate.set()

    def apply(self, records: Sequence[Record]) -> Batch:
        self.gate.wait(10)
        if self.errors:
            raise self.errors.pop(0)
        self.batches.append([record.index for record in records])
        return Batch(Position(index=records[-1].index))

    def wal_bytes(self) -> int:
        return 0

    def close(self) -> None:
        pass


class Rig:
    def __init__(self) -> None:
        self.state = State()
        self.posted: Queue[ApplyDone | ApplyTrouble | JobDone] = Queue()
        self.thread = ApplyThread(self.state, self.posted.put)
        self.thread.start()

    def submit(self, first: int, last: int) -> None:
        self.thread.submit(tuple(Entry(i, 1, EntryKind.NOOP, 1, b"", b"", b"") for i in range(first, last + 1)))

    def applied(self) -> list[int]:
        return [index for batch in self.state.batches for index in batch]


def full() -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    return error


def test_what_waits_is_applied_together_and_in_bounds(tmp_path: Path) -> None:
    rig = Rig()
    rig.state.gate.clear()
    rig.submit(1, 1)
    for start in range(2, 402, 4):
        rig.submit(start, start + 3)
    rig.submit(402, 1400)
    rig.state.gate.set()
    rig.thread.stop()
    assert rig.applied() == list(range(1, 1401))
    assert all(len(batch) <= MAX_BATCH for batch in rig.state.batches)
    assert len(rig.state.batches) < 20


def test_a_job_runs_between_the_batches_around_it() -> None:
    rig = Rig()
    rig.state.gate.clear()
    seen: list[int] = []

    def job(_thread: ApplyThread) -> Callable[[], None]:
        seen.append(len(rig.applied()))
        return lambda: None

    rig.submit(1, 2)
    rig.thread.run_job(job)
    rig.submit(3, 4)
    rig.state.gate.set()
    rig.thread.stop()
    assert seen == [2]
    assert rig.applied() == [1, 2, 3, 4]


def test_a_full_disk_pauses_and_skips_nothing() -> None:
    rig = Rig()
    rig.state.errors = [full(), full()]
    rig.submit(1, 3)
    assert rig.posted.get(timeout=10) == ApplyTrouble("full", "database or disk is full")
    done = rig.posted.get(timeout=10)
    assert isinstance(done, ApplyDone)
    assert done.batch.position.index == 3
    rig.thread.stop()
    assert rig.applied() == [1, 2, 3]


def test_a_damaged_file_is_told_apart() -> None:
    rig = Rig()
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    rig.state.errors = [error]
    rig.submit(1, 1)
    trouble = rig.posted.get(timeout=10)
    assert trouble == ApplyTrouble("damaged", "DatabaseError: database disk image is malformed")
    rig.thread.stop()


def test_any_other_trouble_ends_applying() -> None:
    rig = Rig()
    rig.state.errors = [MemoryError("no memory")]
    rig.submit(1, 1)
    trouble = rig.posted.get(timeout=10)
    assert trouble == ApplyTrouble("fatal", "MemoryError: no memory")
    rig.submit(2, 2)
    rig.thread.stop()
    assert rig.applied() == []
