"""The log thread: order, group commit, full disks, failing disks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Queue

from incus_actors.consensus.effects import WriteLog
from incus_actors.consensus.log_files import LogFullError, LogIOError
from incus_actors.consensus.log_format import BALLAST_NAME, SUSPECT_NAME
from incus_actors.consensus.log_store import LogStore
from incus_actors.consensus.log_thread import JobDone, LogDone, LogThread, LogTrouble
from incus_actors.consensus.types import Entry, EntryKind


class Disk(LogStore):
    """A store that records its batches and fails as told; `gate` holds a write as a slow fsync does."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.failed = False
        self.batches: list[list[int]] = []
        self.errors: list[Exception] = []
        self.wal, self.checkpoints = 0, 0
        self.checkpoint_error: Exception = LogFullError("no space")
        self.gate = threading.Event()
        self.gate.set()

    def write(self, writes: Sequence[WriteLog]) -> None:
        self.gate.wait(10)
        if self.errors:
            raise self.errors.pop(0)
        self.batches.append([write.write_id for write in writes])

    def wal_bytes(self) -> int:
        return self.wal

    def checkpoint(self) -> None:
        self.checkpoints += 1
        raise self.checkpoint_error

    def sync_witness(self) -> None:
        pass

    def witness_lagged(self) -> int:
        return 0


class Rig:
    def __init__(self, directory: Path) -> None:
        self.disk = Disk(directory)
        self.posted: Queue[LogDone | LogTrouble | JobDone] = Queue()
        self.thread = LogThread(self.disk, self.posted.put)
        self.thread.start()

    def submit(self, write_id: int, entries: int = 1, size: int = 10) -> None:
        body = b"x" * size
        made = tuple(Entry(i, 1, EntryKind.SQL, 1, b"", body, b"") for i in range(entries))
        self.thread.submit(WriteLog(write_id, 0, None, None, made, 0))

    def next(self) -> LogDone | LogTrouble | JobDone:
        return self.posted.get(timeout=10)


def test_what_gathers_during_a_sync_is_committed_together(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.disk.gate.clear()
    for write_id in range(1, 11):
        rig.submit(write_id)
    rig.disk.gate.set()
    rig.thread.stop()
    assert [n for batch in rig.disk.batches for n in batch] == list(range(1, 11))
    assert len(rig.disk.batches) <= 2
    done = [rig.next() for _ in rig.disk.batches]
    assert isinstance(done[-1], LogDone)
    assert done[-1].write_id == 10


def test_batches_are_bounded_by_entries_and_bytes(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.disk.gate.clear()
    rig.submit(1)
    rig.submit(2, entries=200)
    rig.submit(3, entries=200)
    rig.submit(4, size=900_000)
    rig.submit(5, size=900_000)
    rig.submit(6)
    rig.disk.gate.set()
    rig.thread.stop()
    assert all(len(batch) <= 3 for batch in rig.disk.batches)
    assert [n for batch in rig.disk.batches for n in batch] == [1, 2, 3, 4, 5, 6]
    assert len(rig.disk.batches) >= 3


def test_a_job_runs_between_the_writes_before_and_after_it(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.disk.gate.clear()
    seen: list[int] = []

    def job(_store: LogStore) -> Callable[[], None]:
        seen.append(len([n for batch in rig.disk.batches for n in batch]))
        return lambda: seen.append(-1)

    rig.submit(1)
    rig.submit(2)
    rig.thread.run_job(job)
    rig.submit(3)
    rig.disk.gate.set()
    rig.thread.stop()
    assert seen == [2]
    assert [n for batch in rig.disk.batches for n in batch] == [1, 2, 3]


def test_a_full_disk_is_retried_in_order_and_the_ballast_given_up(tmp_path: Path) -> None:
    (tmp_path / BALLAST_NAME).write_bytes(b"0" * 100)
    rig = Rig(tmp_path)
    rig.disk.errors = [LogFullError("no space"), LogFullError("no space")]
    rig.submit(1)
    rig.submit(2)
    assert rig.next() == LogTrouble(1, "full", "no space")
    done = rig.next()
    assert isinstance(done, LogDone)
    rig.thread.stop()
    assert [n for batch in rig.disk.batches for n in batch] == [1, 2]
    assert not (tmp_path / BALLAST_NAME).exists()


def test_a_stop_while_the_disk_is_full_writes_nothing_behind_what_it_gave_up(tmp_path: Path) -> None:
    """Space comes back in that moment: the next batch would not follow what is in the log."""
    rig = Rig(tmp_path)
    rig.disk.errors = [LogFullError("no space")]
    ran: list[LogStore] = []

    def job(store: LogStore) -> Callable[[], None]:
        ran.append(store)
        return lambda: None

    rig.disk.gate.clear()
    rig.submit(1)
    while rig.thread.depth():
        time.sleep(0.001)  # it has the first; what follows is another batch
    rig.submit(2)
    rig.thread.run_job(job)
    rig.submit(3)
    rig.thread._stopping.set()
    rig.disk.gate.set()
    rig.thread.stop()
    assert rig.next() == LogTrouble(1, "full", "no space")
    assert rig.posted.empty()
    assert (rig.disk.batches, ran) == ([], [])
    assert not (tmp_path / SUSPECT_NAME).exists()


def test_a_checkpoint_that_finds_no_space_is_no_failure(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.disk.wal = 1 << 30
    for write_id in (1, 2):
        rig.submit(write_id)
        assert isinstance(rig.next(), LogDone)
    rig.disk.checkpoint_error = LogIOError("fsync failed")
    rig.submit(3)
    assert isinstance(rig.next(), LogDone)
    assert rig.next() == LogTrouble(0, "io", "fsync failed")
    rig.thread.stop()
    assert rig.disk.checkpoints == 3


def test_an_error_fails_for_good_and_leaves_word(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.disk.errors = [LogIOError("fsync failed")]
    rig.submit(1)
    assert rig.next() == LogTrouble(1, "io", "fsync failed")
    rig.thread.stop()
    assert rig.disk.failed
    assert "fsync failed" in (tmp_path / SUSPECT_NAME).read_text()
