"""A killed process's descriptors live on in whoever has copies: else that fault shows nothing."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from incus_actors.lab.process_faults import HOLDER

pytestmark = [pytest.mark.real, pytest.mark.skipif(os.geteuid() != 0, reason="another process's descriptors need root")]

OWNER = """
import fcntl, os, socket, sys
lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(lock, fcntl.LOCK_EX)
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    yield process, int(process.stdout.readline())
    process.kill()
    process.communicate()


def locked(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@pytest.mark.parametrize("kinds", ["all", "sockets"])
def test_they_are_held_until_the_holder_ends(
    owner: tuple[subprocess.Popen[str], int], tmp_path: Path, kinds: str
) -> None:
    process, port = owner
    holder = subprocess.Popen(
        [*HOLDER, str(process.pid), kinds], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert int(holder.stdout.readline()) >= 1
    process.kill()
    process.wait()
    socket.create_connection(("127.0.0.1", port)).close()  # taken by a listener that nobody reads
    assert locked(tmp_path / "lock") is (kinds == "all")
    holder.communicate(timeout=10)
    assert not locked(tmp_path / "lock")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
