"""Logging: one set-up for the daemon, text for people and JSON for machines.

Called once by the composition root; everyone logs through stdlib `logging`, fields through `extra=`. Written on
stdlib alone: structlog would cost 5 MB and 80 ms of every daemon (it imports rich) for what two formatters do.
Must never block the consensus thread: it logs rarely.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path

_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _PLAIN}


def _moment(record: logging.LogRecord) -> str:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{stamp}.{int(record.msecs):03d}Z"


class TextFormatter(logging.Formatter):
    """`2026-11-21T02:23:51.123Z [info] what happened field=value`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, and a traceback below it."""
        fields = "".join(f" {name}={value!r}" for name, value in _fields(record).items())
        line = f"{_moment(record)} [{record.levelname.lower()}] {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: timestamp, level, logger, event, the fields, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        row: dict[str, object] = {
            "timestamp": _moment(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            row["exception"] = self.formatException(record.exc_info)
        return json.dumps(row, default=str)


def configure(*, level: int, log_format: str, logfile: Path | None = None) -> None:
    """Send every record to stderr, or to `logfile`, as "text" or "json" lines."""
    handler: logging.Handler = (
        logging.FileHandler(logfile, encoding="utf-8") if logfile else logging.StreamHandler(sys.stderr)
    )
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.getLogger("asyncio").setLevel(max(level, logging.WARNING))
