"""DHCP and DNS of one network: keeps its dnsmasq running.

Owns one process, which outlives this actor and the daemon; a child of NetworkActor. A process that ends is started
again, at once the first time, then ever slower. Must never end the process unless the network wants none.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from incus_actors.actors.actor import Actor
from incus_actors.actors.network_messages import Ended, Serve
from incus_actors.drivers.base import DriverError
from incus_actors.drivers.bridge import NetworkDriver, NetworkSpec

_log = logging.getLogger(__name__)

AGAIN_S: Final = 0.2
AGAIN_MAX_S: Final = 30.0
STEADY_S: Final = 1.0  #: one that ran for so long is started again at once


class DnsmasqActor(Actor):
    """`spec` is what was wanted last, for a new life of this actor; `report` tells of trouble ("" is over)."""

    def __init__(
        self, driver: NetworkDriver, name: str, spec: Callable[[], NetworkSpec | None], report: Callable[[str], None]
    ) -> None:
        self._driver = driver
        self._name = name
        self._spec = spec
        self._report = report
        self._process = driver.process(name)
        self._watched = 0
        self._again_s = AGAIN_S
        self._since = 0.0

    async def started(self) -> None:
        """After a crash of this actor: take the process over."""
        spec = self._spec()
        if spec is not None:
            self.context.self_ref.tell(Serve(spec))

    async def stopped(self, reason: str) -> None:
        """Let the process go on."""
        self._process.release()

    async def receive(self, message: object) -> object:
        """Serve, or start what has ended again."""
        match message:
            case Serve(spec):
                await self._serve(spec)
                return None
            case Ended(pid):
                if pid and pid == self._watched and self._age_s() < STEADY_S:
                    self._later()
                elif pid in (0, self._watched):
                    await self._again()
                return None
            case _:
                return self.unhandled(message)

    async def _serve(self, spec: NetworkSpec) -> None:
        """Raises DriverError."""
        pid = self._process.pid if await self._driver.serve(self._process, spec) else 0
        if pid and pid != self._watched:
            self.context.run(self._watch(pid), name=f"dnsmasq of {self._name}")
            self._since = asyncio.get_running_loop().time()
        self._watched = pid
        self._report("")

    async def _watch(self, pid: int) -> None:
        await self._process.ended()
        self.context.self_ref.tell(Ended(pid))

    async def _again(self) -> None:
        spec = self._spec()
        if spec is None or self._process.running:
            return
        _log.warning("dnsmasq of network %s has ended, starting it again", self._name)
        try:
            await self._serve(spec)
        except DriverError as error:
            _log.error("network %s: %s", self._name, error)
            self._report(str(error))
            self._later()

    def _age_s(self) -> float:
        """Return how long the process has run; a long life forgives what was before."""
        age_s = asyncio.get_running_loop().time() - self._since
        if age_s >= STEADY_S:
            self._again_s = AGAIN_S
        return age_s

    def _later(self) -> None:
        self.context.tell_after(self._again_s, Ended(0))
        self._again_s = min(AGAIN_MAX_S, self._again_s * 2)
