"""A decision that must last: guarded SQL statements, replicated as one log entry (DESIGN D2).

Owns the data that services and domain builders make, consensus carries and state executes. It must be
deterministic: time and ids are parameters chosen by the proposer, never made while it runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

Value: TypeAlias = None | int | float | str | bytes


@dataclass(frozen=True, slots=True)
class Statement:
    """One parametrised statement. Rows of a RETURNING clause come back in Outcome.rows."""

    sql: str
    parameters: tuple[Value, ...] = ()


@dataclass(frozen=True, slots=True)
class Guard:
    """A query that must give exactly `expected`, or the whole transaction is a no-op everywhere.

    `label` names what went wrong, for the proposer: "exists", "etag", "not_empty" ...
    """

    sql: str
    parameters: tuple[Value, ...]
    expected: tuple[tuple[Value, ...], ...]
    label: str


@dataclass(frozen=True, slots=True)
class Transaction:
    """Guards run first, then statements, all in one SQLite transaction on every replica.

    `fence_term`: if set, the entry must have been appended in this very term (a deposed leader's work is
    refused). `topics`: what it touches ("members", "config", "instances", ...), told to local subscribers
    after it is applied. `min_schema`: the version of the tables that it was made for, 0 if any will do; on an older
    one it is a conflict labelled "schema" (CONSENSUS 3.11). `frees`: a first step of a deletion, which is taken on a low disk like the deletion
    itself; that is known by its statements.
    """

    statements: tuple[Statement, ...]
    guards: tuple[Guard, ...] = ()
    topics: tuple[str, ...] = ()
    fence_term: int | None = None
    schema: bool = False  #: True for migrations: may contain DDL
    frees: bool = False
    min_schema: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What applying a transaction gave; the same on every replica.

    `status`: "applied", "conflict" (`label` is the failing guard's, or "fence"), "error" (`error` is SQLite's
    text, such as "UNIQUE constraint failed: nodes.name"). `rows[i]` and `changed[i]` belong to statement i.
    """

    status: str
    index: int = 0
    label: str = ""
    error: str = ""
    rows: tuple[tuple[tuple[Value, ...], ...], ...] = ()
    changed: tuple[int, ...] = ()

    @property
    def applied(self) -> bool:
        """Whether the statements took effect."""
        return self.status == "applied"
