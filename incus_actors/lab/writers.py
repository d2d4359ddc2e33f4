"""Clients that keep writing while things break, and the history they leave.

Owns threads that write through one member each and record every attempt with the observer's monotonic clock.
Must never count a write as accepted before its answer was read.
"""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass

from incus_actors.lab.client import RequestFailedError
from incus_actors.lab.processes import LabMember

RETRY_S = 0.01


@dataclass(frozen=True, slots=True)
class Attempt:
    """One write: when it was sent and answered (monotonic ns) and whether it was acknowledged."""

    key: str
    value: int
    through: str
    begin_ns: int
    end_ns: int
    acknowledged: bool
    error: str = ""


class Writer(threading.Thread):
    """Writes 1, 2, 3 … under a key of its own through one member until told to stop.

    A write whose fate is unknown is followed by the next value, never repeated, so that the history says
    exactly what was acknowledged.
    """

    def __init__(self, member: LabMember, key: str, *, timeout_s: float) -> None:
        super().__init__(name=f"writer-{key}", daemon=True)
        self.member = member
        self.key = key
        self.timeout_s = timeout_s
        self.history: list[Attempt] = []
        self._stop_requested = threading.Event()

    def run(self) -> None:
        """Write until `finish`."""
        value = 0
        while not self._stop_requested.is_set():
            value += 1
            begin = time.monotonic_ns()
            error = ""
            try:
                self.member.client.request(
                    "PATCH", "/1.0", {"config": {self.key: str(value)}}, timeout_s=self.timeout_s
                )
            except (OSError, RequestFailedError, ValueError) as problem:
                error = f"{type(problem).__name__}: {problem}"
            end = time.monotonic_ns()
            self.history.append(Attempt(self.key, value, self.member.name, begin, end, not error, error))
            if error:
                self._stop_requested.wait(RETRY_S)

    def finish(self, timeout_s: float = 150.0) -> list[Attempt]:
        """Stop after the write in flight; return the history."""
        self._stop_requested.set()
        self.join(timeout_s)
        return self.history


def first_accepted_after(histories: list[list[Attempt]], moment_ns: int) -> int | None:
    """Return the earliest end of an acknowledged write that was sent at or after `moment_ns`."""
    ends = [a.end_ns for h in histories for a in h if a.acknowledged and a.begin_ns >= moment_ns]
    return min(ends, default=None)


def longest_gap_ns(histories: list[list[Attempt]], begin_ns: int, end_ns: int) -> int:
    """Return the longest time without an acknowledged write between two moments."""
    marks = [begin_ns, *sorted(a.end_ns for h in histories for a in h if a.acknowledged), end_ns]
    inside = [m for m in marks if begin_ns <= m <= end_ns]
    return max((b - a for a, b in itertools.pairwise(inside)), default=end_ns - begin_ns)


@dataclass(frozen=True, slots=True)
class LostWrite:
    """An acknowledged value that the database no longer has (nor a later one of the same writer)."""

    key: str
    acknowledged: int
    found: int


def lost_writes(histories: list[list[Attempt]], config: dict[str, str]) -> list[LostWrite]:
    """Compare what was acknowledged with what a linearizable read gives now.

    One writer per key writes growing numbers one after the other, so the value found must be at least the last
    acknowledged one, and at most the last one sent.
    """
    lost = []
    for history in histories:
        acknowledged = max((a.value for a in history if a.acknowledged), default=0)
        sent = max((a.value for a in history), default=0)
        found = int(config.get(history[0].key, "0")) if history else 0
        if not acknowledged <= found <= sent:
            lost.append(LostWrite(history[0].key, acknowledged, found))
    return lost
