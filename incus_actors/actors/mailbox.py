"""Mailboxes, the letters in them, and what becomes of letters that nobody reads.

Owns the bound of every queue between actors; used by the runtime only. Must never block and never lose a letter
without counting it and failing its ask.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from incus_actors.actors.cell import Cell

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Letter:
    """A message on its way. `reply` is None for a tell; `deadline` is in seconds of the loop's clock."""

    message: object
    reply: asyncio.Future[object] | None = None
    sender_member: int = 0  #: 0: from this member
    deadline: float | None = None
    chain: tuple[Cell, ...] = ()  #: actors that wait for this answer and serve nobody meanwhile
    taken: Callable[[], None] | None = None  #: called when the letter leaves the mailbox (timers coalesce on it)


class Mailbox:
    """A bounded first-in first-out queue with one reader."""

    __slots__ = ("_letters", "_waiter", "closed", "high_water", "limit")

    def __init__(self, limit: int, high_water: int = 0) -> None:
        self.limit = limit
        self.high_water = high_water
        self._letters: deque[Letter] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self.closed = False

    def __len__(self) -> int:
        return len(self._letters)

    def put(self, letter: Letter, *, urgent: bool = False) -> bool:
        """Queue a letter; False when full. `urgent` (the runtime's own notices) is never refused."""
        if len(self._letters) >= self.limit and not urgent:
            return False
        self._letters.append(letter)
        self.high_water = max(self.high_water, len(self._letters))
        self._wake()
        return True

    async def get(self) -> Letter | None:
        """Return the next letter; None once the mailbox is closed, even if letters are left."""
        while not self.closed:
            if self._letters:
                letter = self._letters.popleft()
                if letter.taken is not None:
                    letter.taken()
                return letter
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return None

    def close(self) -> None:
        """Make `get` return None from now on."""
        self.closed = True
        self._wake()

    def take_all(self) -> list[Letter]:
        """Return and forget what is left."""
        left = list(self._letters)
        self._letters.clear()
        return left

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One undelivered message, for diagnosis: the type of the message, never its content."""

    target: str
    member: int
    message_type: str
    reason: str


class DeadLetters:
    """Counts undelivered messages by reason and remembers the latest 64.

    Reasons: no_actor, stopped, crashed, mailbox_full, expired, unhandled, remote_full, remote_down, unencodable,
    unknown_tag, malformed.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.recent: deque[DeadLetter] = deque(maxlen=64)

    def add(self, target: str, member: int, message: object, reason: str) -> None:
        """Count one; the first of each reason is logged as a warning, the others at debug level."""
        letter = DeadLetter(target, member, type(message).__qualname__, reason)
        self.counts[reason] += 1
        self.recent.append(letter)
        level = logging.WARNING if self.counts[reason] == 1 else logging.DEBUG
        log.log(level, "dead letter for %s: %s (%s)", target, letter.message_type, reason)
