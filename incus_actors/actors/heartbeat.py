"""Liveness, load and clock skew of the members, by what they tell each other once a second.

Owns HeartbeatTable (who was heard when) and HeartbeatActor (tells and listens). Services read the table for
`cluster list` and placement. Must never decide anything from another machine's clock, nor about Raft: an offline
member here is a display and a placement rule, elections have their own timers (DESIGN D7).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from incus_actors.actors.actor import Actor
from incus_actors.actors.host_facts import HostFacts, read_host_facts
from incus_actors.actors.messages import remote_message
from incus_actors.domain.members import Sighting

INTERVAL_S = 1.0
CHECK_S = 0.25  #: how often is looked whether a beat is due
HISTORY = 64  #: arrival intervals kept per member
PATH = "heartbeat"


@remote_message("heartbeat.beat")
class Beat(msgspec.Struct, frozen=True, array_like=True):
    """What a member says of itself once a second.

    `echoes`: for each member heard of lately (id, its `sent_us`, how long ago that came, in µs), so that it can
    compute round trip and skew. Times in µs; `sent_us` is monotonic and only ever compared with itself.
    """

    member_id: int
    incarnation: int  #: a new number for each start of the daemon
    sent_us: int
    wall_us: int
    applied: int
    version: str
    schema: int
    api_extensions: int
    uptime_s: int
    load: tuple[float, float, float]
    total_ram: int
    available_ram: int
    instances: int
    running: int
    echoes: tuple[tuple[int, int, int], ...] = ()
    leader: int = 0  #: whom it follows (itself if it leads)


class Tick(msgspec.Struct, frozen=True):
    """A second has passed."""


class LinkUp(msgspec.Struct, frozen=True):
    """The way to a member is there (again): it shall hear of us now, not with the next beat."""

    member_id: int


@dataclass(slots=True)
class MemberHealth:
    """What is known of one member. Ages count from `seen_at_s`, on our monotonic clock."""

    member_id: int
    seen_at_s: float
    seen_wall_ns: int
    beat: Beat | None = None
    intervals_s: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    round_trip_ms: float | None = None
    skew_ms: float | None = None  #: its wall clock minus ours
    restarts: int = 0  #: how often its daemon was seen to have started anew


class HeartbeatTable:
    """Shared by the actor, which writes it, and by services, which read it; all on the main loop."""

    def __init__(
        self, *, monotonic_s: Callable[[], float] = time.monotonic, wall_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._monotonic_s = monotonic_s
        self._wall_ns = wall_ns
        self._born = (monotonic_s(), wall_ns())
        self._members: dict[int, MemberHealth] = {}

    def record(self, beat: Beat, own_id: int) -> MemberHealth:
        """Take a beat in; returns what is now known of its sender."""
        now = self._monotonic_s()
        wall_ns = self._wall_ns()
        health = self._members.get(beat.member_id)
        if health is None:
            health = self._members[beat.member_id] = MemberHealth(beat.member_id, now, wall_ns)
        else:
            health.intervals_s.append(now - health.seen_at_s)
            if health.beat is not None and health.beat.incarnation != beat.incarnation:
                health.restarts += 1
        health.seen_at_s, health.seen_wall_ns, health.beat = now, wall_ns, beat
        for member_id, sent_us, held_us in beat.echoes:
            if member_id == own_id:
                self._measure(health, beat, sent_us, held_us, now, wall_ns)
        return health

    def _measure(
        self, health: MemberHealth, beat: Beat, sent_us: int, held_us: int, now_s: float, wall_ns: int
    ) -> None:
        round_trip_us = now_s * 1e6 - sent_us - held_us
        if not 0 <= round_trip_us < 60e6:  # an echo to a daemon that ran here before: another clock's zero
            return
        skew_us = beat.wall_us - (wall_ns / 1000 - round_trip_us / 2)
        health.round_trip_ms = round_trip_us / 1000
        health.skew_ms = skew_us / 1000

    def echoes(self, peer_ids: Iterable[int]) -> tuple[tuple[int, int, int], ...]:
        """Return what to echo to these members."""
        now = self._monotonic_s()
        return tuple(
            (health.member_id, health.beat.sent_us, int((now - health.seen_at_s) * 1e6))
            for health in (self._members.get(peer) for peer in peer_ids)
            if health is not None and health.beat is not None and now - health.seen_at_s < 30
        )

    def sighting(self, member_id: int, own_id: int) -> Sighting:
        """Return when `member_id` was last heard of. Never heard of: since this daemon runs, so that a start of
        ours doesn't make everyone offline at once."""
        if member_id == own_id:
            return Sighting(0.0, self._wall_ns())
        health = self._members.get(member_id)
        seen_at_s, seen_wall_ns = self._born if health is None else (health.seen_at_s, health.seen_wall_ns)
        return Sighting(max(0.0, self._monotonic_s() - seen_at_s), seen_wall_ns)

    def online(self, member_id: int, own_id: int, threshold_s: float) -> bool:
        """Return whether the member was heard of within the threshold."""
        return self.sighting(member_id, own_id).age_s <= threshold_s

    def forget(self, keep: Iterable[int]) -> None:
        """Drop members that are no more."""
        kept = set(keep)
        for member_id in [m for m in self._members if m not in kept]:
            del self._members[member_id]

    def watch(self, member_id: int) -> None:
        """Begin to count the silence of a member that has just been added."""
        if member_id not in self._members:
            self._members[member_id] = MemberHealth(member_id, self._monotonic_s(), self._wall_ns())

    def view(self) -> dict[int, MemberHealth]:
        """Return what is known of each other member; not to be changed."""
        return dict(sorted(self._members.items()))


