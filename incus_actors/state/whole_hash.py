"""One hash over everything in a state file, to find what the running digest can't see (CONSENSUS 3.11, 5).

The running digest covers what entries did; this covers what is there: rows that a flipped bit, a lost page or a
hand has changed since. Owns the canonical order (tables by name, rows by primary key). Must cover nothing that may
differ between healthy members: neither `_raft` (where a replica is within one batch) nor page layout.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, Final

import msgspec

PORTION: Final = 256  #: rows at a time, so that other threads get the interpreter in between

Run = Callable[[str, Sequence[object]], sqlite3.Cursor]

_encode = msgspec.msgpack.Encoder().encode
_TABLES: Final = "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name"
_REST: Final = "SELECT type, name, sql FROM sqlite_master WHERE type != 'table' AND sql IS NOT NULL ORDER BY type, name"


def whole_hash(connection: sqlite3.Connection, run: Run) -> tuple[bytes, str]:
    """Return the hash (16 bytes) of schema and rows as the connection's transaction sees them, and what SQLite
    finds wrong with the file, or nothing. A damaged file has a hash too: one that no healthy member has.

    `run` executes SQL of our own. Raises sqlite3.Error for troubles that say nothing about the content.
    """
    hashed = blake2b(digest_size=16)
    text_factory, connection.text_factory = connection.text_factory, bytes  # damaged text need not be UTF-8
    try:
        damage = "; ".join(row[0].decode(errors="replace") for row in run("PRAGMA integrity_check(3)", ()))
        for kind, name, sql in run(_REST, ()).fetchall():
            hashed.update(_encode((kind, name, sql)))
        for name, sql in run(_TABLES, ()).fetchall():
            if name != b"_raft":
                hashed.update(_encode((name, sql)))
                _add_rows(hashed, run, name.decode())
    except sqlite3.DatabaseError as exc:
        if (getattr(exc, "sqlite_errorcode", None) or 0) & 0xFF not in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            raise
        damage = str(exc)
    finally:
        connection.text_factory = text_factory
    damage = "" if damage == "ok" else damage
    hashed.update(damage.encode())
    return hashed.digest(), damage


def _add_rows(hashed: Any, run: Run, table: str) -> None:
    keys = run("SELECT name FROM pragma_table_info(?) WHERE pk > 0 ORDER BY pk", (table,)).fetchall()
    order = ", ".join(_quoted(key.decode()) for (key,) in keys)
    # The text has a name from the schema, which has been linted, and no value.
    rows = run(f"SELECT * FROM {_quoted(table)} ORDER BY {order or 'rowid'}", ())
    while portion := rows.fetchmany(PORTION):
        hashed.update(_encode(portion))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
