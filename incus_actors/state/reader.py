"""What a read function needs of a database.

Owns the Reader protocol, which both `state.database.Database` and the object given by its `snapshot()` satisfy;
used by everything under `state/queries`. Must never offer a way to write.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Protocol

from incus_actors.model.transaction import Value


class Reader(Protocol):
    """Read-only access to the state. A snapshot sees one moment; a Database sees the latest applied entry."""

    def query(self, sql: str, params: Sequence[Value] = ()) -> list[sqlite3.Row]:
        """Return all rows."""

    def one(self, sql: str, params: Sequence[Value] = ()) -> sqlite3.Row | None:
        """Return the first row, or None."""

    def scalar(self, sql: str, params: Sequence[Value] = ()) -> Any:
        """Return the first column of the first row, or None."""
