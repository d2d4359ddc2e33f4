"""One member in the virtual world: a core with its disk, its clock and its clients, and how it dies and comes back.

Owns what consensus/driver.py owns in the daemon, by the same rules: effects in order, `then` only after LogWritten
was stepped, a tick when the core wants one, our own stalls reported. Used by the world and the nemesis. Must never
think: every decision is the core's.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from incus_actors.consensus import effects as fx
from incus_actors.consensus import events as ev
from incus_actors.consensus.core import Core
from incus_actors.consensus.messages import Envelope
from incus_actors.consensus.types import Entry, MemberId
from incus_actors.simulation.disk import Disk, ForgottenError
from incus_actors.simulation.snapshots import SnapshotWork

if TYPE_CHECKING:
    from incus_actors.simulation.world import World

TICK_MS = 100
STALL_MS = 50
SOCKET_BUFFER = 400

#: (status, outcome, index); status "lost": the process died before it could answer
Answer: TypeAlias = Callable[[str, Any, int], None]


class Host:
    """A machine with one member on it. `core` is None while no process runs."""

    def __init__(self, world: World, member: MemberId, disk: Disk, rng: random.Random) -> None:
        self.world = world
        self.id = member
        self.disk = disk
        self.rng = rng
        disk.writer = self
        drift = world.plan.drift_ppm
        self.drift_ppm = rng.randint(-drift, drift) if drift else 0
        self.offset_us = rng.randint(0, 10**9)
        self.wall_offset_ms = 10**12 + rng.randint(-500, 500)
        self.core: Core | None = None
        self.life = 0
        self.frozen = False
        self.burnt = False
        self.damaged = False  #: the nemesis has damaged its disk
        self.diverged = False  #: ... or its state
        self.backlog: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self.tick_at_ms = 0
        self.waiting: dict[bytes | int, list[Answer]] = {}
        self.applying: deque[Entry] = deque()
        self.apply_busy = False
        self.snapshots = SnapshotWork(self)
        self.seen_term = 0
        self.seen_commit = 0
        self.led_term = 0
        self.said = 0  #: the highest feature level that a process of this machine has ever told others
        self._effects: dict[type, Callable[[Any], None]] = {
            fx.Send: self._send,
            fx.WriteLog: self._write,
            fx.Apply: self._apply,
            fx.Resolve: self._resolve,
            fx.RoleChanged: self._role_changed,
            fx.ConfigurationChanged: self._ignore,
            fx.Compact: self.snapshots.compact,
            fx.TakeSnapshot: self.snapshots.take,
            fx.ReadSnapshotChunk: self.snapshots.read,
            fx.StoreSnapshotChunk: self.snapshots.store,
            fx.InstallSnapshot: self.snapshots.install,
            fx.Count: self._ignore,
            fx.Fatal: self._fatal,
        }

    # -- clocks ---------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether a process is there, frozen or not."""
        return self.core is not None

    def local_ms(self) -> int:
        """Return what the monotonic clock of this machine says."""
        now = self.world.now_us
        return (self.offset_us + now + now * self.drift_ppm // 1_000_000) // 1_000

    def wall_ms(self) -> int:
        """Return what the wall clock of this machine says."""
        return self.local_ms() + self.wall_offset_ms

    def _at_local(self, local_ms: int) -> int:
        us = local_ms * 1_000 - self.offset_us
        return us * 1_000_000 // (1_000_000 + self.drift_ppm) + 2

    # -- life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the process, unless it runs or the disk says that this member is burnt."""
        if self.core is not None:
            return
        world = self.world
        world.incarnations += 1
        try:
            durable = self.disk.open(world.incarnations)
        except ForgottenError as error:
            self._burn(str(error))
            if self.rng.random() < 0.5 or not self.disk.consistent():
                return
            durable = self.disk.durable(world.incarnations)
        self.life += 1
        self.frozen = False
        self.apply_busy = False
        self.said = max(self.said, self.disk.features)
        self.seen_commit = 0
        self.seen_term = durable.hard.term
        core = world.make_core(
            durable,
            rng=random.Random(self.rng.getrandbits(64)),
            timing=world.plan.timing,
            limits=world.plan.limits,
            now_ms=self.local_ms(),
            wall_ms=self.wall_ms(),
            checks=True,
        )
        self.core = core
        world.note("start", self.id, f"incarnation {world.incarnations} term {durable.hard.term}")
        self.tick_at_ms = self.local_ms()
        self._tick(self.life, self.tick_at_ms)
        world.network.started(self.id)

    def _burn(self, reason: str) -> None:
        if not self.burnt:
            self.burnt = True
            self.disk.amnesia = True
            self.world.note("amnesia", self.id, reason)
            self.world.monitor.burnt(self, reason)

    def stop(self, *, power: bool = False, silent: bool = False) -> None:
        """The process dies now. `power`: the whole machine, so what was not synced may be gone."""
        if self.core is None:
            return
        self.world.note("stop", self.id, "power" if power else "killed")
        self.core = None
        self.life += 1
        self.frozen = False
        self.backlog.clear()
        self.applying.clear()
        self.snapshots.forget()
        self.disk.crash(power=power)
        self.world.network.died(self.id, silent=silent)
        waiting, self.waiting = self.waiting, {}
        for answers in waiting.values():
            for answer in answers:
                answer("lost", None, 0)

    def freeze(self) -> None:
        """SIGSTOP, or an event loop that does not come round."""
        self.frozen = self.core is not None

    def thaw(self) -> None:
        """Go on: everything that has gathered is there at once."""
        if not self.frozen or self.core is None:
            return
        self.frozen = False
        life, late_ms = self.life, self.local_ms() - self.tick_at_ms
        stalled_first = self.rng.random() < 0.5
        if stalled_first and late_ms > STALL_MS:
            self.step(ev.Stalled(late_ms))
        while self.backlog and self.life == life and not self.frozen:
            call, values = self.backlog.popleft()
            call(*values)
        if self.life == life and not self.frozen:
            if not stalled_first and late_ms > STALL_MS:
                self.step(ev.Stalled(late_ms))
            self._tick(life, self.tick_at_ms)

    def now_or_later(self, life: int, call: Callable[..., None], *values: Any) -> None:
        """Run something of the process `life`: now, when it goes on, or never."""
        if life != self.life or self.core is None:
            return
        if self.frozen:
            self.backlog.append((call, values))
        else:
            call(*values)

    def soon(self, us: int, call: Callable[..., None], *values: Any) -> None:
        """Run something of this process after some time."""
        self.world.after(us, self.now_or_later, self.life, call, *values)

    # -- events in ------------------------------------------------------------------------------------------------

    def step(self, event: ev.Event) -> None:
        """Step the core and carry out what it says."""
        core = self.core
        if core is None:
            return
        world, life = self.world, self.life
        world.steps += 1
        monitor = world.monitor
        monitor.before_step(core, event)
        effects = core.step(self.local_ms(), event)
        if world.fingerprint is not None:
            world.fingerprint.update(f"{world.now_us} {self.id} {event!r} {effects!r}\n".encode())
        monitor.after_step(self, core)
        for effect in effects:
            if self.life != life:
                return
            self._effects[type(effect)](effect)
        if self.life == life and core.wake_ms < self.tick_at_ms:
            self._arm(core)

    def receive(self, envelope: Envelope) -> None:
        """From the network."""
        if self.core is None:
            return
        if self.frozen:
            if len(self.backlog) < SOCKET_BUFFER:
                self.backlog.append((self.receive, (envelope,)))
            return
        if self.world.verbose:
            self.world.note("receive", self.id, f"from {envelope.source} term {envelope.term} {envelope.message}")
        self.step(ev.Receive(envelope))

    def link_up(self, peer: MemberId) -> None:
        """From the network."""
        self.now_or_later(self.life, self.step, ev.LinkUp(peer))

    def link_down(self, peer: MemberId, evidence: str) -> None:
        """From the network."""
        self.now_or_later(self.life, self.step, ev.LinkDown(peer, evidence))

    def _arm(self, core: Core) -> None:
        now = self.local_ms()
        self.tick_at_ms = max(now + 1, min(now + TICK_MS, core.wake_ms))
        self.world.at(self._at_local(self.tick_at_ms), self._tick, self.life, self.tick_at_ms)

    def _tick(self, life: int, at_ms: int) -> None:
        if life != self.life or at_ms != self.tick_at_ms or self.frozen or self.core is None:
            return
        self.tick_at_ms = -1  # nothing arms while we tick
        self.step(ev.Tick(self.wall_ms(), self.disk.free_kib))
        if life == self.life and self.core is not None:
            self._arm(self.core)

    def request(self, key: bytes | int, event: ev.Event, answer: Answer) -> bool:
        """Ask the core for something, for a client; return False when nobody is there to take it."""
        if self.core is None:
            return False
        self.waiting.setdefault(key, []).append(answer)
        self.now_or_later(self.life, self.step, event)
        return True

    # -- effects out ----------------------------------------------------------------------------------------------

    def _ignore(self, effect: object) -> None:
        pass

    def _send(self, effect: fx.Send) -> None:
        self.world.monitor.sending(self, effect.envelope)
        self.world.network.send(effect.envelope)

    def _write(self, effect: fx.WriteLog) -> None:
        self.world.monitor.writing(self, effect)
        self.disk.submit(effect)

    def log_written(self, writes: list[fx.WriteLog]) -> None:
        """From the disk."""
        self.now_or_later(self.life, self._log_written, writes)

    def _log_written(self, writes: list[fx.WriteLog]) -> None:
        life = self.life
        self.step(ev.LogWritten(writes[-1].write_id))
        for write in writes:
            for send in write.then:
                if self.life == life and self.core is not None and not self.core.stopped:
                    self._send(send)

    def log_failed(self, write: fx.WriteLog | None, kind: str) -> None:
        """From the disk."""
        self.now_or_later(self.life, self.step, ev.LogFailed(0 if write is None else write.write_id, kind))

    def _resolve(self, effect: fx.Resolve) -> None:
        for answer in self.waiting.pop(effect.key, ()):
            answer(effect.status, effect.result, effect.index)

    def _role_changed(self, effect: fx.RoleChanged) -> None:
        self.world.note("role", self.id, f"{effect.role} term {effect.term} leader {effect.leader} ({effect.cause})")

    def _fatal(self, effect: fx.Fatal) -> None:
        self.world.note("fatal", self.id, f"{effect.kind}: {effect.reason}")
        self.world.monitor.fatal(self, effect)
        if effect.kind == "amnesia":
            self._burn(effect.reason)
        self.stop()
        if not self.burnt:
            self.world.after(self.rng.randint(20_000, 500_000), self.start)

    # -- applying -------------------------------------------------------------------------------------------------

    def _apply(self, effect: fx.Apply) -> None:
        self.world.monitor.to_apply(self, effect)
        self.applying.extend(effect.entries)
        if not self.apply_busy:
            self._apply_next()

    def _apply_next(self) -> None:
        self.apply_busy = True
        wait = 10 + int(self.rng.random() * 2 * self.world.plan.disk.apply_us)
        self.world.after(wait, self._apply_now, self.life)

    def _apply_before(self, entries: tuple[Entry, ...]) -> None:
        """What stands before an entry that can't be applied is in the state, as far as it goes."""
        if entries:
            self.world.monitor.applied(self, entries, self.disk.machine.apply(entries))

    def _apply_now(self, life: int) -> None:
        """On the apply thread, which a stalled event loop does not stop."""
        if life != self.life:
            return
        count = len(self.applying) if self.rng.random() < 0.7 else self.rng.randint(1, len(self.applying))
        entries = tuple(self.applying.popleft() for _ in range(count))
        place = self.world.upgrades.first_too_new(self, entries)
        if place is not None:
            self._apply_before(entries[:place])
            self.world.upgrades.stop(self, f"entry {entries[place].index}")
            return
        outcomes = self.disk.machine.apply(entries)
        self.world.monitor.applied(self, entries, outcomes)
        results = tuple(
            (entry.proposal_id, outcome)
            for entry, outcome in zip(entries, outcomes, strict=True)
            if entry.proposal_id and outcome is not None
        )
        event = ev.Applied(entries[-1].index, self.disk.machine.digest, results)
        self.apply_busy = False
        self.now_or_later(life, self.step, event)
        if self.applying and not self.apply_busy and life == self.life:
            self._apply_next()
