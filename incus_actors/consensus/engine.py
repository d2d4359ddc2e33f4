"""The consensus thread: its own loop, core, driver, lane and disk threads, from open to close.

Owns the life of everything that runs apart from the main loop (DESIGN D16); made by runtime.py, which talks to it
by messages only. Must never run application work.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path

from incus_actors.clock import Clock, SystemClock
from incus_actors.consensus.api import ConsensusStatus
from incus_actors.consensus.apply_thread import ApplyThread
from incus_actors.consensus.core import Core
from incus_actors.consensus.driver import Driver
from incus_actors.consensus.history import History
from incus_actors.consensus.inbox import Inbox
from incus_actors.consensus.lane import LaneFactory, RaftLane
from incus_actors.consensus.log_store import LogStore
from incus_actors.consensus.log_thread import LogThread
from incus_actors.consensus.notices import FatalNotice, Incoming, Notice, StartedNotice
from incus_actors.consensus.opening import check_state, lay_ballast, mark_state_suspect, open_member, superseded
from incus_actors.consensus.priority import raise_priority
from incus_actors.consensus.snapshot_files import SnapshotFiles
from incus_actors.consensus.state_mark import is_quiet, mark_of
from incus_actors.consensus.types import DurableState, Limits, Timing
from incus_actors.consensus.view import look
from incus_actors.state.apply import Applier

log = logging.getLogger(__name__)

_LATENCY_EVERY_MS = 1000
_BALLAST_EVERY_S = 30.0
_GOODBYE_S = 0.02  #: sockets close without lingering, so the last words need a moment


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What an engine is started with."""

    directory: Path
    lane_factory: LaneFactory
    timing: Timing = field(default_factory=Timing)
    limits: Limits = field(default_factory=Limits)
    clock: Clock = field(default_factory=SystemClock)
    realtime: bool = True


