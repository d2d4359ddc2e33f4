"""The safety properties of CONSENSUS 4.2, watched after every step and at every border a message or a write crosses.

Owns what is known about the whole world (who led which term, what was committed, applied, promised); called by
hosts. It looks at disks and cores directly, so it finds a broken promise where it is made, long before a client
could. Must never change anything that it looks at.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from incus_actors.consensus import effects as fx
from incus_actors.consensus import events as ev
from incus_actors.consensus import messages as msg
from incus_actors.consensus.configuration import decode_configuration
from incus_actors.consensus.core import Core
from incus_actors.consensus.quorum import has_majority
from incus_actors.consensus.types import (
    GENESIS_CHAIN,
    Configuration,
    Entry,
    EntryKind,
    HardState,
    Index,
    MemberId,
    RaftRole,
    Term,
)
from incus_actors.simulation.machine import Image, Outcome
from incus_actors.simulation.stale_reads import Versions

if TYPE_CHECKING:
    from incus_actors.simulation.host import Host
    from incus_actors.simulation.world import World

VoterSets = tuple[frozenset[MemberId], ...]


class ViolationError(AssertionError):
    """A property does not hold. `name` is its id in CONSENSUS 4.2 (or the rule of 3.4)."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name


class Monitor:
    """Everything that must hold whatever happens."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.leaders: dict[Term, MemberId] = {}
        self.chains: dict[tuple[Index, Term], bytes] = {}  #: P-LM
        self.committed: dict[Index, bytes] = {0: GENESIS_CHAIN}
        self.committed_last: Index = 0
        self.committed_by: dict[Term, Index] = {}
        self.states: dict[Index, bytes] = {}  #: P-SMS: digest of the state at an index
        self.executed: dict[bytes, tuple[Index, Outcome]] = {}  #: P-EO
        self.versions = Versions()  #: P-STALE
        self.votes: dict[tuple[MemberId, Term], MemberId] = {}
        self.overlaps: dict[tuple[VoterSets, VoterSets], bool] = {}
        self.prevote: tuple[Term, MemberId] | None = None
        self.was_leader = False
        self.commit_before: Index = 0

    # -- around a step --------------------------------------------------------------------------------------------

    def before_step(self, core: Core, event: ev.Event) -> None:
        """Remember what a step must not change."""
        self.was_leader = core.role is RaftRole.LEADER
        self.commit_before = core.commit
        if type(event) is ev.Receive and type(event.envelope.message) is msg.PreVote:
            self.prevote = (core.term, core.vote)

    def after_step(self, host: Host, core: Core) -> None:
        """P-PV, P-TERM, P-ES, P-LC and whatever a commit implies."""
        if self.prevote is not None:
            before, self.prevote = self.prevote, None
            if before != (core.term, core.vote):
                raise ViolationError(
                    "P-PV", f"a pre-vote moved member {host.id} from {before} to {core.term, core.vote}"
                )
        term = core.term
        if term != host.seen_term:
            if term < host.seen_term and not core.amnesia:
                raise ViolationError("P-TERM", f"member {host.id} went from term {host.seen_term} to {term}")
            host.seen_term = term
        if core.role is RaftRole.LEADER and host.led_term != term:
            self._won(host, core)
        if core.commit != host.seen_commit and not core.amnesia:
            self._commit_moved(host, core)

    def _won(self, host: Host, core: Core) -> None:
        host.led_term = term = core.term
        known = self.leaders.setdefault(term, host.id)
        if known != host.id:
            raise ViolationError("P-ES", f"members {known} and {host.id} both lead term {term}")
        if core.amnesia:
            raise ViolationError("P-HONEST", f"member {host.id} has amnesia and leads term {term}")
        must = max((index for by, index in self.committed_by.items() if by < term), default=0)
        log = core.log
        at = max(must, log.mark.index)
        if log.last < must or (at == must and log.chain_at(at) != self.committed[at]):
            raise ViolationError(
                "P-LC", f"member {host.id} leads term {term} with a log to {log.last}, without committed entry {must}"
            )
        self.world.elections += 1

    # -- commit ---------------------------------------------------------------------------------------------------

    def _commit_moved(self, host: Host, core: Core) -> None:
        commit, log = core.commit, core.log
        if commit < host.seen_commit:
            raise ViolationError("P-TERM", f"commit of member {host.id} went from {host.seen_commit} to {commit}")
        host.seen_commit = commit
        if commit > self.committed_last:
            if core.role is RaftRole.LEADER:
                self._replicated(host, core, commit)
            for index in range(self.committed_last + 1, commit + 1):
                chain = log.chain_at(index)
                if chain is None:
                    raise ViolationError("P-SMS", f"member {host.id} installed {index}, which nobody had committed")
                self.committed[index] = chain
            self.committed_last = commit
            self.committed_by[core.term] = commit
        elif log.chain_at(commit) != self.committed[commit]:
            raise ViolationError("P-SMS", f"member {host.id} committed another history at {commit}")

    def _replicated(self, host: Host, core: Core, commit: Index) -> None:
        """R-ACK, R-LEAD: what a leader commits is on the disks of a majority of every voter set, right now."""
        chain = core.log.chain_at(commit)
        have = {
            member
            for member, other in self.world.hosts.items()
            if other.burnt or other.damaged or other.disk.mark.index > commit or other.disk.chain_at(commit) == chain
        }
        if not has_majority(core.voter_sets, have):
            raise ViolationError(
                "P-DUR", f"member {host.id} committed {commit}, durable only on {sorted(have)} of {core.voter_sets}"
            )

    # -- the log --------------------------------------------------------------------------------------------------

    def writing(self, host: Host, write: fx.WriteLog) -> None:
        """P-LM, P-LAO, P-CONF: what a member puts into its log."""
        chains = self.chains
        for entry in write.entries:
            known = chains.setdefault((entry.index, entry.term), entry.chain)
            if known != entry.chain:
                raise ViolationError("P-LM", f"entry {entry.index} of term {entry.term} differs on member {host.id}")
            if entry.kind is EntryKind.CONFIG:
                self._configuration_appended(host, entry)
            elif entry.kind is EntryKind.FEATURE:
                self._feature_appended(host, entry)
        if write.truncate_from is not None:
            core = host.core
            if self.was_leader and core is not None and core.role is RaftRole.LEADER:
                raise ViolationError("P-LAO", f"leader {host.id} drops its own entries from {write.truncate_from}")
            if write.truncate_from <= self.commit_before:
                raise ViolationError("P-SMS", f"member {host.id} drops committed entries from {write.truncate_from}")

    def _configuration_appended(self, host: Host, entry: Entry) -> None:
        core = host.core
        if core is None:
            return
        stack = core.log.configurations
        at = next((i for i, (index, _) in enumerate(stack) if index == entry.index), 0)
        made_here = self.was_leader and core.role is RaftRole.LEADER
        if at and made_here and not self._overlap(stack[at - 1][1], decode_configuration(entry.body)):
            raise ViolationError("P-CONF", f"configuration {entry.index} can decide without the one before it")
        open_changes = [index for index, _ in stack if index > self.committed_last and index > core.commit]
        if made_here and len(open_changes) > 1:
            raise ViolationError("P-CONF", f"leader {host.id} has changes {open_changes} in flight")

    def _feature_appended(self, host: Host, entry: Entry) -> None:
        """P-FEATURE: whoever logs it knows that every member can apply it."""
        core = host.core
        if core is None or not self.was_leader or core.role is not RaftRole.LEADER:
            return
        missing = self.world.upgrades.missing(core.log.configuration, entry)
        if missing:
            raise ViolationError("P-FEATURE", f"leader {host.id} logs {entry.index}, which {missing} can't apply")

    def too_new(self, host: Host, what: str) -> None:
        """P-FEATURE: only who was taken back to an older release, after it had said more, stops at what is new. Who has
        left is not asked what it can apply, and may still be sent the entries behind the one that removed it."""
        cores = [other.core for other in self.world.hosts.values() if other.core is not None]
        if any(host.id in core.log.configuration.removed for core in cores):
            return
        if host.said <= host.disk.features:
            raise ViolationError("P-FEATURE", f"member {host.id} can't apply {what}, and never said that it could")

    def _overlap(self, one: Configuration, other: Configuration) -> bool:
        """Return whether any two quorums of these configurations have a member in common: by trying them all."""
        key = (one.voter_sets(), other.voter_sets())
        found = self.overlaps.get(key)
        if found is None:
            everyone = sorted(one.voters() | other.voters())
            found = self.overlaps[key] = not any(
                has_majority(key[0], set(some)) and has_majority(key[1], set(everyone).difference(some))
                for size in range(1, len(everyone) + 1)
                for some in combinations(everyone, size)
            )
        return found

    # -- the state ------------------------------------------------------------------------------------------------

    def to_apply(self, host: Host, effect: fx.Apply) -> None:
        """R-APPLY: what is handed over is durable here."""
        last = effect.entries[-1]
        if host.disk.entry(last.index) != last:
            raise ViolationError("R-APPLY", f"member {host.id} applies {last.index}, which its disk does not have")

    def applied(self, host: Host, entries: tuple[Entry, ...], outcomes: list[Outcome | None]) -> None:
        """P-SMS and P-EO: everybody gets the same, once."""
        for entry, outcome in zip(entries, outcomes, strict=True):
            if self.committed.get(entry.index) != entry.chain:
                raise ViolationError("P-SMS", f"member {host.id} applied an entry {entry.index} that is not committed")
            if outcome is not None and outcome[0] != "too_old":
                first = self.executed.setdefault(entry.proposal_id, (entry.index, outcome))
                if first[1] != outcome:
                    raise ViolationError("P-EO", f"entry {entry.index} answers {outcome}, before that {first}")
        self._state_at(host, host.disk.machine.index, host.disk.machine.digest)
        self.versions.applied(entries, outcomes)

    def stale_read(self, host: Host, keys: tuple[str, ...]) -> None:
        """P-STALE: a local read on any member, at any moment, is of a state that the cluster once had."""
        index, found = host.disk.machine.index, host.disk.machine.read(keys)
        expected = self.versions.at(index, keys)
        if found != expected:
            raise ViolationError(
                "P-STALE", f"member {host.id} reads {found} of {keys} at {index}, which was {expected} there"
            )

    def _state_at(self, host: Host, index: Index, digest: bytes) -> None:
        if host.diverged:
            return
        known = self.states.setdefault(index, digest)
        if known != digest:
            raise ViolationError("P-SMS", f"the state of member {host.id} at {index} differs from others")

    def installed(self, host: Host, image: Image) -> None:
        """A snapshot is a state that somebody had."""
        host.diverged = image.digest in self.world.tainted
        if host.diverged:
            host.damaged = self.world.careless = True  # the damage has spread before anybody could notice
        if self.committed.get(image.index) != image.chain:
            raise ViolationError("P-SMS", f"member {host.id} installed {image.index}, which is not committed")
        self._state_at(host, image.index, image.digest)

    # -- promises -------------------------------------------------------------------------------------------------

    def sending(self, host: Host, envelope: msg.Envelope) -> None:
        """R-VOTE, R-TERM, R-ACK, R-SNAP, and that a burnt member promises nothing."""
        message, disk = envelope.message, host.disk
        kind = type(message)
        if kind is msg.PreVote or kind is msg.Vote:
            return
        if isinstance(message, msg.PreVoteResponse) and message.names_future_term:
            if host.burnt:
                raise ViolationError("P-HONEST", f"member {host.id} has amnesia and grants a pre-vote")
            return
        if envelope.term > disk.hard.term:
            raise ViolationError(
                "R-TERM", f"member {host.id} sends {message} in term {envelope.term} before it is durable"
            )
        if isinstance(message, msg.VoteResponse) and message.granted:
            self._voted(host, message.for_term, envelope.destination)
        if envelope.term < disk.hard.term:
            return  # said in an older term, and true then; a newer leader may have replaced the entries since
        if isinstance(message, msg.AppendResponse):
            if message.ok and (disk.last < message.match or host.burnt):
                raise ViolationError("R-ACK", f"member {host.id} acknowledges {message.match} of {disk.last} durable")
        elif isinstance(message, msg.HeartbeatResponse):
            if disk.last < message.match or (message.match and host.burnt):
                raise ViolationError("R-ACK", f"member {host.id} confirms {message.match} of {disk.last} durable")
        elif isinstance(message, msg.SnapshotAck) and message.state == "installed":
            image = self.world.images[message.snapshot_id]
            if disk.mark.index < image.index or disk.machine.index < image.index:
                raise ViolationError(
                    "R-SNAP", f"member {host.id} confirms snapshot {image.index}, has {disk.mark.index}"
                )

    def _voted(self, host: Host, term: Term, candidate: MemberId) -> None:
        if host.burnt:
            raise ViolationError("P-HONEST", f"member {host.id} has amnesia and votes")
        known = self.votes.setdefault((host.id, term), candidate)
        if known != candidate:
            raise ViolationError("R-VOTE", f"member {host.id} votes for {known} and {candidate} in term {term}")
        hard = host.disk.hard
        if hard != HardState(term, candidate) and hard.term <= term:
            raise ViolationError("R-VOTE", f"the vote of member {host.id} in term {term} is not durable: {hard}")

    # -- clients --------------------------------------------------------------------------------------------------

    def acknowledged(self, host: Host, proposal_id: bytes, outcome: Outcome, index: Index) -> None:
        """P-DUR, P-EO: an answer is that of the one execution, and its entry is committed and applied here."""
        if outcome[0] == "too_old":
            return
        known = self.executed.get(proposal_id)
        if known is None or known[1] != outcome:
            raise ViolationError("P-EO", f"member {host.id} answers {outcome}, executed was {known}")
        if not outcome[2] <= host.disk.machine.index or outcome[2] > self.committed_last or index < outcome[2]:
            raise ViolationError("P-DUR", f"member {host.id} answers {outcome} before it is applied")

    def same_answer(self, one: Outcome, other: Outcome) -> None:
        """P-EO: whoever asks twice gets the first answer."""
        if one != other and "too_old" not in (one[0], other[0]):
            raise ViolationError("P-EO", f"one proposal was answered {one} and {other}")

    # -- ends -----------------------------------------------------------------------------------------------------

    def fatal(self, host: Host, effect: fx.Fatal) -> None:
        """Fail-stop is right after a failed disk or damage, and a bug everywhere else."""
        if effect.kind == "io" and host.disk.failed:
            return
        if effect.kind == "amnesia" and (host.diverged or host.burnt or self.world.careless):
            return
        raise ViolationError("P-HONEST", f"member {host.id} stops without need: {effect.reason}")

    def burnt(self, host: Host, reason: str) -> None:
        """Only damage makes a member forget."""
        if not host.damaged and not self.world.careless:
            raise ViolationError("P-DUR", f"member {host.id} finds its disk damaged, which it is not: {reason}")
