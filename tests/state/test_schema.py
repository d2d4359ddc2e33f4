"""The schema arrives as replicated statements that build the tables Incus' operators know."""

from __future__ import annotations

import sqlite3
import subprocess
import sys

import pytest

from incus_actors.model.transaction import Transaction
from incus_actors.state import schema
from incus_actors.state.migrations import capture


class Scratch:
    """A Reader over a bare connection."""

    def __init__(self) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        self.connection.row_factory = sqlite3.Row
        self.connection.execute("PRAGMA foreign_keys=ON")

    def query(self, sql, params=()):
        return self.connection.execute(sql, params).fetchall()

    def one(self, sql, params=()):
        return self.connection.execute(sql, params).fetchone()

    def scalar(self, sql, params=()):
        row = self.one(sql, params)
        return None if row is None else row[0]

    def apply(self, transaction: Transaction) -> None:
        for guard in transaction.guards:
            got = tuple(tuple(row) for row in self.query(guard.sql, guard.parameters))
            assert got == guard.expected, guard.label
        for statement in transaction.statements:
            self.connection.execute(statement.sql, statement.parameters)


@pytest.fixture
def db() -> Scratch:
    scratch = Scratch()
    for transaction in schema.pending_migrations(schema.current_version(scratch), "2026-01-01T00:00:00Z"):
        scratch.apply(transaction)
    return scratch


def test_an_empty_state_is_version_zero_and_gets_every_migration():
    assert schema.current_version(Scratch()) == 0
    pending = schema.pending_migrations(0)
    assert len(pending) == schema.SCHEMA_VERSION
    assert all(t.schema for t in pending)


def test_migrated_state_needs_nothing_more(db):
    assert schema.current_version(db) == schema.SCHEMA_VERSION
    assert schema.pending_migrations(schema.SCHEMA_VERSION) == []


def test_a_second_proposer_of_the_same_migration_is_refused_by_its_guard(db):
    with pytest.raises(AssertionError, match="schema"):
        db.apply(schema.pending_migrations(0)[0])


def test_a_state_from_the_future_is_refused():
    with pytest.raises(ValueError, match="newer"):
        schema.pending_migrations(schema.SCHEMA_VERSION + 1)


def test_what_is_proposed_is_what_the_migrations_do():
    assert len(capture.names()) == schema.SCHEMA_VERSION
    proposed = [[s.sql for s in t.statements[:-1]] for t in schema.pending_migrations(0)]
    assert proposed == capture.capture(), "run tools/capture_migrations.py"


def test_proposing_needs_no_sqlite_utils():
    program = (
        "import sys; from incus_actors.state import schema; schema.pending_migrations(0);"
        " assert 'sqlite_utils' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_every_table_is_strict_with_an_integer_primary_key_and_no_autoincrement(db):
    tables = db.query("SELECT name, sql FROM sqlite_master WHERE type = 'table'")
    assert len(tables) > 35
    for table in tables:
        assert table["sql"].rstrip().endswith("STRICT"), table["name"]
        assert "AUTOINCREMENT" not in table["sql"].upper()
        key = [c["name"] for c in db.query(f"PRAGMA table_info({table['name']})") if c["pk"]]
        assert key == ["id"], table["name"]


def test_first_rows_are_those_of_a_fresh_incus(db):
    db.apply(schema.initial_rows("2026-01-01T00:00:00Z", architecture=2, api_extensions=10))
    assert tuple(db.one("SELECT id, name, address, arch FROM nodes")) == (1, "none", "0.0.0.0", 2)
    assert db.scalar("SELECT description FROM projects WHERE name = 'default'") == "Default Incus project"
    assert db.scalar("SELECT description FROM profiles WHERE name = 'default'") == "Default Incus profile"
    assert db.scalar("SELECT COUNT(*) FROM projects_config WHERE value = 'true'") == 6
    with pytest.raises(AssertionError, match="not_empty"):
        db.apply(schema.initial_rows("2026-01-01T00:00:00Z", architecture=2, api_extensions=10))


def test_children_go_with_their_parents(db):
    db.apply(schema.initial_rows("2026-01-01T00:00:00Z", architecture=2, api_extensions=10))
    run = db.connection.execute
    run("INSERT INTO nodes (id, name, address, schema, api_extensions) VALUES (2, 'b', 'b:1', 1, 1)")
    run("INSERT INTO storage_pools (id, name, driver) VALUES (1, 'p', 'dir')")
    run("INSERT INTO storage_pools_nodes (storage_pool_id, node_id) VALUES (1, 2)")
    run("INSERT INTO storage_pools_config (storage_pool_id, node_id, key, value) VALUES (1, 2, 'source', '/x')")
    run("DELETE FROM nodes WHERE id = 2")
    assert db.scalar("SELECT COUNT(*) FROM storage_pools_config") == 0
    assert db.scalar("SELECT COUNT(*) FROM storage_pools_nodes") == 0
    assert db.scalar("SELECT COUNT(*) FROM storage_pools") == 1


def test_a_global_pool_key_cannot_be_there_twice(db):
    run = db.connection.execute
    run("INSERT INTO storage_pools (id, name, driver) VALUES (1, 'p', 'dir')")
    run("INSERT INTO storage_pools_config (storage_pool_id, node_id, key, value) VALUES (1, NULL, 'k', 'a')")
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        run("INSERT INTO storage_pools_config (storage_pool_id, node_id, key, value) VALUES (1, NULL, 'k', 'b')")
