"""A clean stop that a forced one may cut short.

Owns the waiting; used by InstanceActor only. Must never leave two calls into the driver for one instance.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from incus_actors.drivers.base import InstanceDriver, InstanceSpec, RunStatus
from incus_actors.tasks import spawn


class CleanStop:
    """`impatient` is set by who wants it over; `done` when the instance has stopped or refused to."""

    def __init__(self) -> None:
        self.impatient = asyncio.Event()
        self.done = asyncio.Event()

    async def wait(self) -> None:
        """Return when it is over."""
        await self.done.wait()

    async def run(self, driver: InstanceDriver, spec: InstanceSpec, timeout_s: float) -> None:
        """Wait for a clean end, or kill it as soon as somebody loses patience. Raises what the driver raises."""
        stopping = spawn(_outcome(driver.stop(spec, timeout_s=timeout_s)), name=f"stop {spec.disk_name}")
        impatient = spawn(self.impatient.wait(), name=f"impatience {spec.disk_name}")
        try:
            await asyncio.wait({stopping, impatient}, return_when=asyncio.FIRST_COMPLETED)
            if stopping.done():
                failure = stopping.result()
                if failure is not None:
                    raise failure
                return
            stopping.cancel()
            await asyncio.wait({stopping})
            if driver.status(spec) is not RunStatus.STOPPED:
                await driver.stop(spec, force=True)
        finally:
            stopping.cancel()
            impatient.cancel()


async def _outcome(work: Awaitable[None]) -> Exception | None:
    """Return the failure instead of raising it: nobody may be left to look at the task."""
    try:
        await work
    except Exception as error:
        return error
    return None
