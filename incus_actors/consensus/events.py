"""What happens to the core. Counterpart: effects.py.

Owns the input vocabulary of `Core.step(now_ms, event)`; the driver and the simulator make these. Must never
carry behaviour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from incus_actors.consensus.messages import Envelope
from incus_actors.consensus.types import Configuration, EntryKind, Index, Member, MemberId


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; every 10 ms from the driver. `wall_ms` only stamps entries."""

    wall_ms: int
    free_kib: int = 1 << 30


@dataclass(frozen=True, slots=True)
class Stalled:
    """This process was late by `ms`; its own stall says nothing about the leader (3.8)."""

    ms: int


@dataclass(frozen=True, slots=True)
class Receive:
    """A message arrived."""

    envelope: Envelope


@dataclass(frozen=True, slots=True)
class LinkUp:
    """A link to `peer` works in both directions."""

    peer: MemberId


@dataclass(frozen=True, slots=True)
class LinkDown:
    """Both links to `peer` broke. Evidence as in 3.7: "E2" refused, "E1" nothing for 25 ms (already waited)."""

    peer: MemberId
    evidence: str


@dataclass(frozen=True, slots=True)
class LogWritten:
    """WriteLog `write_id`, and every one before it, is durable."""

    write_id: int


@dataclass(frozen=True, slots=True)
class LogFailed:
    """WriteLog `write_id` failed. `kind`: "full" (rolled back; the driver keeps it and all later ones queued in
    order and tries again with backoff, a later LogWritten covers it) or "io" (fail-stop)."""

    write_id: int
    kind: str


@dataclass(frozen=True, slots=True)
class Applied:
    """The state has everything up to `index`. `results`: proposal id and opaque outcome of each entry that
    carried one; `digest`: running digest of the state at `index`."""

    index: Index
    digest: bytes
    results: tuple[tuple[bytes, object], ...] = ()


@dataclass(frozen=True, slots=True)
class Propose:
    """A local wish to append. Answered by Resolve(proposal_id): the outcome of applying it here, or a status
    (busy, too_large, disk_full, unknown). `deadline_ms` is on the core's clock."""

    proposal_id: bytes
    kind: EntryKind
    body: bytes
    wall_ms: int
    deadline_ms: int


@dataclass(frozen=True, slots=True)
class ReadIndex:
    """A local wish to read linearizably. Answered by Resolve(request_id) once applied >= the read point."""

    request_id: int
    deadline_ms: int


@dataclass(frozen=True, slots=True)
class ChangeConfiguration:
    """Only on the leader: go to these members, through a joint configuration if the voters change.

    Answered by Resolve(request_id): applied when the final configuration is committed, else not_leader,
    busy (a change is in flight, or no own-term commit yet), invalid.
    """

    request_id: int
    target: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Transfer:
    """Hand leadership to `target` (0: the heir). Answered by Resolve(request_id): applied, timeout, ..."""

    request_id: int
    target: MemberId


@dataclass(frozen=True, slots=True)
class Shutdown:
    """The daemon is about to stop: say Goodbye and answer nothing more."""

    why: str = "shutdown"


@dataclass(frozen=True, slots=True)
class Compacted:
    """The driver has made the state durable up to `index`; the core may forget entries up to there."""

    index: Index


@dataclass(frozen=True, slots=True)
class SnapshotReady:
    """A transfer snapshot exists for `peer`, as asked by TakeSnapshot."""

    peer: MemberId
    snapshot_id: str
    index: Index
    term: int
    chain: bytes
    configuration: Configuration
    configuration_index: Index
    size: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class SnapshotChunkRead:
    """Bytes of a transfer snapshot, as asked by ReadSnapshotChunk."""

    peer: MemberId
    snapshot_id: str
    offset: int
    data: bytes
    crc: int


@dataclass(frozen=True, slots=True)
class SnapshotChunkStored:
    """A received chunk is in the temporary file up to `next_offset`."""

    snapshot_id: str
    next_offset: int


@dataclass(frozen=True, slots=True)
class SnapshotInstalled:
    """The generation switch is durable; the log now begins after `index`."""

    snapshot_id: str
    index: Index
    digest: bytes


@dataclass(frozen=True, slots=True)
class SnapshotFailed:
    """Taking, reading or installing did not work; nothing changed."""

    peer: MemberId
    snapshot_id: str
    reason: str


Event: TypeAlias = (
    Tick
    | Stalled
    | Receive
    | LinkUp
    | LinkDown
    | LogWritten
    | LogFailed
    | Applied
    | Propose
    | ReadIndex
    | ChangeConfiguration
    | Transfer
    | Shutdown
    | Compacted
    | SnapshotReady
    | SnapshotChunkRead
    | SnapshotChunkStored
    | SnapshotInstalled
    | SnapshotFailed
)
