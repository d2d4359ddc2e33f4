"""A short notation over sqlite-utils for the migrations.

Owns `table()`: STRICT tables with an explicit INTEGER PRIMARY KEY named id, foreign keys that name what happens on
deletion, and unique indexes. Called by the migration modules; must stay as it is once a migration was released.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database

_TYPES: dict[str, type] = {"int": int, "text": str}


def table(
    db: Database,
    name: str,
    columns: str,
    *,
    refs: dict[str, str] | None = None,
    unique: tuple[tuple[str, ...], ...] = (),
    index: tuple[tuple[str, ...], ...] = (),
) -> None:
    """Create a table with the primary key `id`.

    `columns` is a space-separated list of `name:type`, with type int or text; `?` behind it means nullable,
    `=value` a default. `refs` maps a column to the table whose id it holds: its row goes with the other one;
    a trailing `?` on the table sets the column to NULL instead.
    """
    from sqlite_utils.db import ForeignKey  # heavy: only while migrating

    types: dict[str, type] = {"id": int}
    required: set[str] = set()
    defaults: dict[str, int | str] = {}
    for word in columns.split():
        column, _, rest = word.partition(":")
        kind, equals, default = rest.partition("=")
        if not kind.endswith("?"):
            required.add(column)
        types[column] = _TYPES[kind.rstrip("?")]
        if equals:
            defaults[column] = int(default) if types[column] is int else default
    foreign = [
        ForeignKey(name, c, t.rstrip("?"), "id", on_delete="SET NULL" if t.endswith("?") else "CASCADE")
        for c, t in (refs or {}).items()
    ]
    made = db.create_table(
        name, types, pk="id", not_null=required, defaults=defaults, foreign_keys=foreign, strict=True
    )
    for group in unique:
        made.create_index(group, unique=True, index_name=f"{name}_unique_{'_'.join(group)}")
    for group in index:
        made.create_index(group, index_name=f"{name}_{'_'.join(group)}_idx")


def config_table(db: Database, name: str, owner: str, owner_table: str) -> None:
    """Create one of the many key/value tables that belong to a row of another table."""
    table(db, name, f"{owner}:int key:text value:text", refs={owner: owner_table}, unique=((owner, "key"),))
