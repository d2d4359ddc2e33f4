"""The life of one actor: start, messages, crash, restart by its parent, stop.

Owns an actor object through all its incarnations, with its mailbox, children and linked tasks; used by the system
and by contexts. Must never leave anything running after `stop` has returned.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from incus_actors.actors.actor import Actor, ActorContext, ActorStartError, ChildSpec, Later, Unhandled
from incus_actors.actors.mailbox import Letter, Mailbox
from incus_actors.actors.messages import Terminated
from incus_actors.actors.ref import ActorDeadError, ActorRef, AskTimeoutError
from incus_actors.actors.supervision import Supervision
from incus_actors.errors import ApiError, NotImplementedHereError
from incus_actors.tasks import spawn

if TYPE_CHECKING:
    from incus_actors.actors.system import ActorSystem

log = logging.getLogger(__name__)

KILL_AGAIN_S = 0.2  #: an actor that swallows its cancellation is cancelled again after this long,
KILL_TRIES = 25  #: and given up, loudly, after so many times

current: contextvars.ContextVar[Cell | None] = contextvars.ContextVar("current_actor", default=None)


class CellState(StrEnum):
    """Where an actor is in its life."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    CRASHED = "crashed"  #: ended by itself, its parent decides: letters wait for the next life
    STOPPED = "stopped"  #: ended for good


