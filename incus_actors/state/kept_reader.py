"""A Reader that asks only once between two changes: for actors that ask the same at every tick of an idle cluster.

Owns the answers; `forget` is called whenever something was applied here, before whoever proposed it hears of it. Must
never be used with parameters that are always new (a clock): nothing would ever be asked twice. (SQLite's own
data_version costs as much as a small query: both are mostly locks.)
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from incus_actors.model.transaction import Value
from incus_actors.state.database import Database

LIMIT = 256  #: answers; more at once are no tick's


class KeptReader:
    """Raises what the Database raises. Rows that it gives are shared: not to be changed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._answers: dict[tuple[int, str, tuple[Value, ...]], list[sqlite3.Row]] = {}

    def forget(self) -> None:
        """Ask anew from now on."""
        self._answers.clear()

    def query(self, sql: str, params: Sequence[Value] = ()) -> list[sqlite3.Row]:
        """Return all rows."""
        key = (self._database.switches, sql, tuple(params))
        found = self._answers.get(key)
        if found is None:
            if len(self._answers) >= LIMIT:
                self.forget()
            found = self._answers[key] = self._database.query(sql, params)
        return found

    def one(self, sql: str, params: Sequence[Value] = ()) -> sqlite3.Row | None:
        """Return the first row, or None."""
        rows = self.query(sql, params)
        return rows[0] if rows else None

    def scalar(self, sql: str, params: Sequence[Value] = ()) -> Any:
        """Return the first column of the first row, or None."""
        row = self.one(sql, params)
        return None if row is None else row[0]
