"""What `GET /1.0/metrics` tells: the instances of this member, the server, and its consensus (CONSENSUS 3.14).

Owns the names: those of Incus where it has the same thing, `incus_actors_…` for what only we have. Called by
rest/metrics_routes.py; the library that writes the text is loaded with the first question. Must never ask another member.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

from incus_actors.actors.host import Host
from incus_actors.actors.instance_states import read_state, shown_status
from incus_actors.consensus.api import ConsensusStatus
from incus_actors.drivers.base import RunStatus
from incus_actors.model.instances import InstanceState
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
    """`operations()` returns how many this member runs, `warnings()` how many there are."""

    def __init__(self, host: Host, *, operations: Callable[[], int], warnings: Callable[[], int]) -> None:
        self._host = host
        self._operations = operations
        self._warnings = warnings
        self._began_s = time.monotonic()

    async def text(self, projects: Collection[str] | None) -> bytes:
        """Return everything in Prometheus' text format; instances of these projects only (None: all)."""
        from prometheus_client import CollectorRegistry, generate_latest

        running = await self._running(projects)
        families = [*_instances(running), *self._server(), *_consensus(self._host.consensus().status())]

        class Collected:
            """The library asks a collector."""

            def collect(self) -> Iterator[Metric]:
                """Return what was collected above."""
                return iter(families)

        registry = CollectorRegistry(auto_describe=False)
        registry.register(Collected())
        return generate_latest(registry)

    async def _running(self, projects: Collection[str] | None) -> list[tuple[InstanceRecord, InstanceState]]:
        with self._host.database().snapshot() as snapshot:
            records = queries.all_of(snapshot, projects=projects, node_id=self._host.member_id())
        alive = [r for r in records if shown_status(self._host, r) in (RunStatus.RUNNING, RunStatus.FROZEN)]
        return [(record, await read_state(self._host, record)) for record in alive]

    def _server(self) -> Iterator[Metric]:
        yield _gauge("incus_uptime_seconds", "The daemon uptime in seconds", time.monotonic() - self._began_s)
        yield _gauge("incus_operations", "The number of running operations", self._operations())
        yield _gauge("incus_warnings", "The number of active warnings", self._warnings())


def _gauge(name: str, text: str, value: float) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(name, text, value=value)


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


def _consensus(status: ConsensusStatus) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    prefix = "incus_actors_raft"
    for name, text, value in (
        ("term", "Present term", status.term),
        ("is_leader", "1 on the leader", int(status.leader == status.member_id)),
        ("leader_id", "Member that leads as far as this one knows, 0: nobody", status.leader),
        ("commit_index", "Last entry that is committed as far as this member knows", status.commit),
        ("applied_index", "Last entry that the state of this member has", status.applied),
        ("durable_index", "Last entry on the disk of this member", status.durable),
        ("loop_late_milliseconds", "Lateness of the consensus loop, 99th percentile", status.loop_late_ms),
        ("disk_full", "1 while the database of this member has no space", int(status.disk_full)),
    ):
        yield _gauge(f"{prefix}_{name}", text, value)
    lag = GaugeMetricFamily(f"{prefix}_lag_entries", "Entries that a member lacks (on the leader)", labels=("member",))
    for peer in status.peers:
        if status.leader == status.member_id:
            lag.add_metric((str(peer.id),), max(0, status.commit - peer.match))
    events = CounterMetricFamily(f"{prefix}_events", "What has happened, by kind and cause", labels=("event", "labels"))
    for name, count in sorted(status.counters.items()):
        event, _, labels = name.partition(",")
        events.add_metric((event, labels), count)
    depth = GaugeMetricFamily(f"{prefix}_queue_depth", "What waits", labels=("queue",))
    for name, count in sorted(status.queue_depths.items()):
        depth.add_metric((name,), count)
    latency = GaugeMetricFamily(f"{prefix}_latency_milliseconds", "Latencies", labels=("what", "quantile"))
    for what, quantiles in sorted(status.latency_ms.items()):
        for quantile, value in sorted(quantiles.items()):
            latency.add_metric((what, quantile), value)
    yield from (lag, events, depth, latency)