class Cell:
    """One place in the tree. The path stays, the actor in it may be replaced."""

    def __init__(self, system: ActorSystem, parent: Cell | None, spec: ChildSpec) -> None:
        self.system = system
        self.parent = parent
        self.spec = spec
        self.path: str = f"{parent.path}/{spec.name}" if parent is not None and parent.path else spec.name
        self.state = CellState.STOPPED
        self.actor: Actor | None = None
        self.kind = ""
        self.mailbox = Mailbox(Actor.mailbox_limit)
        self.children: dict[str, Cell] = {}
        self.watchers: set[tuple[str, int]] = set()
        self.watching: set[ActorRef] = set()
        self.restarts = 0
        self.handled = 0
        self.busy_since: float | None = None
        self.letter: Letter | None = None
        self.life: asyncio.Task[None] | None = None
        self.restart_times: deque[float] = deque()
        self._supervision = Supervision(self)
        self._failure: Exception | None = None
        self._stop_reason = ""
        self._ordered = False  #: somebody else wants the end of this cell: its parent must not restart it
        self._served = asyncio.Event()
        self._linked: set[asyncio.Task[None]] = set()
        self._timers: set[asyncio.TimerHandle] = set()

    # -- start -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin a life; returns when `started()` is done. Raises ActorStartError."""
        try:
            self.actor = self.spec.factory()
        except Exception as error:
            self.state = CellState.CRASHED
            raise ActorStartError(f"{self.path}: {error}") from error
        self.kind = type(self.actor).__name__
        self.actor.context = ActorContext(self)
        if self.mailbox.closed:
            self._bury(self._new_mailbox(), "stopped")
        self.mailbox.limit = self.actor.mailbox_limit
        self.state = CellState.STARTING
        self._failure = None
        self._stop_reason = ""
        self._ordered = False
        self._served = asyncio.Event()
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ready.add_done_callback(lambda done: done.cancelled() or done.exception())
        self.life = spawn(self._live(self.actor, ready), name=f"actor {self.path or '/'}")
        await ready

    async def _live(self, actor: Actor, ready: asyncio.Future[None]) -> None:
        current.set(self)
        cause: Exception | None = None
        began = False
        try:
            await self._start_actor(actor)
            began = True
            if not self._stop_reason:
                self.state = CellState.RUNNING
            _resolve(ready, None)
            await self._serve(actor)
        except asyncio.CancelledError:
            cause = self._failure
            task = asyncio.current_task()
            while task is not None and task.uncancel():
                pass
        except Exception as error:  # every crash goes to the supervisor
            cause = error
        self._served.set()
        if self._failure is not None:
            cause = self._failure
        await self._finish(actor, cause, began=began)
        if not ready.done():
            failure = ActorStartError(f"{self.path}: {cause or 'stopped while starting'}")
            failure.__cause__ = cause
            ready.set_exception(failure)
        elif self.parent is None:
            self.system.root_ended(cause)
        elif not self._ordered:
            self.parent.child_ended(self, cause)

    async def _start_actor(self, actor: Actor) -> None:
        try:
            async with asyncio.timeout(self.spec.start_s) as limit:
                await actor.started()
        except TimeoutError as error:
            if limit.expired():
                raise ActorStartError(f"started() took more than {self.spec.start_s} s") from error
            raise

    # -- messages --------------------------------------------------------------------------------------------------

    def deliver(self, letter: Letter, *, urgent: bool = False) -> str:
        """Put a letter in the mailbox; returns "" or the reason why not."""
        if self.state in (CellState.STOPPING, CellState.STOPPED):
            return "stopped"
        return "" if self.mailbox.put(letter, urgent=urgent) else "mailbox_full"

    async def _serve(self, actor: Actor) -> None:
        clock = asyncio.get_running_loop().time
        while (letter := await self.mailbox.get()) is not None:
            if letter.deadline is not None and clock() >= letter.deadline:
                self.system.dead_letters.add(self.path, 0, letter.message, "expired")
                _fail(letter, AskTimeoutError(f"{self.path} did not get to it in time"))
                continue
            if letter.reply is not None and letter.reply.done():
                continue  # the asker is gone
            self.letter = letter
            self.busy_since = time.monotonic()
            actor.context.sender_member = letter.sender_member or self.system.member_id()
            try:
                await self._handle(actor, letter)
            finally:
                self.letter = None
                self.busy_since = None
                self.handled += 1

    async def _handle(self, actor: Actor, letter: Letter) -> None:
        try:
            result = await actor.receive(letter.message)
        except ApiError as error:
            self._answer_error(letter, error)
        except Unhandled:
            self.system.dead_letters.add(self.path, 0, letter.message, "unhandled")
            _fail(letter, NotImplementedHereError(f"{self.kind} does not handle {type(letter.message).__name__}"))
        except asyncio.CancelledError:
            _fail(letter, ActorDeadError(f"{self.path} stopped"))
            raise
        except Exception as error:
            _fail(letter, ActorDeadError(f"{self.path} crashed"))
            log.error("actor %s crashed handling %s", self.path, type(letter.message).__name__, exc_info=error)
            raise
        else:
            if isinstance(result, Later):
                self._start_later(result, letter)
            else:
                _resolve(letter.reply, result)

    def _answer_error(self, letter: Letter, error: ApiError) -> None:
        if letter.reply is None:
            log.warning("actor %s: %s failed: %s", self.path, type(letter.message).__name__, error)
        _fail(letter, error)

    def _start_later(self, later: Later, letter: Letter) -> None:
        async def work() -> None:
            try:
                result = await later.work
            except ApiError as error:
                self._answer_error(letter, error)
            except BaseException:
                _fail(letter, ActorDeadError(f"{self.path} stopped or crashed"))
                raise
            else:
                _resolve(letter.reply, result)

        self.link(work(), f"{self.path} answers {type(letter.message).__name__}", later.work)

    # -- linked work -----------------------------------------------------------------------------------------------

    def link(self, coro: Coroutine[Any, Any, object], name: str, *inner: Coroutine[Any, Any, object]) -> None:
        """Run `coro` as a part of this life; it and `inner` (what it awaits) are closed if it never gets to run."""

        async def guarded() -> None:
            current.set(None)
            try:
                await coro
            except Exception as error:  # handed to the supervisor
                log.error("actor %s: linked task %s failed", self.path, name, exc_info=error)
                self.fail(error)

        if self.actor is None:
            for work in (coro, *inner):
                work.close()
            raise RuntimeError(f"{self.path} is not alive")
        task = spawn(guarded(), name=name)
        self._linked.add(task)

        def ended(done: asyncio.Task[None]) -> None:
            self._linked.discard(done)
            for work in (coro, *inner):
                work.close()

        task.add_done_callback(ended)

    def timer(self, delay_s: float, message: object, *, repeat: bool) -> Callable[[], None]:
        """Put `message` in the mailbox later (again and again); returns the canceller."""
        loop = asyncio.get_running_loop()
        waiting = False
        handle: asyncio.TimerHandle | None = None

        def taken() -> None:
            nonlocal waiting
            waiting = False

        def schedule() -> None:
            nonlocal handle
            handle = loop.call_later(delay_s, fire)
            self._timers.add(handle)

        def fire() -> None:
            nonlocal waiting
            if handle is not None:
                self._timers.discard(handle)
            if not waiting:
                waiting = not self.deliver(Letter(message, taken=taken), urgent=True)
            if repeat:
                schedule()

        def cancel() -> None:
            if handle is not None:
                handle.cancel()
                self._timers.discard(handle)

        schedule()
        return cancel

    # -- children --------------------------------------------------------------------------------------------------

    async def spawn_child(self, spec: ChildSpec) -> ActorRef:
        """Start a child. Raises ActorStartError, ValueError."""
        if not spec.name or "/" in spec.name or spec.name in self.children:
            raise ValueError(f"{self.path}: child name {spec.name!r} is taken or invalid")
        if self.state not in (CellState.STARTING, CellState.RUNNING):
            raise ActorStartError(f"{self.path} is {self.state}")
        child = Cell(self.system, self, spec)
        self.children[spec.name] = child
        self.system.register(child)
        try:
            await child.start()
        except ActorStartError:
            self.forget(child)
            raise
        return self.system.ref(child.path)

    async def stop_child(self, name: str) -> None:
        """Stop a child for good."""
        child = self.children.get(name)
        if child is not None:
            await child.stop("shutdown")
            self.forget(child)

    def forget(self, child: Cell) -> None:
        """Remove an ended child from the tree; whoever still writes to it gets a dead letter."""
        child.state = CellState.STOPPED
        if self.children.get(child.spec.name) is child:
            del self.children[child.spec.name]
        self.system.unregister(child)
        child.drop_mailbox("stopped")

    def child_ended(self, child: Cell, cause: Exception | None) -> None:
        """A child's life ended by itself; decide beside the mailbox, so that a busy parent still supervises."""
        if self.state in (CellState.STARTING, CellState.RUNNING):
            self._supervision.add(child, cause)

    # -- end -------------------------------------------------------------------------------------------------------

    def request_stop(self, reason: str) -> None:
        """End this life after the present message."""
        self._stop_reason = self._stop_reason or reason
        if self.state in (CellState.STARTING, CellState.RUNNING):
            self.state = CellState.STOPPING
        self.mailbox.close()

    def fail(self, error: Exception) -> None:
        """Crash this life now, whatever it is doing."""
        if self.state in (CellState.STARTING, CellState.RUNNING) and self._failure is None and self.life is not None:
            self._failure = error
            self.life.cancel()

    async def stop(self, reason: str) -> None:
        """End this cell for good: finish the present message, or be cancelled; children first, in reverse order."""
        life = self.life
        if life is None or life.done():
            self._supervision.cancel()
            self.state = CellState.STOPPED
            return
        self._ordered = True
        self.request_stop(reason)
        waiter = spawn(self._served.wait(), name=f"stop of {self.path}")
        try:
            done, _ = await asyncio.wait({waiter}, timeout=self.spec.shutdown_s)
            if not done:
                log.warning("actor %s did not stop within %s s: cancelled", self.path, self.spec.shutdown_s)
                await _kill(life, self._served, self.path)
        finally:
            waiter.cancel()
        if self._served.is_set():
            await asyncio.wait({life})
        self.state = CellState.STOPPED

    async def _finish(self, actor: Actor, cause: Exception | None, *, began: bool) -> None:
        """The end of one life, in every case."""
        stopping = bool(self._stop_reason) and cause is None
        reason = self._stop_reason if stopping else f"crashed: {cause}" if cause is not None else "killed"
        # Unless somebody wants the end, letters that come from now on are for the next life.
        self.state = CellState.STOPPING if self._ordered else CellState.CRASHED
        self._bury(self._new_mailbox(), "stopped" if stopping else "crashed")
        self._supervision.cancel()
        for timer in tuple(self._timers):
            timer.cancel()
        self._timers.clear()
        for name in reversed(tuple(self.children)):
            await self.stop_child(name)
        await self._cancel_linked()
        if began:
            await self._say_stopped(actor, reason)
        self.system.unwatch_all(self)
        self._tell_watchers(reason)
        self.actor = None
        self.state = CellState.STOPPED if self._ordered else CellState.CRASHED

    async def _say_stopped(self, actor: Actor, reason: str) -> None:
        task = spawn(_quietly(actor.stopped(reason), self.path), name=f"stopped() of {self.path}")
        done, _ = await asyncio.wait({task}, timeout=self.spec.shutdown_s)
        if not done:
            log.warning("stopped() of %s took more than %s s: cancelled", self.path, self.spec.shutdown_s)
            task.cancel()
            await asyncio.wait({task}, timeout=KILL_AGAIN_S)

    async def _cancel_linked(self) -> None:
        for _ in range(KILL_TRIES):
            tasks = {task for task in self._linked if not task.done() and task is not asyncio.current_task()}
            if not tasks:
                return
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=KILL_AGAIN_S)
        log.error("actor %s leaves tasks that ignore their cancellation", self.path)

    def drop_mailbox(self, reason: str) -> None:
        """Fail and count everything that waits."""
        self._bury(self.mailbox, reason)

    def _new_mailbox(self) -> Mailbox:
        """Begin an empty mailbox; returns the old one."""
        old, self.mailbox = self.mailbox, Mailbox(self.mailbox.limit, self.mailbox.high_water)
        return old

    def _bury(self, mailbox: Mailbox, reason: str) -> None:
        for letter in mailbox.take_all():
            self.system.dead_letters.add(self.path, 0, letter.message, reason)
            _fail(letter, ActorDeadError(f"{self.path} {reason}"))

    def _tell_watchers(self, reason: str) -> None:
        watchers, self.watchers = self.watchers, set()
        notice = Terminated(self.path, self.system.member_id(), reason)
        for path, member in watchers:
            self.system.notify(path, member, notice)


async def _quietly(coro: Coroutine[Any, Any, None], path: str) -> None:
    try:
        await coro
    except Exception as error:  # a failing end is still an end
        log.error("stopped() of %s failed", path, exc_info=error)


async def _kill(life: asyncio.Task[None], served: asyncio.Event, path: str) -> None:
    for _ in range(KILL_TRIES):
        life.cancel()
        waiter = spawn(served.wait(), name=f"kill of {path}")
        done, _ = await asyncio.wait({waiter}, timeout=KILL_AGAIN_S)
        waiter.cancel()
        if done:
            return
    log.error("actor %s ignores its cancellation and is left behind", path)


def _resolve(reply: asyncio.Future[Any] | None, result: object) -> None:
    if reply is not None and not reply.done():
        reply.set_result(result)


def _fail(letter: Letter, error: Exception) -> None:
    if letter.reply is not None and not letter.reply.done():
        letter.reply.set_exception(error)
