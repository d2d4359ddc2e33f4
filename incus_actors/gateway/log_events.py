"""The daemon's log as "logging" events: what `incus monitor --type=logging` shows (CONTRACT 3.3).

Owns one logging handler, added to the root logger by the composition root. It must never block who logs, log by
itself, or do anything while nobody listens.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from incus_actors.gateway.events import EventHub

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class EventLogHandler(logging.Handler):
    """Publishes records to the hub of this member, from any thread. Made on the main loop."""

    def __init__(self, hub: EventHub, *, level: int = logging.INFO) -> None:
        super().__init__(level)
        self._hub = hub
        self._loop = asyncio.get_running_loop()

    def emit(self, record: logging.LogRecord) -> None:
        """Hand the record to the main loop if anybody listens."""
        if self._loop.is_closed() or not self._hub.has_subscribers("logging"):
            return
        try:
            metadata = describe(record)
            self._loop.call_soon_threadsafe(self._hub.publish, "logging", metadata)
        except Exception:  # a log call must not fail because of who reads along
            self.handleError(record)


def describe(record: logging.LogRecord) -> dict[str, Any]:
    """Return what Incus puts into such an event: message, level, and the rest as texts."""
    fields = vars(record)
    context = {key: value for key, value in fields.items() if key not in _STANDARD and not key.startswith("_")}
    return {
        "message": record.getMessage(),
        "level": record.levelname.lower(),
        "context": {key: str(value) for key, value in context.items()},
    }
