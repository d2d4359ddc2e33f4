"""The carrier of a proxy device, without a container: what it does when it can't accept."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from incus_actors.drivers.helpers import proxy_helper


class Scarce(socket.socket):
    """A listener for whose connections there are no descriptors at first."""

    asked = 0
    enough = False

    def accept(self) -> tuple[socket.socket, Any]:
        self.asked += 1
        if not self.enough:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


@pytest.fixture
def init() -> Iterator[int]:
    """A process that stands for the container's init; the loop ends with it."""
    process = subprocess.Popen(["sleep", "60"])
    yield process.pid
    process.kill()
    process.wait()


def test_a_listener_that_cannot_accept_is_asked_now_and_then(init: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_helper, "_REST_S", 0.1)
    listener = Scarce()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    with listener, socket.create_server(("127.0.0.1", 0)) as behind:
        request = {
            "proxy_protocol": "",
            "connect.protocol": "tcp",
            "connect.host": "127.0.0.1",
            "connect.ports": str(behind.getsockname()[1]),
            "connect.path": "",
        }
        loop = proxy_helper.Loop(os.pidfd_open(init))
        target = proxy_helper.Target(request)
        thread = threading.Thread(target=proxy_helper.serve, args=(loop, request, [listener], target), daemon=True)
        thread.start()
        with socket.create_connection(listener.getsockname(), timeout=10) as client:
            time.sleep(0.5)
            assert 2 <= listener.asked <= 6
            listener.enough = True
            behind.settimeout(10)
            carried, _ = behind.accept()
            with carried:
                client.sendall(b"hello")
                assert carried.recv(16) == b"hello"
        os.kill(init, 9)
        thread.join(10)
        assert not thread.is_alive()
