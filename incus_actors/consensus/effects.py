"""What the core asks of its driver. Counterpart: events.py.

Owns the output vocabulary of `Core.step`; the driver carries each out in the order given and never thinks.
Effects are idempotent or carry an id, so doing one twice is harmless.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from incus_actors.consensus.messages import Envelope, SnapshotOffer
from incus_actors.consensus.types import Configuration, Entry, HardState, Index, MemberId, RaftRole, Term


@dataclass(frozen=True, slots=True)
class Send:
    """May leave at once. `bulk`: by the bulk lane (snapshot chunks, catch-up)."""

    envelope: Envelope
    bulk: bool = False


@dataclass(frozen=True, slots=True)
class WriteLog:
    """One durable transaction: hard state if given, truncation from an index on, then entries.

    When it is durable the driver first steps LogWritten(write_id) into the core and then carries out `then`:
    messages that must not leave before (R-VOTE, R-TERM, R-ACK). `generation` grows at each truncation.
    """

    write_id: int
    generation: int
    hard: HardState | None
    truncate_from: Index | None
    entries: tuple[Entry, ...]
    commit: Index
    then: tuple[Send, ...] = ()


@dataclass(frozen=True, slots=True)
class Apply:
    """Committed and durable here (R-APPLY), contiguous, never twice in the life of a core."""

    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Resolve:
    """The end of a Propose (by proposal id), ReadIndex, ChangeConfiguration or Transfer (by request id).

    `status`: applied, not_leader, busy, too_large, disk_full, invalid, timeout, unknown. `result`: what apply
    returned for a proposal; for reads None.
    """

    key: bytes | int
    status: str
    index: Index = 0
    result: object = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class RoleChanged:
    """Role, term or known leader is now this. `cause`: timeout, lost, heir, transfer, startup, higher_term,
    check_quorum, leader_found, forgot, disk, shutdown, removed, won."""

    role: RaftRole
    term: Term
    leader: MemberId
    cause: str


@dataclass(frozen=True, slots=True)
class ConfigurationChanged:
    """The active configuration (on append) is now this: the transport adjusts its peers and allowlist."""

    configuration: Configuration
    index: Index
    committed: bool


@dataclass(frozen=True, slots=True)
class Compact:
    """Ask the driver to make the state durable and drop log entries up to `index`."""

    index: Index


@dataclass(frozen=True, slots=True)
class TakeSnapshot:
    """Make (or re-use) a transfer snapshot for `peer`."""

    peer: MemberId


@dataclass(frozen=True, slots=True)
class ReadSnapshotChunk:
    """Read bytes of a transfer snapshot."""

    peer: MemberId
    snapshot_id: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class StoreSnapshotChunk:
    """Put received bytes into the temporary file of the offer."""

    offer: SnapshotOffer
    offset: int
    data: bytes
    crc: int


@dataclass(frozen=True, slots=True)
class InstallSnapshot:
    """All bytes are there: verify, switch the generation in one durable commit, report.

    The core asks only when no WriteLog is unanswered and everything handed over by Apply has been applied, and
    asks for neither until SnapshotInstalled or SnapshotFailed. Log entries after `offer.index` are kept exactly if
    `keep_suffix`.
    """

    offer: SnapshotOffer
    keep_suffix: bool


@dataclass(frozen=True, slots=True)
class Count:
    """Add to a counter of CONSENSUS 3.14 (name in snake case, labels as pairs)."""

    name: str
    labels: tuple[tuple[str, str], ...] = ()
    amount: int = 1


@dataclass(frozen=True, slots=True)
class Fatal:
    """Stop this process now: going on could break a promise.

    `kind`: "fatal" (fail-stop; restart with the checks of CONSENSUS 3.5), "io" (failed write: leave the suspect
    marker), "amnesia" (this member id is burnt: re-join under a new one) or "superseded" (the cluster was recovered
    without this member; reason: own epoch, theirs, who said so).
    """

    reason: str
    kind: str = "fatal"


Effect: TypeAlias = (
    Send
    | WriteLog
    | Apply
    | Resolve
    | RoleChanged
    | ConfigurationChanged
    | Compact
    | TakeSnapshot
    | ReadSnapshotChunk
    | StoreSnapshotChunk
    | InstallSnapshot
    | Count
    | Fatal
)
