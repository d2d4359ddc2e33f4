"""What the service manager is told of an end that nobody asked for."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from incus_actors.daemon import disk_fails


def test_a_sound_disk_and_one_that_is_not_there_have_not_failed(tmp_path: Path) -> None:
    assert not disk_fails(tmp_path)
    assert not disk_fails(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "failed"), [(errno.EIO, True), (errno.EROFS, True), (errno.ENOSPC, False)])
def test_a_sync_that_fails_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, failed: bool) -> None:
    def fails(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fails)
    assert disk_fails(tmp_path) is failed
