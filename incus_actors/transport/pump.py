"""Reading ZeroMQ sockets on an asyncio loop without zmq.asyncio: fewer hops, and drainable from outside.

Owns the registration of one socket's descriptor. The descriptor only says that something *may* have changed, and
says it once: so it is always read until dry. Must never read so long that nothing else on the loop gets its turn.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable

import zmq

BATCH = 256  #: items read in one turn of the loop

_EVENT = struct.Struct("=hi")


class Pump:
    """Calls `read_one` (returns False when there is nothing) whenever the socket may have something."""

    def __init__(self, socket: zmq.Socket[bytes], read_one: Callable[[], bool]) -> None:
        self._loop = asyncio.get_running_loop()
        self._fd = int(socket.getsockopt(zmq.FD))
        self._read_one = read_one
        self._closed = False
        self._loop.add_reader(self._fd, self._ready)
        self._loop.call_soon(self._ready)  # what came before the registration signals no more

    def _ready(self) -> None:
        for _ in range(BATCH):
            if self._closed or not self._read_one():
                return
        self._loop.call_soon(self._ready)

    def drain(self) -> None:
        """Read everything that waits now (at most some batches)."""
        for _ in range(8 * BATCH):
            if self._closed or not self._read_one():
                return

    def close(self) -> None:
        """Stop reading; call before the socket is closed."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._fd)


class Monitor:
    """The events of one socket: connections made and lost."""

    EVENTS = (
        zmq.EVENT_ACCEPTED
        | zmq.EVENT_DISCONNECTED
        | zmq.EVENT_HANDSHAKE_SUCCEEDED
        | zmq.EVENT_HANDSHAKE_FAILED_AUTH
        | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        | zmq.EVENT_ACCEPT_FAILED
    )

    def __init__(self, watched: zmq.Socket[bytes], on_event: Callable[[int, int], None]) -> None:
        self._watched = watched
        self._on_event = on_event
        self._socket = watched.get_monitor_socket(self.EVENTS)
        self._socket.linger = 0
        self.pump = Pump(self._socket, self._read)

    def _read(self) -> bool:
        try:
            parts = self._socket.recv_multipart(zmq.DONTWAIT)
        except zmq.Again:
            return False
        event, value = _EVENT.unpack(parts[0])
        self._on_event(event, value)
        return True

    def close(self) -> None:
        """Stop watching; call before the watched socket is closed."""
        self.pump.close()
        self._watched.disable_monitor()
        self._socket.close(0)
