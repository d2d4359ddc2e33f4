"""The way to helpers/network_helper.py: started when first needed, kept warm for a while, then ended.

Owns one child process at most. Called by the network and nic drivers; must never let two requests overlap, nor keep a
helper that nobody has used for IDLE_S.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from incus_actors.drivers.base import DriverError
from incus_actors.drivers.child import Conversation, helper_argv
from incus_actors.tasks import spawn

IDLE_S: Final = 60.0
CALL_S: Final = 30.0


def library_directory() -> Path | None:
    """Return the directory that pyroute2 is installed in, None if it is not."""
    found = importlib.util.find_spec("pyroute2")
    return Path(found.origin).parent.parent if found is not None and found.origin else None


class NetworkHelper:
    """One per daemon. `call` may be used by many tasks; they take turns."""

    def __init__(self, *, idle_s: float = IDLE_S) -> None:
        self._idle_s = idle_s
        self._turn = asyncio.Lock()
        self._talk: Conversation | None = None
        self._idle: asyncio.TimerHandle | None = None

    async def call(self, name: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to one request. Raises DriverError with what went wrong."""
        async with self._turn:
            self._stay()
            try:
                return await asyncio.wait_for(self._call(name, request), CALL_S)
            except TimeoutError:
                await self._end()
                raise DriverError(f"The network helper did not answer {name} within {CALL_S:.0f} s") from None
            except asyncio.CancelledError:
                await self._end()  # its answer to the abandoned request must not be taken for the next one's
                raise
            finally:
                self._rest()

    async def _call(self, name: str, request: Mapping[str, Any]) -> dict[str, Any]:
        for attempt in (1, 2):
            talk = self._talk
            if talk is None or talk.child.exit_code >= 0:
                talk = self._talk = await self._begin()
            talk.send([("call", name), ("data", json.dumps(request))])
            answer = await talk.receive()
            if answer is None:
                await self._end()
                if attempt == 1:  # every request may be repeated: it says what shall be
                    continue
                break
            found = dict(answer)
            if "error" in found:
                raise DriverError(found["error"])
            result: dict[str, Any] = json.loads(found["answer"])
            return result
        raise DriverError(f"The network helper ended at {name}")

    async def warm_up(self) -> None:
        """Have the helper started: work is likely to come soon."""
        async with self._turn:
            self._stay()
            if self._talk is None:
                self._talk = await self._begin()
            self._rest()

    async def _begin(self) -> Conversation:
        directory = library_directory()
        if directory is None:
            raise DriverError("Managed networks need the Python library pyroute2")
        return await Conversation.begin(helper_argv("network_helper", str(directory)))

    def _stay(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _rest(self) -> None:
        if self._talk is not None:
            self._idle = asyncio.get_running_loop().call_later(self._idle_s, self._idle_end)

    def _idle_end(self) -> None:
        self._idle = None
        spawn(self.close(), name="end the idle network helper")

    async def _end(self) -> None:
        talk, self._talk = self._talk, None
        if talk is not None:
            talk.child.kill()
            await talk.finish()

    async def close(self) -> None:
        """End the helper; it is started again when needed."""
        async with self._turn:
            self._stay()
            talk, self._talk = self._talk, None
            if talk is not None:
                await talk.finish()
