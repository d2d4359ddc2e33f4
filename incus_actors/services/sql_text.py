"""SQL as text: one string into its statements, one database into a string.

Owns the splitting at semicolons and the form of dumps (that of sqlite3's `.dump`, as Incus has it); services/sql.py
calls it. Pure but for reading the connection it is given.
"""

from __future__ import annotations

import sqlite3

from incus_actors.errors import BadRequestError, MemberError

MAX_STATEMENTS = 1000
#: Rows of the machinery, not of the cluster: they mean nothing in another file.
_PRIVATE = ("_raft", "_sessions", "sqlite_")


def split_statements(text: str) -> list[str]:
    """Return the statements of `text` without empty ones; a semicolon in a string or comment ends nothing.

    Raises BadRequestError for more than a thousand of them.
    """
    found: list[str] = []
    current = ""
    for piece in text.split(";"):
        current = f"{current};{piece}" if current else piece
        if sqlite3.complete_statement(f"{current};"):
            found.append(current)
            current = ""
    if current:
        found.append(current)  # what is left open: SQLite says what is wrong with it
    statements = [sql.strip() for sql in found if _says_something(sql)]
    if len(statements) > MAX_STATEMENTS:
        raise BadRequestError(f"More than {MAX_STATEMENTS} statements at once")
    return statements


def _says_something(sql: str) -> bool:
    rest = sql.strip()
    while rest:
        if rest.startswith("--"):
            rest = rest.partition("\n")[2].strip()
        elif rest.startswith("/*"):
            rest = rest.partition("*/")[2].strip()
        else:
            return True
    return False


def dump(connection: sqlite3.Connection, *, schema: bool, limit_bytes: int) -> str:
    """Return the tables (with their rows unless `schema`) and indexes as SQL that makes them again.

    Raises MemberError when it grows beyond `limit_bytes`, sqlite3.Error.
    """
    connection.execute("BEGIN")
    lines = ["PRAGMA foreign_keys=OFF;", "BEGIN TRANSACTION;"]
    size = 0

    def add(line: str) -> None:
        nonlocal size
        lines.append(line)
        size += len(line)
        if size > limit_bytes:
            raise MemberError(f"The dump is larger than {limit_bytes >> 20} MiB; copy the database file instead")

    master = "SELECT name, type, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid"
    objects = [row for row in connection.execute(master) if not str(row[2]).startswith(_PRIVATE)]
    for name, kind, _table, sql in objects:
        if kind != "table":
            continue
        add(f"{sql};")
        if not schema:
            for row in _rows(connection, str(name)):
                add(row)
    for _name, kind, _table, sql in objects:
        if kind != "table":
            add(f"{sql};")
    lines.append("COMMIT;")
    return "\n".join(lines) + "\n"


def _rows(connection: sqlite3.Connection, table: str) -> sqlite3.Cursor | list[str]:
    quoted = '"' + table.replace('"', '""') + '"'
    columns = [str(row[1]) for row in connection.execute(f"PRAGMA table_info({quoted})")]
    values = " || ',' || ".join('quote("' + column.replace('"', '""') + '")' for column in columns)
    return [
        row[0] for row in connection.execute(f"SELECT 'INSERT INTO {quoted} VALUES(' || {values} || ');' FROM {quoted}")
    ]
