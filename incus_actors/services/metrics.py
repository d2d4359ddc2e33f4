"""What `GET /1.0/metrics` tells: the instances of this member, the server, and its consensus.

Owns the names: those of Incus where it has the same thing; consensus_metrics.py has what only we have. Called by
rest/metrics_routes.py; the library that writes the text is loaded with the first question. Must never ask another member.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

from incus_actors.actors.host import Host
from incus_actors.actors.instance_states import read_state, shown_status
from incus_actors.drivers.base import RunStatus
from incus_actors.model.instances import InstanceState
from incus_actors.services.consensus_metrics import consensus_families, gauge
from incus_actors.state.queries import instances as queries
from incus_actors.state.queries.instances import InstanceRecord

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_INSTANCE = ("name", "project", "type")
_NETWORK = {
    "bytes_received": "receive_bytes",
    "bytes_sent": "transmit_bytes",
    "packets_received": "receive_packets",
    "packets_sent": "transmit_packets",
    "errors_received": "receive_errs",
    "errors_sent": "transmit_errs",
    "packets_dropped_inbound": "receive_drop",
    "packets_dropped_outbound": "transmit_drop",
}


class MetricsService:
    """`operations()` returns how many this member runs, `warnings()` how many there are, `lanes()` what each lane of
    the transport has counted."""

    def __init__(
        self,
        host: Host,
        *,
        operations: Callable[[], int],
        warnings: Callable[[], int],
        lanes: Callable[[], dict[str, dict[str, int]]],
    ) -> None:
        self._host = host
        self._operations = operations
        self._warnings = warnings
        self._lanes = lanes
        self._began_s = time.monotonic()

    async def text(self, projects: Collection[str] | None) -> bytes:
        """Return everything in Prometheus' text format; instances of these projects only (None: all)."""
        running = await self._running(projects)
        status = self._host.consensus().status()
        return exposition([*_instances(running), *self._server(), *consensus_families(status, self._lanes())])

    async def _running(self, projects: Collection[str] | None) -> list[tuple[InstanceRecord, InstanceState]]:
        with self._host.database().snapshot() as snapshot:
            records = queries.all_of(snapshot, projects=projects, node_id=self._host.member_id())
        alive = [r for r in records if shown_status(self._host, r) in (RunStatus.RUNNING, RunStatus.FROZEN)]
        return [(record, await read_state(self._host, record)) for record in alive]

    def _server(self) -> Iterator[Metric]:
        yield gauge("incus_uptime_seconds", "The daemon uptime in seconds", time.monotonic() - self._began_s)
        yield gauge("incus_operations", "The number of running operations", self._operations())
        yield gauge("incus_warnings", "The number of active warnings", self._warnings())


def exposition(families: list[Metric]) -> bytes:
    """Return these in Prometheus' text format."""
    from prometheus_client import CollectorRegistry, generate_latest

    class Collected:
        """The library asks a collector."""

        def collect(self) -> Iterator[Metric]:
            """Return what there is."""
            return iter(families)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collected())
    return generate_latest(registry)


def _instances(running: list[tuple[InstanceRecord, InstanceState]]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    # The control groups tell one number for all processors and modes, so that is what is told here.
    cpu = CounterMetricFamily("incus_cpu_seconds", "CPU time used in seconds", labels=("cpu", "mode", *_INSTANCE))
    total = GaugeMetricFamily("incus_memory_MemTotal_bytes", "Memory that it may use", labels=_INSTANCE)
    available = GaugeMetricFamily("incus_memory_MemAvailable_bytes", "Memory that is left to it", labels=_INSTANCE)
    processes = GaugeMetricFamily("incus_procs_total", "Running processes", labels=_INSTANCE)
    network = {
        name: CounterMetricFamily(f"incus_network_{name}", name.replace("_", " "), labels=("device", *_INSTANCE))
        for name in _NETWORK.values()
    }
    for record, state in running:
        labels = (record.name, record.project, record.type)
        cpu.add_metric(("all", "all", *labels), state.cpu.usage / 1e9)
        total.add_metric(labels, state.memory.total)
        available.add_metric(labels, max(0, state.memory.total - state.memory.usage))
        processes.add_metric(labels, state.processes)
        for device, interface in sorted((state.network or {}).items()):
            counters = _counters(interface)
            for key, name in _NETWORK.items():
                if key in counters:
                    network[name].add_metric((device, *labels), counters[key])
    yield from (cpu, total, available, processes, *network.values())


def _counters(interface: Any) -> dict[str, int]:
    found = interface["counters"] if isinstance(interface, dict) else interface.counters
    return dict(found)
