"""The safety properties that hold in every script, asked for or not (CONSENSUS 4.2 and the rules of 3.4).

Owns what is known about the whole world: who led which term, what was committed, who voted for whom. The world calls
it at every step, write and message; it looks at disks and cores and must never change anything.
"""

from __future__ import annotations

from collections.abc import Mapping

from incus_actors.consensus import effects as fx
from incus_actors.consensus import messages as msg
from incus_actors.consensus.core import Core
from incus_actors.consensus.quorum import has_majority
from incus_actors.consensus.types import Entry, HardState, Index, MemberId, RaftRole, Term
from incus_actors.interaction.errors import StepFailedError
from incus_actors.interaction.machine import Machine


def broken(name: str, text: str) -> StepFailedError:
    """Return the failure of a property."""
    return StepFailedError(f"safety property {name} is broken: {text}")


class Safety:
    """What must hold whatever a script does."""

    def __init__(self, machines: Mapping[MemberId, Machine]) -> None:
        self.machines = machines
        self.leaders: dict[Term, MemberId] = {}
        self.led: dict[MemberId, Term] = {}
        self.committed: dict[Index, bytes] = {}
        self.committed_last: Index = 0
        self.committed_by: dict[Term, Index] = {}
        self.seen: dict[MemberId, tuple[Term, Index]] = {}
        self.chains: dict[tuple[Index, Term], bytes] = {}
        self.votes: dict[tuple[MemberId, Term], MemberId] = {}

    def booted(self, machine: Machine) -> None:
        """Take what a member had applied at the beginning as committed."""
        for state in machine.history:
            if state.index:
                self._committed(machine.durable.member_id, state.index, state.chain)
        if machine.state.index:
            entry = machine.entry(machine.state.index)
            term = machine.durable.snapshot.term if entry is None else entry.term
            self.committed_by[term] = max(self.committed_by.get(term, 0), machine.state.index)

    def _committed(self, member: MemberId, index: Index, chain: bytes) -> None:
        if self.committed.setdefault(index, chain) != chain:
            raise broken("P-SMS", f"member {member} has another committed history at entry {index}")
        self.committed_last = max(self.committed_last, index)

    # -- steps ----------------------------------------------------------------------------------------------------

    def after_step(self, core: Core, before: tuple[Term, MemberId], event_kind: type | None) -> None:
        """P-PV, P-TERM, P-ES, P-LC, P-SMS. `event_kind`: the class of a message that was received."""
        member = core.id
        if event_kind is msg.PreVote and before != (core.term, core.vote):
            raise broken(
                "P-PV", f"a pre-vote moved member {member} from (term, vote) {before} to {core.term, core.vote}"
            )
        term, commit = self.seen.get(member, (0, 0))
        if core.term < term:
            raise broken("P-TERM", f"member {member} went back from term {term} to {core.term}")
        if core.commit < commit:
            raise broken("P-TERM", f"commit of member {member} went back from {commit} to {core.commit}")
        self.seen[member] = (core.term, core.commit)
        if core.role is RaftRole.LEADER and self.led.get(member) != core.term:
            self._won(core)
        if core.commit != commit:
            self._commit_moved(core, commit)

    def started(self, core: Core) -> None:
        """What was not durable is gone; a term that others have seen was durable (R-TERM)."""
        self.seen[core.id] = (core.term, 0)

    def _won(self, core: Core) -> None:
        self.led[core.id] = core.term
        known = self.leaders.setdefault(core.term, core.id)
        if known != core.id:
            raise broken("P-ES", f"members {known} and {core.id} both lead term {core.term}")
        must = max((index for term, index in self.committed_by.items() if term < core.term), default=0)
        at = max(must, core.log.mark.index)
        if core.log.last < must or (at == must and must and core.log.chain_at(at) != self.committed[at]):
            raise broken("P-LC", f"member {core.id} leads term {core.term} without committed entry {must}")

    def _commit_moved(self, core: Core, before: Index) -> None:
        log, commit = core.log, core.commit
        if commit > self.committed_last and core.role is RaftRole.LEADER:
            chain = log.chain_at(commit) or b""
            have = {member for member, machine in self.machines.items() if machine.has(commit, chain)}
            if not has_majority(core.voter_sets, have):
                voters = " and ".join(str(sorted(half)) for half in core.voter_sets)
                raise broken(
                    "P-DUR", f"member {core.id} committed {commit}, durable only on {sorted(have)} of voters {voters}"
                )
        if commit > self.committed_last:
            self.committed_by[core.term] = commit
        for index in range(max(before, log.mark.index - 1) + 1, commit + 1):
            found = log.chain_at(index)
            if found is not None:
                self._committed(core.id, index, found)

    # -- disk and state -------------------------------------------------------------------------------------------

    def writing(self, core: Core, write: fx.WriteLog, *, was_leader: bool, commit_before: Index) -> None:
        """P-LM, P-LAO, P-SMS: what goes into a log, and what is dropped from it."""
        for entry in write.entries:
            if self.chains.setdefault((entry.index, entry.term), entry.chain) != entry.chain:
                raise broken("P-LM", f"entry {entry.index} of term {entry.term} differs on member {core.id}")
        if write.truncate_from is None:
            return
        if was_leader and core.role is RaftRole.LEADER:
            raise broken("P-LAO", f"leader {core.id} drops its own entries from {write.truncate_from}")
        if write.truncate_from <= commit_before:
            raise broken("P-SMS", f"member {core.id} drops committed entries from {write.truncate_from}")

    def applying(self, machine: Machine, entry: Entry) -> None:
        """R-APPLY, P-SMS: only what is committed, durable here, and next."""
        member = machine.durable.member_id
        if entry.index != machine.state.index + 1:
            raise broken("P-SMS", f"member {member} applies {entry.index} after {machine.state.index}")
        if machine.entry(entry.index) != entry:
            raise broken("R-APPLY", f"member {member} applies {entry.index}, which its disk does not hold")
        self._committed(member, entry.index, entry.chain)

    # -- promises -------------------------------------------------------------------------------------------------

    def sending(self, machine: Machine, envelope: msg.Envelope) -> None:
        """R-VOTE, R-TERM, R-ACK, and that a burnt member promises nothing."""
        message, durable, member = envelope.message, machine.durable, envelope.source
        if isinstance(message, (msg.PreVote, msg.Vote)):
            return
        if isinstance(message, msg.PreVoteResponse) and message.names_future_term:
            if durable.amnesia:
                raise broken("P-HONEST", f"member {member} has amnesia and grants a pre-vote")
            return
        if envelope.term > durable.hard.term:
            raise broken("R-TERM", f"member {member} sends in term {envelope.term}, durable is {durable.hard.term}")
        if isinstance(message, msg.VoteResponse) and message.granted:
            self._voted(machine, message.for_term, envelope.destination)
        promised = message.match if isinstance(message, (msg.AppendResponse, msg.HeartbeatResponse)) else 0
        if promised > machine.last or (promised and durable.amnesia):
            raise broken("R-ACK", f"member {member} acknowledges {promised}, durable is {machine.last}")

    def _voted(self, machine: Machine, term: Term, candidate: MemberId) -> None:
        member, hard = machine.durable.member_id, machine.durable.hard
        if machine.durable.amnesia:
            raise broken("P-HONEST", f"member {member} has amnesia and votes")
        known = self.votes.setdefault((member, term), candidate)
        if known != candidate:
            raise broken("P-ES", f"member {member} votes for {known} and for {candidate} in term {term}")
        if hard != HardState(term, candidate) and hard.term <= term:
            raise broken("R-VOTE", f"the vote of member {member} in term {term} is not durable")

    def read(self, member: MemberId, index: Index, floor: Index) -> None:
        """P-LIN: a read sees everything that was committed when it was asked."""
        if index < floor:
            raise broken("P-LIN", f"a read of member {member} was answered with {index}, {floor} was committed before")
