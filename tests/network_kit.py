"""The networks of a machine in a dictionary, and a NetworkActor that works on them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from incus_actors.actors.actor import ChildSpec
from incus_actors.actors.host import Host
from incus_actors.actors.network import NetworkActor
from incus_actors.actors.network_messages import NETWORKS_PATH
from incus_actors.consensus.api import Consensus
from incus_actors.drivers.base import Availability, DriverError
from incus_actors.drivers.bridge import NetworkSpec
from incus_actors.drivers.dnsmasq import Lease
from incus_actors.services.warnings import WarningKind, WarningService


class MemoryProcess:
    """drivers.dnsmasq.Dnsmasq: runs until `die`."""

    def __init__(self) -> None:
        self.pid = 0
        self._ended = asyncio.Event()

    @property
    def running(self) -> bool:
        return self.pid != 0

    def start(self, pid: int) -> None:
        self.pid = pid
        self._ended = asyncio.Event()

    def die(self) -> None:
        self.pid = 0
        self._ended.set()

    async def ended(self) -> None:
        await self._ended.wait()

    def release(self) -> None:
        self._ended.set()


class MemoryNetworks:
    """drivers.bridge.NetworkDriver. `broken`: name → what the machine says; `stuck`: can't be removed."""

    def __init__(self) -> None:
        self.there: dict[str, NetworkSpec] = {}
        self.served: dict[str, NetworkSpec] = {}
        self.broken: dict[str, str] = {}
        self.mute: dict[str, str] = {}  #: dnsmasq can't be started
        self.stuck: set[str] = set()
        self.lacking: dict[str, list[str]] = {}  #: problems that are no failure
        self.given: dict[str, list[Lease]] = {}
        self.processes: dict[str, MemoryProcess] = {}
        self.calls: list[str] = []
        self.helper = SimpleNamespace(warm_up=self._warm_up)
        self.warm = 0

    async def _warm_up(self) -> None:
        self.warm += 1

    def availability(self) -> Availability:
        return Availability(True)

    async def ensure(self, spec: NetworkSpec) -> list[str]:
        self.calls.append(f"ensure {spec.name}")
        if spec.name in self.broken:
            raise DriverError(self.broken[spec.name])
        self.there[spec.name] = spec
        return self.lacking.get(spec.name, [])

    async def remove(self, name: str) -> None:
        self.calls.append(f"remove {name}")
        if name in self.stuck:
            raise DriverError(f"{name} is stuck")
        self.there.pop(name, None)
        self.served.pop(name, None)

    async def made(self) -> set[str]:
        return set(self.there)

    def process(self, name: str) -> MemoryProcess:
        return self.processes.setdefault(name, MemoryProcess())

    async def serve(self, process: MemoryProcess, spec: NetworkSpec) -> bool:
        self.calls.append(f"serve {spec.name}")
        if spec.name in self.mute:
            raise DriverError(self.mute[spec.name])
        self.served[spec.name] = spec
        if not process.running:
            process.start(len(self.calls))
        return True

    def leases(self, name: str) -> list[Lease]:
        return self.given.get(name, [])

    async def close(self) -> None:
        self.calls.append("close")


def network_actor(consensus: Consensus, machine: MemoryNetworks, warnings: WarningService) -> ChildSpec:
    """The actor as the daemon has it, over this machine."""

    async def report(problems: dict[str, str]) -> None:
        text = "; ".join(f"{name}: {problem}" for name, problem in sorted(problems.items()))
        await warnings.tell(WarningKind.NETWORK_UNAVAILABLE, text, member_id=consensus.member_id)

    nothing = cast(Any, SimpleNamespace())
    host = Host(
        directory=nothing,
        consensus=lambda: consensus,
        database=lambda: cast(Any, consensus).database,
        member_id=lambda: consensus.member_id,
        location=lambda: "none",
        driver=nothing,
        storage={},
        images=nothing,
        lifecycle=nothing,
    )
    return ChildSpec(NETWORKS_PATH, lambda: NetworkActor(host, cast(Any, machine), report))
