"""Reading ZeroMQ sockets on an asyncio loop without zmq.asyncio: fewer hops, and drainable from outside.

Owns the registration of one socket's descriptor. The descriptor only says that something *may* have changed, and
says it once: so it is always read until dry. Must never read so long that nothing else on the loop gets its turn.
"""

from __future__ import annotations

import asyncio
import select
import struct
from collections.abc import Callable

import zmq

BATCH = 256  #: items read in one turn of the loop
DRAIN_ROUNDS = 4

_EVENT = struct.Struct("=hi")


class PumpSet:
    """All pumps of one mesh, to be drained with one look at their descriptors however many there are."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._pumps: dict[int, Pump] = {}

    def add(self, fd: int, pump: Pump) -> None:
        """Watch one more."""
        self._pumps[fd] = pump
        self._poll.register(fd, select.EPOLLIN)

    def remove(self, fd: int) -> None:
        """Watch it no more; before its socket is closed."""
        del self._pumps[fd]
        self._poll.unregister(fd)

    def drain(self) -> None:
        """Read what waits now, in every socket."""
        for _ in range(DRAIN_ROUNDS):
            waiting = {fd for fd, _ in self._poll.poll(0)}
            waiting.update(fd for fd, pump in self._pumps.items() if not pump.dry)
            if not waiting:
                return
            for fd in waiting:
                pump = self._pumps.get(fd)
                if pump is not None:
                    pump.drain()

    def close(self) -> None:
        """Release the poll set; every pump is closed already."""
        self._poll.close()


class Pump:
    """Calls `read_one` (returns False when there is nothing) whenever the socket may have something."""

    def __init__(self, pumps: PumpSet, socket: zmq.Socket[bytes], read_one: Callable[[], bool]) -> None:
        self.dry = False
        self._loop = asyncio.get_running_loop()
        self._pumps = pumps
        self._fd = int(socket.getsockopt(zmq.FD))
        self._read_one = read_one
        self._closed = False
        pumps.add(self._fd, self)
        self._loop.add_reader(self._fd, self._ready)
        self._loop.call_soon(self._ready)  # what came before the registration signals no more

    def _ready(self) -> None:
        self._read(BATCH)
        if not self.dry and not self._closed:
            self._loop.call_soon(self._ready)

    def drain(self) -> None:
        """Read everything that waits now (at most some batches)."""
        self._read(8 * BATCH)

    def _read(self, most: int) -> None:
        self.dry = False
        for _ in range(most):
            if self._closed:
                return
            try:
                if not self._read_one():
                    self.dry = True
                    return
            except BaseException:
                # One bad item must not end the reading: the descriptor will not signal what is left again.
                self._loop.call_soon(self._ready)
                raise

    def close(self) -> None:
        """Stop reading; call before the socket is closed."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._fd)
            self._pumps.remove(self._fd)


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

    def __init__(self, pumps: PumpSet, watched: zmq.Socket[bytes], on_event: Callable[[int, int], None]) -> None:
        self._watched = watched
        self._on_event = on_event
        self._socket = watched.get_monitor_socket(self.EVENTS)
        self._socket.linger = 0
        self.pump = Pump(pumps, self._socket, self._read)

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
