"""Where a history of events begins: the state of a core, small enough to be kept and full enough to go on from.

Owns StateMark, its making from a core and the way back. Used by history.py while the member lives and by
simulation/replay.py afterwards; a mark that is taken when nothing is under way gives a core that does what the
original did. Must never change the core that it looks at.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from dataclasses import dataclass

from incus_actors.consensus.core import Core
from incus_actors.consensus.leader import Leadership
from incus_actors.consensus.node import NEVER
from incus_actors.consensus.progress import Progress, ProgressState
from incus_actors.consensus.types import (
    DurableState,
    HardState,
    Index,
    Limits,
    MemberId,
    RaftRole,
    SnapshotMark,
    Timing,
)

_RANDOM_VERSION = 3  #: of random.Random's state


@dataclass(frozen=True, slots=True)
class PeerMark:
    """What a leader knew of one member."""

    id: MemberId
    match: Index
    next: Index
    verified: Index
    state: str
    sequence: int
    last_rejected: int
    contact_ms: int
    heartbeat_due_ms: int
    commit_told: Index
    read_sequence: int
    round_trip_ms: float
    free_kib: int
    caught_up_rounds: int
    excluded: str


@dataclass(frozen=True, slots=True)
class StateMark:
    """A core at one moment. The log in `durable` begins at what the state has applied."""

    whole: bool  #: nothing is missing: the core had not taken a step yet
    quiet: bool  #: nothing was under way: no write, no proposal, no campaign, no transfer, no snapshot
    now_ms: int
    wall_ms: int
    durable: DurableState
    timing: Timing
    limits: Limits
    randomness: tuple[int, ...]
    role: RaftRole
    leader: MemberId
    term_leader: MemberId
    commit: Index
    apply_sent: Index
    verified: Index
    write_id: int
    digest: bytes
    free_kib: int
    heir: MemberId
    wake_ms: int
    election_timeout_ms: int
    election_deadline_ms: int
    leader_heard_ms: int
    led_until_ms: int
    links: tuple[tuple[MemberId, bool], ...]
    incarnations: tuple[tuple[MemberId, int], ...]
    greeted_ms: tuple[tuple[MemberId, int], ...]
    since_ms: int
    check_quorum_ms: int
    noop_index: Index
    read_sequence: int
    peers: tuple[PeerMark, ...]
    features_of: tuple[tuple[MemberId, int], ...] = ()
    ask_ms: int = 0
    differs: bool = False
    attempt: int = 0  #: the last number of a proposal that was sent to a leader


def is_quiet(core: Core) -> bool:
    """Return whether nothing is under way that a mark would not hold."""
    leadership = core.leadership
    if core.writes or core.held or core.applied < core.apply_sent or len(core.proposals):
        return False
    if core.campaign is not None or core.receiver.offer is not None or core.suspicion.held:
        return False
    if leadership is None:
        return True
    return leadership.transfer is None and not any(p.in_flight or p.snapshot for p in leadership.progress.values())


def mark_of(core: Core, rng: random.Random, *, whole: bool = False) -> StateMark:
    """Return the state of `core`, whose generator is `rng`, between two steps."""
    leadership = core.leadership
    return StateMark(
        whole=whole,
        quiet=is_quiet(core),
        now_ms=core.now,
        wall_ms=core.wall_ms(),
        durable=_durable(core),
        timing=core.timing,
        limits=core.limits,
        randomness=rng.getstate()[1],
        role=core.role,
        leader=core.leader,
        term_leader=core.term_leader,
        commit=core.commit,
        apply_sent=core.apply_sent,
        verified=core.verified,
        write_id=core.write_id,
        digest=core.digest,
        free_kib=core.free_kib,
        heir=core.heir,
        wake_ms=core.wake_ms,
        election_timeout_ms=core.election_timeout_ms,
        election_deadline_ms=core.election_deadline_ms,
        leader_heard_ms=core.leader_heard_ms,
        led_until_ms=core.led_until_ms,
        links=tuple(core.links.items()),
        incarnations=tuple(core.incarnations.items()),
        greeted_ms=tuple(core.greeted_ms.items()),
        since_ms=0 if leadership is None else leadership.since_ms,
        check_quorum_ms=0 if leadership is None else leadership.check_quorum_ms,
        noop_index=0 if leadership is None else leadership.noop_index,
        read_sequence=0 if leadership is None else leadership.rounds.sequence,
        peers=() if leadership is None else tuple(_peer(p) for p in leadership.progress.values()),
        features_of=tuple(core.features_of.items()),
        differs=core.differs,
        attempt=core.proposals.attempt,
        ask_ms=0 if leadership is None else leadership.ask_ms,
    )


def _durable(core: Core) -> DurableState:
    """What the core holds as if all of it were durable, without the entries that the state has applied."""
    log = core.log
    base = log.mark
    if core.applied > base.index:
        position = bisect_right(log.configurations, core.applied, key=lambda item: item[0])
        decided, configuration = log.configurations[max(position - 1, 0)]
        term, chain = log.term_at(core.applied), log.chain_at(core.applied)
        if term is not None and chain is not None:
            base = SnapshotMark(core.applied, term, chain, configuration, decided)
    return DurableState(
        member_id=core.id,
        cluster_id=core.cluster_key,
        epoch=core.epoch,
        hard=HardState(core.term, core.vote),
        snapshot=base,
        entries=log.slice(base.index + 1, log.last),
        applied=max(core.applied, base.index),
        incarnation=core.incarnation,
        amnesia=core.amnesia,
        sqlite_version=core.sqlite_version,
        features=core.features,
    )


def _peer(progress: Progress) -> PeerMark:
    return PeerMark(
        id=progress.id,
        match=progress.match,
        next=progress.next,
        verified=progress.verified,
        state=progress.state.value,
        sequence=progress.sequence,
        last_rejected=progress.last_rejected,
        contact_ms=progress.contact_ms,
        heartbeat_due_ms=progress.heartbeat_due_ms,
        commit_told=progress.commit_told,
        read_sequence=progress.read_sequence,
        round_trip_ms=progress.round_trip_ms,
        free_kib=progress.free_kib,
        caught_up_rounds=progress.caught_up_rounds,
        excluded=progress.excluded,
    )


def rebuild(mark: StateMark) -> Core:
    """Return a core that goes on from `mark`, checking itself at every step. Raises ValueError (LogDamagedError too)
    for a mark that no core can have made."""
    rng = random.Random()  # noqa: S311 - the state of the original follows
    core = Core(
        mark.durable,
        rng=rng,
        timing=mark.timing,
        limits=mark.limits,
        now_ms=mark.now_ms,
        wall_ms=mark.wall_ms,
        checks=True,
    )
    rng.setstate((_RANDOM_VERSION, mark.randomness, None))
    core.election_timeout_ms = mark.election_timeout_ms
    core.election_deadline_ms = mark.election_deadline_ms
    if not mark.whole:
        _go_on(core, mark)
    return core


def _go_on(core: Core, mark: StateMark) -> None:
    """Make a core that has just started the one of the mark."""
    core.resume()
    core.commit, core.apply_sent, core.verified = mark.commit, mark.apply_sent, mark.verified
    core.leader, core.term_leader, core.heir = mark.leader, mark.term_leader, mark.heir
    core.write_id = core.hard_write_id = mark.write_id
    core.digest, core.free_kib = mark.digest, mark.free_kib
    core.digests[core.applied] = mark.digest
    core.leader_heard_ms, core.led_until_ms = mark.leader_heard_ms, mark.led_until_ms
    core.heard_any_leader = mark.leader_heard_ms > -NEVER or mark.role is RaftRole.LEADER
    core.links, core.incarnations = dict(mark.links), dict(mark.incarnations)
    core.differs, core.proposals.attempt = mark.differs, mark.attempt
    core.greeted_ms, core.features_of = dict(mark.greeted_ms), dict(mark.features_of)
    core.refresh_visible()
    if mark.role is RaftRole.LEADER:
        _lead(core, mark)
    core.wake_ms = mark.wake_ms


def _lead(core: Core, mark: StateMark) -> None:
    core.role = RaftRole.LEADER
    core.leadership = leadership = Leadership(core)
    core.appended_sent = core.log.last
    leadership.since_ms, leadership.check_quorum_ms = mark.since_ms, mark.check_quorum_ms
    leadership.ask_ms = mark.ask_ms
    leadership.noop_index, leadership.rounds.sequence = mark.noop_index, mark.read_sequence
    for peer in mark.peers:
        progress = leadership.progress.setdefault(peer.id, Progress(peer.id, core.log.last, core.now, 0))
        state = ProgressState(peer.state)
        progress.state = ProgressState.PROBE if state is ProgressState.SNAPSHOT else state
        for name in PeerMark.__slots__:
            if name not in ("id", "state"):
                setattr(progress, name, getattr(peer, name))
