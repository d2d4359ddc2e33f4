"""The nouns of consensus: ids, entries, configurations, durable state.

Owns plain immutable data; used by the core, the driver, the simulator and the codec. Must never do IO and
imports nothing but the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from hashlib import blake2b

MemberId = int  #: allocated once by the leader, never re-used (CONSENSUS 3.9); 0 means "nobody"
Term = int
Index = int

NOBODY: MemberId = 0
LARGEST_KIND = 255  #: of an entry: one byte of the chained hash
GENESIS_CHAIN = b"\0" * 8


class Role(StrEnum):
    """What a member stores (DESIGN D6): voters decide, standbys replicate, spares only follow."""

    VOTER = "voter"
    STANDBY = "standby"
    SPARE = "spare"


class RaftRole(StrEnum):
    """The state of the election machinery (Raft paper, figure 4, plus pre-vote)."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class EntryKind(IntEnum):
    """Kinds of log entries; an unknown kind stops apply, it is never skipped (CONSENSUS 3.13)."""

    NOOP = 0
    CONFIG = 1
    SQL = 2
    SCHEMA = 3
    EXPIRE = 4
    FEATURE = 5
    CHECK = 6
    DELETE = 7  #: SQL that makes room, so it is taken when disks are low (CONSENSUS 3.4)

    @classmethod
    def _missing_(cls, value: object) -> EntryKind | None:
        """A kind of a newer release: it is carried, stored and hashed like any other; only to apply it is fatal."""
        if not isinstance(value, int) or not 0 <= value <= LARGEST_KIND:
            return None
        kind = int.__new__(cls, value)
        kind._name_, kind._value_ = f"KIND_{value}", value
        return kind


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a configuration. `address` is opaque to the core (transport/address.py parses it)."""

    id: MemberId
    address: str
    role: Role = Role.VOTER
    domain: str = "default"


@dataclass(frozen=True, slots=True)
class Configuration:
    """All members, sorted by id. `new` is present exactly while joint (Raft paper section 6).

    Active from the moment its entry is appended; truncating the entry makes the one before it active again.
    """

    old: tuple[Member, ...]
    new: tuple[Member, ...] | None = None
    removed: tuple[MemberId, ...] = ()  #: ids that were members once; they never come back

    @property
    def joint(self) -> bool:
        """Whether decisions need majorities of both halves."""
        return self.new is not None

    @property
    def target(self) -> tuple[Member, ...]:
        """The members after the change: `new` while joint, else `old`."""
        return self.old if self.new is None else self.new

    def voter_sets(self) -> tuple[frozenset[MemberId], ...]:
        """The voter set of each half: one set, or two while joint. A quorum is a majority of every one."""
        halves = (self.old,) if self.new is None else (self.old, self.new)
        return tuple(frozenset(m.id for m in half if m.role is Role.VOTER) for half in halves)

    def voters(self) -> frozenset[MemberId]:
        """Everyone who is a voter in either half."""
        return frozenset().union(*self.voter_sets())

    def members(self) -> dict[MemberId, Member]:
        """Every member of either half; the new half wins where both have one."""
        found = {m.id: m for m in self.old}
        found.update({m.id: m for m in self.new or ()})
        return dict(sorted(found.items()))


@dataclass(frozen=True, slots=True)
class Entry:
    """One log entry. `chain` covers everything before it, so equal chains mean equal histories (D8)."""

    index: Index
    term: Term
    kind: EntryKind
    timestamp_ms: int  #: the leader's wall clock, forced to grow by at least 1 from entry to entry
    proposal_id: bytes  #: 16 bytes, or empty for the core's own entries
    body: bytes
    chain: bytes  #: 8 bytes


def chain_hash(previous: bytes, term: Term, kind: int, timestamp_ms: int, proposal_id: bytes, body: bytes) -> bytes:
    """Return the 8-byte chained hash of an entry that follows one whose chain is `previous`."""
    digest = blake2b(previous, digest_size=8)
    digest.update(term.to_bytes(8, "big") + kind.to_bytes(1, "big") + timestamp_ms.to_bytes(8, "big"))
    digest.update(len(proposal_id).to_bytes(1, "big") + proposal_id)
    digest.update(body)
    return digest.digest()


@dataclass(frozen=True, slots=True)
class HardState:
    """What a member has promised: durable before any message that depends on it leaves (R-VOTE, R-TERM)."""

    term: Term = 0
    vote: MemberId = NOBODY


@dataclass(frozen=True, slots=True)
class SnapshotMark:
    """Where the log begins: everything up to `index` lives only in the state file."""

    index: Index
    term: Term
    chain: bytes
    configuration: Configuration
    configuration_index: Index


@dataclass(frozen=True, slots=True)
class DurableState:
    """All that a core is started from: read back from log.db, or kept by the simulator across a crash."""

    member_id: MemberId
    cluster_id: bytes  #: 16 bytes
    epoch: int
    hard: HardState
    snapshot: SnapshotMark
    entries: tuple[Entry, ...]  #: contiguous from snapshot.index + 1
    applied: Index = 0  #: what the state file says it has applied
    incarnation: int = 1  #: 64 random bits, new for every start of the process
    amnesia: bool = False  #: this id is burnt (CONSENSUS 3.5): it grants, acks and campaigns nothing, for ever
    sqlite_version: str = ""  #: told to the others, who show it
    features: int = 0  #: the highest feature level that this process can apply (model/features.py); told to the others


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of CONSENSUS D13; one object so that the simulator and tests can scale them."""

    heartbeat_ms: int = 50
    heartbeat_standby_ms: int = 200
    heartbeat_spare_ms: int = 1000
    election_min_ms: int = 450
    election_max_ms: int = 600
    check_quorum_ms: int = 100
    prevote_retry_ms: tuple[int, ...] = (25, 50, 100, 150)
    forget_jitter_ms: tuple[int, int] = (15, 40)
    prevote_hold_ms: int = 30
    proposal_retry_ms: int = 300
    transfer_ms: int = 500
    append_wait_ms: int = 20
    hung_write_ms: int = 2000
    slow_write_ms: int = 200
    offer_retry_ms: int = 500


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on everything that can queue (CONSENSUS 3.12, 1: small windows)."""

    pending_proposals: int = 1024
    uncommitted_bytes: int = 8 << 20
    append_entries: int = 256
    append_bytes: int = 512 << 10
    inflight_appends: int = 8
    inflight_bytes: int = 1 << 20  #: no Append leaves behind so many: a heartbeat on the same lane waits for them
    body_bytes: int = 900 << 10
    snapshot_chunk_bytes: int = 256 << 10
    snapshot_inflight: int = 4
    retained_entries: int = 2048
    pending_reads: int = 4096
    log_bytes: int = 8 << 20  #: compact when the log in memory exceeds this
    log_bytes_catching_up: int = 64 << 20  #: ... but wait for online members that lag, up to this
    min_free_kib: int = 64 << 10  #: below this a member is low on disk (CONSENSUS 3.4)
