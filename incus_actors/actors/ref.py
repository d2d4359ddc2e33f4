"""References to actors: the only way to reach one, here or on another member.

Owns addressing and the errors of asking; everyone holds these. Must never expose the actor object itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from incus_actors.errors import UnavailableError

if TYPE_CHECKING:
    from incus_actors.actors.system import ActorSystem


class AskError(UnavailableError):
    """An ask got no answer. It is an ApiError, so an actor that lets it pass answers with it and lives on."""


class AskTimeoutError(AskError):
    """No answer until the deadline; what was asked may still happen."""


class ActorDeadError(AskError):
    """There is no such actor, or it stopped or crashed before it answered."""


class MailboxFullError(AskError):
    """The actor, or the way to its member, has too much waiting; nothing was done."""


class DeadlockError(AskError):
    """The asked actor itself waits (directly or through others) for the one that asks."""


class ActorRef:
    """Where an actor is: a path, and a member (None or the own id: here). Stays valid over restarts."""

    __slots__ = ("_system", "member", "path")

    def __init__(self, system: ActorSystem, path: str, member: int | None = None) -> None:
        self._system = system
        self.path = path
        self.member = member

    def tell(self, message: object) -> None:
        """Send and forget. A full or missing mailbox makes a dead letter, counted; never raises for that.

        Raises TypeError when the actor is on another member and the message can't travel.
        """
        self._system.tell(self, message)

    async def ask(self, message: object, *, deadline_s: float) -> Any:
        """Return what `receive` returns for `message`.

        Raises AskTimeoutError after `deadline_s` seconds, ActorDeadError, MailboxFullError, DeadlockError, or the
        ApiError that the actor raised (from another member too: class, status, text and remedy travel).
        """
        return await self._system.ask(self, message, deadline_s=deadline_s)

    @property
    def local(self) -> bool:
        """Whether the actor is on this member."""
        return self._system.is_local(self.member)

    def __repr__(self) -> str:
        return f"<ActorRef {self.path}{'' if self.member is None else f'@{self.member}'}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ActorRef):
            return NotImplemented
        return self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def key(self) -> tuple[str, int]:
        """Path and member, with 0 for this member."""
        return self.path, 0 if self.local or self.member is None else self.member
