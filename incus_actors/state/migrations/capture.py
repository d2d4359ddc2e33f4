"""Turns migrations into the statements they make, for statements.json.

Owns the scratch run with sqlite-utils; called by tools/capture_migrations.py and by the test that compares the file,
never by the daemon: sqlite-utils costs it 13 MB and 150 ms, and its next release might word the same table otherwise.
"""

from __future__ import annotations

import sqlite3
from importlib import import_module
from pathlib import Path

_RECORDED = ("CREATE", "ALTER", "DROP", "INSERT", "UPDATE", "DELETE")


def names() -> list[str]:
    """Return the migration modules in order."""
    return sorted(path.stem for path in Path(__file__).parent.glob("m[0-9][0-9][0-9][0-9]_*.py"))


def capture() -> list[list[str]]:
    """Run every migration on a database in memory; return the changing statements of each."""
    from sqlite_utils import Database

    captured: list[list[str]] = []
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        connection.execute("PRAGMA foreign_keys=ON")
        db = Database(connection)
        if not db.supports_strict:  # asked here, because the answer is found with a table of a random name
            raise RuntimeError(f"SQLite {sqlite3.sqlite_version} has no STRICT tables")
        for name in names():
            statements: list[str] = []
            connection.set_trace_callback(statements.append)
            import_module(f"incus_actors.state.migrations.{name}").upgrade(db)
            connection.set_trace_callback(None)
            captured.append([s.strip() for s in statements if s.lstrip().upper().startswith(_RECORDED)])
    finally:
        connection.close()
    return captured
