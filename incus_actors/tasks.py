"""The one place that starts asyncio tasks: none is ever lost or fails in silence.

Owns a strong reference to every task until it is done; called by everything that runs something beside itself.
Must never swallow an exception: what nobody awaits is logged with its name.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)

_running: set[asyncio.Task[Any]] = set()


def spawn(coro: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
    """Run `coro` on the running loop and return its task.

    A failure is logged as an error with `name` (cancellation is not a failure); who awaits the task gets the
    exception as well. Raises RuntimeError without a running loop.
    """
    task = asyncio.get_running_loop().create_task(coro, name=name)
    _running.add(task)
    task.add_done_callback(_ended)
    return task


def running() -> list[str]:
    """Return the names of the tasks that are not done, sorted: for diagnosis and for leak tests."""
    return sorted(task.get_name() for task in tuple(_running))


def _ended(task: asyncio.Task[Any]) -> None:
    _running.discard(task)
    if task.cancelled():
        return
    error = task.exception()
    if error is not None:
        log.error("task %s failed: %s", task.get_name(), error, exc_info=error)