class Engine:
    """One run of consensus on a directory. `tell` is called on the consensus thread and must be quick."""

    def __init__(self, settings: EngineSettings, tell: Callable[[Notice], None]) -> None:
        self._settings = settings
        self._tell = tell
        self.started: Future[None] = Future()
        self.status: ConsensusStatus | None = None
        self.inbox: Inbox[Incoming] | None = None
        self.priority = "normal"
        self._thread = threading.Thread(target=self._run, name="consensus", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._latency: dict[str, dict[str, float]] = {}
        self._latency_at_ms = 0
        self._tick_timer: asyncio.TimerHandle | None = None
        self._opened_as_of_ms = 0

    # On the main thread

    def start(self) -> None:
        """Start the thread; `started` gets the result, or LogError, sqlite3.Error, OSError, ApplyError."""
        self._thread.start()

    def put(self, *items: Incoming) -> None:
        """Give the driver some events."""
        if self.inbox is not None:
            self.inbox.put(*items)

    def request_stop(self) -> None:
        """Ask the thread to end after what is in the inbox; `join` waits for it."""
        if self._loop is not None and self._stopping is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stopping.set)

    def join(self) -> None:
        """Block until the thread has ended and every file is closed."""
        self._thread.join()

    @property
    def running(self) -> bool:
        """Whether the thread lives."""
        return self._thread.is_alive()

    # On the consensus thread

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as exc:
            log.exception("the consensus thread failed")
            if not self.started.done():
                self.started.set_exception(exc)
            else:
                self._tell(FatalNotice(f"{type(exc).__name__}: {exc}", "fatal"))

    async def _main(self) -> None:
        self.priority = raise_priority(realtime=self._settings.realtime)
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        try:
            opened = open_member(self._settings.directory)
        except BaseException as exc:
            self.started.set_exception(exc)
            return
        store, serving = opened.store, self._serve(opened.store, opened.applier, opened.durable, opened.state_path)
        del opened  # the entries are the core's alone, which forgets them when it compacts
        try:
            await serving
        finally:
            store.close()

    async def _serve(self, store: LogStore, applier: Applier, durable: DurableState, path: Path) -> None:
        settings, clock = self._settings, self._settings.clock
        loop = asyncio.get_running_loop()
        lane = settings.lane_factory()
        # Before a leader is heard, the state is as old as the last entry in it.
        last_ms = applier.position.timestamp_ms or clock.wall_ms()
        self._opened_as_of_ms = clock.monotonic_ms() - max(0, clock.wall_ms() - last_ms)

        def receive(item: Incoming) -> None:
            driver.receive(item)

        self.inbox = inbox = Inbox[Incoming](loop, receive)
        log_thread = LogThread(store, inbox.put)
        apply_thread = ApplyThread(applier, inbox.put)
        rng = random.Random(secrets.randbits(128))  # noqa: S311 - a history is replayed with the same numbers
        core = Core(
            durable,
            rng=rng,
            timing=settings.timing,
            limits=settings.limits,
            now_ms=clock.monotonic_ms(),
            wall_ms=clock.wall_ms(),
            checks=True,
        )
        durable = replace(durable, entries=())

        def publish() -> None:
            self._publish(core, driver, durable, lane)

        driver = Driver(
            core,
            log=log_thread,
            state=apply_thread,
            lane=lane,
            clock=clock,
            durable_index=store.last_index,
            applied_index=durable.applied,
            own_id=durable.member_id,
            epoch=durable.epoch,
            former=store.former,
            directory=settings.directory,
            history=History(lambda whole: mark_of(core, rng, whole=whole), lambda: is_quiet(core)),
            tell=self._tell,
            drain=inbox.drain,
            publish=publish,
            arm=lambda at_ms: self._arm(loop, driver, at_ms),
        )
        files = SnapshotFiles(
            settings.directory, path, durable.member_id, driver=driver, log=log_thread, state=apply_thread
        )
        driver.maintenance = files
        log_thread.start()
        apply_thread.start()
        try:
            await lane.start(driver)
            status = self._publish(core, driver, durable, lane)
            self._tell(StartedNotice(status, path))
            driver.adopt(core.log.configuration, core.log.configuration_index)
            said = superseded(settings.directory)
            if said:
                driver.halt(said)
            driver.tick()
            self.started.set_result(None)
            self._check_disks(files, driver, path)
            self._keep_ballast(loop, files)
            await self._until_stopped()
        except BaseException as exc:
            if self.started.done():
                raise
            self.started.set_exception(exc)
        finally:
            if self._tick_timer is not None:
                self._tick_timer.cancel()
            driver.dead = True
            await lane.close()
            files.close()
            log_thread.stop()
            apply_thread.stop()

    def _check_disks(self, files: SnapshotFiles, driver: Driver, path: Path) -> None:
        """In the background, after the start: is every page of the state readable, is there ballast?"""
        directory = self._settings.directory

        def look_closely() -> Callable[[], None]:
            lay_ballast(directory)
            problem = check_state(path)
            if problem:
                mark_state_suspect(directory, problem)
                return lambda: driver.die(f"{path.name} is damaged: {problem}", "fatal")
            return lambda: None

        files.begin(look_closely, lambda reason: log.error("the state file could not be checked: %s", reason))

    def _keep_ballast(self, loop: asyncio.AbstractEventLoop, files: SnapshotFiles) -> None:
        """Lay the ballast again some time after it was given up and there is room, for the next full disk."""
        directory = self._settings.directory

        def lay() -> Callable[[], None]:
            lay_ballast(directory)
            return lambda: None

        def again() -> None:
            if not files.closed:
                files.begin(lay, lambda reason: log.warning("no ballast in %s: %s", directory, reason))
                self._keep_ballast(loop, files)

        loop.call_later(_BALLAST_EVERY_S, again)

    async def _until_stopped(self) -> None:
        if self._stopping is None or self.inbox is None:
            return
        await self._stopping.wait()
        self.inbox.drain()
        if self.status is not None and self.status.peers:
            await asyncio.sleep(_GOODBYE_S)

    def _arm(self, loop: asyncio.AbstractEventLoop, driver: Driver, at_ms: int) -> None:
        """Tick at a monotonic millisecond: the loop's clock is the driver's, in seconds, unless a test stands it
        still."""
        if self._tick_timer is not None:
            self._tick_timer.cancel()
        wait_ms = at_ms - self._settings.clock.monotonic_ms()
        self._tick_timer = loop.call_at(loop.time() + wait_ms / 1000, driver.tick)

    def _publish(self, core: Core, driver: Driver, durable: DurableState, lane: RaftLane) -> ConsensusStatus:
        now_ms = self._settings.clock.monotonic_ms()
        if now_ms >= self._latency_at_ms:
            self._latency_at_ms = now_ms + _LATENCY_EVERY_MS
            measured = {**driver.samples, **core.measured}
            self._latency = {name: samples.summary() for name, samples in measured.items()}
        self.status = look(core, driver, durable, lane, self._latency, now_ms, self._opened_as_of_ms)
        return self.status
