"""Carries frames between two interfaces, later than they came: delay, jitter, disorder and duplicates without netem.

Run as `python -m incus_actors.lab.delay_relay ONE OTHER HOW` with HOW one of WAYS; needs root; ends with its input. Prints a
line once it carries. network.py puts it in place of a member's link. Must never alter or drop a frame: that is for nftables.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import random
import select
import socket
import sys
import time
from collections.abc import Callable

SOL_PACKET = 263
PACKET_VNET_HDR = (
    15  #: frames come with what the network card was to do for them (segments, checksums), and leave with it
)
PACKET_IGNORE_OUTGOING = 23
ETH_P_ALL = 3
LONGEST = 10 + 14 + (1 << 16) + 64
BATCH = 64
LOST = (
    errno.EAGAIN,
    errno.ENOBUFS,
    errno.ENETDOWN,
)  #: the queue of the interface is full, or it is down: as in any switch

Times = Callable[[random.Random], list[float]]  #: when the copies of a frame are due, in seconds from its arrival


def late(rng: random.Random) -> list[float]:
    """As the packet nemesis of jepsen.dqlite: 70 ms, give or take 10."""
    return [rng.uniform(0.060, 0.080)]


def disorder(rng: random.Random) -> list[float]:
    """As its other one: a third of the frames overtakes those that came up to 25 ms earlier."""
    return [0.0 if rng.random() < 1 / 3 else 0.025]


def twice(rng: random.Random) -> list[float]:
    """Every fifth frame comes again, up to 300 ms later."""
    return [0.001, rng.uniform(0.0, 0.3)] if rng.random() < 0.2 else [0.001]


WAYS: dict[str, Times] = {"late": late, "disorder": disorder, "twice": twice}


class Relay:
    """Two raw sockets and what is on its way between them."""

    def __init__(self, one: str, other: str, times: Times, rng: random.Random) -> None:
        first, second = raw(one), raw(other)
        self._across = {first.fileno(): (first, second), second.fileno(): (second, first)}
        self._times = times
        self._rng = rng
        self._order = itertools.count()
        self._due: list[tuple[float, int, socket.socket, bytes]] = []

    def run(self, until: int) -> None:
        """Carry until the descriptor `until` is at its end."""
        poll = select.poll()
        for fd in (*self._across, until):
            poll.register(fd, select.POLLIN | select.POLLHUP)
        while True:
            self._deliver()
            wait_ms = None if not self._due else max(0.0, (self._due[0][0] - time.monotonic()) * 1000)
            for fd, _ in poll.poll(wait_ms):
                if fd == until:
                    return
                self._take(*self._across[fd])

    def _take(self, source: socket.socket, target: socket.socket) -> None:
        for _ in range(BATCH):
            try:
                frame = source.recv(LONGEST)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.ENETDOWN):  # another fault may take a link down meanwhile
                    raise
                return
            now = time.monotonic()
            for after in self._times(self._rng):
                heapq.heappush(self._due, (now + after, next(self._order), target, frame))

    def _deliver(self) -> None:
        while self._due and self._due[0][0] <= time.monotonic():
            _, _, target, frame = heapq.heappop(self._due)
            try:
                target.send(frame)
            except OSError as error:
                if error.errno not in LOST:
                    raise


def raw(interface: str) -> socket.socket:
    """Return a socket for whole frames of an interface, those of others only. Raises OSError."""
    found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)  # no protocol: nothing comes before it is bound
    found.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    found.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    found.bind((interface, ETH_P_ALL))
    found.setblocking(False)
    return found


def main() -> None:
    """Carry between two interfaces until standard input ends."""
    one, other, how = sys.argv[1:4]
    relay = Relay(one, other, WAYS[how], random.Random())  # noqa: S311 - packets, not secrets
    print("ready", flush=True)
    relay.run(sys.stdin.fileno())


if __name__ == "__main__":
    main()
