"""A member gets another id: everything that was its own goes with it."""

from __future__ import annotations

import pytest
from state_kit import NOW, ScratchState

from incus_actors.domain import transactions_members as tx
from incus_actors.domain.transactions_cluster import accepted_id

STATE = {"version": (3, 20), "now": NOW}


@pytest.fixture
def state(tmp_path):
    found = ScratchState(tmp_path)
    found.sql(
        "INSERT INTO nodes (id, name, description, address, schema, api_extensions, arch) VALUES (2, 'n2', 'd', 'a:2', 1, 1, 2)"
    )
    found.sql("INSERT INTO nodes (id, name, address, schema, api_extensions, state) VALUES (3, 'n3', 'a:3', 1, 1, 1)")
    found.sql(
        "INSERT INTO instances (node_id, name, architecture, type, ephemeral, creation_date, project_id)"
        " VALUES (2, 'c1', 2, 0, 0, '2026', 1)"
    )
    found.sql("INSERT INTO nodes_config (node_id, key, value) VALUES (2, 'scheduler.instance', 'manual')")
    yield found
    found.close()


def test_every_foreign_key_to_a_member_is_known(state):
    tables = [
        row[0] for row in state.database.query("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
    ]
    found = {
        f"{table}.{row[0]}"
        for table in tables
        for row in state.database.query(
            f"SELECT \"from\" FROM pragma_foreign_key_list('{table}') WHERE \"table\" = 'nodes'"
        )
    }
    assert found == set(tx.MEMBER_COLUMNS)


def test_name_and_belongings_stay(state):
    outcome = state.run(tx.replace_member(2, "n2", **STATE))
    assert outcome.applied, outcome
    new = accepted_id(outcome)
    assert new == 4
    rows = state.database.query("SELECT id, name, description, address, schema, api_extensions FROM nodes ORDER BY id")
    assert [tuple(row) for row in rows][1:] == [
        (3, "n3", "", "a:3", 1, 1),
        (4, "n2", "d", "a:2", 3, 20),
    ]
    assert state.database.scalar("SELECT node_id FROM instances WHERE name = 'c1'") == 4
    assert state.database.scalar("SELECT value FROM nodes_config WHERE node_id = 4") == "manual"
    assert accepted_id(state.run(tx.replace_member(4, "n2", **STATE))) == 5  # and never the same id again


def test_not_for_strangers_nor_for_who_is_joining(state):
    for member, name in ((2, "other"), (9, "n2"), (3, "n3")):
        outcome = state.run(tx.replace_member(member, name, **STATE))
        assert (outcome.status, outcome.label) == ("conflict", "gone")
