"""What the disk of this machine does to anybody: the observer's own small synced writes.

Every product under test waits for the same disk, and on a shared machine it stops now and then for hundreds of
milliseconds. Owns one file and one thread; failover rounds report its longest write beside their own numbers, so that a
reader can tell a stall of the disk from one of the product. Must never be used to leave a round out.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType

EVERY_S = 0.005


class DiskProbe:
    """A context manager: while it is open, 4 KiB are written and synced every 5 ms in a directory's file system."""

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._writes: list[tuple[int, int]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="disk-probe", daemon=True)

    def __enter__(self) -> DiskProbe:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        handle, path = tempfile.mkstemp(prefix="disk-probe-", dir=self._directory)
        try:
            while not self._stop.wait(EVERY_S):
                begin = time.monotonic_ns()
                os.pwrite(handle, b"x" * 4096, 0)
                os.fdatasync(handle)
                self._writes.append((begin, time.monotonic_ns()))
        finally:
            os.close(handle)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108  # the name that mkstemp gave

    def longest_ms(self, begin_ns: int, end_ns: int) -> float | None:
        """Return the longest synced write that touches this span of CLOCK_MONOTONIC; None where none was seen."""
        seen = [(end - begin) / 1e6 for begin, end in list(self._writes) if end >= begin_ns and begin <= end_ns]
        return max(seen, default=None)
