"""When cyclic garbage is collected: in the gaps of the loop, not whenever some allocation happens to be the 700th.

Owns the collector of this process from the end of the start on (CONSENSUS 3.8): a collection holds the interpreter, so that
heartbeats wait for it too. Must never let garbage grow without limit: beyond a bound it is collected however busy we are.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time

from incus_actors.tasks import spawn

LOOK_S = 0.1
IDLE_LATE_MS = 2.0  #: a loop that wakes us this punctually had nothing else to do
YOUNG = 1_000  #: new objects that are worth a look; each level up after so many collections of the level below:
LEVELS = 10
MOST_YOUNG = 20_000  #: collected even when busy: some megabytes, and about two milliseconds
FULL_EVERY_S = 10.0  #: at least between two full collections
FULL_AT_LATEST_S = 120.0  #: after so long, even when busy


def due(counts: tuple[int, int, int], *, late_ms: float, since_full_s: float) -> int | None:
    """Return the oldest generation to collect now, None for nothing. `counts` as of gc.get_count(); `late_ms`: how much
    later than asked for the loop woke us."""
    young, middle, old = counts
    idle = late_ms <= IDLE_LATE_MS
    if old >= LEVELS and since_full_s >= (FULL_EVERY_S if idle else FULL_AT_LATEST_S):
        return 2
    if not idle and young < MOST_YOUNG:
        return None
    if middle >= LEVELS:
        return 1
    return 0 if young >= YOUNG else None


class IdleCollector:
    """Collects instead of the interpreter between `start` and `stop`, on the main loop."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Call when everything that lives long is there."""
        gc.disable()
        self._task = spawn(self._run(), name="garbage")

    async def stop(self) -> None:
        """Leave it to the interpreter again."""
        task, self._task = self._task, None
        gc.enable()
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        await asyncio.sleep(LOOK_S)  # the start is not held up for it
        gc.collect()
        gc.freeze()  # what is there now lives as long as the process: full collections need not look at it
        full_s = time.monotonic()
        while True:
            wake_s = time.monotonic() + LOOK_S
            await asyncio.sleep(LOOK_S)
            now_s = time.monotonic()
            generation = due(gc.get_count(), late_ms=(now_s - wake_s) * 1000, since_full_s=now_s - full_s)
            if generation is None:
                continue
            gc.collect(generation)
            if generation == 2:
                full_s = now_s
