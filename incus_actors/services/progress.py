"""How services tell where long work is (CONTRACT 3.4).

Owns the callable that gateways give them and Incus' way to write sizes and speeds; pure.
"""

from __future__ import annotations

from typing import Protocol

from incus_actors.drivers.base import ProgressReport


class Report(Protocol):
    """Operation.progress of the gateway: stage, percent, bytes per second, text for the user."""

    def __call__(self, stage: str, percent: int | None, speed_bytes: int | None, text: str) -> None:
        """Tell everybody who watches the operation."""


def size_text(size_bytes: float) -> str:
    """Return "565.96MB" for 565960827."""
    if size_bytes < 1000:
        return f"{int(size_bytes)}B"
    unit = "B"
    for unit in ("kB", "MB", "GB", "TB", "PB"):  # noqa: B007  # used after the loop
        size_bytes /= 1000
        if size_bytes < 1000:
            break
    return f"{size_bytes:.2f}{unit}"


def progress_text(what: str, progress: ProgressReport) -> str:
    """Return "Unpacking image: 12% (565.96MB/s)"; the amount instead of the percentage if the total is unknown."""
    done = f"{progress.percent}%" if progress.percent is not None else size_text(progress.processed_bytes)
    return f"{what}: {done} ({size_text(progress.speed_bytes)}/s)"
