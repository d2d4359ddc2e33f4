"""/1.0/projects: statuses, the operation that renames, and who sees what."""

from __future__ import annotations

import base64

import pytest
from gateway_kit import client_pair
from plain_rest_kit import running_rest

from incus_actors.security import certificates

PATH = "/1.0/projects"


@pytest.fixture
async def rest(tmp_path):
    async with running_rest(tmp_path) as found:
        yield found


async def test_life_over_rest(rest):
    made = await rest.ask("POST", PATH, {"name": "pr1", "config": {}, "description": ""})
    assert (made.status, made.headers["Location"]) == (201, f"{PATH}/pr1")
    one = await rest.ask("GET", f"{PATH}/pr1")
    etag = {"If-Match": one.headers["Etag"]}
    body = {"description": "d", "config": {**one.metadata["config"], "user.x": "1"}}
    assert (await rest.ask("PUT", f"{PATH}/pr1", body, headers=etag)).status == 200
    assert (await rest.ask("PUT", f"{PATH}/pr1", body, headers=etag)).status == 412
    renamed = await rest.ask("POST", f"{PATH}/pr1", {"name": "pr2"})
    assert (renamed.status, renamed.metadata["description"]) == (202, "Renaming project")
    assert (await rest.ended(renamed.metadata))["status"] == "Success"
    state = (await rest.ask("GET", f"{PATH}/pr2/state")).metadata["resources"]
    assert state["containers"] == {"Limit": -1, "Usage": 0}
    assert (await rest.ask("DELETE", f"{PATH}/pr2")).metadata == {}
    assert (await rest.ask("GET", PATH)).metadata == [f"{PATH}/default"]
    actions = [event["action"] for event in rest.lifecycle]
    assert actions == ["project-created", "project-updated", "project-renamed", "project-deleted"]


async def test_a_rename_that_fails_says_so_in_the_operation(rest):
    await rest.ask("POST", PATH, {"name": "pr1"})
    renamed = await rest.ask("POST", f"{PATH}/pr1", {"name": "a/b"})
    assert renamed.status == 202
    ended = await rest.ended(renamed.metadata)
    assert (ended["status"], ended["err"]) == ("Failure", "Project names may not contain slashes")
    forbidden = await rest.ask("POST", f"{PATH}/default", {"name": "x"})
    assert (forbidden.status, forbidden.error) == (403, "The 'default' project cannot be renamed")


async def test_limited_clients_see_their_projects(rest, tmp_path):
    await rest.ask("POST", PATH, {"name": "p"})
    pair = client_pair(tmp_path / "c", "limited")
    der = base64.b64encode(certificates.pem_to_der(pair.certificate_pem)).decode()
    body = {"name": "l", "type": "client", "certificate": der, "restricted": True, "projects": ["p"]}
    await rest.ask("POST", "/1.0/certificates", body)
    async with rest.tls(pair) as session:
        assert (await rest.ask("GET", PATH, session=session)).metadata == [f"{PATH}/p"]
        assert (await rest.ask("GET", f"{PATH}/default", session=session)).status == 403
        assert (await rest.ask("POST", PATH, {"name": "q"}, session=session)).status == 403
        assert (await rest.ask("DELETE", f"{PATH}/p", session=session)).status == 403
