"""The state as the rest of the daemon reads it: read-only connections on the main loop.

Owns the reader connections and their switch to a new generation after a snapshot was installed; every service and
gateway reads through it. Must never write, never wait for the writer (WAL readers don't), and never be used from
another thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from incus_actors.errors import UnavailableError
from incus_actors.model.transaction import Value


class Snapshot:
    """One read-only connection. Rows can be read by name."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(
            f"file:{path}?mode=ro", uri=True, isolation_level=None, cached_statements=512, timeout=0.5
        )
        self._connection.row_factory = sqlite3.Row
        self._connection.execute("PRAGMA query_only=ON")

    def _execute(self, sql: str, params: Sequence[Value]) -> sqlite3.Cursor:
        try:
            return self._connection.execute(sql, params)
        except sqlite3.OperationalError as error:
            if str(error).startswith("no such table") and self._empty():
                # A server that has just exchanged its database for a cluster's waits for its first entries.
                raise UnavailableError("Daemon is starting up") from error
            raise

    def _empty(self) -> bool:
        """Whether not even the first migration has been applied."""
        found = self._connection.execute(
            "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name NOT LIKE '\\_%' ESCAPE '\\'"
        )
        return found.fetchone() is None

    def query(self, sql: str, params: Sequence[Value] = ()) -> list[sqlite3.Row]:
        """Return all rows."""
        return self._execute(sql, params).fetchall()

    def one(self, sql: str, params: Sequence[Value] = ()) -> sqlite3.Row | None:
        """Return the first row, or None."""
        cursor = self._execute(sql, params)
        row: sqlite3.Row | None = cursor.fetchone()
        cursor.close()  # an unfinished statement would hold this read transaction open
        return row

    def scalar(self, sql: str, params: Sequence[Value] = ()) -> Any:
        """Return the first column of the first row, or None."""
        row = self.one(sql, params)
        return None if row is None else row[0]

    def close(self) -> None:
        """Release the file; done by Database."""
        self._connection.close()


class Database:
    """Reads of the latest applied entry; `snapshot()` for several reads of one moment.

    All methods raise sqlite3.Error for bad SQL, and UnavailableError before the first `switch`, after `close`, and
    for a table that isn't there because nothing at all has been applied yet.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._reader: Snapshot | None = None
        self._idle: list[Snapshot] = []
        self.switches = 0  #: how often another file was given

    @property
    def path(self) -> Path:
        """The state file that is read now."""
        if self._path is None:
            raise UnavailableError("Daemon is starting up")
        return self._path

    def _open(self) -> Snapshot:
        if self._reader is None:
            self._reader = Snapshot(self.path)
        return self._reader

    def query(self, sql: str, params: Sequence[Value] = ()) -> list[sqlite3.Row]:
        """Return all rows."""
        return self._open().query(sql, params)

    def one(self, sql: str, params: Sequence[Value] = ()) -> sqlite3.Row | None:
        """Return the first row, or None."""
        return self._open().one(sql, params)

    def scalar(self, sql: str, params: Sequence[Value] = ()) -> Any:
        """Return the first column of the first row, or None."""
        return self._open().scalar(sql, params)

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """Give one consistent moment on a connection of its own, so that others' reads stay up to date even
        when the block awaits something."""
        path = self.path
        connection = self._idle.pop() if self._idle else Snapshot(path)
        broken = True
        try:
            connection.query("BEGIN")
            connection.scalar("SELECT 1 FROM sqlite_master")  # a deferred transaction begins with its first read
            yield connection
            connection.query("COMMIT")
            broken = False
        finally:
            if broken or path != self._path or len(self._idle) >= 4:
                connection.close()
            else:
                self._idle.append(connection)

    def switch(self, path: Path | None) -> None:
        """Read another generation from now on; snapshots that are open keep the old one. None: nothing yet."""
        self.close()
        self._path = path
        self.switches += 1

    def close(self) -> None:
        """Release the connections that are not in use."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        self._path = None
