"""The Raft core of one member: events in, effects out, and nothing else (DESIGN D1, CONSENSUS 3.1).

Owns the dispatch of events, the transitions between roles and the invariants; called by the driver in the daemon
and by the simulator, one step at a time. It has no clock, socket, disk or randomness of its own, and it must
never let a step end with an invariant broken.

Order of effects: at most one WriteLog, first; the driver may carry out the others while it is being written.
"""

from __future__ import annotations

from incus_actors.consensus import candidate, compaction, follower, leader, membership, replication, snapshots, views
from incus_actors.consensus import events as ev
from incus_actors.consensus.effects import Effect, Resolve
from incus_actors.consensus.invariants import Invariants
from incus_actors.consensus.node import NEVER, Node, Randomness
from incus_actors.consensus.policy import MemberHealth
from incus_actors.consensus.proposals import ProposalBook
from incus_actors.consensus.reads import ReadQueue
from incus_actors.consensus.reception import receive
from incus_actors.consensus.snapshots import SnapshotReceiver
from incus_actors.consensus.suspicion import StallForgiveness, Suspicion, greeting
from incus_actors.consensus.types import (
    NOBODY,
    Configuration,
    DurableState,
    Index,
    Limits,
    MemberId,
    RaftRole,
    Term,
    Timing,
)
from incus_actors.consensus.views import PeerView

FAST_WRITES_TO_RECOVER = 3


