"""The schema of the replicated state as a list of versions, and the rows that a new server starts with.

Owns the numbering of migrations and their way into the log: the migrations are written with sqlite-utils, the
statements that they make on a scratch database are captured into statements.json (tools/capture_migrations.py), and
those are the replicated entry, so that every release proposes the same. Called by bootstrap and by the leader after
an upgrade. Must never touch the real file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from incus_actors.model.transaction import Guard, Statement, Transaction, Value
from incus_actors.state.reader import Reader

SCHEMA_VERSION: Final = 3  #: the number of migrations; tests compare it with the modules

_CAPTURED: Final = Path(__file__).parent / "migrations" / "statements.json"

STANDALONE_NAME: Final = "none"  #: the name of member 1 before it is clustered, as Incus has it
STANDALONE_ADDRESS: Final = "0.0.0.0"  # noqa: S104  # a marker in a row, nothing binds it


def current_version(db: Reader) -> int:
    """Return the version of the state, 0 for an empty one."""
    if not db.scalar("SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = 'schema'"):
        return 0
    return int(db.scalar("SELECT MAX(version) FROM schema") or 0)


def pending_migrations(current: int, now: str = "", *, upto: int = SCHEMA_VERSION) -> list[Transaction]:
    """Return the transactions that lead from version `current` to `upto`; propose them in this order.

    `now` is the proposer's time (RFC 3339) for the record of it. Each is guarded by the version before, so a
    second proposer's is a conflict labelled "schema" and harmless. Raises ValueError for a version from the future.
    """
    if not 0 <= current <= SCHEMA_VERSION:
        raise ValueError(f"schema version {current} is newer than this software's {SCHEMA_VERSION}")
    if current >= upto:
        return []
    captured = _statements()
    return [_transaction(version, captured[version - 1], now) for version in range(current + 1, upto + 1)]


def _transaction(version: int, statements: list[str], now: str) -> Transaction:
    if version == 1:
        table = "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = 'schema'"
        guard = Guard(table, (), ((0,),), "schema")
    else:
        guard = Guard("SELECT MAX(version) FROM schema", (), ((version - 1,),), "schema")
    record = Statement("INSERT INTO schema (id, version, updated_at) VALUES (?, ?, ?)", (version, version, now))
    return Transaction(
        statements=(*(Statement(sql) for sql in statements), record),
        guards=(guard,),
        topics=("schema",),
        schema=True,
    )


def _statements() -> list[list[str]]:
    captured: list[list[str]] = json.loads(_CAPTURED.read_text())
    return captured


DEFAULT_PROJECT_FEATURES: Final = (
    "features.images",
    "features.profiles",
    "features.storage.volumes",
    "features.storage.buckets",
    "features.networks",
    "features.networks.zones",
)


def initial_rows(
    now: str,
    *,
    name: str = STANDALONE_NAME,
    address: str = STANDALONE_ADDRESS,
    architecture: int,
    api_extensions: int,
) -> Transaction:
    """Return the rows of a fresh server: itself as member 1, the default project, profile and cluster group.

    `now` is RFC 3339 UTC, `architecture` Incus' number of the CPU (model.architectures). Conflict "not_empty" when
    the state already has them.
    """
    rows: list[tuple[str, tuple[Value, ...]]] = [
        (
            "INSERT INTO nodes (id, name, address, schema, api_extensions, heartbeat, arch) VALUES (1, ?, ?, ?, ?, ?, ?)",
            (name, address, SCHEMA_VERSION, api_extensions, now, architecture),
        ),
        ("INSERT INTO cluster_groups (id, name, description) VALUES (1, 'default', 'Default cluster group')", ()),
        ("INSERT INTO nodes_cluster_groups (id, node_id, group_id) VALUES (1, 1, 1)", ()),
        ("INSERT INTO projects (id, name, description) VALUES (1, 'default', 'Default Incus project')", ()),
        (
            "INSERT INTO profiles (id, name, description, project_id) VALUES (1, 'default', 'Default Incus profile', 1)",
            (),
        ),
    ]
    for number, key in enumerate(DEFAULT_PROJECT_FEATURES, start=1):
        insert = "INSERT INTO projects_config (id, project_id, key, value) VALUES (?, 1, ?, 'true')"
        rows.append((insert, (number, key)))
    return Transaction(
        statements=tuple(Statement(sql, parameters) for sql, parameters in rows),
        guards=(Guard("SELECT COUNT(*) FROM nodes", (), ((0,),), "not_empty"),),
        topics=("members", "projects", "profiles"),
    )
