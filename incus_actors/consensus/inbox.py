"""From any thread to the loop of another, with one wake-up for many items.

Owns the hand-over between the main loop, the consensus loop and the disk threads. Must never block, and keeps the
order of each sender.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """Items for `loop`, given to `receive` there one by one. `put` is called from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, receive: Callable[[T], None]) -> None:
        self._loop = loop
        self._receive = receive
        self._items: deque[T] = deque()
        self._woken = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, *items: T) -> None:
        """Append items and wake the loop, unless it is awake for earlier ones."""
        self._items.extend(items)
        if not self._woken:
            self._woken = True
            try:
                self._loop.call_soon_threadsafe(self.drain)
            except RuntimeError:  # the loop is closed: nobody is left to receive
                self._items.clear()

    def drain(self) -> None:
        """On the loop: deliver everything that waits. An item put meanwhile is delivered too, or wakes again."""
        self._woken = False
        while self._items:
            self._receive(self._items.popleft())
