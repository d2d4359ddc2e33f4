"""One machine of a script: its disk, its state machine, and how both survive a crash.

Owns what is durable; used by world.py, which decides when a write gets here. The state machine keeps the proposals
that it has executed, in order, and executes each of them once. It must never hold anything that a crash would lose.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from hashlib import blake2b

from incus_actors.consensus import effects as fx
from incus_actors.consensus.log import RaftLog
from incus_actors.consensus.messages import SnapshotOffer
from incus_actors.consensus.types import DurableState, Entry, EntryKind, Index, SnapshotMark, Term, chain_hash
from incus_actors.model.features import decode_level, too_new_text

KNOWN_KINDS = frozenset(EntryKind)
INTERNAL = frozenset({EntryKind.NOOP, EntryKind.CONFIG})


@dataclass
class State:
    """What has been applied: proposal ids in the order in which they were executed, and where."""

    index: Index = 0
    chain: bytes = bytes(8)
    executed: dict[bytes, Index] = field(default_factory=dict)
    bodies: dict[bytes, bytes] = field(default_factory=dict)
    level: int = 0  #: the feature level that is switched on
    salt: bytes = b""  #: not empty once the script has damaged this state

    def copy(self) -> State:
        """Return an independent copy."""
        return State(self.index, self.chain, dict(self.executed), dict(self.bodies), self.level, self.salt)

    def digest(self) -> bytes:
        """Return what members compare: equal at equal indexes unless a state is damaged."""
        return blake2b(self.chain + self.salt, digest_size=8).digest()

    def apply(self, entry: Entry) -> tuple[bytes, object] | None:
        """Execute one entry, or find that it was executed before; return its proposal id and outcome."""
        self.index, self.chain = entry.index, entry.chain
        if entry.kind in INTERNAL or not entry.proposal_id:
            return None
        first = self.executed.setdefault(entry.proposal_id, entry.index)
        self.bodies.setdefault(entry.proposal_id, entry.body)
        if entry.kind is EntryKind.FEATURE:
            self.level = max(self.level, decode_level(entry.body))
        return entry.proposal_id, first


class Machine:
    """Disk and state of one member."""

    def __init__(self, durable: DurableState, applied: Index = 0) -> None:
        self.durable = durable
        self.state = State(durable.snapshot.index, durable.snapshot.chain)
        self.history: list[State] = [self.state.copy()]  #: one state per index, so that a crash can go back
        for entry in durable.entries:
            if entry.index <= applied:
                self.state.apply(entry)
                self._remember()

    def _remember(self) -> None:
        self.history.append(self.state.copy())

    # -- log ------------------------------------------------------------------------------------------------------

    @property
    def last(self) -> Index:
        """The last entry on disk."""
        return self.durable.entries[-1].index if self.durable.entries else self.durable.snapshot.index

    @property
    def last_term(self) -> Term:
        """The term of the last entry on disk."""
        return self.durable.entries[-1].term if self.durable.entries else self.durable.snapshot.term

    def entry(self, index: Index) -> Entry | None:
        """Return the entry at `index` if the disk has it."""
        place = index - self.durable.snapshot.index - 1
        return self.durable.entries[place] if 0 <= place < len(self.durable.entries) else None

    def has(self, index: Index, chain: bytes) -> bool:
        """Return whether the disk holds, or has compacted away, exactly the history that ends so."""
        if index < self.durable.snapshot.index:
            return True
        if index == self.durable.snapshot.index:
            return self.durable.snapshot.chain == chain
        found = self.entry(index)
        return found is not None and found.chain == chain

    def write(self, write: fx.WriteLog) -> None:
        """Make one write of the core durable."""
        entries = self.durable.entries
        if write.truncate_from is not None:
            entries = tuple(entry for entry in entries if entry.index < write.truncate_from)
        self.durable = replace(self.durable, hard=write.hard or self.durable.hard, entries=entries + write.entries)

    def compact(self, index: Index) -> None:
        """Drop log entries up to `index`, which the state covers."""
        mark = self.mark_at(index)
        kept = tuple(entry for entry in self.durable.entries if entry.index > index)
        self.durable = replace(self.durable, snapshot=mark, entries=kept)
        self.history = [state for state in self.history if state.index >= index]

    def mark_at(self, index: Index) -> SnapshotMark:
        """Return the snapshot mark that compaction at `index` would make."""
        log = RaftLog(self.durable.snapshot, self.durable.entries)
        log.compact(index)
        return log.mark

    # -- state ----------------------------------------------------------------------------------------------------

    def too_new(self, entry: Entry) -> str:
        """Return why this release can't go on with an entry, if it can't: nothing of a newer one is skipped."""
        if entry.kind not in KNOWN_KINDS:
            return f"entry {entry.index} is of kind {entry.kind}, which this release can't apply"
        if entry.kind is EntryKind.FEATURE and decode_level(entry.body) > self.durable.features:
            return too_new_text(decode_level(entry.body), self.durable.features)
        return ""

    def apply(self, entry: Entry) -> tuple[bytes, object] | None:
        """Execute one entry; return its proposal id and outcome if it has one."""
        outcome = self.state.apply(entry)
        self._remember()
        return outcome

    def rewind(self, index: Index) -> bool:
        """The state file was not synced: go back to `index`; return whether such a state is known."""
        kept = [state for state in self.history if state.index <= index]
        if not kept or kept[-1].index != index:
            return False
        self.history = kept
        self.state = kept[-1].copy()
        return True

    def install(self, offer: SnapshotOffer, state: State, *, keep_suffix: bool) -> None:
        """Switch the generation: state and log mark in one durable commit."""
        mark = SnapshotMark(offer.index, offer.term, offer.chain, offer.configuration, offer.configuration_index)
        kept = tuple(entry for entry in self.durable.entries if entry.index > offer.index) if keep_suffix else ()
        self.durable = replace(self.durable, snapshot=mark, entries=kept)
        self.state = state.copy()
        self.history = [self.state.copy()]


def build_entries(specs: list[tuple[Term, str]]) -> tuple[Entry, ...]:
    """Return the entries of a `log=` option: equal terms and texts up to an index give equal histories."""
    chain, entries = bytes(8), list[Entry]()
    for index, (term, text) in enumerate(specs, 1):
        label = text or f"{index}/{term}"
        proposal, body = proposal_id(label), label.encode()
        chain = chain_hash(chain, term, EntryKind.SQL, index, proposal, body)
        entries.append(Entry(index, term, EntryKind.SQL, index, proposal, body, chain))
    return tuple(entries)


def proposal_id(label: str) -> bytes:
    """Return the 16 bytes that stand for a proposal's name."""
    return blake2b(label.encode(), digest_size=16).digest()
