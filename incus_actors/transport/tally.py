"""Counting and rate-limited logging of what a lane drops.

Owns the counters of one lane; written on the lane's loop, read from anywhere. Must never let a peer fill the log.
"""

from __future__ import annotations

import logging
import time
from collections import Counter

QUIET_S = 10.0  #: at most one line per reason in this many seconds


class Tally:
    """Counters by name, and a log that says each reason at most once in a while."""

    def __init__(self, lane: str, logger: logging.Logger) -> None:
        self.counts: Counter[str] = Counter()
        self._lane = lane
        self._log = logger
        self._said: dict[str, float] = {}

    def add(self, name: str, amount: int = 1) -> None:
        """Count without a word."""
        self.counts[name] += amount

    def note(self, name: str, text: str) -> None:
        """Count, and log as a warning unless the same was logged within the last seconds."""
        self.counts[name] += 1
        now = time.monotonic()
        if now - self._said.get(name, -QUIET_S) >= QUIET_S:
            self._said[name] = now
            self._log.warning("%s lane: %s: %s (%d so far)", self._lane, name, text, self.counts[name])

    def snapshot(self) -> dict[str, int]:
        """Return a copy; safe from any thread."""
        return dict(self.counts)
