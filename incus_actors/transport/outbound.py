"""Our connection to one peer: a DEALER that only sends.

Owns dialling, re-dialling and sending; used by `mesh.py`. A lost connection means a new socket, so that nothing that
was queued for the old one is replayed. Must never block and never queue for a peer that is not connected.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import zmq
from zmq.utils import z85

from incus_actors.transport.address import endpoint
from incus_actors.transport.keys import CurveKeys
from incus_actors.transport.options import LaneOptions
from incus_actors.transport.pump import Monitor, PumpSet
from incus_actors.transport.tally import Tally

REDIAL_MIN_S = 0.02
REDIAL_MAX_S = 0.5
STEADY_S = 0.2  #: a connection that lasted this long is re-dialled at once

_FAILED = {
    int(zmq.EVENT_HANDSHAKE_FAILED_AUTH): "handshake_refused",
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL): "handshake_protocol",
    int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL): "handshake_broken",
}


class Dialer:
    """Keeps one connection to (host, port) with the given public key."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        pumps: PumpSet,
        keys: CurveKeys,
        options: LaneOptions,
        tally: Tally,
        target: tuple[str, int, bytes],
        *,
        on_up: Callable[[], None],
        on_down: Callable[[], None],
    ) -> None:
        self.up = False
        self.refused = False  #: the last handshake failed because our key is unknown there
        self.target = target
        self._context = context
        self._pumps = pumps
        self._keys = keys
        self._options = options
        self._tally = tally
        self._on_up = on_up
        self._on_down = on_down
        self._loop = asyncio.get_running_loop()
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: Monitor | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._delay_s = 0.0
        self._since = 0.0
        self._open()

    def _open(self) -> None:
        self._retry = None
        self._close_socket()
        host, port, key = self.target
        socket = self._context.socket(zmq.DEALER)
        self._options.apply(socket, host)
        socket.curve_serverkey = z85.encode(key)
        socket.curve_publickey = z85.encode(self._keys.public)
        socket.curve_secretkey = z85.encode(self._keys.secret)
        self._socket = socket
        self._monitor = Monitor(self._pumps, socket, self._event)
        self._since = self._loop.time()
        self._tally.add("dials")
        socket.connect(endpoint(host, port))

    def _event(self, event: int, value: int) -> None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.up, self.refused = True, False
            self._since = self._loop.time()
            self._on_up()
        elif event == zmq.EVENT_DISCONNECTED or event in _FAILED:
            if event in _FAILED:
                self.refused = event == zmq.EVENT_HANDSHAKE_FAILED_AUTH
                self._tally.note(_FAILED[event], f"{self.target[0]}:{self.target[1]} ({value})")
            self._lost()

    def _lost(self) -> None:
        was_up, self.up = self.up, False
        if was_up and self._loop.time() - self._since >= STEADY_S:
            self._delay_s = 0.0
        self._close_socket()
        if self._retry is None:
            self._retry = self._loop.call_later(self._delay_s, self._open)
            self._delay_s = min(REDIAL_MAX_S, max(REDIAL_MIN_S, 2 * self._delay_s))
        if was_up:
            self._on_down()

    def hurry(self) -> None:
        """The peer is there (it has just dialled us): do not sit out a back-off."""
        if not self.up and self._loop.time() - self._since >= REDIAL_MIN_S:
            if self._retry is not None:
                self._retry.cancel()
            self._open()

    def send(self, data: bytes) -> str:
        """Queue one frame; returns "", "down" or "full"."""
        if not self.up or self._socket is None:
            return "down"
        for _ in range(2):
            try:
                self._socket.send(data, zmq.DONTWAIT)
            except zmq.Again:
                self._socket.getsockopt(zmq.EVENTS)  # take in what the I/O thread has to say, then try again
            else:
                return ""
        return "full"

    def close(self) -> None:
        """Give the connection up; says nothing to `on_down`."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self.up = False
        self._close_socket()

    def _close_socket(self) -> None:
        socket, self._socket = self._socket, None
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            monitor.close()
        if socket is not None:
            socket.close(0)