@dataclass(frozen=True, slots=True)
class OwnFacts:
    """What HeartbeatActor can't read from /proc."""

    member_id: int
    applied: int
    instances: int
    running: int
    leader: int = 0


class HeartbeatActor(Actor):
    """Tells all peers once a second, takes in what they tell. One per member, path "heartbeat".

    `peers()`: ids of all members of the configuration; `own()`: our numbers; both cheap. `version`: (software,
    schema, api_extensions); `threshold_s()`: after how much silence a member counts as offline.
    """

    mailbox_limit = 512

    def __init__(
        self,
        table: HeartbeatTable,
        *,
        peers: Callable[[], Iterable[int]],
        own: Callable[[], OwnFacts],
        version: tuple[str, int, int],
        incarnation: int,
        host: Callable[[], HostFacts] = read_host_facts,
        interval_s: float = INTERVAL_S,
        threshold_s: Callable[[], float] = lambda: float("inf"),
    ) -> None:
        self._table = table
        self._peers = peers
        self._own = own
        self._version = version
        self._incarnation = incarnation
        self._host = host
        self._interval_s = interval_s
        self._threshold_s = threshold_s
        self._told_at_s = 0.0

    async def started(self) -> None:
        """Begin to tick."""
        self.context.tell_every(min(self._interval_s, CHECK_S), Tick())
        self._tell_all()

    async def receive(self, message: object) -> object:
        """Take a beat or a tick."""
        match message:
            case Beat():
                # What a member says about another's liveness counts for nothing: only its own voice does.
                if message.member_id == self.context.sender_member:
                    self._table.record(message, self._own().member_id)
            case LinkUp(member_id=member_id):
                self._tell(self._own(), [member_id])
            case Tick():
                if time.monotonic() - self._told_at_s >= self._due_s():
                    self._tell_all()
            case _:
                return self.unhandled(message)
        return None

    def _due_s(self) -> float:
        """Four beats within the threshold, so that one that is late makes nobody offline; a tick may come early."""
        return max(min(self._interval_s, self._threshold_s() / 4), CHECK_S) * 0.9

    def _tell_all(self) -> None:
        self._told_at_s = time.monotonic()
        own = self._own()
        peers = [peer for peer in self._peers() if peer != own.member_id]
        self._table.forget(peers)
        for peer in peers:
            self._table.watch(peer)
        if peers:
            self._tell(own, peers)

    def _tell(self, own: OwnFacts, peers: Sequence[int]) -> None:
        host = self._host()
        software, schema, api_extensions = self._version
        beat = Beat(
            member_id=own.member_id,
            incarnation=self._incarnation,
            sent_us=int(time.monotonic() * 1e6),
            wall_us=time.time_ns() // 1000,
            applied=own.applied,
            version=software,
            schema=schema,
            api_extensions=api_extensions,
            uptime_s=host.uptime_s,
            load=host.load,
            total_ram=host.total_ram,
            available_ram=host.available_ram,
            instances=own.instances,
            running=own.running,
            echoes=self._table.echoes(peers),
            leader=own.leader,
        )
        for peer in peers:
            self.context.system.ref(PATH, member=peer).tell(beat)
