"""The event hub of one member: what happened, told to websockets here and, through the relay, to other members.

Owns subscriptions and the format of events (CONTRACT 3.3). Published to by operations, services (through callables)
and the log; must never block a publisher: a subscriber that doesn't read is dropped.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from incus_actors.gateway.access import Caller

EventKind = Literal["operation", "lifecycle", "logging"]
SUBSCRIBER_EVENTS = 1024  #: more than these waiting for one websocket, and it is dropped
SUBSCRIBER_BYTES = 8 << 20

_JSON = msgspec.json.Encoder()


def timestamp(time_ns: int) -> str:
    """Return RFC 3339 with nanoseconds in UTC: "2026-11-21T01:11:18.457808364Z"."""
    seconds, fraction = divmod(time_ns, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{fraction:09d}Z"


@dataclass(frozen=True, slots=True)
class Event:
    """One event, already encoded. `operation_id` and `final` are set for kind "operation"."""

    kind: str
    project: str | None
    encoded: bytes
    time_ns: int
    operation_id: str = ""
    final: bool = False


class SlowSubscriberError(Exception):
    """The subscriber did not read fast enough and has lost events: its connection must be dropped."""


class Subscription:
    """Events for one listener: `async for encoded in subscription`. Ends after `close()`."""

    def __init__(
        self,
        hub: EventHub,
        types: frozenset[str] | None,
        projects: frozenset[str] | None,
        *,
        strict: bool,
        on_overflow: Callable[[], None] | None,
    ) -> None:
        self._hub = hub
        self.types = types
        self.projects = projects
        self.strict = strict
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._wake = asyncio.Event()
        self._closed = False
        self._on_overflow = on_overflow
        self.overflowed = False

    def wants(self, event: Event) -> bool:
        """Return whether this listener sees `event`; those of no project go to everybody who isn't limited."""
        if self.types is not None and event.kind not in self.types:
            return False
        if self.projects is None:
            return True
        return not self.strict if event.project is None else event.project in self.projects

    def offer(self, event: Event) -> None:
        """Queue `event`; never blocks."""
        if self._closed or self.overflowed:
            return
        if len(self._queue) >= SUBSCRIBER_EVENTS or self._queued_bytes + len(event.encoded) > SUBSCRIBER_BYTES:
            self.overflowed = True
            self._queue.clear()
            if self._on_overflow is not None:
                self._on_overflow()
        else:
            self._queue.append(event.encoded)
            self._queued_bytes += len(event.encoded)
        self._wake.set()

    def close(self) -> None:
        """Stop receiving; a waiting iterator ends."""
        self._closed = True
        self._hub.forget(self)
        self._wake.set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield encoded events. Raises SlowSubscriberError when some had to be dropped."""
        while True:
            while self._queue:
                encoded = self._queue.popleft()
                self._queued_bytes -= len(encoded)
                yield encoded
            if self.overflowed:
                raise SlowSubscriberError
            if self._closed:
                return
            self._wake.clear()
            await self._wake.wait()


class EventHub:
    """Publish and subscribe. `location()` is the member's name, "none" when not clustered."""

    def __init__(self, *, location: Callable[[], str], clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._location = location
        self._clock_ns = clock_ns
        self._subscriptions: set[Subscription] = set()
        self._taps: list[Callable[[Event], None]] = []
        self.started_ns = clock_ns()

    def publish(self, kind: EventKind, metadata: Any, project: str | None = None) -> None:
        """Tell every subscriber here and, but for "logging", on every member. `metadata` is encoded at once."""
        if kind == "logging" and not self.has_subscribers(kind):
            return
        now_ns = self._clock_ns()
        body: dict[str, Any] = {
            "type": kind,
            "timestamp": timestamp(now_ns),
            "metadata": metadata,
            "location": self._location(),
        }
        if project is not None:
            body["project"] = project
        operation_id, final = "", False
        if kind == "operation":
            operation_id, final = metadata["id"], metadata["status_code"] >= 200
        event = Event(kind, project, _JSON.encode(body), now_ns, operation_id, final)
        self.deliver(event)
        if kind != "logging":
            for tap in self._taps:
                tap(event)

    def lifecycle(
        self,
        action: str,
        source: str,
        *,
        project: str | None = None,
        caller: Caller | Mapping[str, str] | None = None,
        context: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> None:
        """Publish "instance-started" and the like. `source` is the object's URL path; `caller` who asked for it."""
        metadata: dict[str, Any] = {"action": action, "source": source}
        if context:
            metadata["context"] = dict(context)
        if caller is not None:
            metadata["requestor"] = caller.requestor() if isinstance(caller, Caller) else dict(caller)
        if name is not None:
            metadata["name"] = name
        if project is not None:
            metadata["project"] = project
        self.publish("lifecycle", metadata, project)

    def deliver(self, event: Event) -> None:
        """Give `event` to the subscribers here only (the relay calls it for other members' events)."""
        for subscription in tuple(self._subscriptions):
            if subscription.wants(event):
                subscription.offer(event)

    def subscribe(
        self,
        types: frozenset[str] | None = None,
        projects: frozenset[str] | None = None,
        *,
        strict: bool = False,
        on_overflow: Callable[[], None] | None = None,
    ) -> Subscription:
        """Return a subscription; close it when done. None means all; `strict` hides what belongs to no project.

        `on_overflow` is called when it is too slow: then it gets nothing more.
        """
        subscription = Subscription(self, types, projects, strict=strict, on_overflow=on_overflow)
        self._subscriptions.add(subscription)
        return subscription

    def has_subscribers(self, kind: str) -> bool:
        """Return whether somebody here listens to `kind`."""
        return any(s.types is None or kind in s.types for s in self._subscriptions)

    def forget(self, subscription: Subscription) -> None:
        """Called by Subscription.close."""
        self._subscriptions.discard(subscription)

    def tap(self, callback: Callable[[Event], None]) -> Callable[[], None]:
        """Call on every event that was published here (not on relayed ones); returns the remover."""
        self._taps.append(callback)
        return lambda: self._taps.remove(callback)

    def close(self) -> None:
        """End every subscription: websockets close after what is queued."""
        for subscription in tuple(self._subscriptions):
            subscription.close()
