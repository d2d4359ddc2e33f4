"""/1.0/instances as requests and answers."""

from __future__ import annotations

import contextlib
import os
from types import SimpleNamespace

import pytest
from gateway_kit import ScratchDatabase, running_member, shared_cluster_pair
from instance_kit import machines, served

from incus_actors.rest import instance_routes

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacks images with owners: run as root")


@pytest.fixture
async def machine(tmp_path):
    async with machines(tmp_path) as (one,):
        await one.add_image()
        yield one


@pytest.fixture
async def api(machine):
    async with served(machine) as found:
        yield found


SOURCE = {"type": "image", "certificate": "", "alias": "tiny", "allow_inconsistent": False}


async def test_create_show_and_delete(api, machine):
    status, operation = await api(
        "POST", "/1.0/instances", {"name": "c1", "source": SOURCE, "profiles": None, "start": True}
    )
    assert status == 200, operation
    assert operation["description"] == "Creating instance"
    assert operation["resources"] == {"instances": ["/1.0/instances/c1"]}
    assert operation["metadata"]["progress"]["stage"] == "create_instance_from_image_unpack"
    assert await api("GET", "/1.0/instances") == (200, ["/1.0/instances/c1"])
    _, (one,) = await api("GET", "/1.0/instances?recursion=2&filter=status+eq+running")
    assert (one["name"], one["state"]["pid"]) == ("c1", 1000)
    assert await api("GET", "/1.0/instances?recursion=1&filter=status+eq+stopped") == (200, [])
    status, operation = await api("DELETE", "/1.0/instances/c1")
    assert (status, operation) == (400, "Instance is running")
    status, operation = await api("PUT", "/1.0/instances/c1/state", {"action": "stop", "timeout": -1, "force": True})
    assert (status, operation["description"]) == (200, "Stopping instance")
    status, operation = await api("DELETE", "/1.0/instances/c1")
    assert (status, operation["description"]) == (200, "Deleting instance")
    assert await api("GET", "/1.0/instances/c1") == (404, "Instance not found")


async def test_capitalised_and_unknown_keys_do_no_harm(api, machine):
    await machine.create()
    body = {
        "name": "c2",
        "migration": False,
        "live": False,
        "target": None,
        "Config": None,
        "Devices": None,
        "Profiles": None,
    }
    status, operation = await api("POST", "/1.0/instances/c1", body)
    assert (status, operation["description"]) == (200, "Renaming instance")


async def test_bad_requests(api, machine):
    await machine.create()
    json_body = {"Content-Type": "application/json"}
    assert (await api("POST", "/1.0/instances", b"{bad", headers=json_body))[0] == 400
    assert (await api("POST", "/1.0/instances", {"name": 5}))[0] == 400
    assert (await api("POST", "/1.0/instances?target=m2", {"name": "x", "source": SOURCE})) == (
        400,
        "Target only allowed when clustered",
    )
    assert await api("PUT", "/1.0/instances/c1/state", {"action": "foo"}) == (400, "Unknown action: 'foo'")
    assert await api("PUT", "/1.0/instances/nope/state", {"action": "start"}) == (404, "Instance not found")
    assert (await api("POST", "/1.0/instances/c1?target=m2", {"name": "c1", "migration": True}))[0] == 501
    headers = {"Content-Type": "application/octet-stream"}
    assert (await api("POST", "/1.0/instances", b"backup", headers=headers))[0] == 501


async def test_read_modify_write_with_etags(api, machine):
    await machine.create()
    async with api.session.get("/1.0/instances/c1") as response:
        etag = response.headers["Etag"]
        shown = (await response.json())["metadata"]
    put = {
        k: shown[k] for k in ("architecture", "config", "devices", "ephemeral", "profiles", "stateful", "description")
    }
    put["config"]["user.x"] = "1"
    status, operation = await api("PUT", "/1.0/instances/c1", put, headers={"If-Match": etag})
    assert (status, operation["description"]) == (200, "Updating instance")
    status, text = await api("PUT", "/1.0/instances/c1", put, headers={"If-Match": etag})
    assert status == 412
    assert text.startswith("ETag doesn't match: ")
    assert await api("PATCH", "/1.0/instances/c1", {"config": {"user.y": "2"}}) == (200, {})
    _, shown = await api("GET", "/1.0/instances/c1?recursion=1")
    assert (shown["config"]["user.x"], shown["config"]["user.y"]) == ("1", "2")
    assert shown["state"]["status"] == "Stopped"


