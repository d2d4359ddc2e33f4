"""Reads about instances, their profiles, projects and pools."""

from __future__ import annotations

import pytest
from state_kit import NOW, ScratchState

from incus_actors.state.queries import instances as queries


@pytest.fixture
def state(tmp_path):
    found = ScratchState(tmp_path)
    found.sql("INSERT INTO nodes (name, address, schema, api_extensions) VALUES ('n2', 'a:1', 1, 1)")
    found.sql("INSERT INTO projects (name) VALUES ('own'), ('shared')")
    found.sql("INSERT INTO projects_config (project_id, key, value) VALUES (2, 'features.profiles', 'true')")
    found.sql("INSERT INTO profiles (name, project_id) VALUES ('p2', 1), ('default', 2)")
    found.sql("INSERT INTO profiles_config (profile_id, key, value) VALUES (1, 'user.a', '1'), (2, 'user.a', '2')")
    found.sql("INSERT INTO profiles_devices (profile_id, name, type) VALUES (1, 'root', 2)")
    found.sql("INSERT INTO profiles_devices_config (profile_device_id, key, value) VALUES (1, 'path', '/')")
    for number, (name, project, node) in enumerate([("b", 1, 1), ("a", 1, 2), ("x", 2, 1)], start=1):
        found.sql(
            "INSERT INTO instances (node_id, name, architecture, type, creation_date, project_id)"
            " VALUES (?, ?, 2, 0, ?, ?)",
            node,
            name,
            NOW,
            project,
        )
        found.sql("INSERT INTO instances_profiles (instance_id, profile_id, apply_order) VALUES (?, 1, 2)", number)
        found.sql("INSERT INTO instances_profiles (instance_id, profile_id, apply_order) VALUES (?, 2, 1)", number)
    yield found
    found.close()


def test_lists_are_sorted_and_narrowed(state):
    db = state.database

    def names(**what):
        return [(r.project, r.name) for r in queries.all_of(db, **what)]

    assert names() == [("default", "a"), ("default", "b"), ("own", "x")]
    assert names(projects={"own"}) == [("own", "x")]
    assert names(projects=set()) == []
    assert names(node_id=1) == [("default", "b"), ("own", "x")]
    assert names(projects={"default"}, node_id=2) == [("default", "a")]
    assert queries.names(db, "default") == ["a", "b"]
    assert queries.ids_on(db, 2) == [2]


def test_one_instance_has_its_profiles_in_order(state):
    found = queries.find(state.database, "default", "b")
    assert found.profiles == ("p2", "default")
    assert found.expanded_config == {"user.a": "1"}
    assert found.expanded_devices == {"root": {"path": "/", "type": "disk"}}
    assert found.location == "none"
    assert queries.find(state.database, "own", "b") is None
    assert queries.place(state.database, "default", "a") == queries.Place(2, 2)
    assert queries.by_id(state.database, 99) is None


def test_projects_share_profiles_unless_they_have_their_own(state):
    db = state.database
    assert queries.effective_project(db, "own", "features.profiles") == 2
    assert queries.effective_project(db, "shared", "features.profiles") == 1
    assert queries.effective_project(db, "nope", "features.profiles") is None
    assert queries.profile_ids(db, "own", {"default", "p2"}) == {"default": 3}
    assert queries.profile_ids(db, "shared", {"default", "p2"}) == {"default": 1, "p2": 2}
    assert queries.profile_ids(db, "shared", set()) == {}


def test_who_uses_a_profile(state):
    assert queries.using_profile(state.database, 1) == [("default", "a"), ("default", "b"), ("own", "x")]
    assert queries.using_profile(state.database, 3) == []


def test_pools_as_one_member_sees_them(state):
    state.sql("INSERT INTO storage_pools (name, driver, state) VALUES ('local', 'dir', 1)")
    state.sql("INSERT INTO storage_pools_nodes (storage_pool_id, node_id, state) VALUES (1, 1, 1), (1, 2, 0)")
    state.sql(
        "INSERT INTO storage_pools_config (storage_pool_id, node_id, key, value) VALUES"
        " (1, 1, 'source', '/one'), (1, 2, 'source', '/two'), (1, NULL, 'user.x', 'y')"
    )
    here, there = queries.pool(state.database, "local", 1), queries.pool(state.database, "local", 2)
    assert (here.usable, here.config) == (True, {"source": "/one", "user.x": "y"})
    assert (there.usable, there.config) == (False, {"source": "/two", "user.x": "y"})
    assert queries.pool(state.database, "nope", 1) is None


def test_a_snapshot_sees_one_moment(state):
    with state.database.snapshot() as snapshot:
        before = queries.all_of(snapshot)
        state.sql("DELETE FROM instances")
        assert queries.all_of(snapshot) == before
    assert queries.all_of(state.database) == []
