"""What the consensus thread shows of itself.

Owns the making of ConsensusStatus from the core and the driver, on the consensus loop; the engine publishes it and
the main loop reads the latest. Must never be changed after it was published: two threads see it.
"""

from __future__ import annotations

from uuid import UUID

from incus_actors.consensus.api import ConsensusStatus, PeerStatus
from incus_actors.consensus.core import Core
from incus_actors.consensus.driver import Driver
from incus_actors.consensus.lane import RaftLane
from incus_actors.consensus.quorum import agreed
from incus_actors.consensus.suspicion import BUDGET_PER_MINUTE
from incus_actors.consensus.types import DurableState, MemberId

_NOT_TOLD = 1 << 30  #: what the core assumes until it hears of a disk


def look(
    core: Core,
    driver: Driver,
    durable: DurableState,
    lane: RaftLane,
    latency_ms: dict[str, dict[str, float]],
    now_ms: int,
    opened_as_of_ms: int,
) -> ConsensusStatus:
    """Return a status of this moment. `latency_ms` is made less often than the rest, by the caller;
    `opened_as_of_ms` is how fresh the state was when it was opened."""
    return ConsensusStatus(
        member_id=core.id,
        cluster_id=str(UUID(bytes=durable.cluster_id)),
        epoch=core.epoch,
        role=core.role,
        term=core.term,
        leader=core.leader,
        commit=core.commit,
        applied=driver.applied_index,
        last=core.log.last,
        durable=core.log.durable,
        first=core.log.first,
        configuration=core.log.configuration,
        peers=_peers(core, lane.links(), now_ms),
        refused_by=tuple(sorted(lane.refusing())),
        counters=dict(driver.counters),
        queue_depths=driver.queue_depths(),
        latency_ms=latency_ms,
        loop_late_ms=latency_ms.get("loop_late", {}).get("p99", 0.0),
        free_kib=_told(core.free_kib),
        fast_path_spent=core.suspicion.spent(),
        fast_path_budget=BUDGET_PER_MINUTE,
        disk_full=driver.disk_full,
        fresh_ms=max(opened_as_of_ms, _fresh_ms(core, now_ms)),
        sqlite_version=core.sqlite_version,
        halted=driver.halted,
        feature_level=driver.feature_level,
        features=core.features,
    )


def _told(free_kib: int) -> int:
    return -1 if free_kib == _NOT_TOLD else free_kib


def _fresh_ms(core: Core, now_ms: int) -> int:
    """Return when this member last heard who leads, or a quorum it itself. A leader without one is about to resign."""
    if core.leadership is None:
        return max(core.leader_contact_ms, core.led_until_ms)
    if core.leadership.has_contact():
        return now_ms
    contacts = {member: progress.contact_ms for member, progress in core.leadership.progress.items()}
    return agreed(core.voter_sets, {**contacts, core.id: now_ms})


def _peers(core: Core, links: frozenset[MemberId], now_ms: int) -> tuple[PeerStatus, ...]:
    views = {view.id: view for view in core.peers()}
    peers: list[PeerStatus] = []
    for member in core.log.configuration.members():
        if member == core.id:
            continue
        found, version = views.get(member), core.sqlite_versions.get(member, "")
        features = core.features_of.get(member, -1)
        if found is None:
            peers.append(
                PeerStatus(member, 0, "unknown", -1, 0.0, member in links, sqlite_version=version, features=features)
            )
            continue
        contact_ms = max(0, found.contact_age_ms + now_ms - core.now)
        link = member in links
        free_kib = _told(found.free_kib)
        peers.append(
            PeerStatus(
                member,
                found.match,
                found.state,
                contact_ms,
                found.round_trip_ms,
                link,
                found.in_flight,
                free_kib,
                version,
                found.caught_up,
                features,
            )
        )
    return tuple(peers)
