"""Transactions about images, applied as a replica applies them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from state_kit import NOW, ScratchState

from incus_actors.domain import transactions_images as tx
from incus_actors.domain.transactions_images import ImageChange, NewImage
from incus_actors.state.queries import images as queries

NEW = NewImage(
    fingerprint="ab" * 32,
    filename="f.tar.gz",
    size_bytes=7,
    public=False,
    architecture=2,
    created_at=None,
    expires_at=None,
    uploaded_at=NOW,
    project_id=1,
    properties={"os": "Tiny"},
    profile_ids=[1],
    node_id=1,
)


@pytest.fixture
def state(tmp_path):
    found = ScratchState(tmp_path)
    assert found.run(tx.create(NEW)).applied
    found.sql("INSERT INTO nodes (name, address, schema, api_extensions) VALUES ('n2', 'a:1', 1, 1)")
    yield found
    found.close()


def test_rows_of_a_new_image(state):
    image = queries.find(state.database, "default", "abab").image
    assert (image.size, image.properties, image.profiles, image.created_at) == (
        7,
        {"os": "Tiny"},
        ["default"],
        "0001-01-01T00:00:00Z",
    )
    assert queries.holders(state.database, NEW.fingerprint) == [1]
    again = state.run(tx.create(NEW))
    assert again.error == "UNIQUE constraint failed: images.project_id, images.fingerprint"


def test_places_come_and_go(state):
    for _ in range(2):
        assert state.run(tx.add_location(NEW.fingerprint, 2)).applied
    assert queries.holders(state.database, NEW.fingerprint) == [1, 2]
    assert state.run(tx.remove_location(NEW.fingerprint, 1)).applied
    assert queries.holders(state.database, NEW.fingerprint) == [2]
    assert queries.fingerprints_on(state.database, 2) == {NEW.fingerprint}
    assert state.run(tx.add_location("cd" * 32, 2)).label == "gone"


def test_change_and_delete(state):
    change = ImageChange(True, True, "2030-01-01T00:00:00Z", {"a": "b"}, [])
    assert state.run(tx.update(1, change)).applied
    image = queries.find(state.database, "default", "ab").image
    assert (image.auto_update, image.public, image.expires_at, image.properties, image.profiles) == (
        True,
        True,
        "2030-01-01T00:00:00Z",
        {"a": "b"},
        [],
    )
    assert state.run(tx.touch(1, NOW)).applied
    assert state.run(tx.create_alias("a", "", 1, 1)).applied
    assert state.run(tx.delete(1)).applied
    assert state.run(tx.delete(1)).label == "gone"
    assert state.run(tx.update(1, change)).label == "gone"
    for table in ("images_aliases", "images_nodes", "images_properties", "images_profiles"):
        assert state.database.scalar(f"SELECT COUNT(*) FROM {table}") == 0


def test_aliases(state):
    assert state.run(tx.create(replace(NEW, fingerprint="cd" * 32))).applied
    assert state.run(tx.create_alias("a", "d", 1, 1)).applied
    assert state.run(tx.create_alias("a", "d", 2, 1)).label == "exists"
    assert state.run(tx.create_alias("b", "d", 9, 1)).label == "gone"
    assert state.run(tx.update_alias(1, "new", 2)).applied
    assert queries.alias(state.database, "default", "a").alias.target == "cd" * 32
    assert state.run(tx.create_alias("b", "", 1, 1)).applied
    assert state.run(tx.rename_alias(1, "b", 1)).label == "exists"
    assert state.run(tx.rename_alias(1, "c", 1)).applied
    assert [a.alias.name for a in queries.aliases(state.database, "default")] == ["b", "c"]
    assert state.run(tx.delete_alias(1)).applied
    assert state.run(tx.delete_alias(1)).label == "gone"
