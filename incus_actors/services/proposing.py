"""Proposing with optimistic concurrency: read, decide, propose, and again if somebody was faster.

Owns the mapping of outcomes to errors; used by every service that changes rows. Must never retry an error, only a
conflict that its caller calls harmless.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from incus_actors.consensus.api import Consensus
from incus_actors.errors import ConflictError, MemberError
from incus_actors.model.transaction import Outcome, Transaction

T = TypeVar("T")

ATTEMPTS: Final = 8  #: of a read-modify-write; more than this many writers in a row came first

#: Compares what the caller has seen (If-Match) with what is there now; raises PreconditionFailedError.
Expect = Callable[[object], None]


class TransactionConflictError(Exception):
    """A guard failed: `label` tells which. Never leaves a service."""

    def __init__(self, label: str) -> None:
        super().__init__(label)
        self.label = label


class DuplicateError(Exception):
    """A UNIQUE constraint failed: `column` is like "projects.name". Never leaves a service."""

    def __init__(self, column: str) -> None:
        super().__init__(column)
        self.column = column


_UNIQUE = "UNIQUE constraint failed: "


async def propose(consensus: Consensus, transaction: Transaction, *, timeout_s: float = 10.0) -> Outcome:
    """Return the outcome of an applied transaction.

    Raises TransactionConflictError, DuplicateError, MemberError for any other error, UnavailableError.
    """
    outcome = await consensus.propose(transaction, timeout_s=timeout_s)
    if outcome.status == "conflict":
        raise TransactionConflictError(outcome.label)
    if not outcome.applied:
        if outcome.error.startswith(_UNIQUE):
            raise DuplicateError(outcome.error.removeprefix(_UNIQUE))
        raise MemberError(outcome.error)
    return outcome


async def until_unchanged(attempt: Callable[[], Awaitable[T]]) -> T:
    """Return what `attempt` returns; it is run again when it ends with the conflict "changed".

    Raises ConflictError when others were always faster; what `attempt` raises goes through.
    """
    for _ in range(ATTEMPTS):
        try:
            return await attempt()
        except TransactionConflictError as conflict:
            if conflict.label != "changed":
                raise
    raise ConflictError("The object was changed by others at the same time, try again")
