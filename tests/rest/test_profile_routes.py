"""/1.0/profiles: statuses, locations, ETags, events, and projects."""

from __future__ import annotations

import base64

import pytest
from gateway_kit import client_pair
from plain_rest_kit import running_rest

from incus_actors.security import certificates

PATH = "/1.0/profiles"


@pytest.fixture
async def rest(tmp_path):
    async with running_rest(tmp_path) as found:
        yield found


async def test_life_over_rest(rest):
    made = await rest.ask("POST", PATH, {"name": "a b", "config": None, "devices": None})
    assert (made.status, made.metadata, made.headers["Location"]) == (201, None, f"{PATH}/a%20b")
    assert (await rest.ask("GET", PATH)).metadata == [f"{PATH}/a%20b", f"{PATH}/default"]
    one = await rest.ask("GET", f"{PATH}/a%20b")
    assert one.metadata == {
        "config": {},
        "description": "",
        "devices": {},
        "name": "a b",
        "used_by": [],
        "project": "default",
    }
    etag = {"If-Match": one.headers["Etag"]}
    assert (await rest.ask("PUT", f"{PATH}/a%20b", {"description": "x"}, headers=etag)).metadata == {}
    assert (await rest.ask("PATCH", f"{PATH}/a%20b", {"config": {"user.x": "1"}}, headers=etag)).status == 412
    assert (await rest.ask("PATCH", f"{PATH}/a%20b", {"config": {"user.x": "1"}})).status == 200
    renamed = await rest.ask("POST", f"{PATH}/a%20b", {"name": "c"})
    assert (renamed.status, renamed.headers["Location"]) == (201, f"{PATH}/c")
    assert (await rest.ask("GET", f"{PATH}?recursion=1")).metadata[0]["description"] == "x"
    assert (await rest.ask("DELETE", f"{PATH}/c")).status == 200
    assert [event["action"] for event in rest.lifecycle] == [
        "profile-created",
        "profile-updated",
        "profile-updated",
        "profile-renamed",
        "profile-deleted",
    ]
    assert rest.lifecycle[3]["context"] == {"old_name": "a b"}


async def test_filter_and_projects(rest):
    await rest.ask("POST", "/1.0/projects", {"name": "p"})
    made = await rest.ask("POST", f"{PATH}?project=p", {"name": "x"})
    assert made.headers["Location"] == f"{PATH}/x?project=p"
    assert (await rest.ask("GET", f"{PATH}?filter=name+eq+default")).metadata == [f"{PATH}/default"]
    assert len((await rest.ask("GET", f"{PATH}?all-projects=true")).metadata) == 3
    missing = await rest.ask("GET", f"{PATH}?project=nope")
    assert (missing.status, missing.error) == (404, 'Failed loading project "nope": Project not found')


async def test_a_client_limited_to_one_project(rest, tmp_path):
    await rest.ask("POST", "/1.0/projects", {"name": "p"})
    pair = client_pair(tmp_path / "c", "limited")
    der = base64.b64encode(certificates.pem_to_der(pair.certificate_pem)).decode()
    body = {"name": "l", "type": "client", "certificate": der, "restricted": True, "projects": ["p"]}
    await rest.ask("POST", "/1.0/certificates", body)
    async with rest.tls(pair) as session:
        assert (await rest.ask("POST", f"{PATH}?project=p", {"name": "x"}, session=session)).status == 201
        assert (await rest.ask("POST", PATH, {"name": "x"}, session=session)).status == 403
        seen = await rest.ask("GET", f"{PATH}?all-projects=true", session=session)
        assert seen.metadata == [f"{PATH}/default?project=p", f"{PATH}/x?project=p"]
