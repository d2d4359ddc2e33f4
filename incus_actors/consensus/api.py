"""Consensus as the rest of the daemon sees it.

Owns the protocol that services and actors program against; consensus/runtime.py implements it by messages to
the consensus thread. All methods are called on the main event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from incus_actors.consensus.policy import MemberHealth
from incus_actors.consensus.types import Configuration, Index, Member, MemberId, RaftRole, Term
from incus_actors.model.transaction import Outcome, Transaction

LEADER_FRESH_MS = 1000  #: a status is published more often than that, unless its thread hangs


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """The leader's view of one member."""

    id: MemberId
    match: Index
    state: str  #: probe, replicate, snapshot, excluded, disputed (views.py); unknown unless this member leads
    last_contact_ms: int
    round_trip_ms: float
    link: bool
    in_flight: int = 0  #: messages with entries that have not been answered
    free_kib: int = -1  #: on its disk; -1: it has not told
    sqlite_version: str = ""  #: as it said it, to any member; empty before it did
    caught_up: bool = False  #: it may be made a voter (CONSENSUS 3.9)
    features: int = -1  #: the highest feature level it can apply, as it said it; -1: it has not said it


@dataclass(frozen=True, slots=True)
class ConsensusStatus:
    """A snapshot for `incus-actors raft status` and metrics."""

    member_id: MemberId
    cluster_id: str
    epoch: int
    role: RaftRole
    term: Term
    leader: MemberId
    commit: Index
    applied: Index
    last: Index
    durable: Index
    first: Index
    configuration: Configuration
    peers: tuple[PeerStatus, ...] = ()
    counters: dict[str, int] = field(default_factory=dict)
    queue_depths: dict[str, int] = field(default_factory=dict)
    latency_ms: dict[str, dict[str, float]] = field(default_factory=dict)
    loop_late_ms: float = 0.0
    refused_by: tuple[MemberId, ...] = ()  #: members to which our key is unknown
    free_kib: int = -1  #: on the disk of this member; -1: nobody has looked yet
    fast_path_spent: int = 0  #: campaigns within the last minute for a broken link alone, of `fast_path_budget`
    fast_path_budget: int = 0
    disk_full: bool = False  #: log or state of this member wait for disk space
    fresh_ms: int = 0  #: monotonic clock of this machine: when the state here was last as good as the leader's word
    sqlite_version: str = ""  #: of this member; with different ones, see CONSENSUS 3.11
    halted: str = ""  #: why this member decides nothing although its daemon runs, and what to do
    feature_level: int = 0  #: what is switched on in the state here (model/features.py)
    features: int = 0  #: the highest level that this member can apply

    def level_of_all(self) -> int:
        """Return the highest feature level that every member, whatever its role, has said it can apply; 0 if one has
        not said any."""
        return max(0, min([self.features, *(peer.features for peer in self.peers)]))

    def age_ms(self, now_ms: int) -> int:
        """Return for how long nobody who leads has been heard: 0 on a leader that a quorum answers."""
        age_ms = max(0, now_ms - self.fresh_ms)
        return 0 if self.role is RaftRole.LEADER and age_ms < LEADER_FRESH_MS else age_ms

    def health(self) -> dict[MemberId, MemberHealth]:
        """Return what the leader knows of the others that it has heard of in this term, for consensus/policy.py."""
        return {
            peer.id: MemberHealth(peer.last_contact_ms, max(0, self.commit - peer.match), peer.caught_up)
            for peer in self.peers
            if peer.last_contact_ms >= 0
        }


@dataclass(frozen=True, slots=True)
class RoleChange:
    """Told to subscribers on the main loop, in order."""

    role: RaftRole
    term: Term
    leader: MemberId
    cause: str
    monotonic_ns: int  #: when the core said so


@dataclass(frozen=True, slots=True)
class StateCheck:
    """What this member's whole state was at an index (`hash`: 16 bytes); a healthy member has the same there."""

    index: Index
    hash: bytes


class Consensus(Protocol):
    """Propose, read, change members. Raises UnavailableError (nobody leads until the deadline),
    OutcomeUnknownError (proposed, but no answer until the deadline)."""

    @property
    def member_id(self) -> MemberId:
        """This member's id."""

    def status(self) -> ConsensusStatus:
        """Return the latest published snapshot; never blocks."""

    async def propose(
        self, transaction: Transaction, *, timeout_s: float = 10.0, proposal_id: bytes | None = None
    ) -> Outcome:
        """Replicate, apply here, return the outcome (conflicts and errors are outcomes, not exceptions)."""

    async def check_state(self) -> StateCheck:
        """Let every member hash its whole state at one index, so that one which differs is found out."""

    async def upgrade(self) -> bool:
        """On the leader: switch on what every member can apply, and migrate to what that allows; return whether anything
        was done."""

    async def read_barrier(self, *, timeout_s: float = 5.0) -> Index:
        """Return once a local read is linearizable (ReadIndex). Calls made together share one round."""

    async def change_configuration(self, target: tuple[Member, ...], *, timeout_s: float = 10.0) -> None:
        """On the leader: go to these members. Raises ConflictError if busy, ForbiddenError if not the leader."""

    async def transfer_leadership(self, target: MemberId = 0, *, timeout_s: float = 2.0) -> bool:
        """Hand leadership over; True if it moved."""

    def subscribe_role(self, callback: Callable[[RoleChange], None]) -> Callable[[], None]:
        """Call on every role or leader change; returns the unsubscriber. Called once at once with the present."""

    def subscribe_applied(self, callback: Callable[[Index, frozenset[str]], None]) -> Callable[[], None]:
        """Call after transactions are applied here, with their topics; returns the unsubscriber."""

    def subscribe_configuration(self, callback: Callable[[Configuration], None]) -> Callable[[], None]:
        """Call on every new active configuration, and once at once; returns the unsubscriber."""