class Core(Node):
    """One member of the cluster. `step` is the only way in, its return value the only way out."""

    def __init__(
        self,
        durable: DurableState,
        *,
        rng: Randomness,
        timing: Timing | None = None,
        limits: Limits | None = None,
        now_ms: int = 0,
        wall_ms: int,
        checks: bool = False,
    ) -> None:
        """Start from what is durable. Nothing happens until the first step, which also announces the present
        configuration and role. `checks`: check the invariants after every step. Raises LogDamagedError."""
        super().__init__(durable, rng, timing or Timing(), limits or Limits(), now_ms, wall_ms)
        self.checks = checks
        self.leadership = None
        self.campaign = None
        self.proposals = ProposalBook(self)
        self.reads = ReadQueue(self)
        self.suspicion = Suspicion(self)
        self.receiver = SnapshotReceiver(self)
        self._forgiveness = StallForgiveness()
        self._announced = False
        self._invariants = Invariants(self)
        self._handlers = {
            ev.Tick: self._on_tick,
            ev.Stalled: self._on_stalled,
            ev.Receive: self._on_receive,
            ev.LinkUp: self._on_link_up,
            ev.LinkDown: self._on_link_down,
            ev.LogWritten: self._on_log_written,
            ev.LogFailed: self._on_log_failed,
            ev.Applied: self._on_applied,
            ev.Propose: self.proposals.add,
            ev.ReadIndex: self.reads.add,
            ev.ChangeConfiguration: self._on_change,
            ev.Transfer: self._on_transfer,
            ev.Shutdown: self._on_shutdown,
            ev.Compacted: self._on_compacted,
            ev.SnapshotReady: self._on_snapshot_ready,
            ev.SnapshotChunkRead: self._on_snapshot_chunk_read,
            ev.SnapshotChunkStored: self.receiver.stored,
            ev.SnapshotInstalled: self.receiver.installed,
            ev.SnapshotFailed: self._on_snapshot_failed,
        }

    # -- the way in and out ---------------------------------------------------------------------------------------

    def step(self, now_ms: int, event: ev.Event) -> list[Effect]:
        """Take one event at `now_ms` (monotonic milliseconds); return what to do, in order.

        After a Fatal effect, or Shutdown, every further step returns an empty list. Raises InvariantError when
        `checks` is set and the core contradicts itself: the driver stops the process as for Fatal.
        """
        if self.stopped:
            return []
        if now_ms > self.now:
            self.now = now_ms
        if self._announced and type(event) is ev.Tick and self.now < self.wake_ms:
            self._note_tick(event)
            return []
        if not self._announced:
            self._announce()
        self._handlers[type(event)](event)  # type: ignore[operator]
        if self.log.last != self.appended_sent and self.leadership is not None:
            self._send_new_entries()
        self.flush()
        effects, self.effects = self.effects, []
        if self.checks:
            self._invariants.check()
        return effects

    def next_deadline_ms(self) -> int:
        """Return when the next Tick will have something to do; a driver may sleep until then."""
        return self.wake_ms

    def resume(self) -> None:
        """Go on in the middle of a life that somebody has put back (state_mark.py): nothing is announced again."""
        self._announced = True
        self.configuration_activated()
        self.refresh_visible()
        self.effects.clear()

    def _announce(self) -> None:
        self._announced = True
        self.configuration_activated()
        self.refresh_visible()
        self.role_changed("startup")
        self.set_election_deadline(self.election_deadline_ms)
        if self.is_voter and not self.voting_peers() and not self.amnesia:
            self.become_candidate("startup")

    def _send_new_entries(self) -> None:
        self.appended_sent = self.log.last
        replication.broadcast_appends(self)

    # -- transitions ----------------------------------------------------------------------------------------------

    def become_follower(self, term: Term, leader: MemberId, cause: str) -> None:
        """Follow `leader`, or nobody, in `term`."""
        before = (self.role, self.term, self.leader)
        leadership, self.leadership = self.leadership, None
        moved = term != self.term
        self.campaign = None
        self.campaign_waits = ""
        self.role = RaftRole.FOLLOWER
        self.leader = leader
        if moved:
            self.set_hard(term, NOBODY)
            self.term_leader = NOBODY
            self.verified = 0
            self.election_timeout_ms = self.draw_election_timeout()
        if leadership is not None:
            self.led_until_ms = self.now
            leadership.resign(moved=moved)
        self.reset_election_timer()
        if (self.role, self.term, self.leader) != before:
            self.role_changed(cause)
        if leader != NOBODY:
            self.suspicion.found_leader()
            self.proposals.dispatch_all()
        self.reads.leader_changed()

    def become_pre_candidate(self, why: str) -> None:
        """Ask whether an election could be won; term and vote stay."""
        self.role = RaftRole.PRE_CANDIDATE
        self.leader = NOBODY
        self.role_changed(why)
        candidate.start_prevote(self, why)
        self.suspicion.settle()

    def become_candidate(self, why: str) -> None:
        """Start an election in the next term, voting for ourselves."""
        self.set_hard(self.term + 1, self.id)
        self.role = RaftRole.CANDIDATE
        self.leader = NOBODY
        self.term_leader = NOBODY
        self.verified = 0
        self.receiver.offer = None
        self.role_changed(why)
        candidate.start_election(self, why)
        self.suspicion.settle()

    def become_leader(self) -> None:
        """Lead the present term: our own vote is durable and a majority has voted for us."""
        why = "won" if self.campaign is None else self.campaign.why
        if self.campaign is not None:
            self.count("elections_won", why=why)
            self.measured["election"].add(float(self.now - self.campaign.started_ms))
        self.role = RaftRole.LEADER
        self.leader = self.id
        self.term_leader = self.id
        self.campaign = None
        self.heard_any_leader = True
        self.appended_sent = 0
        self.suspicion.found_leader()
        self.role_changed("won")
        leader.start(self)
        self.proposals.dispatch_all()
        self.reads.leader_changed()

    # -- time -----------------------------------------------------------------------------------------------------

    def _note_tick(self, event: ev.Tick) -> None:
        self.wall_offset_ms = event.wall_ms - self.now
        self.free_kib = event.free_kib

    def _on_tick(self, event: ev.Tick) -> None:
        self._note_tick(event)
        self.wake_ms = NEVER
        if self.role is RaftRole.LEADER and self.leadership is not None:
            self.leadership.tick()
        elif self.role is RaftRole.FOLLOWER:
            follower.tick(self)
        else:
            candidate.tick(self)
        self.suspicion.tick()
        self.proposals.tick()
        self.reads.tick()

    def _on_stalled(self, event: ev.Stalled) -> None:
        """Advance the election clock by one tick only (3.8), and never beyond what a heartbeat just now would give: one
        that waited while we were stalled may have been read before this."""
        given = self._forgiveness.take(self.now, event.ms)
        self.count("stalls")
        if given:
            self.count_many("stall_ms_forgiven", given)
        at_most = max(self.election_deadline_ms, self.now + self.election_timeout_ms)
        self.set_election_deadline(min(self.election_deadline_ms + given, at_most))
        self.leader_heard_ms = min(self.leader_heard_ms + given, max(self.leader_heard_ms, self.now))
        if self.leadership is not None:
            self.leadership.stalled()

    # -- messages and links ---------------------------------------------------------------------------------------

    def _on_receive(self, event: ev.Receive) -> None:
        receive(self, event.envelope)

    def _on_link_up(self, event: ev.LinkUp) -> None:
        self.links[event.peer] = True
        self.refresh_visible()
        self.send(event.peer, greeting(self))
        if self.leadership is not None and event.peer in self.leadership.progress:
            self.leadership.welcome(event.peer)

    def _on_link_down(self, event: ev.LinkDown) -> None:
        self.suspicion.link_down(event.peer, event.evidence)
        self.refresh_visible()

    # -- disk -----------------------------------------------------------------------------------------------------

    def _on_log_written(self, event: ev.LogWritten) -> None:
        self.disk_full = False
        if self.writes:
            self._judge_disk(self.now - self.writes[0].issued_ms)
        gained = self.written(event.write_id)
        if self.role is RaftRole.CANDIDATE:
            candidate.check_won(self)
        if gained:
            if self.leadership is not None:
                replication.maybe_commit(self)
            self.apply_ready()
        if not self.log.writing:
            self.receiver.try_install()
            if self.campaign_waits and self.role is RaftRole.FOLLOWER:
                candidate.campaign(self, self.campaign_waits)

    def _judge_disk(self, took_ms: int) -> None:
        """A disk that hung must prove itself before this member campaigns again (3.4)."""
        self.fast_writes = self.fast_writes + 1 if took_ms < self.timing.slow_write_ms else 0
        if self.fast_writes >= FAST_WRITES_TO_RECOVER:
            self.disk_ban_until_ms = 0

    def _on_log_failed(self, event: ev.LogFailed) -> None:
        if event.kind == "full":
            self.disk_full = True
            self.count("disk_full")
            return
        if self.leadership is not None:
            self.leadership.say_goodbye("diskfail")
        self.proposals.fail_all()
        self.fatal(f"write {event.write_id} of the log failed", "io")

    def _on_applied(self, event: ev.Applied) -> None:
        self.applied = max(self.applied, event.index)
        self.note_digest(event.index, event.digest)
        self.proposals.applied(event.index, event.results)
        self.reads.applied()
        self.receiver.try_install()
        compaction.consider(self)

    def _on_compacted(self, event: ev.Compacted) -> None:
        self.compacting_until_ms = 0
        self.log.compact(min(event.index, self.applied))

    # -- requests -------------------------------------------------------------------------------------------------

    def _on_change(self, event: ev.ChangeConfiguration) -> None:
        membership.change(self, event)

    def _on_transfer(self, event: ev.Transfer) -> None:
        if self.leadership is None:
            self.emit(Resolve(event.request_id, "not_leader"))
        else:
            self.leadership.start_transfer(event.request_id, event.target)

    def _on_shutdown(self, event: ev.Shutdown) -> None:
        if self.leadership is not None:
            self.leadership.say_goodbye(event.why)
            self.become_follower(self.term, NOBODY, "shutdown")
        self.proposals.fail_all()
        self.stopped = True

    def _on_snapshot_ready(self, event: ev.SnapshotReady) -> None:
        snapshots.ready(self, event)

    def _on_snapshot_chunk_read(self, event: ev.SnapshotChunkRead) -> None:
        snapshots.chunk_read(self, event)

    def _on_snapshot_failed(self, event: ev.SnapshotFailed) -> None:
        snapshots.failed(self, event)

    # -- views ----------------------------------------------------------------------------------------------------

    @property
    def last_index(self) -> Index:
        """The last entry in memory."""
        return self.log.last

    @property
    def durable_index(self) -> Index:
        """The last entry on disk."""
        return self.log.durable

    @property
    def first_index(self) -> Index:
        """The first entry that is still in the log."""
        return self.log.first

    @property
    def configuration(self) -> Configuration:
        """The active configuration, committed or not."""
        return self.log.configuration

    def peers(self) -> tuple[PeerView, ...]:
        """Return what the leader knows about every other member, sorted by id; empty on everyone else."""
        return views.peers(self)

    def health(self) -> dict[MemberId, MemberHealth]:
        """Return the health of every member as policy.plan wants it; empty unless this member leads."""
        return views.health(self)

    def leading_since_ms(self) -> int | None:
        """Return since when this member leads, None when it does not."""
        return None if self.leadership is None else self.leadership.since_ms
