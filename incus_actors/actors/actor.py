"""What one writes to make an actor.

Owns the base class, the specification of a child and the context that the runtime hands to an actor; subclassed by
every actor. Must never be called by anybody but the runtime: others hold an ActorRef.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from incus_actors.actors.ref import ActorRef

if TYPE_CHECKING:
    from incus_actors.actors.cell import Cell
    from incus_actors.actors.system import ActorSystem

Restart = Literal["permanent", "transient", "temporary"]
Strategy = Literal["one_for_one", "rest_for_one", "one_for_all"]


class ActorStartError(Exception):
    """An actor's factory or `started()` failed or took too long; the cause is chained."""


class Unhandled(Exception):  # noqa: N818 - a signal to the runtime, not an error of the actor
    """Raised by `Actor.unhandled`: the runtime makes a dead letter of it and refuses the ask."""


@dataclass(frozen=True, slots=True)
class Later:
    """Returned by `receive` to answer an ask when `work` is done, while the actor goes on with the next message.

    The work is tied to the life of the actor: cancelled when it stops. An ApiError is the answer; any other
    exception crashes the actor, as in `receive`.
    """

    work: Coroutine[Any, Any, object]


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """How to make and keep a child (Erlang/OTP child_spec).

    `restart`: "permanent" always, "transient" only after a crash, "temporary" never. More than `max_restarts`
    restarts within `within_s` seconds make the parent crash (escalation). `shutdown_s`: how long a stopping actor
    may go on with its present message, and again for `stopped()`, before it is cancelled. `start_s` bounds
    `started()`. `backoff_s` waits before a restart, doubled for each further one within the window.
    """

    name: str
    factory: Callable[[], Actor]
    restart: Restart = "permanent"
    max_restarts: int = 5
    within_s: float = 10
    shutdown_s: float = 5
    start_s: float = 30
    backoff_s: float = 0


class Actor:
    """One message at a time; state that nobody else touches.

    An ApiError out of `receive` is an answer. Any other exception crashes this object: its mailbox is lost (asks in
    it fail with ActorDeadError), watchers are told, and the supervisor makes a new one from the factory.
    """

    mailbox_limit: ClassVar[int] = 1024
    strategy: Strategy = "one_for_one"  #: for its children
    context: ActorContext  #: set by the runtime before `started()`

    async def started(self) -> None:
        """Called first. Whoever starts the actor waits for it. If it raises, `stopped` is not called."""

    async def stopped(self, reason: str) -> None:
        """Called last, after the children are gone: "normal", "shutdown" or "crashed: …"."""

    async def receive(self, message: object) -> object:
        """Handle one message; the return value answers an ask."""
        return self.unhandled(message)

    def unhandled(self, message: object) -> object:
        """Refuse a message: counted as a dead letter; an ask fails with 501. Never returns."""
        raise Unhandled(type(message).__qualname__)


class ActorContext:
    """What the runtime gives an actor for one life. Not to be used by anybody else, nor after `stopped()`."""

    __slots__ = ("_cell", "self_ref", "sender_member", "system")

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self.system: ActorSystem = cell.system
        self.self_ref: ActorRef = cell.system.ref(cell.path)
        #: The member that sent the present message, proven by its key; the own id for local messages.
        self.sender_member: int = cell.system.member_id()

    @property
    def path(self) -> str:
        """The actor's path."""
        return self._cell.path

    async def spawn_child(self, spec: ChildSpec) -> ActorRef:
        """Start a child under this actor and return when its `started()` is done.

        Raises ActorStartError if it does not start, ValueError if the name is taken or has a slash.
        """
        return await self._cell.spawn_child(spec)

    async def stop_child(self, name: str) -> None:
        """Stop a child for good and wait for its end; nothing happens if there is none."""
        await self._cell.stop_child(name)

    def child(self, name: str) -> ActorRef | None:
        """Return the reference of a child that is there."""
        cell = self._cell.children.get(name)
        return None if cell is None else self.system.ref(cell.path)

    def children(self) -> tuple[str, ...]:
        """Return the names of the children in the order of their start."""
        return tuple(self._cell.children)

    def watch(self, ref: ActorRef) -> None:
        """Have a `Terminated` in the mailbox when that life of `ref` ends; at once if there is none."""
        self.system.watch(self._cell, ref)

    def unwatch(self, ref: ActorRef) -> None:
        """Take a watch back."""
        self.system.unwatch(self._cell, ref)

    def stop(self, reason: str = "normal") -> None:
        """End this actor after the present message. A permanent child is restarted all the same."""
        self._cell.request_stop(reason)

    def run(self, coro: Coroutine[Any, Any, object], *, name: str) -> None:
        """Run something beside the mailbox, linked: it is cancelled with the actor, and crashes it if it fails."""
        self._cell.link(coro, name)

    def tell_after(self, delay_s: float, message: object) -> Callable[[], None]:
        """Send `message` to the own mailbox in `delay_s` seconds; returns how to cancel that."""
        return self._cell.timer(delay_s, message, repeat=False)

    def tell_every(self, interval_s: float, message: object) -> Callable[[], None]:
        """Send `message` every `interval_s` seconds; a tick is left out while the last one still waits."""
        return self._cell.timer(interval_s, message, repeat=True)
