"""Socket options of a lane (CONSENSUS 3.7), in one place.

Owns the values; applied by `outbound.py` and `inbound.py` to every socket. Must never be set anywhere else.
"""

from __future__ import annotations

from dataclasses import dataclass

import zmq


@dataclass(frozen=True, slots=True)
class LaneOptions:
    """`max_bytes` is the largest message that is accepted; libzmq cuts a connection that announces twice that.

    `sign_ms`, `silent_ms`: how often a side that sends gives a sign of life, and how long the other one waits for any whole
    message before it breaks the connection. The length of a message is not encrypted: one altered byte of it, and the
    connection, up as ever, swallows megabytes of messages as the rest of one. Long enough for the largest message over a
    slow link. Not by ZMTP's own heartbeats: with these libzmq 4.3 aborts the process when a connection breaks whose
    queue is full (zeromq/libzmq#3937, #4364).
    """

    name: str
    max_bytes: int
    queue: int = 512  #: messages, each way and peer
    reconnect_ms: int = 20
    reconnect_max_ms: int = 500
    handshake_ms: int = 500
    sign_ms: int = 1000
    silent_ms: int = 5000
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