class CreatorOf:
    """services.instance_create as far as a create asks it before it begins."""

    def __init__(self) -> None:
        self.created: list[str] = []

    def free_name(self, _project: str) -> str:
        return "made-up-name-that-is-longer"

    def image_architecture(self, _project, _post):
        return "x86_64"

    def check(self, _project, _post) -> None:
        pass

    async def create(self, _project, post, _progress, _who) -> None:
        self.created.append(post.name)


async def test_an_instance_without_a_name_gets_one_on_whatever_member_it_is_made(tmp_path):
    shared, pair = ScratchDatabase(), shared_cluster_pair(tmp_path / "cluster")
    creators = {1: CreatorOf(), 2: CreatorOf()}

    async def place(target, _name, **_more):
        return [2]

    async with contextlib.AsyncExitStack() as stack:
        members = []
        for number, creator in creators.items():
            member = await stack.enter_async_context(
                running_member(
                    tmp_path / f"m{number}",
                    instance_routes.routes(),
                    member_id=number,
                    name=f"m{number}",
                    database=shared,
                    cluster_pair=pair,
                )
            )
            member.gateway.services = SimpleNamespace(
                instances=SimpleNamespace(creator=creator, placer=SimpleNamespace(place=place))
            )
            members.append(member)
        for member in members:
            member.gateway.access.refresh()
        session = await stack.enter_async_context(members[0].unix_session())
        for path in ("/1.0/instances", "/1.0/instances?target=m2"):
            async with session.post(path, json={"source": SOURCE, "start": True}) as response:
                answer = await response.json()
            assert response.status == 202, answer
            assert answer["metadata"]["resources"] == {"instances": ["/1.0/instances/made-up-name-that-is-longer"]}
    assert (creators[1].created, creators[2].created) == ([], ["made-up-name-that-is-longer"] * 2)


async def test_all_at_once(api, machine):
    await machine.create("a")
    await machine.create("b")
    status, _ = await api("PUT", "/1.0/instances", {"state": {"action": "start", "timeout": 0}})
    assert status == 200
    assert set(machine.driver.running) == {"a", "b"}


async def test_logs(api, machine):
    await machine.create()
    logs = machine.server.directory / "logs" / "c1"
    logs.mkdir(parents=True)
    (logs / "lxc.log").write_text("line\n")
    (logs / "other").write_text("secret")
    assert await api("GET", "/1.0/instances/c1/logs") == (200, ["/1.0/instances/c1/logs/lxc.log"])
    async with api.session.get("/1.0/instances/c1/logs/lxc.log") as response:
        assert (response.content_type, await response.text()) == ("application/octet-stream", "line\n")
    assert await api("GET", "/1.0/instances/c1/logs/other") == (400, 'Log file name "other" not valid')
    assert (await api("GET", "/1.0/instances/c1/logs/..%2f..%2funix.socket"))[0] in (400, 404)
    assert (await api("GET", "/1.0/instances/c1/logs/qemu.log"))[0] == 404


@pytest.mark.parametrize(
    ("method", "path", "text"),
    [
        ("POST", "/snapshots", "Snapshots of instances are not supported yet"),
        ("GET", "/snapshots/s1", "Snapshots of instances are not supported yet"),
        ("GET", "/files?path=/etc/hosts", "Files of instances are not supported yet"),
        ("DELETE", "/backups/b", "Backups of instances are not supported yet"),
        ("POST", "/console", "Consoles of instances are not supported yet"),
        ("GET", "/metadata/templates", "Image metadata and templates of instances are not supported yet"),
    ],
)
async def test_what_is_not_there_yet_says_so(api, machine, method, path, text):
    assert await api(method, f"/1.0/instances/c1{path}") == (404, "Instance not found")
    await machine.create()
    assert await api(method, f"/1.0/instances/c1{path}") == (501, text)
    assert await api("GET", "/1.0/instances/c1/snapshots") == (200, [])
