"""Time as a dependency: monotonic milliseconds for deciding, wall milliseconds for stamping.

Owns the Clock protocol and the real clock; the consensus driver and tests pass one along. Must never be used to
compare wall times of two machines: elections and leases know only `monotonic_ms` (CONSENSUS 3.8).
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where time comes from."""

    def monotonic_ms(self) -> int:
        """Milliseconds from an arbitrary start; never goes back."""

    def wall_ms(self) -> int:
        """Milliseconds since 1970 UTC; may jump in both directions."""


class SystemClock:
    """The clocks of the operating system."""

    def monotonic_ms(self) -> int:
        """Milliseconds of CLOCK_MONOTONIC."""
        return time.monotonic_ns() // 1_000_000

    def wall_ms(self) -> int:
        """Milliseconds since 1970 UTC."""
        return time.time_ns() // 1_000_000


def is_recent(stamp_s: float, seconds: float) -> bool:
    """Whether the wall time `stamp_s` (since 1970) was less than so many seconds ago. One from the future was not: the
    clock has been set back since, perhaps by years, and nobody should wait for it."""
    return 0 <= time.time() - stamp_s < seconds


class ManualClock:
    """A clock that stands still until a test moves it."""

    def __init__(self, monotonic_ms: int = 0, wall_ms: int = 1_700_000_000_000) -> None:
        self._monotonic_ms = monotonic_ms
        self._wall_ms = wall_ms

    def monotonic_ms(self) -> int:
        """Return what `advance` has added up to."""
        return self._monotonic_ms

    def wall_ms(self) -> int:
        """Return the wall time, which `advance` moves too."""
        return self._wall_ms

    def advance(self, ms: int) -> None:
        """Let `ms` milliseconds pass on both clocks."""
        self._monotonic_ms += ms
        self._wall_ms += ms
