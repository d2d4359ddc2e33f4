"""The observer's look at the disk."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from incus_actors.lab.disk_probe import DiskProbe


def test_a_stall_of_the_disk_is_seen_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fdatasync
    stalls: list[int] = []

    def slow(handle: int) -> None:
        if not stalls:
            stalls.append(time.monotonic_ns())
            time.sleep(0.05)
        sync(handle)

    monkeypatch.setattr(os, "fdatasync", slow)
    before = time.monotonic_ns()
    with DiskProbe(tmp_path) as probe:
        while not stalls:
            time.sleep(0.001)
    after = time.monotonic_ns()
    longest = probe.longest_ms(before, after)
    assert longest is not None
    assert longest >= 50
    assert probe.longest_ms(before - 2_000_000_000, before - 1_000_000_000) is None
    assert not list(tmp_path.iterdir())
