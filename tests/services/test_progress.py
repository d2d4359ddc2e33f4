"""Progress as users read it."""

from __future__ import annotations

from incus_actors.drivers.base import ProgressReport
from incus_actors.services.progress import progress_text, size_text


def test_sizes_are_decimal_with_two_digits():
    assert [size_text(n) for n in (0, 999, 1000, 565960827, 3542448, 10**18)] == [
        "0B", "999B", "1.00kB", "565.96MB", "3.54MB", "1000.00PB",
    ]  # fmt: skip


def test_a_line_of_progress():
    assert progress_text("Unpacking image", ProgressReport(10, 12, 565960827)) == "Unpacking image: 12% (565.96MB/s)"
    assert progress_text("Downloading", ProgressReport(2048, None, 1000)) == "Downloading: 2.05kB (1.00kB/s)"
