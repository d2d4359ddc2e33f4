"""The connections of the peers to us: a ROUTER that only receives.

Owns the bound socket and who is behind each accepted connection; used by `mesh.py`. The member is known by the key of
its connection (User-Id), never by what a message says. Must never hand out a message of a key that is not allowed now.
"""

from __future__ import annotations

import os
import socket as sockets
from collections.abc import Callable
from dataclasses import dataclass

import zmq
from zmq.utils import z85

from incus_actors.transport.address import endpoint
from incus_actors.transport.keys import CurveKeys
from incus_actors.transport.options import LaneOptions
from incus_actors.transport.pump import Monitor, Pump, PumpSet
from incus_actors.transport.tally import Tally
from incus_actors.transport.zap import Allowlist

WIRE_VERSION = 1
KIND_LINK = 0  #: "my connection to you stands"; the first frame on each, and said again all the time
LINK_FRAME = bytes((WIRE_VERSION, KIND_LINK))
HEADER_BYTES = 2


@dataclass(slots=True)
class _Connection:
    member: int = 0
    peer_name: object = None  #: remote address, to be sure that the descriptor is still this connection
    silent: int = 0  #: how many looks in a row nothing had come


class Inbound:
    """A bound ROUTER with its monitor."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        pumps: PumpSet,
        keys: CurveKeys,
        options: LaneOptions,
        tally: Tally,
        allowed: Allowlist,
        *,
        on_frame: Callable[[int, int, bytes], None],
        on_up: Callable[[int], None],
        on_down: Callable[[int], None],
    ) -> None:
        self._options = options
        self._tally = tally
        self._allowed = allowed
        self._on_frame = on_frame
        self._on_up = on_up
        self._on_down = on_down
        self._connections: dict[int, _Connection] = {}
        self._heard: set[int] = set()  #: members, since the last look
        self._endpoint = ""
        self._kept: list[str] = []  #: endpoints of before, while others may still dial them
        socket = self._socket = context.socket(zmq.ROUTER)
        options.apply(socket, "::")
        # We never send on it; should that change, unroutable messages are errors and identities can't be squatted.
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        socket.curve_server = 1
        socket.curve_publickey = z85.encode(keys.public)
        socket.curve_secretkey = z85.encode(keys.secret)
        socket.setsockopt_string(zmq.ZAP_DOMAIN, options.name)
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without a handler nobody gets in, instead of everybody
        self._monitor = Monitor(pumps, socket, self._event)
        self._pump = Pump(pumps, socket, self._read)

    def bind(self, host: str, port: int, *, keep: bool = False) -> int:
        """Listen there (port 0: any free one) instead of where it listened; returns the port. Raises OSError.

        `keep`: go on listening there too, until `release`: whoever is unbound loses the connections made there.
        """
        before = self._endpoint
        if before and before == endpoint(host, port):
            return port
        if endpoint(host, port) in self._kept:  # back to where we were
            self._kept.remove(endpoint(host, port))
            self._endpoint = endpoint(host, port)
            self._socket.unbind(before)
            return port
        self._socket.setsockopt(zmq.IPV6, int(":" in host))
        try:
            self._socket.bind(endpoint(host, port))
        except zmq.ZMQError as error:
            raise OSError(error.errno, f"can't listen on {endpoint(host, port)}: {error}") from error
        self._endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        if before and keep:
            self._kept.append(before)
        elif before:
            self._socket.unbind(before)
        return int(self._endpoint.rsplit(":", 1)[1])

    def release(self) -> None:
        """Listen no more where `bind` has kept us listening."""
        kept, self._kept = self._kept, []
        for place in kept:
            self._socket.unbind(place)

    def unbind(self) -> None:
        """Listen nowhere."""
        self.release()
        before, self._endpoint = self._endpoint, ""
        if before:
            self._socket.unbind(before)

    def is_up(self, member: int) -> bool:
        """Whether this member has a connection to us."""
        return any(connection.member == member for connection in self._connections.values())

    # -- connections -----------------------------------------------------------------------------------------------

    def _event(self, event: int, value: int) -> None:
        if event == zmq.EVENT_ACCEPTED:
            self._forget(value)
            self._connections[value] = _Connection()
        elif event == zmq.EVENT_DISCONNECTED:
            self._forget(value)
        elif event == zmq.EVENT_ACCEPT_FAILED:
            self._tally.note("accept_failed", os.strerror(value))
        elif event != zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._tally.add("inbound_handshake_failed")  # probes, strangers, plain sockets

    def _forget(self, fd: int) -> None:
        connection = self._connections.pop(fd, None)
        if connection is not None and connection.member and not self.is_up(connection.member):
            self._on_down(connection.member)

    def _linked(self, fd: int, member: int) -> None:
        connection = self._connections.setdefault(fd, _Connection())
        if connection.member == member:
            return
        before, connection.member = connection.member, member
        connection.peer_name = _peer_name(fd)
        if before and not self.is_up(before):
            self._on_down(before)
        self._supersede(member, fd)
        self._on_up(member)

    def _supersede(self, member: int, fd: int) -> None:
        """A member has one connection to us: an older one is half-open (its host lost power, say), and would hide
        that the new one breaks."""
        older = [(f, c) for f, c in self._connections.items() if c.member == member and f != fd]
        for old_fd, connection in older:
            self._tally.add("superseded")
            _shut(old_fd, connection)
            connection.member = 0
        if older:
            self._on_down(member)

    def cut(self, member: int) -> None:
        """Break the connections of a member that is no longer allowed."""
        for fd, connection in self._connections.items():
            if connection.member == member and _shut(fd, connection):
                self._tally.add("cut_off")

    def break_silent(self, looks: int) -> None:
        """Break the connections that have brought nothing for so many calls of this. What waits is to be read before."""
        for fd, connection in self._connections.items():
            connection.silent = 0 if connection.member in self._heard else connection.silent + 1
            if connection.silent >= looks and connection.member and _shut(fd, connection):
                self._tally.note("silent", f"the connection of member {connection.member} is up and brings nothing")
        self._heard.clear()

    # -- messages --------------------------------------------------------------------------------------------------

    def _read(self) -> bool:
        try:
            parts = self._socket.recv_multipart(zmq.DONTWAIT, copy=False)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            self._tally.note("receive_failed", str(error))
            return False
        frame = parts[-1]
        member = self._member_of(frame)
        if member is None:
            self._tally.note("stranger", "a message of a key that is not allowed (any more)")
            return True
        if len(parts) != 2:
            self._tally.note("malformed", f"{len(parts)} parts from member {member}")
            return True
        self._accept(member, frame)
        return True

    def _member_of(self, frame: zmq.Frame) -> int | None:
        try:
            return self._allowed.member_of(str(frame.get("User-Id")))
        except zmq.ZMQError:  # no such property: can't be with CURVE
            return None

    def _accept(self, member: int, frame: zmq.Frame) -> None:
        data = frame.bytes
        self._heard.add(member)
        if len(data) > self._options.max_bytes + HEADER_BYTES:
            self._tally.note("oversized", f"{len(data)} bytes from member {member}")
        elif len(data) < HEADER_BYTES:
            self._tally.note("malformed", f"{len(data)} bytes from member {member}")
        elif data[0] != WIRE_VERSION:
            self._tally.note("unknown_version", f"wire version {data[0]} from member {member}")
        elif data[1] == KIND_LINK:
            # The descriptor may be that of a new connection already: first hear of what was accepted and lost.
            self._monitor.pump.drain()
            self._linked(int(frame.get(zmq.SRCFD)), member)
        else:
            self._tally.add("received")
            self._on_frame(member, data[1], data[HEADER_BYTES:])

    def close(self) -> None:
        """Stop listening and drop every connection."""
        self._pump.close()
        self._monitor.close()
        self._socket.close(0)
        self._connections.clear()


def _shut(fd: int, connection: _Connection) -> bool:
    """Break one connection; False if it is gone already.

    libzmq has no call for this; shutting the socket down through a duplicate of its descriptor does it, and the
    remote address tells that it is still the same connection.
    """
    if connection.peer_name is None:
        return False
    try:
        with sockets.socket(fileno=os.dup(fd)) as twin:
            if twin.getpeername() == connection.peer_name:
                twin.shutdown(sockets.SHUT_RDWR)
                return True
    except OSError:
        pass
    return False


def _peer_name(fd: int) -> object:
    try:
        with sockets.socket(fileno=os.dup(fd)) as twin:
            return twin.getpeername()
    except OSError:
        return None
