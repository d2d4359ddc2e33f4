"""Gives the core its disk, its network and its time, and does what it says, in the order it says it.

The durability rule is written here once. A `WriteLog` goes to the log thread; its `then` holds the messages that
must not leave before it is durable (R-VOTE, R-TERM, R-ACK). When the log thread says that everything up to a write
is durable, the driver first steps `LogWritten` into the core and then sends the `then` of each of these writes, in
order; `_release` asserts that it never does so for a write that is not confirmed. `Send` outside `then` may leave
at once. `Apply` is handed to the apply thread, and `_apply` asserts that it reaches only what is durable here
(R-APPLY). If a write fails, nothing that depends on it ever leaves: the driver is dead from then on.

Owns the loop of the consensus thread; built by engine.py. Must never think: every decision is the core's.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

from incus_actors.clock import Clock
from incus_actors.consensus import effects as fx
from incus_actors.consensus import events as ev
from incus_actors.consensus.api import RoleChange
from incus_actors.consensus.apply_thread import ApplyDone, ApplyTrouble
from incus_actors.consensus.driver_ports import CoreStep, LogWriter, Maintenance, StateWriter
from incus_actors.consensus.history import History
from incus_actors.consensus.lane import RaftLane
from incus_actors.consensus.last_words import leave_word, superseded_text, write_history
from incus_actors.consensus.log_format import AMNESIA_NAME, STATE_SUSPECT_NAME, SUPERSEDED_NAME
from incus_actors.consensus.log_thread import JobDone, LogDone, LogTrouble
from incus_actors.consensus.measure import Samples
from incus_actors.consensus.messages import Envelope
from incus_actors.consensus.notices import AppliedNotice, FatalNotice, GenerationNotice, Incoming, Notice
from incus_actors.consensus.types import Configuration, Index, Member, MemberId

log = logging.getLogger(__name__)

TICK_MS = 50  #: at the latest; earlier when the core has something to do, to the millisecond
STALL_MS = 50
STATUS_MS = 100  #: how old a published status may be while nothing is applied; changes of role publish at once
_DISK_CHECK_MS = 1000


class DriverError(Exception):
    """The core asked for something that would break a promise; a bug, so the process stops."""


class Driver:
    """All methods run on the consensus loop. `tell` hands a notice to the main loop, `drain` empties the inbox,
    `publish` refreshes the status, `arm` asks for the next `tick` at a monotonic millisecond."""

    def __init__(
        self,
        core: CoreStep,
        *,
        log: LogWriter,
        state: StateWriter,
        lane: RaftLane,
        clock: Clock,
        durable_index: Index,
        applied_index: Index,
        own_id: MemberId,
        epoch: int = 1,
        former: tuple[Member, ...] = (),
        directory: Path,
        history: History,
        tell: Callable[[Notice], None],
        drain: Callable[[], None],
        publish: Callable[[], None],
        arm: Callable[[int], None],
    ) -> None:
        self._core = core
        self._log = log
        self._state = state
        self._lane = lane
        self._clock = clock
        self._own_id = own_id
        self._epoch = epoch
        self._former = former
        self._former_ids = frozenset(member.id for member in former)
        self._directory = directory
        self._tell = tell
        self._drain = drain
        self._publish = publish
        self._arm = arm
        self._events: deque[ev.Event] = deque()
        self._stepping = False
        self._writes: deque[fx.WriteLog] = deque()
        self._confirmed_id = 0
        self._submitted_id = 0
        self._apply_sent = applied_index
        self.maintenance: Maintenance | None = None
        self.durable_index = durable_index
        self.applied_index = applied_index
        self.dead = False
        self.halted = ""  #: why nothing is decided here any more although the daemon runs
        self.counters: dict[str, int] = {}
        self.samples = {name: Samples() for name in ("log_wait", "log_write", "log_batch", "apply", "loop_late")}
        self._armed_ms = clock.monotonic_ms()
        self._ticking = False
        self._disk_check_ms = 0
        self._shown = (-STATUS_MS, -1)  # when and with which applied index a status was published
        self._history = history
        self._free_kib = 1 << 30
        self._reported_full = False
        self._apply_full = False

    def adopt(self, configuration: Configuration, index: Index) -> None:
        """Begin with the configuration that the log has."""
        self._use_peers(configuration)
        self._tell(fx.ConfigurationChanged(configuration, index, index <= self.applied_index))

    # Events in

    def handle(self, event: ev.Event) -> None:
        """Step an event and everything that follows from it."""
        self._events.append(event)
        if self._stepping:
            return  # an effect led to an event: it waits until the effects before it are carried out
        self._stepping = True
        try:
            while self._events and not self.dead:
                event, now_ms = self._events.popleft(), self._clock.monotonic_ms()
                self._history.add(now_ms, event)
                for effect in self._core.step(now_ms, event):
                    self._carry_out(effect)
        except Exception as exc:
            # Whatever it was, the order of effects is broken: going on could break a promise.
            self.die(f"{type(exc).__name__}: {exc}", "fatal")
            raise
        finally:
            self._stepping = False
            if self.dead:
                self._events.clear()
        if not self._ticking and self._core.next_deadline_ms() < self._armed_ms:
            self._arm_next()

    def receive(self, item: Incoming) -> None:
        """Take one item of the inbox: a wish of the main loop or a completion of a disk thread."""
        if self.dead:
            return
        match item:
            case LogDone():
                self._on_log_done(item)
            case ApplyDone():
                self._on_applied(item)
            case JobDone():
                self.deliver(item.deliver)
            case LogTrouble():
                self._on_log_trouble(item)
            case ApplyTrouble():
                self.count("apply_disk_full" if item.kind == "full" else "apply_failed")
                self._apply_full = item.kind == "full"
                if item.kind != "full":
                    self.die(f"applying stopped: {item.reason}", item.kind)
            case _:
                self.handle(item)

    def deliver(self, result: Callable[[], None]) -> None:
        """Take the result of work that was done on another thread; if that fails, the process must stop."""
        try:
            result()
        except Exception as exc:
            self.die(f"{type(exc).__name__}: {exc}", "fatal")
            raise

    def on_message(self, envelope: Envelope) -> None:
        """From the lane."""
        if envelope.source in self._former_ids and envelope.epoch == self._epoch:
            # A member of an earlier epoch is only told that it is one; whatever else it says changes nothing here.
            self.count("messages_dropped,reason=former_member")
            return
        self.handle(ev.Receive(envelope))

    def on_link_up(self, peer: MemberId) -> None:
        """From the lane."""
        self.handle(ev.LinkUp(peer))

    def on_link_down(self, peer: MemberId, evidence: str) -> None:
        """From the lane."""
        self.handle(ev.LinkDown(peer, evidence))

    def tick(self) -> None:
        """When armed for: read everything that waits, account for our own stalls, let the core look at the clock."""
        late_ms = self._clock.monotonic_ms() - self._armed_ms
        self._ticking = True
        self.samples["loop_late"].add(float(max(0, late_ms)))
        if late_ms > STALL_MS:
            self.handle(ev.Stalled(late_ms))  # the core counts it
        self._lane.drain()
        self._drain()
        now_ms = self._clock.monotonic_ms()
        if now_ms >= self._disk_check_ms:
            self._disk_check_ms = now_ms + _DISK_CHECK_MS
            space = os.statvfs(self._directory)
            self._free_kib = space.f_bavail * space.f_frsize // 1024
        self.handle(ev.Tick(self._clock.wall_ms(), self._free_kib))
        self._ticking = False
        if now_ms >= self._shown[0] + STATUS_MS or self.applied_index != self._shown[1]:
            self._shown = (now_ms, self.applied_index)
            self._publish()
        self._arm_next()

    def _arm_next(self) -> None:
        """Ask for a tick when the core wants one. Sleeping longer in between saves most of the idle CPU."""
        if self.dead:
            return
        now_ms = self._clock.monotonic_ms()
        self._armed_ms = max(now_ms + 1, min(now_ms + TICK_MS, self._core.next_deadline_ms()))
        self._arm(self._armed_ms)

    # Completions

    def _on_log_done(self, done: LogDone) -> None:
        self._reported_full = False
        self.samples["log_wait"].add(done.waited_ms)
        self.samples["log_write"].add(done.took_ms)
        self.samples["log_batch"].add(float(done.writes))
        if done.witness_lagged:
            self.counters["witness_lagged"] = done.witness_lagged
        self._confirmed_id = done.write_id
        released: list[fx.WriteLog] = []
        while self._writes and self._writes[0].write_id <= done.write_id:
            write = self._writes.popleft()
            if write.truncate_from is not None:
                self.durable_index = min(self.durable_index, write.truncate_from - 1)
            if write.entries:
                self.durable_index = write.entries[-1].index
            released.append(write)
        self.handle(ev.LogWritten(done.write_id))
        for write in released:
            self._release(write)

    def _release(self, write: fx.WriteLog) -> None:
        """Send what had to wait for a write."""
        if write.write_id > self._confirmed_id:
            raise DriverError(f"write {write.write_id} is not durable, only {self._confirmed_id} is")
        if not self.dead:
            for send in write.then:
                self._lane.send(send.envelope, bulk=send.bulk)

    def _on_log_trouble(self, trouble: LogTrouble) -> None:
        if trouble.kind == "full":
            self.count("log_disk_full")
            if not self._reported_full:
                self._reported_full = True
                self.handle(ev.LogFailed(trouble.write_id, "full"))
            return
        self.count("log_failed")
        log.error("log.db can't be written: %s", trouble.reason)
        self.handle(ev.LogFailed(trouble.write_id, "io"))  # the core says Goodbye and resolves what it can
        self.die(f"log.db can't be written: {trouble.reason}", "io")

    def _on_applied(self, done: ApplyDone) -> None:
        self._apply_full = False
        self.samples["apply"].add(done.took_ms)
        position = done.batch.position
        self.applied_index = position.index
        for name, amount in done.batch.counters.items():
            self.count(name, amount)
        if done.batch.topics or done.batch.results:  # before the answers: who hears one finds nothing older kept
            self._tell(AppliedNotice(position.index, frozenset(done.batch.topics)))
        self.handle(ev.Applied(position.index, position.digest, tuple(done.batch.results)))

    # Effects out

    def _carry_out(self, effect: fx.Effect) -> None:
        if self.dead:
            return
        match effect:
            case fx.Send():
                self._lane.send(effect.envelope, bulk=effect.bulk)
            case fx.WriteLog():
                self._write(effect)
            case fx.Apply():
                self._apply(effect)
            case fx.Resolve():
                self._tell(effect)
            case fx.RoleChanged():
                change = RoleChange(
                    effect.role, effect.term, effect.leader, effect.cause, self._clock.monotonic_ms() * 1_000_000
                )
                self._publish()
                self._tell(change)
            case fx.ConfigurationChanged():
                if not self._from_before_us(effect.configuration):
                    self._use_peers(effect.configuration)
                    self._tell(effect)
                self._publish()
            case fx.Count():
                labels = "".join(f",{key}={value}" for key, value in effect.labels)
                self.count(effect.name + labels, effect.amount)
            case fx.Fatal():
                self.die(effect.reason, effect.kind)
            case _:
                if self.maintenance is None:
                    raise DriverError(f"nobody can carry out {type(effect).__name__}")
                self.maintenance.carry_out(effect)

    def _from_before_us(self, configuration: Configuration) -> bool:
        """Whether we are catching up with history from before we were a member: whom we talk to stays what we were
        told when we joined, or the leader's link would break in the middle of the catch-up."""
        return self._own_id not in configuration.members() and self._own_id not in configuration.removed

    def _use_peers(self, configuration: Configuration) -> None:
        members = configuration.members()
        present = {member.address for member in members.values()}
        peers = [m for m in self._former if m.id not in members and m.address not in present]
        peers += [member for member in members.values() if member.id != self._own_id]
        self._lane.set_peers(peers, self._own_id)

    def _write(self, write: fx.WriteLog) -> None:
        if write.write_id <= self._submitted_id:
            raise DriverError(f"write {write.write_id} comes after {self._submitted_id}")
        self._submitted_id = write.write_id
        self._writes.append(write)
        self._log.submit(write)

    def _apply(self, effect: fx.Apply) -> None:
        first, last = effect.entries[0].index, effect.entries[-1].index
        if last > self.durable_index:
            raise DriverError(f"entry {last} is to be applied, but only {self.durable_index} is durable here")
        if first != self._apply_sent + 1:
            raise DriverError(f"entry {first} is to be applied after {self._apply_sent}")
        self._apply_sent = last
        self._state.submit(effect.entries)

    def snapshot_installed(self, index: Index, last: Index, path: Path) -> None:
        """The state jumped to `index`, the log begins there and is durable to `last`: called by maintenance before
        its event."""
        self._apply_sent = self.applied_index = index
        self.durable_index = last
        self._tell(GenerationNotice(path))

    @property
    def feature_level(self) -> int:
        """What is switched on in the state here."""
        return self._state.feature_level

    @property
    def disk_full(self) -> bool:
        """Whether something waits here for disk space: nothing new can be answered by this member meanwhile."""
        return self._reported_full or self._apply_full

    def count(self, name: str, amount: int = 1) -> None:
        """Add to a counter."""
        self.counters[name] = self.counters.get(name, 0) + amount

    def queue_depths(self) -> dict[str, int]:
        """Return how much waits where."""
        return {
            "log": self._log.depth(),
            "unconfirmed_writes": len(self._writes),
            "apply": self._state.depth(),
            "witness": self._log.witness_lag(),
        }

    def die(self, reason: str, kind: str) -> None:
        """Do nothing more, ever; the main loop is told once, and the last events are written down."""
        if self.dead:
            return
        self.dead = True
        if kind == "superseded":
            self.halt(superseded_text(reason))
            return
        write_history(self._directory, self._history, reason)
        if kind == "amnesia":
            leave_word(self._directory / AMNESIA_NAME, reason)
        elif kind == "damaged":  # the next start builds the state again
            leave_word(self._directory / STATE_SUSPECT_NAME, reason)
        self._publish()
        self._tell(FatalNotice(reason, kind))

    def halt(self, text: str) -> None:
        """Decide nothing any more, but let the daemon live to say why; also after the next start."""
        self.dead = True
        self.halted = text
        leave_word(self._directory / SUPERSEDED_NAME, text)
        self._publish()
        self._tell(FatalNotice(text, "superseded"))
