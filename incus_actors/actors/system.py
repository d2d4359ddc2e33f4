"""The actor system of one member: the tree, delivery, asking, watching.

Owns the root supervisor and the index of paths; created by the daemon, reached by actors through their context.
Must never leave an actor running after `stop()`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from incus_actors.actors.actor import ChildSpec
from incus_actors.actors.cell import Cell, CellState, current
from incus_actors.actors.mailbox import DeadLetters, Letter
from incus_actors.actors.messages import Terminated
from incus_actors.actors.ref import ActorDeadError, ActorRef, AskTimeoutError, DeadlockError, MailboxFullError
from incus_actors.actors.remoting import RemoteSender, Remoting
from incus_actors.actors.supervisor import Supervisor

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ActorInfo:
    """One line of the live supervision tree."""

    path: str
    kind: str  #: name of the class
    state: str
    restarts: int
    mailbox: int
    high_water: int
    mailbox_limit: int
    handled: int
    busy_s: float  #: how long it has been at its present message; 0: idle


class ActorSystem:
    """Everything that lives in a tree of supervisors on this member."""

    def __init__(self, *, member_id: Callable[[], int], remote: RemoteSender | None = None) -> None:
        self.member_id = member_id
        self.dead_letters = DeadLetters()
        self.remoting = Remoting(self)
        self.remoting.sender = remote
        #: Called once with the cause when the root gives up: the daemon must exit cleanly.
        self.on_escalation: Callable[[Exception], None] | None = None
        self._cells: dict[str, Cell] = {}
        self._root: Cell | None = None

    # -- life ------------------------------------------------------------------------------------------------------

    async def start(self, root_specs: Sequence[ChildSpec] = ()) -> None:
        """Start these under the root, in order. Raises ActorStartError (then nothing is left running)."""
        if self._root is not None:
            raise RuntimeError("the actor system is already started")
        self._root = Cell(self, None, ChildSpec("", lambda: Supervisor(root_specs), start_s=120))
        try:
            await self._root.start()
        except BaseException:
            await self._root.stop("shutdown")
            self._root = None
            raise

    async def stop(self) -> None:
        """Stop everything, children in reverse order of their start, each within its deadline."""
        root, self._root = self._root, None
        if root is not None:
            await root.stop("shutdown")
        self.remoting.close()

    async def start_child(self, spec: ChildSpec) -> ActorRef:
        """Start one more actor under the root. Raises ActorStartError, ValueError."""
        if self._root is None:
            raise RuntimeError("the actor system is not started")
        return await self._root.spawn_child(spec)

    async def stop_child(self, name: str) -> None:
        """Stop an actor under the root for good."""
        if self._root is not None:
            await self._root.stop_child(name)

    def root_ended(self, cause: Exception | None) -> None:
        """Called by the root cell: nobody is above it."""
        if cause is None:
            return
        log.critical("the root of the actors gave up: %s", cause)
        if self.on_escalation is not None:
            self.on_escalation(cause)

    # -- references ------------------------------------------------------------------------------------------------

    def ref(self, path: str, member: int | None = None) -> ActorRef:
        """Return a reference; whether anybody is there shows when it is used."""
        return ActorRef(self, path.strip("/"), member)

    def is_local(self, member: int | None) -> bool:
        """Whether `member` is this one."""
        return member is None or member == 0 or member == self.member_id()

    def find(self, path: str) -> Cell | None:
        """Return the cell at a path of this member."""
        return self._cells.get(path)

    def register(self, cell: Cell) -> None:
        """Make a cell reachable by its path."""
        self._cells[cell.path] = cell

    def unregister(self, cell: Cell) -> None:
        """Take a path out of the index."""
        if self._cells.get(cell.path) is cell:
            del self._cells[cell.path]

    # -- messages --------------------------------------------------------------------------------------------------

    def tell(self, ref: ActorRef, message: object) -> None:
        """See ActorRef.tell."""
        if not self.is_local(ref.member):
            self.remoting.tell(ref, message)
            return
        reason = self.deliver(ref.path, Letter(message))
        if reason:
            self.dead_letters.add(ref.path, 0, message, reason)

    async def ask(self, ref: ActorRef, message: object, *, deadline_s: float) -> Any:
        """See ActorRef.ask."""
        if not self.is_local(ref.member):
            return await self.remoting.ask(ref, message, deadline_s=deadline_s)
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[object] = loop.create_future()
        letter = Letter(message, reply, 0, loop.time() + deadline_s, self._chain(ref.path))
        reason = self.deliver(ref.path, letter)
        if reason:
            self.dead_letters.add(ref.path, 0, message, reason)
            error = MailboxFullError if reason == "mailbox_full" else ActorDeadError
            raise error(f"{ref.path}: {reason}")
        return await self.answer(reply, ref, deadline_s)

    @staticmethod
    async def answer(reply: asyncio.Future[object], ref: ActorRef, deadline_s: float) -> object:
        """Wait for the answer. Raises AskTimeoutError, and what the reply carries."""
        try:
            async with asyncio.timeout(deadline_s) as limit:
                return await reply
        except TimeoutError as error:
            if limit.expired():
                raise AskTimeoutError(f"no answer from {ref!r} within {deadline_s} s") from error
            raise

    def _chain(self, target: str) -> tuple[Cell, ...]:
        """Who waits for the answer. Raises DeadlockError if `target` is among them."""
        cell = current.get()
        if cell is None or cell.life is not asyncio.current_task():
            return ()  # asked by a task beside the mailbox: the actor itself goes on
        chain = (*(cell.letter.chain if cell.letter is not None else ()), cell)
        if any(waiting.path == target for waiting in chain):
            raise DeadlockError(f"{cell.path} asks {target}, which waits for it")
        return chain

    def deliver(self, path: str, letter: Letter, *, urgent: bool = False) -> str:
        """Put a letter in the mailbox of a local actor; returns "" or why not."""
        cell = self._cells.get(path)
        return "no_actor" if cell is None else cell.deliver(letter, urgent=urgent)

    # -- death watch -----------------------------------------------------------------------------------------------

    def watch(self, watcher: Cell, ref: ActorRef) -> None:
        """Have `watcher` told of the end of `ref`."""
        watcher.watching.add(ref)
        if not self.is_local(ref.member):
            self.remoting.watch(watcher.path, ref)
            return
        self.add_watcher(ref.path, watcher.path, 0)

    def add_watcher(self, path: str, watcher: str, member: int) -> None:
        """Note a watcher (member 0: here); it is told at once if nobody lives at `path`."""
        cell = self._cells.get(path)
        if cell is None or cell.state not in (CellState.STARTING, CellState.RUNNING, CellState.STOPPING):
            self.notify(watcher, member, Terminated(path, self.member_id(), "noproc"))
        else:
            cell.watchers.add((watcher, member))

    def unwatch(self, watcher: Cell, ref: ActorRef) -> None:
        """Take a watch back."""
        watcher.watching.discard(ref)
        if not self.is_local(ref.member):
            self.remoting.unwatch(watcher.path, ref)
            return
        self.remove_watcher(ref.path, watcher.path, 0)

    def remove_watcher(self, path: str, watcher: str, member: int) -> None:
        """Forget a watcher."""
        cell = self._cells.get(path)
        if cell is not None:
            cell.watchers.discard((watcher, member))

    def unwatch_all(self, watcher: Cell) -> None:
        """The watcher ends: its next life has asked for nothing."""
        for ref in tuple(watcher.watching):
            self.unwatch(watcher, ref)

    def notify(self, watcher: str, member: int, notice: Terminated) -> None:
        """Tell a watcher, here (member 0) or elsewhere."""
        if member:
            self.remoting.terminated(watcher, member, notice)
            return
        cell = self._cells.get(watcher)
        if cell is not None:
            cell.watching.discard(self.ref(notice.path, notice.member))
            cell.deliver(Letter(notice), urgent=True)

    # -- diagnosis -------------------------------------------------------------------------------------------------

    def tree(self) -> list[ActorInfo]:
        """Return every actor, parents before children, siblings in the order of their start."""
        found: list[ActorInfo] = []

        def visit(cell: Cell) -> None:
            busy_s = 0.0 if cell.busy_since is None else time.monotonic() - cell.busy_since
            found.append(
                ActorInfo(
                    path=cell.path or "/",
                    kind=cell.kind,
                    state=str(cell.state),
                    restarts=cell.restarts,
                    mailbox=len(cell.mailbox),
                    high_water=cell.mailbox.high_water,
                    mailbox_limit=cell.mailbox.limit,
                    handled=cell.handled,
                    busy_s=busy_s,
                )
            )
            for child in cell.children.values():
                visit(child)

        if self._root is not None:
            visit(self._root)
        return found
