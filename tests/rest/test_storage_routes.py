"""/1.0/storage-pools as `storage create|list|show|set|delete` and `admin init` use it."""

from __future__ import annotations

import pytest
from plain_rest_kit import running_rest

PATH = "/1.0/storage-pools"


@pytest.fixture
async def rest(tmp_path):
    async with running_rest(tmp_path) as found:
        yield found


async def test_life_over_rest(rest):
    body = {"config": {"source": ""}, "description": "", "name": "local", "driver": "dir"}
    made = await rest.ask("POST", PATH, body)
    assert (made.status, made.metadata, made.headers["Location"]) == (201, None, f"{PATH}/local")
    assert (await rest.ask("GET", PATH)).metadata == [f"{PATH}/local"]
    one = await rest.ask("GET", f"{PATH}/local")
    assert one.metadata == {
        "config": {"source": "/pools/local"},
        "description": "",
        "name": "local",
        "driver": "dir",
        "used_by": [],
        "status": "Created",
        "locations": ["none"],
    }
    etag = {"If-Match": one.headers["Etag"]}
    config = {**one.metadata["config"], "user.x": "1"}
    assert (await rest.ask("PUT", f"{PATH}/local", {"config": config}, headers=etag)).status == 200
    assert (await rest.ask("PUT", f"{PATH}/local", {"config": config}, headers=etag)).status == 412
    assert (await rest.ask("PATCH", f"{PATH}/local", {"description": "d"})).status == 200
    usage = await rest.ask("GET", f"{PATH}/local/resources")
    assert usage.metadata == {"space": {"used": 1, "total": 2}, "inodes": {"used": 3, "total": 4}}
    again = await rest.ask("POST", PATH, body)
    assert (again.status, again.error) == (409, "The storage pool already exists: The record already exists")
    assert (await rest.ask("DELETE", f"{PATH}/local")).metadata == {}
    missing = await rest.ask("GET", f"{PATH}/local")
    assert (missing.status, missing.error) == (404, "Storage pool not found")
    assert [event["action"] for event in rest.lifecycle] == [
        "storage-pool-created",
        "storage-pool-updated",
        "storage-pool-updated",
        "storage-pool-deleted",
    ]


async def test_a_target_is_a_view_in_a_cluster(rest):
    await rest.ask("POST", PATH, {"name": "local", "driver": "dir"})
    await rest.kit.become_clustered()
    assert (await rest.ask("GET", f"{PATH}/local")).metadata["config"] == {}
    view = await rest.ask("GET", f"{PATH}/local?target=node1")
    assert view.metadata["config"] == {"source": "/pools/local"}
    missing = await rest.ask("GET", f"{PATH}/local?target=foo")
    assert (missing.status, missing.error) == (404, "Cluster member not found")


async def test_unknown_methods(rest):
    await rest.ask("POST", PATH, {"name": "local", "driver": "dir"})
    answer = await rest.ask("POST", f"{PATH}/local", {"name": "q"})
    assert (answer.status, answer.error) == (501, "not implemented")
