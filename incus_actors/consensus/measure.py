"""Small samples of how long things take.

Owns bounded rings of milliseconds for status and metrics; the driver records, status reads. Must never grow.
"""

from __future__ import annotations

from collections import deque


class Samples:
    """The last few hundred values of one quantity, in milliseconds."""

    def __init__(self, size: int = 512) -> None:
        self._values: deque[float] = deque(maxlen=size)

    def add(self, value_ms: float) -> None:
        """Record one value."""
        self._values.append(value_ms)

    def summary(self) -> dict[str, float]:
        """Return count, p50, p99 and max; empty when nothing was recorded."""
        ordered = sorted(self._values)
        if not ordered:
            return {}
        count = len(ordered)
        return {
            "count": float(count),
            "p50": ordered[count // 2],
            "p99": ordered[min(count - 1, count * 99 // 100)],
            "max": ordered[-1],
        }
