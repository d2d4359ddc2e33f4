"""The state of one member and the one way out of it: what the role modules share.

Owns terms, log, timers and the outbox, where the durability rules of CONSENSUS 3.4 are enforced for every
message at once; core.py derives the dispatcher from it and supplies the transitions. It must never decide
anything about elections or replication, and nothing may leave except through `send`, `stage_*` and `emit`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from incus_actors.consensus.effects import (
    Apply,
    ConfigurationChanged,
    Count,
    Effect,
    Fatal,
    RoleChanged,
    Send,
    WriteLog,
)
from incus_actors.consensus.log import RaftLog
from incus_actors.consensus.measure import Samples
from incus_actors.consensus.messages import PROTOCOL_VERSION, Envelope, Message, PreVote, Vote
from incus_actors.consensus.types import (
    NOBODY,
    Configuration,
    DurableState,
    Entry,
    EntryKind,
    HardState,
    Index,
    Limits,
    MemberId,
    RaftRole,
    Term,
    Timing,
)

if TYPE_CHECKING:
    from incus_actors.consensus.candidate import Campaign
    from incus_actors.consensus.leader import Leadership
    from incus_actors.consensus.proposals import ProposalBook
    from incus_actors.consensus.reads import ReadQueue
    from incus_actors.consensus.snapshots import SnapshotReceiver
    from incus_actors.consensus.suspicion import Suspicion

NEVER = 1 << 62  #: a time that does not come
APPLY_BATCH = 1024
DIGESTS_KEPT = 512
MEASURED = ("heartbeat_late", "election", "snapshot_sending", "snapshot_receiving")


class Randomness(Protocol):
    """The part of random.Random that the core uses; injected, so that a run can be repeated."""

    def randint(self, a: int, b: int, /) -> int:
        """Return an integer between `a` and `b`, both included."""


@dataclass(slots=True)
class PendingWrite:
    """A WriteLog that is not durable yet."""

    write_id: int
    hard: HardState | None
    issued_ms: int


class Node:
    """State and outbox. Attributes are public to the modules of this package and to nobody else."""

    role: RaftRole
    leadership: Leadership | None
    campaign: Campaign | None
    proposals: ProposalBook
    reads: ReadQueue
    suspicion: Suspicion
    receiver: SnapshotReceiver

    def __init__(
        self, durable: DurableState, rng: Randomness, timing: Timing, limits: Limits, now_ms: int, wall_ms: int
    ) -> None:
        self.id: MemberId = durable.member_id
        self.cluster_key = durable.cluster_id[:8]
        self.epoch = durable.epoch
        self.incarnation = durable.incarnation
        self.amnesia = durable.amnesia
        self.sqlite_version = durable.sqlite_version
        self.features = durable.features
        self.rng = rng
        self.timing = timing
        self.limits = limits
        self.now = now_ms
        self.started_ms = now_ms
        self.wall_offset_ms = wall_ms - now_ms
        self.free_kib = 1 << 30

        self.role = RaftRole.FOLLOWER
        self.term: Term = durable.hard.term
        self.vote: MemberId = durable.hard.vote
        self.leader: MemberId = NOBODY
        self.term_leader: MemberId = NOBODY  #: who is known to lead this term, even when we have forgotten it
        self.durable_hard = durable.hard
        self.log = RaftLog(durable.snapshot, durable.entries)
        self.applied: Index = durable.applied
        self.apply_sent: Index = durable.applied
        self.commit: Index = max(durable.applied, durable.snapshot.index)
        self.verified: Index = 0  #: known to be in the log of this term's leader
        self.digest = b""
        self.digests: dict[Index, bytes] = {}

        self.election_timeout_ms = self.draw_election_timeout()
        self.election_deadline_ms = now_ms + self.election_timeout_ms
        self.leader_heard_ms = -NEVER
        self.leader_contact_ms = -NEVER  #: as leader_heard_ms, but stalls are not forgiven: how old the state may be
        self.heard_any_leader = False
        self.heir: MemberId = NOBODY
        self.wake_ms = NEVER
        self.stopped = False
        self.disk_full = False

        self.links: dict[MemberId, bool] = {}
        self.incarnations: dict[MemberId, int] = {}
        self.burnt_incarnations: dict[MemberId, list[int]] = {}
        self.greeted_ms: dict[MemberId, int] = {}
        self.sqlite_versions: dict[MemberId, str] = {}  #: of others, as they said it last
        self.features_of: dict[MemberId, int] = {}  #: the feature levels of others, as they said it last
        self.differs = False  #: our state was not the leader's when we last could compare
        self.known_members: frozenset[MemberId] = frozenset(self.log.configuration.members())
        self.visible_voters: tuple[MemberId, ...] = ()
        self.voter_sets = self.log.configuration.voter_sets()

        #: how long things took; decides nothing
        self.measured = {name: Samples() for name in MEASURED}

        self.effects: list[Effect] = []
        self.write_id = 0
        self.hard_write_id = 0  #: the write that carries the present term and vote
        self.writes: deque[PendingWrite] = deque()
        self.staged_hard = False
        self.staged_truncate: Index | None = None
        self.staged_entries: list[Entry] = []
        self.staged_then: list[Send] = []
        self.held: deque[tuple[int, Send]] = deque()
        self.applying_paused = False
        self.appended_sent: Index = 0
        self.compacting_until_ms = 0  #: a request to compact is under way
        self.campaign_waits = ""  #: why to campaign as soon as the log is written
        self.disk_ban_until_ms = 0
        self.led_until_ms = -NEVER
        self.fast_writes = 0

    # -- transitions, supplied by core.py -------------------------------------------------------------------------

    def become_follower(self, term: Term, leader: MemberId, cause: str) -> None:
        """Follow `leader` (or nobody) in `term`."""
        raise NotImplementedError

    def become_pre_candidate(self, why: str) -> None:
        """Ask whether an election could be won."""
        raise NotImplementedError

    def become_candidate(self, why: str) -> None:
        """Start an election in the next term."""
        raise NotImplementedError

    def become_leader(self) -> None:
        """Lead the present term."""
        raise NotImplementedError

    # -- questions ------------------------------------------------------------------------------------------------

    @property
    def is_voter(self) -> bool:
        """Whether the active configuration lets this member vote and campaign."""
        return any(self.id in voters for voters in self.voter_sets)

    def wall_ms(self) -> int:
        """Return the wall clock, which only ever stamps entries."""
        return self.now + self.wall_offset_ms

    def link_up(self, peer: MemberId) -> bool:
        """Return whether the link to `peer` works as far as we were told; unknown counts as up."""
        return self.links.get(peer, True)

    def has_own_term_commit(self) -> bool:
        """Whether an entry of the present term is committed: only then is `commit` up to date on a leader."""
        return self.log.term_at(self.commit) == self.term

    def low_on_disk(self) -> bool:
        """Whether this member should not take more data."""
        return self.disk_full or self.free_kib < self.limits.min_free_kib

    def disk_lag_ms(self) -> int:
        """Return how long the oldest unfinished write has been waiting."""
        return self.now - self.writes[0].issued_ms if self.writes else 0

    # -- timers ---------------------------------------------------------------------------------------------------

    def wake_at(self, at_ms: int) -> None:
        """Make sure that a Tick at or after `at_ms` does the full round of checks."""
        if at_ms < self.wake_ms:
            self.wake_ms = at_ms

    def draw_election_timeout(self) -> int:
        """Return a fresh random election timeout in milliseconds."""
        return self.rng.randint(self.timing.election_min_ms, self.timing.election_max_ms)

    def reset_election_timer(self) -> None:
        """Give whoever leads, or campaigns, a full timeout."""
        self.set_election_deadline(self.now + self.election_timeout_ms)

    def set_election_deadline(self, at_ms: int) -> None:
        """Campaign at `at_ms` unless something happens before."""
        self.election_deadline_ms = at_ms
        if at_ms < self.wake_ms:
            self.wake_ms = at_ms

    # -- outbox ---------------------------------------------------------------------------------------------------

    def emit(self, effect: Effect) -> None:
        """Add an effect that needs no rule."""
        self.effects.append(effect)

    def count(self, name: str, **labels: str) -> None:
        """Add one to a counter."""
        self.effects.append(Count(name, tuple(sorted(labels.items()))))

    def count_many(self, name: str, amount: int, **labels: str) -> None:
        """Add `amount` to a counter."""
        self.effects.append(Count(name, tuple(sorted(labels.items())), amount))

    def fatal(self, reason: str, kind: str = "fatal") -> None:
        """Stop for good: nothing staged and nothing held may leave any more."""
        self.stopped = True
        self.staged_then.clear()
        self.held.clear()
        self.effects.append(Fatal(reason, kind))

    def send(
        self, to: MemberId, message: Message, *, term: Term | None = None, durable: bool = False, bulk: bool = False
    ) -> None:
        """Send, as early as the rules allow.

        `durable`: only after what this step writes is on disk (R-VOTE, R-ACK). Any message that carries our
        term, except a request for votes, waits for that term to be durable (R-TERM). `term` is given for the
        messages that name a future term.
        """
        envelope = Envelope(
            PROTOCOL_VERSION,
            self.cluster_key,
            self.epoch,
            self.id,
            to,
            self.incarnation,
            self.term if term is None else term,
            message,
        )
        effect = Send(envelope, bulk)
        if term is not None or isinstance(message, (PreVote, Vote)):
            waits = durable
        else:
            waits = durable or self.durable_hard.term != self.term
        if not waits:
            self.effects.append(effect)
        elif durable or self.staged_hard:
            self.staged_then.append(effect)
        else:
            self.held.append((self.hard_write_id, effect))

    def set_hard(self, term: Term, vote: MemberId) -> None:
        """Change term and vote; durable before anything that depends on it leaves."""
        if (term, vote) != (self.term, self.vote):
            self.term = term
            self.vote = vote
            self.staged_hard = True

    def stage_truncate(self, index: Index) -> None:
        """Drop entries from `index` on, in memory now and on disk with this step's write."""
        self.log.truncate(index)
        self.staged_truncate = index if self.staged_truncate is None else min(index, self.staged_truncate)
        self.staged_entries = [entry for entry in self.staged_entries if entry.index < index]
        self.verified = min(self.verified, index - 1)
        self.configuration_activated()

    def stage_entry(self, entry: Entry) -> None:
        """Append in memory now and on disk with this step's write."""
        self.log.append(entry)
        self.staged_entries.append(entry)
        if entry.kind is EntryKind.CONFIG:
            self.configuration_activated()

    def flush(self) -> None:
        """Turn what this step has staged into one WriteLog, placed first so that the disk starts at once."""
        if not (self.staged_hard or self.staged_entries or self.staged_truncate is not None):
            if self.staged_then:
                self._release_unwritten()
            return
        self.write_id += 1
        hard = HardState(self.term, self.vote) if self.staged_hard else None
        if self.staged_entries or self.staged_truncate is not None:
            self.log.write_started(self.write_id)
        if hard is not None:
            self.hard_write_id = self.write_id
        self.writes.append(PendingWrite(self.write_id, hard, self.now))
        write = WriteLog(
            self.write_id,
            self.log.generation,
            hard,
            self.staged_truncate,
            tuple(self.staged_entries),
            self.commit,
            tuple(self.staged_then),
        )
        self.effects.insert(0, write)
        self.staged_hard = False
        self.staged_truncate = None
        self.staged_entries.clear()
        self.staged_then.clear()

    def _release_unwritten(self) -> None:
        """A durable answer without anything new to write waits for the writes before it, if there are any."""
        if self.writes:
            last = self.writes[-1].write_id
            self.held.extend((last, effect) for effect in self.staged_then)
        else:
            self.effects.extend(self.staged_then)
        self.staged_then.clear()

    def written(self, write_id: int) -> bool:
        """Note that writes up to `write_id` are durable, release what waited; return whether the log gained."""
        while self.writes and self.writes[0].write_id <= write_id:
            write = self.writes.popleft()
            if write.hard is not None:
                self.durable_hard = write.hard
        while self.held and self.held[0][0] <= write_id:
            self.effects.append(self.held.popleft()[1])
        return self.log.write_finished(write_id)

    # -- commit and apply -----------------------------------------------------------------------------------------

    def advance_commit(self, index: Index) -> bool:
        """Move the commit index forward, never back; return whether it moved."""
        if index <= self.commit:
            return False
        before, self.commit = self.commit, index
        if before < self.log.configuration_index <= index:
            self.emit(ConfigurationChanged(self.log.configuration, self.log.configuration_index, True))
        self.apply_ready()
        return True

    def apply_ready(self) -> None:
        """Hand over what is committed and durable here, and not one entry more (R-APPLY)."""
        ready = min(self.commit, self.log.durable)
        if self.applying_paused:
            return
        while self.apply_sent < ready:
            high = min(ready, self.apply_sent + APPLY_BATCH)
            self.emit(Apply(self.log.slice(self.apply_sent + 1, high)))
            self.apply_sent = high

    # -- configuration --------------------------------------------------------------------------------------------

    def configuration_activated(self) -> None:
        """Tell everyone when the active configuration is another one than before."""
        configuration = self.log.configuration
        if configuration is self.active_configuration:
            return
        self.active_configuration = configuration
        self.voter_sets = configuration.voter_sets()
        self.known_members = frozenset(configuration.members())
        self.refresh_visible()
        index = self.log.configuration_index
        self.emit(ConfigurationChanged(configuration, index, index <= self.commit))

    active_configuration: Configuration | None = None

    def refresh_visible(self) -> None:
        """Note which voters our links reach, for heartbeat answers."""
        self.visible_voters = tuple(peer for peer in self.voting_peers() if self.link_up(peer))

    def voting_peers(self) -> tuple[MemberId, ...]:
        """Return the ids of all other voters of either half, sorted."""
        return tuple(sorted(self.log.configuration.voters() - {self.id}))

    def note_digest(self, index: Index, digest: bytes) -> None:
        """Remember the digest of the state at `index`, to compare with others at the same place (3.11)."""
        self.digest = digest
        self.digests[index] = digest
        if len(self.digests) > DIGESTS_KEPT:
            del self.digests[next(iter(self.digests))]

    def role_changed(self, cause: str) -> None:
        """Tell everyone what this member is now."""
        self.emit(RoleChanged(self.role, self.term, self.leader, cause))
