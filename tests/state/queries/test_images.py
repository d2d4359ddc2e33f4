"""Reads about images."""

from __future__ import annotations

import pytest
from state_kit import NOW, ScratchState

from incus_actors.errors import BadRequestError
from incus_actors.state.queries import images as queries


@pytest.fixture
def state(tmp_path):
    found = ScratchState(tmp_path)
    found.sql("INSERT INTO projects (name) VALUES ('own'), ('shared')")
    found.sql("INSERT INTO projects_config (project_id, key, value) VALUES (2, 'features.images', 'true')")
    for fingerprint, project in (("aa" * 32, 1), ("ab" * 32, 1), ("aa" * 32, 2)):
        found.sql(
            "INSERT INTO images (fingerprint, filename, size, architecture, upload_date, project_id)"
            " VALUES (?, '', 1, 2, ?, ?)",
            fingerprint,
            NOW,
            project,
        )
    yield found
    found.close()


def test_a_beginning_that_only_one_has_is_enough(state):
    db = state.database
    assert queries.find(db, "default", "ab").id == 2
    assert queries.find(db, "default", "AB").id == 2
    assert queries.find(db, "own", "a").id == 3
    assert queries.find(db, "shared", "aa").id == 1
    for nothing in ("", "ac", "a%", "a_", "'"):
        assert queries.find(db, "own", nothing) is None or nothing == ""
    assert queries.find(db, "nope", "aa") is None
    with pytest.raises(BadRequestError):
        queries.find(db, "default", "a")


def test_lists_and_files(state):
    db = state.database
    assert [r.id for r in queries.all_of(db, "shared")] == [1, 2]
    assert [r.id for r in queries.all_of(db, None)] == [1, 2, 3]
    assert queries.known_fingerprints(db) == {"aa" * 32, "ab" * 32}
    state.sql("INSERT INTO images_nodes (image_id, node_id) VALUES (1, 1), (3, 1)")
    assert queries.holders(db, "aa" * 32) == [1]
    assert queries.fingerprints_on(db, 1) == {"aa" * 32}


def test_how_many_copies(state):
    assert queries.minimal_replica(state.database) == 3
    state.sql("INSERT INTO config (key, value) VALUES ('cluster.images_minimal_replica', '-1')")
    assert queries.minimal_replica(state.database) == -1
