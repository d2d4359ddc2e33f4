"""What members say to each other (CONSENSUS 3.2).

Owns the message vocabulary; the core makes and reads these, transport/codec.py puts them on the wire, and
nothing here knows how. `term` travels in the envelope: the sender's current term, or for PreVote and a PreVoteResponse
that is granted, or refused with NO_SPACE, the term that is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from incus_actors.consensus.types import Configuration, EntryKind, Index, MemberId, Term

PROTOCOL_VERSION = 1
NO_SPACE = "disk_full"  #: why a pre-vote is refused by who could not write the vote either


@dataclass(frozen=True, slots=True)
class Hello:
    """First message on each link. A changed incarnation proves that the old process is gone (E3)."""

    version_min: int
    version_max: int
    last_index: Index
    last_term: Term
    commit: Index
    answer: bool = False  #: True when this Hello answers one
    sqlite_version: str = ""  #: what the sender applies entries with (3.11); shown, and decides nothing
    features: int = 0  #: the highest feature level that the sender can apply; 0 from releases before there were any


@dataclass(frozen=True, slots=True)
class PreVote:
    """Would you vote for me in this term? Changes nothing anywhere. `why`: timeout, lost, heir."""

    last_index: Index
    last_term: Term
    why: str


@dataclass(frozen=True, slots=True)
class PreVoteResponse:
    """`reason` when refused: log, has_leader, term, startup, amnesia, disk_full."""

    granted: bool
    reason: str
    leader: MemberId
    for_term: Term

    @property
    def names_future_term(self) -> bool:
        """Whether its envelope names the term that was asked for, which nobody is in, and not the sender's."""
        return self.granted or self.reason == NO_SPACE


@dataclass(frozen=True, slots=True)
class Vote:
    """`transfer` skips stickiness and nothing else."""

    last_index: Index
    last_term: Term
    transfer: bool


@dataclass(frozen=True, slots=True)
class VoteResponse:
    """Counted only when `for_term` is the candidate's current term."""

    granted: bool
    reason: str
    for_term: Term


@dataclass(frozen=True, slots=True)
class WireEntry:
    """An entry without its index, which follows from its place behind `Append.previous_index`."""

    term: Term
    kind: EntryKind
    timestamp_ms: int
    proposal_id: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class Append:
    """Entries after `previous_index`. `sequence` numbers the messages of one leader to one follower."""

    previous_index: Index
    previous_term: Term
    previous_chain: bytes
    commit: Index
    sequence: int
    entries: tuple[WireEntry, ...]


@dataclass(frozen=True, slots=True)
class AppendResponse:
    """`match`: verified by this stream and durable. On refusal the hint speeds up backtracking."""

    ok: bool
    match: Index
    sequence: int
    hint_index: Index
    hint_term: Term
    applied: Index
    digest: bytes
    free_kib: int
    reason: str = ""  #: "", "conflict", "corrupt", "disk"


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Small, on the control lane, never behind entries. `commit` is min(match, commit)."""

    commit: Index
    read_sequence: int
    heir: MemberId
    digest_at: Index
    digest: bytes
    sent_ms: int = 0  #: leader's monotonic time, echoed for the round-trip time


@dataclass(frozen=True, slots=True)
class HeartbeatResponse:
    """Confirms every read registered up to `read_sequence`."""

    read_sequence: int
    applied: Index
    digest: bytes
    lag_ms: int
    free_kib: int
    links: tuple[MemberId, ...]
    last_index: Index = 0  #: verified by this leader's stream, perhaps not durable yet
    sent_ms: int = 0
    match: Index = 0  #: verified and durable, as in AppendResponse: a lost one costs no more than a heartbeat


@dataclass(frozen=True, slots=True)
class SnapshotOffer:
    """A state file to install instead of entries that are gone."""

    snapshot_id: str
    index: Index
    term: Term
    chain: bytes
    configuration: Configuration
    configuration_index: Index
    size: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class SnapshotChunk:
    """Bulk lane only."""

    snapshot_id: str
    offset: int
    data: bytes
    crc: int


@dataclass(frozen=True, slots=True)
class SnapshotAck:
    """`state`: receiving, installed, abort. Transfer goes on from `next_offset` after any break."""

    snapshot_id: str
    next_offset: int
    state: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TimeoutNow:
    """Leadership transfer: the target must have exactly this last entry, durable."""

    last_index: Index
    last_term: Term


@dataclass(frozen=True, slots=True)
class Goodbye:
    """Best effort. `why`: shutdown, stepdown, diskfail."""

    why: str
    heir: MemberId


@dataclass(frozen=True, slots=True)
class Propose:
    """A follower hands a proposal to the leader."""

    proposal_id: bytes
    kind: EntryKind
    body: bytes
    wall_ms: int
    attempt: int = 0  #: which of all that this process has sent; 0 from releases before there were any


@dataclass(frozen=True, slots=True)
class ProposeResponse:
    """Sent for refusals: not_leader, busy, disk_full, too_large, dropped; success is seen in the log. `attempt`: of the
    proposal that it answers."""

    proposal_id: bytes
    status: str
    leader: MemberId
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class ReadIndex:
    """A follower asks for a point at which a local read is linearizable. `request_id` is never re-used."""

    request_id: int


@dataclass(frozen=True, slots=True)
class ReadIndexResponse:
    """`ok` False: not the leader, try `leader`."""

    request_id: int
    index: Index
    ok: bool
    leader: MemberId


Message: TypeAlias = (
    Hello
    | PreVote
    | PreVoteResponse
    | Vote
    | VoteResponse
    | Append
    | AppendResponse
    | Heartbeat
    | HeartbeatResponse
    | SnapshotOffer
    | SnapshotChunk
    | SnapshotAck
    | TimeoutNow
    | Goodbye
    | Propose
    | ProposeResponse
    | ReadIndex
    | ReadIndexResponse
)


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message on its way. Wrong cluster, epoch or destination, or a stale incarnation: dropped, counted."""

    version: int
    cluster_id: bytes  #: first 8 bytes of the cluster's UUID
    epoch: int
    source: MemberId
    destination: MemberId
    incarnation: int
    term: Term
    message: Message
