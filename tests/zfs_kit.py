"""ZFS as it is here, or a zfs-fuse of the test's own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


def _answers() -> bool:
    return subprocess.run(["zpool", "list"], capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def answering(directory: Path) -> Iterator[None]:
    """Have `zpool` answer for the length of the block; skips where it can't, and unless asked to (INCUS_ACTORS_ZFS=1): a
    zfs-fuse that hangs takes every later `zpool` of the machine with it."""
    if not os.environ.get("INCUS_ACTORS_ZFS"):
        pytest.skip("set INCUS_ACTORS_ZFS=1 to run the tests of ZFS here")
    if shutil.which("zpool", path="/usr/sbin:/sbin") is None or not Path("/dev/fuse").exists():
        pytest.skip("no ZFS here: apt-get install zfs-fuse")
    if _answers():
        yield
        return
    if shutil.which("zfs-fuse", path="/usr/sbin:/sbin") is None:
        pytest.skip("ZFS does not answer, and there is no zfs-fuse: apt-get install zfs-fuse")
    with (directory / "log").open("wb") as log:
        daemon = subprocess.Popen(["zfs-fuse", "--no-daemon"], stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(100):
            if _answers():
                break
            time.sleep(0.1)
        else:
            pytest.skip(f"zfs-fuse does not start here: {(directory / 'log').read_text()[-300:]}")
        yield
    finally:
        daemon.terminate()
        daemon.wait(20)
