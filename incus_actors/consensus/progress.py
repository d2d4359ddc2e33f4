"""What the leader knows about one member's log: how far it has it, and what is under way.

Owns the probe / replicate / snapshot states and the windows of CONSENSUS 1 and 3.6; one object per member lives
as long as the leadership. Must never send: replication.py and snapshots.py do.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum

from incus_actors.consensus.messages import SnapshotOffer
from incus_actors.consensus.types import Index, Limits, MemberId


class ProgressState(StrEnum):
    """How entries are sent: one message at a time, pipelined, or not at all because they are gone."""

    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


@dataclass(slots=True)
class Sent:
    """One Append that has not been answered."""

    sequence: int
    previous: Index
    last: Index
    bytes: int
    sent_ms: int


@dataclass(slots=True)
class SnapshotSending:
    """A snapshot on its way to one member. Without an offer it is still being made."""

    since_ms: int
    offer: SnapshotOffer | None = None
    acked_offset: int = 0
    asked_offset: int = 0
    heard_ms: int = 0


class Progress:
    """Invariant: match < next, always (etcd raft #149)."""

    __slots__ = (
        "applied",
        "caught_up_rounds",
        "commit_told",
        "contact_ms",
        "digest",
        "excluded",
        "free_kib",
        "heartbeat_due_ms",
        "heartbeat_ms",
        "id",
        "in_flight",
        "in_flight_bytes",
        "last_rejected",
        "leaving_until_ms",
        "links",
        "match",
        "next",
        "read_sequence",
        "retry_ms",
        "round_began_ms",
        "round_goal",
        "round_ms",
        "round_trip_ms",
        "sequence",
        "snapshot",
        "state",
        "verified",
    )

    def __init__(self, member: MemberId, last: Index, now_ms: int, heartbeat_ms: int) -> None:
        self.id = member
        self.match: Index = 0
        self.next: Index = last + 1
        self.verified: Index = 0  #: has it in memory, perhaps not yet on disk
        self.state = ProgressState.PROBE
        self.in_flight: deque[Sent] = deque()
        self.in_flight_bytes = 0
        self.sequence = 0
        self.last_rejected = 0
        self.contact_ms = now_ms
        self.heartbeat_ms = heartbeat_ms
        self.heartbeat_due_ms = now_ms
        self.commit_told: Index = 0
        self.read_sequence = 0
        self.applied: Index = 0
        self.digest = b""
        self.free_kib = 1 << 30
        self.links: tuple[MemberId, ...] = ()
        self.round_trip_ms = 0.0
        self.caught_up_rounds = 0
        self.round_goal: Index = 0  #: a catch-up round is under way: to where the log ended when it began
        self.round_began_ms = 0
        self.round_ms = 0  #: how long the last one took
        self.retry_ms = 0  #: do not send entries before (full disk, failed snapshot)
        self.snapshot: SnapshotSending | None = None
        self.leaving_until_ms = 0  #: removed from the configuration, still told about it until then
        self.excluded = ""  #: why, when its log or state is damaged: it must come back under a new id

    def become_probe(self) -> None:
        """Send one message at a time from just behind the match until one is accepted."""
        self.state = ProgressState.PROBE
        self.snapshot = None
        self.forget_flight()
        self.next = self.match + 1

    def become_replicate(self) -> None:
        """Stream entries optimistically, from what the member has: a probe ahead of that is forgotten with the flight."""
        self.state = ProgressState.REPLICATE
        self.snapshot = None
        self.forget_flight()
        self.next = self.match + 1

    def become_snapshot(self, now_ms: int) -> None:
        """Stop sending entries: the ones it needs are gone."""
        self.state = ProgressState.SNAPSHOT
        self.forget_flight()
        self.snapshot = SnapshotSending(now_ms)

    def forget_flight(self) -> None:
        """What was on its way is lost, or will be sent again."""
        self.in_flight.clear()
        self.in_flight_bytes = 0

    def may_send(self, limits: Limits) -> bool:
        """Return whether another Append may leave now."""
        if self.state is ProgressState.REPLICATE:
            return len(self.in_flight) < limits.inflight_appends and self.in_flight_bytes < limits.inflight_bytes
        return self.state is ProgressState.PROBE and not self.in_flight

    def sent(self, previous: Index, last: Index, size: int, now_ms: int) -> int:
        """Note an Append that leaves now; return its sequence number."""
        self.sequence += 1
        self.in_flight.append(Sent(self.sequence, previous, last, size, now_ms))
        self.in_flight_bytes += size
        if self.state is ProgressState.REPLICATE:
            self.next = last + 1
        self.count_round(last, now_ms)
        return self.sequence

    def acknowledged(self, match: Index, sequence: int) -> bool:
        """Note that the member durably has everything up to `match`; return whether that is news."""
        flight = self.in_flight
        while flight and (flight[0].sequence <= sequence or flight[0].last <= match):
            self.in_flight_bytes -= flight.popleft().bytes
        if match <= self.match:
            return False
        self.match = match
        self.next = max(self.next, match + 1)
        self.verified = max(self.verified, match)
        return True

    def refused(self, sequence: int) -> Sent | None:
        """Return the Append that a refusal answers, or None when it is old news."""
        if sequence <= self.last_rejected:
            return None
        for sent in self.in_flight:
            if sent.sequence == sequence:
                self.last_rejected = self.sequence
                return sent
        return None

    def silent_since_ms(self) -> int:
        """Return since when nothing has come back: from its last answer, or the last Append that has none yet."""
        return max(self.contact_ms, self.in_flight[-1].sent_ms) if self.in_flight else self.contact_ms

    def count_round(self, last: Index, now_ms: int) -> None:
        """End the catch-up round that has come to its goal; begin one if the member lacks something of a log that
        ends at `last`. (Section 4.2.1 of Ongaro's dissertation; here they go on for as long as entries come.) A round
        in which nothing is lacking takes no time: an idle cluster forgets how long the one before took."""
        if self.round_goal and self.match >= self.round_goal:
            self.round_ms, self.round_goal = now_ms - self.round_began_ms, 0
        elif not self.round_goal and self.match >= last:
            self.round_ms = 0
        if not self.round_goal and self.match < last:
            self.round_goal, self.round_began_ms = last, now_ms

    def catch_up_ms(self, now_ms: int) -> int:
        """Return how long the last catch-up round took, or the present one so far if that is more."""
        return max(self.round_ms, now_ms - self.round_began_ms) if self.round_goal else self.round_ms

    def heard(self, now_ms: int) -> None:
        """The member has answered something in this term."""
        self.contact_ms = now_ms
