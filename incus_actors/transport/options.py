"""Socket options of a lane (CONSENSUS 3.7), in one place.

Owns the values; applied by `outbound.py` and `inbound.py` to every socket. Must never be set anywhere else.
"""

from __future__ import annotations

from dataclasses import dataclass

import zmq


@dataclass(frozen=True, slots=True)
class LaneOptions:
    """`max_bytes` is the largest message that is accepted; libzmq cuts a connection that announces twice that."""

    name: str
    max_bytes: int
    queue: int = 512  #: messages, each way and peer
    reconnect_ms: int = 20
    reconnect_max_ms: int = 500
    handshake_ms: int = 500
    connect_ms: int = 500  #: without it a dial into a partition sits out the kernel's SYN back-off, minutes long
    unacknowledged_ms: int = 1500  #: TCP_USER_TIMEOUT: a silent peer with data in flight is given up
    keepalive_s: int = 5  #: idle time after which the kernel asks whether the other host still knows the connection

    def apply(self, socket: zmq.Socket[bytes], host: str) -> None:
        """Set what both kinds of sockets have in common."""
        socket.linger = 0
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.SNDHWM, self.queue)
        socket.setsockopt(zmq.RCVHWM, self.queue)
        socket.setsockopt(zmq.RECONNECT_IVL, self.reconnect_ms)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, self.reconnect_max_ms)
        socket.setsockopt(zmq.HANDSHAKE_IVL, self.handshake_ms)
        socket.setsockopt(zmq.CONNECT_TIMEOUT, self.connect_ms)
        socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
        socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, self.keepalive_s)
        socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 1)
        socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
        socket.setsockopt(zmq.TCP_MAXRT, self.unacknowledged_ms)
        socket.setsockopt(zmq.MAXMSGSIZE, 2 * self.max_bytes)
        if ":" in host or not host.replace(".", "").isdigit():
            socket.setsockopt(zmq.IPV6, 1)  # IPv6, or a name that may have both
