"""Transactions about instances, applied as a replica applies them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from state_kit import NOW, ScratchState

from incus_actors.domain import transactions_instances as tx
from incus_actors.domain.transactions_instances import InstanceChange, NewInstance
from incus_actors.state.queries import instances as queries


@pytest.fixture
def state(tmp_path):
    found = ScratchState(tmp_path)
    found.sql("INSERT INTO storage_pools (name, driver, state) VALUES ('local', 'dir', 1)")
    found.sql("INSERT INTO storage_pools_nodes (storage_pool_id, node_id, state) VALUES (1, 1, 1)")
    yield found
    found.close()


NEW = NewInstance(
    name="c1",
    project_id=1,
    volume_project_id=1,
    node_id=1,
    pool_id=1,
    architecture=2,
    ephemeral=False,
    stateful=False,
    description="d",
    created_at=NOW,
    config={"user.a": "1", "user.empty": ""},
    devices={"root": {"type": "disk", "path": "/", "pool": "local"}, "n": {"type": "none"}},
    profile_ids=[1],
)
CHANGE = InstanceChange(
    architecture=2,
    ephemeral=True,
    stateful=False,
    description="new",
    config={"user.b": "2"},
    devices={"root": {"type": "disk", "path": "/", "pool": "local", "size": "1GiB"}},
    profile_ids=[],
)


def record(state, instance_id=1):
    return queries.by_id(state.database, instance_id)


def test_a_new_instance_is_marked_until_its_volume_is_there(state):
    outcome = state.run(tx.create(NEW))
    assert outcome.rows[0] == ((1,),)
    found = record(state)
    assert (found.phase, found.config) == ("creating", {"user.a": "1"})
    assert found.devices == {"n": {"type": "none"}, "root": {"path": "/", "pool": "local", "type": "disk"}}
    assert (found.profiles, found.created_at, found.architecture) == (("default",), NOW, "x86_64")
    assert queries.volume_pools(state.database, 1) == {("default", "c1"): "local"}
    assert state.run(tx.set_phase(1, 1, "", "deleting")).label == "phase"
    assert state.run(tx.set_phase(1, 1, "creating", "")).applied
    assert record(state).phase == ""
    assert state.run(tx.set_phase(1, 1, "creating", "deleting")).label == "phase"  # it is fine: nobody undoes it now
    assert state.run(tx.set_phase(1, 1, "", "deleting")).applied


def test_what_a_new_instance_needs_is_guarded(state):
    assert state.run(tx.create(replace(NEW, profile_ids=[1, 99]))).label == "profile"
    assert state.run(tx.create(replace(NEW, pool_id=9))).label == "pool"
    state.sql("UPDATE nodes SET state = 2")
    assert state.run(tx.create(NEW)).label == "placement"
    state.sql("UPDATE nodes SET state = 0")
    assert state.run(tx.create(NEW)).applied
    assert state.run(tx.create(NEW)).error == "UNIQUE constraint failed: instances.project_id, instances.name"
    assert state.database.scalar("SELECT COUNT(*) FROM storage_volumes") == 1


def test_keys_are_set_and_removed_one_by_one(state):
    state.run(tx.create(NEW))
    assert state.run(tx.set_keys(1, 1, {"user.a": None, "user.x": "1"}, last_used_at=NOW)).applied
    assert record(state).config == {"user.x": "1"}
    assert record(state).last_used_at == NOW
    assert state.run(tx.set_keys(1, 1, {"user.x": "2"})).applied
    assert record(state).config == {"user.x": "2"}


def test_an_update_replaces_all_but_what_is_hidden(state):
    state.run(tx.create(NEW))
    guard = tx.fingerprint_guard(1, queries.settings_fingerprint(state.database, 1))
    assert state.run(tx.update(1, 1, CHANGE, [guard])).applied
    found = record(state)
    assert (found.config, found.profiles, found.ephemeral, found.phase) == ({"user.b": "2"}, (), True, "creating")
    assert found.devices["root"]["size"] == "1GiB"
    assert "n" not in found.devices
    assert state.run(tx.update(1, 1, CHANGE, [guard])).label == "etag"
    assert state.run(tx.update(1, 1, replace(CHANGE, profile_ids=[7]))).label == "profile"


def test_only_the_member_that_has_it_changes_it(state):
    state.run(tx.create(NEW))
    for transaction in (
        tx.set_keys(1, 2, {"user.x": "1"}),
        tx.update(1, 2, CHANGE),
        tx.rename(1, 2, "c1", "c2", 1),
        tx.delete(1, 2, "c1", 1),
        tx.delete(99, 1, "c1", 1),
    ):
        assert state.run(transaction).label == "moved"


def test_rename_and_delete_take_the_volume_along(state):
    state.run(tx.create(NEW))
    state.run(tx.create(replace(NEW, name="c2")))
    assert state.run(tx.rename(1, 1, "c1", "c2", 1)).error.startswith("UNIQUE constraint failed: instances.")
    assert state.run(tx.rename(1, 1, "c1", "c3", 1)).applied
    assert queries.volume_pools(state.database, 1) == {("default", "c3"): "local", ("default", "c2"): "local"}
    assert state.run(tx.delete(1, 1, "c3", 1)).applied
    assert queries.volume_pools(state.database, 1) == {("default", "c2"): "local"}
    for table in ("instances_config", "instances_devices", "instances_profiles"):
        assert state.database.scalar(f"SELECT COUNT(*) FROM {table} WHERE instance_id = 1") == 0
