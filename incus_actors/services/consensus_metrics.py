"""What `GET /1.0/metrics` tells of consensus and of the lanes between members (CONSENSUS 3.14).

Owns the names `incus_actors_…`; called by metrics.py with what was published already. Must never ask anybody.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from incus_actors.consensus.api import ConsensusStatus
from incus_actors.consensus.types import RaftRole

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_PREFIX = "incus_actors_raft"
PEER_STATES = ("probe", "replicate", "snapshot", "excluded", "disputed")


def gauge(name: str, text: str, value: float) -> Metric:
    """Return a gauge without labels."""
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(name, text, value=value)


def consensus_families(status: ConsensusStatus, lanes: Mapping[str, Mapping[str, int]]) -> Iterator[Metric]:
    """Yield everything; `lanes` holds the counters of each lane."""
    yield from _own(status)
    yield from _peers(status)
    yield _sqlite(status)
    yield from _numbers(status)
    yield _lanes(lanes)


def _own(status: ConsensusStatus) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    for name, text, value in (
        ("term", "Present term", status.term),
        ("is_leader", "1 on the leader", int(status.leader == status.member_id)),
        ("leader_id", "Member that leads as far as this one knows, 0: nobody", status.leader),
        ("commit_index", "Last entry that is committed as far as this member knows", status.commit),
        ("applied_index", "Last entry that the state of this member has", status.applied),
        ("durable_index", "Last entry on the disk of this member", status.durable),
        ("last_index", "Last entry of the log in memory", status.last),
        ("first_index", "First entry that is still in the log", status.first),
        ("feature_level", "What is switched on in the whole cluster", status.feature_level),
        ("epoch", "How often the cluster was recovered from the loss of its majority, plus one", status.epoch),
        ("fast_path_spent", "Campaigns within a minute for a broken link alone", status.fast_path_spent),
        ("fast_path_budget", "How many of them there may be", status.fast_path_budget),
        ("loop_late_milliseconds", "Lateness of the consensus loop, 99th percentile", status.loop_late_ms),
        ("disk_full", "1 while the database of this member has no space", int(status.disk_full)),
    ):
        yield gauge(f"{_PREFIX}_{name}", text, value)
    role = GaugeMetricFamily(f"{_PREFIX}_role", "1 for the present role", labels=("role",))
    for known in RaftRole:
        role.add_metric((known.value,), int(status.role is known))
    yield role
    if status.free_kib >= 0:
        yield gauge(f"{_PREFIX}_free_disk_bytes", "Free space where the log of this member is", status.free_kib * 1024)


def _peers(status: ConsensusStatus) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    def family(name: str, text: str, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"{_PREFIX}_{name}", text, labels=("member", *labels))

    link = family("peer_link", "1 while the link to a member works in both directions")
    lag = family("lag_entries", "Entries that a member lacks (on the leader)")
    state = family("peer_state", "1 for how a member is sent entries (on the leader)", "state")
    contact = family("peer_contact_milliseconds", "Since when a member has not answered (on the leader)")
    trip = family("peer_round_trip_milliseconds", "Way to a member and back (on the leader)")
    flight = family("peer_in_flight", "Messages with entries that a member has not answered (on the leader)")
    free = family("peer_free_disk_bytes", "Free space where the log of a member is (on the leader)")
    features = family("peer_feature_level", "The highest feature level that a member can apply")
    for peer in status.peers:
        who = str(peer.id)
        link.add_metric((who,), int(peer.link))
        if peer.features >= 0:
            features.add_metric((who,), peer.features)
        if status.leader != status.member_id or peer.state == "unknown":
            continue  # only a leader is told
        lag.add_metric((who,), max(0, status.commit - peer.match))
        for known in PEER_STATES:
            state.add_metric((who, known), int(peer.state == known))
        contact.add_metric((who,), peer.last_contact_ms)
        trip.add_metric((who,), peer.round_trip_ms)
        flight.add_metric((who,), peer.in_flight)
        if peer.free_kib >= 0:
            free.add_metric((who,), peer.free_kib * 1024)
    yield from (link, lag, state, contact, trip, flight, free, features)


def _sqlite(status: ConsensusStatus) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    text = "1 for the SQLite that a member applies entries with"
    sqlite = GaugeMetricFamily(f"{_PREFIX}_sqlite_info", text, labels=("member", "version"))
    peers = ((peer.id, peer.sqlite_version) for peer in status.peers)
    for member, version in ((status.member_id, status.sqlite_version), *peers):
        if version:
            sqlite.add_metric((str(member), version), 1)
    return sqlite


def _numbers(status: ConsensusStatus) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    events = CounterMetricFamily(f"{_PREFIX}_events", "What has happened, by kind and cause", labels=("event", "cause"))
    for name, count in sorted(status.counters.items()):
        event, _, labels = name.partition(",")
        cause = ",".join(label.partition("=")[2] for label in labels.split(","))  # `why=heir`: as a rule there is one
        events.add_metric((event, cause), count)
    depth = GaugeMetricFamily(f"{_PREFIX}_queue_depth", "What waits", labels=("queue",))
    for name, count in sorted(status.queue_depths.items()):
        depth.add_metric((name,), count)
    latency = GaugeMetricFamily(f"{_PREFIX}_latency_milliseconds", "Latencies", labels=("what", "quantile"))
    for what, quantiles in sorted(status.latency_ms.items()):
        for quantile, value in sorted(quantiles.items()):
            latency.add_metric((what, quantile), value)
    yield from (events, depth, latency)


def _lanes(lanes: Mapping[str, Mapping[str, int]]) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    counted = CounterMetricFamily(
        "incus_actors_transport_events",
        "What the links between members have done and refused (zap_refused: no member's key, stranger: a member's no "
        "longer, malformed, unknown_version, wrong_source, oversized)",
        labels=("lane", "event"),
    )
    for lane, counters in sorted(lanes.items()):
        for name, count in sorted(counters.items()):
            counted.add_metric((lane, name), count)
    return counted
