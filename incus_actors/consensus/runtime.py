"""Consensus for the main loop: propose, read, change members, be told.

Owns the futures of everything asked and not yet answered, the subscribers, and the Database that readers use;
implements api.py by messages to the engine's thread. Must never touch the core: it knows only events and notices.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from incus_actors import tasks
from incus_actors.clock import Clock, SystemClock
from incus_actors.consensus import bootstrap
from incus_actors.consensus import effects as fx
from incus_actors.consensus import events as ev
from incus_actors.consensus.admission import Admission
from incus_actors.consensus.api import Consensus, ConsensusStatus, RoleChange, StateCheck
from incus_actors.consensus.audience import ALL_TOPICS, Audience
from incus_actors.consensus.engine import Engine, EngineSettings
from incus_actors.consensus.handover import hand_over
from incus_actors.consensus.inbox import Inbox
from incus_actors.consensus.lane import LaneFactory
from incus_actors.consensus.notices import AppliedNotice, FatalNotice, GenerationNotice, Notice, StartedNotice
from incus_actors.consensus.priority import raise_priority
from incus_actors.consensus.proposal_ids import ProposalIds
from incus_actors.consensus.resolution import no_leader, own_disk_full, refusal
from incus_actors.consensus.sessions import KEEP_MS
from incus_actors.consensus.state_facts import StateFacts
from incus_actors.consensus.types import (
    Configuration,
    EntryKind,
    Index,
    Limits,
    Member,
    MemberId,
    RaftRole,
    Timing,
)
from incus_actors.consensus.upkeep import Upkeep
from incus_actors.errors import BadRequestError, ConflictError, ForbiddenError, OutcomeUnknownError, UnavailableError
from incus_actors.model.transaction import Outcome, Transaction
from incus_actors.state.apply import TOO_OLD
from incus_actors.state.database import Database

log = logging.getLogger(__name__)

_FULL_READ_S = 0.5  #: a member that waits for disk space has caught up by then, or not for long
_ANSWER_GRACE_S = 1.0  #: the core answers at the deadline; later than this it never will

T = TypeVar("T")


class ConsensusRuntime(Consensus):
    """Consensus on one database directory (`$INCUS_DIR/database`). All methods are called on the main loop."""

    def __init__(
        self,
        directory: Path,
        lane_factory: LaneFactory,
        *,
        timing: Timing | None = None,
        limits: Limits | None = None,
        clock: Clock | None = None,
        realtime: bool = True,
        on_fatal: Callable[[str], None] | None = None,
    ) -> None:
        self.directory = directory
        self.database = Database()
        self.on_fatal = on_fatal
        self._clock = clock or SystemClock()
        self._limits = limits or Limits()
        self._admission = Admission(self._limits)
        self._realtime = realtime
        self._settings = EngineSettings(
            directory, lane_factory, timing or Timing(), self._limits, self._clock, realtime
        )
        self._engine: Engine | None = None
        self._starting: Engine | None = None
        self._status: ConsensusStatus | None = None
        self._proposals: dict[bytes, list[asyncio.Future[fx.Resolve]]] = {}
        self._requests: dict[int, list[asyncio.Future[fx.Resolve]]] = {}
        self._request_ids = itertools.count(1)
        self._ids = ProposalIds()
        self._facts = StateFacts(self.database)
        self._outgoing: list[ev.Propose] = []
        self._read_round: list[asyncio.Future[fx.Resolve]] = []
        self._read_deadline_ms = 0
        self._audience = Audience()
        self.upkeep = Upkeep(self.database, self._clock, self.status, self._propose_upkeep)
        self._upkeep_task: asyncio.Task[None] | None = None
        self._stopped = False
        self.stopped_by = ""  #: the kind of effects.Fatal after which nothing goes on; "io": the disk of the log
        self._halted = ""

    # Life

    async def start(self) -> None:
        """Open the database and take part. Raises LogLockedError, AmnesiaError, LogDamagedError, OSError..."""
        if self._engine is not None:
            raise RuntimeError("already started")
        bootstrap.finish_replacement(self.directory)
        if self._realtime:
            raise_priority(realtime=False)  # the main thread holds the interpreter lock at times: it must get a CPU
        inbox: Inbox[Notice] = Inbox(asyncio.get_running_loop(), self._receive)
        engine = Engine(self._settings, inbox.put)
        engine.start()
        self._stopped, self._halted = False, ""
        self._starting = engine
        try:
            await asyncio.wrap_future(engine.started)
        except BaseException:
            self._engine = None
            engine.request_stop()
            raise
        self._upkeep_task = tasks.spawn(self.upkeep.run(), name="consensus-upkeep")

    async def stop(self, *, handover: bool = True, keep_vote: bool = False) -> None:
        """Hand leadership over if asked and possible, say goodbye, close every file. `keep_vote`: we are back at once,
        so that nobody needs our vote if it is the only one."""
        engine = self._engine
        if engine is None:
            return
        if handover and engine.running and not self._halted and self.status().role is RaftRole.LEADER:
            await hand_over(self, keep_vote=keep_vote)
        self._stopped = True
        if self._upkeep_task is not None:
            self._upkeep_task.cancel()
            self._upkeep_task = None
        engine.put(ev.Shutdown())
        engine.request_stop()
        await asyncio.to_thread(engine.join)
        self._engine = None
        self.database.close()
        self._fail_all("Shutting down")

    async def restart(self, change: Callable[[], T] | None = None) -> T | None:
        """Stop, run `change` in a thread (it may exchange the directory), start again with a new lane on the same
        object: subscribers and Database stay valid. Started again even if `change` raises, which is then raised."""
        await self.stop(keep_vote=True)
        try:
            return None if change is None else await asyncio.to_thread(change)
        finally:
            if change is not None:
                self._audience.forget()
            await self.start()

    async def join_cluster(
        self, *, cluster_id: bytes, epoch: int, member_id: MemberId, configuration: Configuration
    ) -> Path:
        """Leave the present database and go on as a new member of a cluster; return where the old one was moved.

        Crash-safe: there is always either the old database or the new one. Raises as `start` and
        bootstrap.replace_database do; after a failure the old database is served again if it still is there.
        """
        aside = await self.restart(
            lambda: bootstrap.replace_database(
                self.directory,
                cluster_id=cluster_id,
                epoch=epoch,
                member_id=member_id,
                configuration=configuration,
            )
        )
        assert aside is not None
        return aside

    # What is so

    @property
    def member_id(self) -> MemberId:
        """This member's id."""
        return self.status().member_id

    def status(self) -> ConsensusStatus:
        """Return the latest published snapshot. Raises UnavailableError before the first start."""
        status = self._engine.status if self._engine is not None else self._status
        if status is None:
            raise UnavailableError("Daemon is starting up")
        self._status = status
        if self._admission.refused:
            return replace(status, counters=self._admission.counters(status.counters))
        return status

    # Asking

    async def propose(
        self, transaction: Transaction, *, timeout_s: float = 10.0, proposal_id: bytes | None = None
    ) -> Outcome:
        """Replicate, apply here, return the outcome.

        Raises BadRequestError (LintError) for what may not be replicated, UnavailableError, OutcomeUnknownError.
        """
        stamped = self._facts.stamped(transaction, self.status().feature_level)
        kind, body = self._admission.encode(stamped, proposal_id)
        if proposal_id is not None:
            return await self._propose(kind, body, timeout_s, proposal_id)
        begun_ms = self._clock.monotonic_ms()
        outcome = await self._propose(kind, body, timeout_s, self.new_proposal_id())
        if outcome.error == TOO_OLD:  # our clock is far behind, and the horizon has moved since we looked
            if self._clock.monotonic_ms() - begun_ms > KEEP_MS:
                raise OutcomeUnknownError("Failed to commit transaction: its outcome is forgotten")
            self._facts.read()
            outcome = await self._propose(kind, body, timeout_s, self.new_proposal_id())
        return outcome

    def new_proposal_id(self) -> bytes:
        """Return an id for `propose`, so that a caller can repeat the same proposal after an unknown outcome.

        Its time is at least the state's horizon: a member whose clock is far behind must still be able to write.
        """
        return self._ids.new(max(self._clock.wall_ms(), self._facts.horizon_ms + 1))

    async def check_state(self) -> StateCheck:
        """Let every member compare its whole state now, not only once a day."""
        return await self.upkeep.check()

    async def upgrade(self) -> bool:
        """Use at once what every member can apply, not only at the next look. Raises UnavailableError."""
        return await self.upkeep.upgrade.if_due()

    async def _propose_upkeep(self, kind: EntryKind, body: bytes) -> Outcome:
        self._facts.read()
        return await self._propose(kind, body, 10.0, self.new_proposal_id())

    async def _propose(self, kind: EntryKind, body: bytes, timeout_s: float, proposal_id: bytes) -> Outcome:
        self._running()
        if self.status().disk_full:
            raise own_disk_full("it can't store writes")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[fx.Resolve] = loop.create_future()
        waiting = self._proposals.setdefault(proposal_id, [])
        waiting.append(future)
        deadline_ms = self._clock.monotonic_ms() + int(timeout_s * 1000)
        if not self._outgoing:
            loop.call_soon(self._send_proposals)
        self._outgoing.append(ev.Propose(proposal_id, kind, body, self._clock.wall_ms(), deadline_ms))
        try:
            async with asyncio.timeout(timeout_s + _ANSWER_GRACE_S):
                answer = await future
        except TimeoutError:
            raise OutcomeUnknownError("Failed to commit transaction: no answer in time") from None
        finally:
            self._forget(self._proposals, proposal_id, future)
        if answer.status == "applied" and isinstance(answer.result, Outcome):
            return answer.result
        raise refusal(answer, self.status())

    def _send_proposals(self) -> None:
        """Hand over what was proposed in this turn of the loop with one wake-up: it is logged together."""
        events, self._outgoing = self._outgoing, []
        if self._engine is not None:
            self._engine.put(*events)

    async def read_barrier(self, *, timeout_s: float = 5.0) -> Index:
        """Return once a local read is linearizable. Calls of one turn of the loop share one round."""
        self._running()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[fx.Resolve] = loop.create_future()
        if not self._read_round:
            loop.call_soon(self._send_reads)
        self._read_round.append(future)
        self._read_deadline_ms = max(self._read_deadline_ms, self._clock.monotonic_ms() + int(timeout_s * 1000))
        try:
            async with asyncio.timeout(min(timeout_s, _FULL_READ_S) if self.status().disk_full else timeout_s):
                answer = await future
        except TimeoutError:
            if self.status().disk_full:
                raise own_disk_full("it lags behind the others; ?consistency=stale reads what it has") from None
            raise no_leader(self.status()) from None
        if answer.status != "applied":
            raise refusal(answer, self.status())
        return answer.index

    def _send_reads(self) -> None:
        """Start one round for everybody who asked in this turn; who asks later must not join it."""
        request_id = next(self._request_ids)
        self._requests[request_id], self._read_round = self._read_round, []
        deadline_ms, self._read_deadline_ms = self._read_deadline_ms, 0
        if self._engine is not None:
            self._engine.put(ev.ReadIndex(request_id, deadline_ms))

    async def change_configuration(self, target: tuple[Member, ...], *, timeout_s: float = 10.0) -> None:
        """On the leader: go to these members. Raises ConflictError if busy, ForbiddenError if not the leader,
        BadRequestError if the target is impossible, OutcomeUnknownError after the deadline."""
        request_id = next(self._request_ids)
        answer = await self._request(request_id, ev.ChangeConfiguration(request_id, target), timeout_s)
        if answer is None or answer.status in {"unknown", "timeout"}:
            raise OutcomeUnknownError("Failed to change the cluster's configuration: no answer in time")
        if answer.status == "not_leader":
            raise ForbiddenError("This member does not lead the cluster")
        if answer.status == "busy":
            raise ConflictError(f"The cluster's configuration can't be changed: {answer.detail}")
        if answer.status == "invalid":
            raise BadRequestError(f"Invalid cluster configuration: {answer.detail}".rstrip(": "))
        if answer.status != "applied":
            raise refusal(answer, self.status())

    async def transfer_leadership(self, target: MemberId = 0, *, timeout_s: float = 2.0) -> bool:
        """Hand leadership over; True if it moved, False if it did not (also when this member leads nothing)."""
        request_id = next(self._request_ids)
        answer = await self._request(request_id, ev.Transfer(request_id, target), timeout_s)
        return answer is not None and answer.status == "applied"

    async def _request(
        self, request_id: int, event: ev.ChangeConfiguration | ev.Transfer, timeout_s: float
    ) -> fx.Resolve | None:
        """Return the answer to an event, None if there was none in time."""
        engine = self._running()
        future: asyncio.Future[fx.Resolve] = asyncio.get_running_loop().create_future()
        self._requests[request_id] = [future]
        engine.put(event)
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            return None
        finally:
            self._requests.pop(request_id, None)

    def _running(self) -> Engine:
        if self._stopped:
            raise UnavailableError("Shutting down")
        if self._engine is None:
            raise UnavailableError("Daemon is starting up")
        if self._halted:
            raise UnavailableError(self._halted)
        return self._engine

    def _forget(
        self, table: dict[bytes, list[asyncio.Future[fx.Resolve]]], key: bytes, future: asyncio.Future[fx.Resolve]
    ) -> None:
        waiting = table.get(key)
        if waiting is not None and future in waiting:
            waiting.remove(future)
            if not waiting:
                del table[key]

    # Being told

    def subscribe_role(self, callback: Callable[[RoleChange], None]) -> Callable[[], None]:
        """Call on every role or leader change, and once at once; returns the unsubscriber."""
        if self._audience.role is None and self._engine is not None:
            status = self.status()
            now_ns = self._clock.monotonic_ms() * 1_000_000
            self._audience.role = RoleChange(status.role, status.term, status.leader, "startup", now_ns)
        return self._audience.subscribe_role(callback)

    def subscribe_applied(self, callback: Callable[[Index, frozenset[str]], None]) -> Callable[[], None]:
        """Call after transactions are applied here, with their topics; returns the unsubscriber."""
        return self._audience.subscribe_applied(callback)

    def subscribe_configuration(self, callback: Callable[[Configuration], None]) -> Callable[[], None]:
        """Call on every new active configuration, and once at once; returns the unsubscriber."""
        return self._audience.subscribe_configuration(callback)

    def _receive(self, notice: Notice) -> None:
        """Take a notice of the consensus thread, on the main loop and in its order."""
        match notice:
            case StartedNotice():  # here and not in `start`: what follows may overtake its awakening
                self._engine, self._status = self._starting, notice.status
                self.database.switch(notice.path)
                self._facts.read()
                self._audience.tell_configuration(notice.status.configuration)
            case fx.Resolve():
                self._resolve(notice)
            case RoleChange():
                self._audience.tell_role(notice)
            case AppliedNotice():
                if "schema" in notice.topics:
                    self._facts.read()
                self._audience.tell_applied(notice.index, notice.topics)
            case fx.ConfigurationChanged():
                self._audience.tell_configuration(notice.configuration)
            case GenerationNotice():
                self.database.switch(notice.path)
                self._facts.read()
                self._audience.tell_applied(self.status().applied, ALL_TOPICS)
            case FatalNotice():
                self._fatal(notice)

    def _resolve(self, answer: fx.Resolve) -> None:
        if isinstance(answer.key, bytes):
            futures = self._proposals.pop(answer.key, [])
        else:
            futures = self._requests.pop(answer.key, [])
        for future in futures:
            if not future.done():
                future.set_result(answer)

    def _fatal(self, notice: FatalNotice) -> None:
        log.error("consensus stopped: %s", notice.reason)
        self._fail_all(notice.reason)
        if notice.kind == "superseded":  # the daemon goes on to say so
            self._halted = notice.reason
            return
        self._stopped, self.stopped_by = True, self.stopped_by or notice.kind
        if self.on_fatal is not None and self._engine is not None:  # else `start` raises, and that says it
            self.on_fatal(notice.reason)

    def _fail_all(self, reason: str) -> None:
        """Nobody will answer any more: proposals may or may not have happened."""
        waiting = [*self._proposals.values(), *self._requests.values(), self._read_round]
        self._proposals, self._requests, self._read_round = {}, {}, []
        for future in itertools.chain.from_iterable(waiting):
            if not future.done():
                future.set_result(fx.Resolve(0, "unknown", detail=reason))
