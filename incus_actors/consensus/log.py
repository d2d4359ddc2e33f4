"""The log as the core sees it: entries in memory, which of them are durable, and the configurations they hold.

Owns entries after the snapshot mark, their chain of hashes, the write generations that tell durable from
overwritten (CONSENSUS 3.4) and the stack of configurations; used by every role. Must never drop a committed
entry: callers check that before they truncate, and the invariants check it again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence

from incus_actors.consensus.configuration import decode_configuration
from incus_actors.consensus.types import Configuration, Entry, EntryKind, Index, SnapshotMark, Term, chain_hash

ENTRY_OVERHEAD = 64  #: bytes counted for an entry beside its body


class LogDamagedError(ValueError):
    """Entries do not follow each other: missing index, falling term or broken chain."""


class RaftLog:
    """Entries from `first` to `last`; everything before lives only in the state file.

    `durable` is the highest index such that it and all before it are on disk as they are in memory. Each
    truncation starts a new generation: a write that was under way then can no longer vouch for anything from the
    truncated index on, whatever has been put there since.
    """

    __slots__ = (
        "_in_flight",
        "bytes",
        "configurations",
        "durable",
        "entries",
        "first",
        "generation",
        "last",
        "last_term",
        "mark",
        "proposals",
    )

    def __init__(self, mark: SnapshotMark, entries: Iterable[Entry]) -> None:
        """Raise LogDamagedError unless `entries` follow `mark` without a gap."""
        self.generation = 0
        self._load(mark, entries)

    def _load(self, mark: SnapshotMark, entries: Iterable[Entry]) -> None:
        self.mark = mark
        self.first: Index = mark.index + 1
        self.entries: list[Entry] = []
        self.last: Index = mark.index
        self.last_term: Term = mark.term
        self.bytes = 0
        self.proposals: dict[bytes, Index] = {}
        self.configurations: list[tuple[Index, Configuration]] = [(mark.configuration_index, mark.configuration)]
        self._in_flight: deque[tuple[int, Index]] = deque()
        for entry in entries:
            if entry.index != self.last + 1 or entry.term < self.last_term:
                raise LogDamagedError(f"entry {entry.index} term {entry.term} after {self.last} term {self.last_term}")
            self.append(entry)
        self.durable: Index = self.last

    # -- reading ------------------------------------------------------------------------------------------------

    def term_at(self, index: Index) -> Term | None:
        """Return the term of `index`, or None when it is compacted away or beyond the end."""
        if index == self.last:
            return self.last_term
        if self.first <= index <= self.last:
            return self.entries[index - self.first].term
        return self.mark.term if index == self.mark.index else None

    def chain_at(self, index: Index) -> bytes | None:
        """Return the chain at `index`, or None when it is compacted away or beyond the end."""
        if self.first <= index <= self.last:
            return self.entries[index - self.first].chain
        return self.mark.chain if index == self.mark.index else None

    def entry(self, index: Index) -> Entry:
        """Return the entry at `index`, which must be in the log."""
        if not self.first <= index <= self.last:
            raise IndexError(index)
        return self.entries[index - self.first]

    def slice(self, low: Index, high: Index) -> tuple[Entry, ...]:
        """Return entries `low` to `high`, both included and both in the log."""
        return tuple(self.entries[low - self.first : high - self.first + 1])

    def last_timestamp_ms(self) -> int:
        """Return the timestamp of the last entry, 0 when there is none in memory."""
        return self.entries[-1].timestamp_ms if self.entries else 0

    def last_not_after_term(self, index: Index, term: Term) -> tuple[Index, Term]:
        """Return the largest known index <= `index` whose term is <= `term`, with its term.

        Both sides of a conflict use it to skip a whole run of entries of one term at a time. Never below the
        snapshot mark, which is committed and so agreed.
        """
        if index > self.last:
            index = self.last
        if index < self.first:
            return self.mark.index, self.mark.term
        position = bisect_right(self.entries, term, hi=index - self.first + 1, key=lambda entry: entry.term)
        if position == 0:
            return self.mark.index, self.mark.term
        found = self.entries[position - 1]
        return found.index, found.term

    def is_up_to_date(self, last_index: Index, last_term: Term) -> bool:
        """Return whether a log that ends like this is at least as good as ours (Raft paper 5.4.1)."""
        return last_term > self.last_term or (last_term == self.last_term and last_index >= self.last)

    @property
    def configuration(self) -> Configuration:
        """The active configuration: the last one in the log, committed or not."""
        return self.configurations[-1][1]

    @property
    def configuration_index(self) -> Index:
        """Where the active configuration stands."""
        return self.configurations[-1][0]

    # -- changing -----------------------------------------------------------------------------------------------

    def make(self, term: Term, kind: EntryKind, timestamp_ms: int, proposal_id: bytes, body: bytes) -> Entry:
        """Return the entry that would come next, not yet appended. Its timestamp is forced to grow."""
        chain = self.chain_at(self.last) or self.mark.chain
        timestamp_ms = max(timestamp_ms, self.last_timestamp_ms() + 1)
        link = chain_hash(chain, term, kind, timestamp_ms, proposal_id, body)
        return Entry(self.last + 1, term, kind, timestamp_ms, proposal_id, body, link)

    def append(self, entry: Entry) -> None:
        """Add the next entry, in memory only."""
        self.entries.append(entry)
        self.last = entry.index
        self.last_term = entry.term
        self.bytes += len(entry.body) + ENTRY_OVERHEAD
        if entry.proposal_id:
            self.proposals[entry.proposal_id] = entry.index
        if entry.kind is EntryKind.CONFIG:
            self.configurations.append((entry.index, decode_configuration(entry.body)))

    def truncate(self, index: Index) -> None:
        """Drop `index` and everything after it; configurations among them are undone."""
        if index < self.first:
            raise IndexError(f"truncation at {index} below {self.first}")
        dropped = self.entries[index - self.first :]
        del self.entries[index - self.first :]
        self._forget(dropped)
        self.last = index - 1
        self.last_term = self.entries[-1].term if self.entries else self.mark.term
        while self.configurations[-1][0] >= index:
            self.configurations.pop()
        self.generation += 1
        self.durable = min(self.durable, index - 1)
        self._in_flight = deque((write_id, min(last, index - 1)) for write_id, last in self._in_flight)

    def compact(self, index: Index) -> None:
        """Forget entries up to `index`, which the state has made durable."""
        if not self.first <= index <= self.durable:
            return
        last_dropped = self.entry(index)
        position = bisect_right(self.configurations, index, key=lambda item: item[0])
        configuration_index, configuration = self.configurations[max(position - 1, 0)]
        self.configurations = [(configuration_index, configuration), *self.configurations[position:]]
        dropped = self.entries[: index - self.first + 1]
        del self.entries[: index - self.first + 1]
        self._forget(dropped)
        self.first = index + 1
        self.mark = SnapshotMark(index, last_dropped.term, last_dropped.chain, configuration, configuration_index)

    def restore(self, mark: SnapshotMark) -> None:
        """Begin after an installed snapshot; a suffix that goes on from exactly there is kept.

        Nothing may be in flight: the core installs only then.
        """
        if self.chain_at(mark.index) == mark.chain and self.term_at(mark.index) == mark.term:
            keep = self.entries[mark.index - self.first + 1 :] if mark.index >= self.first else self.entries
        else:
            keep = []
        durable = max(self.durable, mark.index)
        self._load(mark, keep)
        self.durable = min(durable, self.last)
        self.generation += 1

    def _forget(self, dropped: Sequence[Entry]) -> None:
        for entry in dropped:
            self.bytes -= len(entry.body) + ENTRY_OVERHEAD
            if entry.proposal_id and self.proposals.get(entry.proposal_id) == entry.index:
                del self.proposals[entry.proposal_id]

    # -- durability ---------------------------------------------------------------------------------------------

    def write_started(self, write_id: int) -> None:
        """Everything up to `last` is in write `write_id` or an earlier one."""
        self._in_flight.append((write_id, self.last))

    def write_finished(self, write_id: int) -> bool:
        """Writes up to `write_id` are durable; return whether `durable` has moved."""
        before = self.durable
        while self._in_flight and self._in_flight[0][0] <= write_id:
            self.durable = max(self.durable, self._in_flight.popleft()[1])
        return self.durable != before

    @property
    def writing(self) -> bool:
        """Whether an append or truncation is not durable yet."""
        return bool(self._in_flight)


def verify_chain(mark: SnapshotMark, entries: Iterable[Entry]) -> Index:
    """Return the last index of a log read from disk. Raises LogDamagedError at the first entry that does not
    follow from the one before it; about 1 microsecond an entry."""
    index, term, chain = mark.index, mark.term, mark.chain
    for entry in entries:
        link = chain_hash(chain, entry.term, entry.kind, entry.timestamp_ms, entry.proposal_id, entry.body)
        if entry.index != index + 1 or entry.term < term or entry.chain != link:
            raise LogDamagedError(f"entry {entry.index} does not follow {index}")
        index, term, chain = entry.index, entry.term, entry.chain
    return index
