"""The last events of the core, to be written down when it stops for good and stepped again (CONSENSUS 3.14).

Owns the ring of events and the marks in it from which they can be replayed; driver.py tells every event, history_file.py
writes the file, `incus-actors simulate --history` reads it. Must stay cheap: between two marks an event costs an append.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from incus_actors.consensus import events as ev
from incus_actors.consensus.messages import Append, Propose, SnapshotChunk
from incus_actors.consensus.state_mark import StateMark

EVENTS_KEPT = 4096
BYTES_KEPT = 4 << 20  #: of entries in these events; when they are large, fewer events are kept
MARK_EVERY = 1024
PATIENCE = 512  #: how many events longer to wait for a quiet moment


@dataclass(frozen=True, slots=True)
class Heard:
    """One event as it is kept. `missing`: bytes of a snapshot that were left out; the replay fills in zeros."""

    now_ms: int
    event: ev.Event
    missing: int = 0


_Row: TypeAlias = tuple[int, ev.Event, int, int]  # as Heard, and how much room its entries take: cheaper to make
_HEAVY = frozenset((Append, Propose, SnapshotChunk, ev.Propose, ev.SnapshotChunkRead))


class History:
    """`look()` returns the state of the core now, `quiet()` whether this is a good moment for that."""

    def __init__(self, look: Callable[[bool], StateMark | None], quiet: Callable[[], bool]) -> None:
        self._look = look
        self._quiet = quiet
        self._heard: deque[_Row] = deque()
        self._bytes = 0
        self._count = 0  #: events ever
        self._marks: deque[tuple[int, StateMark]] = deque()  #: the number of the first event after it, and the state
        self._due = 0

    def add(self, now_ms: int, event: ev.Event) -> None:
        """Keep an event that the core is about to hear."""
        if self._count >= self._due:
            self._consider()
        kind = type(event.envelope.message) if type(event) is ev.Receive else type(event)
        row = _lean(now_ms, event) if kind in _HEAVY else (now_ms, event, 0, 0)
        heard = self._heard
        heard.append(row)
        self._count += 1
        self._bytes += row[3]
        while len(heard) > EVENTS_KEPT or self._bytes > BYTES_KEPT:
            self._bytes -= heard.popleft()[3]

    def _consider(self) -> None:
        """Mark the state if this is a good moment, or the best that there will be."""
        if not self._quiet() and self._count < self._due + PATIENCE:
            return
        mark = self._look(self._count == 0)
        self._due = self._count + MARK_EVERY
        if mark is not None:
            self._marks.append((self._count, mark))
        oldest = self._count - len(self._heard)
        while len(self._marks) > 1 and self._marks[0][0] < oldest:
            self._marks.popleft()

    def replayable(self) -> tuple[StateMark | None, list[Heard]]:
        """Return the oldest mark whose events are all here, and these events; without a mark all events there are."""
        heard = self.all()
        oldest = self._count - len(heard)
        for number, mark in self._marks:
            if number >= oldest:
                return mark, heard[number - oldest :]
        return None, heard

    def all(self) -> list[Heard]:
        """Return every event that is kept, the oldest first."""
        return [Heard(now_ms, event, missing) for now_ms, event, missing, _ in self._heard]


def _lean(now_ms: int, event: ev.Event) -> _Row:
    """What is kept of an event with entries or bytes of a snapshot, and how much room its entries take."""
    if isinstance(event, ev.Propose):
        return now_ms, event, 0, len(event.body)
    if isinstance(event, ev.SnapshotChunkRead):
        return now_ms, replace(event, data=b""), len(event.data), 0
    if isinstance(event, ev.Receive):
        message = event.envelope.message
        if isinstance(message, Append):
            return now_ms, event, 0, sum(len(entry.body) for entry in message.entries)
        if isinstance(message, Propose):
            return now_ms, event, 0, len(message.body)
        if isinstance(message, SnapshotChunk):
            lean = replace(event.envelope, message=replace(message, data=b""))
            return now_ms, ev.Receive(lean), len(message.data), 0
    return now_ms, event, 0, 0


def whole(heard: Heard) -> ev.Event:
    """Return the event with as many zeros as bytes were left out."""
    event = heard.event
    if not heard.missing:
        return event
    zeros = bytes(heard.missing)
    if isinstance(event, ev.SnapshotChunkRead):
        return replace(event, data=zeros)
    if isinstance(event, ev.Receive) and isinstance(event.envelope.message, SnapshotChunk):
        return ev.Receive(replace(event.envelope, message=replace(event.envelope.message, data=zeros)))
    return event
