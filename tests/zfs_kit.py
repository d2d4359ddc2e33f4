"""ZFS as it is here, or a zfs-fuse of the test's own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

HANGS_S = 30  #: a `zpool list` that takes longer takes for ever

#: why what uses ZFS fails from now on, if zfs-fuse itself was given up; tests/conftest.py makes skips of such failures
given_up: list[str] = []


def _answers(timeout_s: float = HANGS_S) -> bool:
    return subprocess.run(["zpool", "list"], capture_output=True, check=False, timeout=timeout_s).returncode == 0


def _watch(daemon: subprocess.Popen[bytes], over: threading.Event) -> None:
    """A zfs-fuse that hangs takes every process that asks it with it: it is killed, so that they fail instead."""
    while not over.wait(5):
        try:
            _answers()
        except subprocess.TimeoutExpired:
            given_up.append(f"zfs-fuse did not answer `zpool list` for {HANGS_S} s")
            daemon.kill()
            return


@contextlib.contextmanager
def answering(directory: Path) -> Iterator[None]:
    """Have `zpool` answer for the length of the block; skips where it can't, and where it was not asked for
    (INCUS_ACTORS_ZFS=1, which CI sets)."""
    if os.environ.get("INCUS_ACTORS_ZFS", "0") == "0":
        pytest.skip("set INCUS_ACTORS_ZFS=1 to run the tests of ZFS here")
    if given_up:
        pytest.skip(given_up[0])
    if shutil.which("zpool", path="/usr/sbin:/sbin") is None or not Path("/dev/fuse").exists():
        pytest.skip("no ZFS here: apt-get install zfs-fuse")
    if _answers():
        yield
        return
    if shutil.which("zfs-fuse", path="/usr/sbin:/sbin") is None:
        pytest.skip("ZFS does not answer, and there is no zfs-fuse: apt-get install zfs-fuse")
    with (directory / "log").open("wb") as log:
        daemon = subprocess.Popen(["zfs-fuse", "--no-daemon"], stdout=log, stderr=log, start_new_session=True)
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(daemon, over), daemon=True)
    try:
        for _ in range(100):
            if _answers():
                break
            over.wait(0.1)
        else:
            pytest.skip(f"zfs-fuse does not start here: {(directory / 'log').read_text()[-300:]}")
        watch.start()
        yield
    finally:
        over.set()
        daemon.terminate()
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            given_up.append("zfs-fuse did not end")
            daemon.kill()
            daemon.wait(20)
