"""Connections to other members that are made before somebody needs them.

Owns TLS connections that nothing was sent on yet. The websockets of a command are connected one after the other, each
with a handshake of its own; made ahead, beside the request that they follow, they cost the user nothing. Used by
gateway/forwarding.py. A connection must never be used twice, nor kept when it isn't fetched soon.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from incus_actors.errors import MemberError
from incus_actors.tasks import spawn

UNUSED_S: Final = 5.0  #: the client has long connected by then
MOST: Final = 16  #: for one member at a time

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class SpareConnections:
    """`dial(address)` makes a connection, or raises MemberError."""

    def __init__(self, dial: Callable[[str], Awaitable[Connection]], *, unused_s: float = UNUSED_S) -> None:
        self._dial = dial
        self._unused_s = unused_s
        self._spares: dict[str, deque[asyncio.Task[Connection | None]]] = {}

    def expect(self, address: str, count: int) -> None:
        """Make as many connections as are wanted soon, MOST at a time; returns at once."""
        spares = self._spares.setdefault(address, deque())
        for _ in range(min(count, MOST - len(spares))):
            task = spawn(self._dialled(address), name=f"spare connection to {address}")
            spares.append(task)
            asyncio.get_running_loop().call_later(self._unused_s, self._expire, address, task)

    async def take(self, address: str) -> Connection:
        """Return a connection that is the caller's from now on. Raises MemberError."""
        spares = self._spares.get(address)
        while spares:
            connection = await spares.popleft()
            if connection is not None and not connection[0].at_eof() and not connection[1].is_closing():
                return connection
        return await self._dial(address)

    def close(self) -> None:
        """Close what nobody took."""
        spares, self._spares = self._spares, {}
        for task in (task for tasks in spares.values() for task in tasks):
            self._drop(task)

    async def _dialled(self, address: str) -> Connection | None:
        with contextlib.suppress(MemberError):  # who needs the connection dials again and hears why it can't be had
            return await self._dial(address)
        return None

    def _expire(self, address: str, task: asyncio.Task[Connection | None]) -> None:
        spares = self._spares.get(address)
        if spares is not None and task in spares:
            spares.remove(task)
            self._drop(task)

    def _drop(self, task: asyncio.Task[Connection | None]) -> None:
        if not task.done():
            task.cancel()
        elif not task.cancelled() and (connection := task.result()) is not None:
            connection[1].close()
