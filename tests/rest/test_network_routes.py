"""/1.0/networks: shapes, statuses, ETags, lifecycle events."""

from __future__ import annotations

import pytest
from plain_rest_kit import running_rest

from incus_actors.drivers.dnsmasq import Lease

PATH = "/1.0/networks"
PLAIN = {"ipv4.address": "10.69.0.1/24", "ipv4.nat": "true", "ipv6.address": "none"}


@pytest.fixture
async def rest(tmp_path):
    async with running_rest(tmp_path) as found:
        yield found


async def create(rest, name="mynet", **body):
    return await rest.ask("POST", PATH, {"config": PLAIN, "description": "", "name": name, "type": "", **body})


async def test_interfaces_of_this_machine(rest):
    assert f"{PATH}/lo" in (await rest.ask("GET", PATH)).metadata
    listed = (await rest.ask("GET", f"{PATH}?recursion=1&filter=name+eq+lo")).metadata
    one = await rest.ask("GET", f"{PATH}/lo")
    assert listed == [one.metadata]
    assert one.metadata["locations"] is None
    assert one.headers["Etag"]
    state = await rest.ask("GET", f"{PATH}/lo/state")
    assert state.metadata["state"] == "up"
    missing = await rest.ask("GET", f"{PATH}/nope")
    assert (missing.status, missing.error) == (404, "Network not found")


async def test_the_life_of_a_network(rest):
    made = await create(rest)
    assert (made.status, made.headers["Location"], made.metadata) == (201, f"{PATH}/mynet", None)
    found = await rest.ask("GET", f"{PATH}/mynet")
    assert found.metadata == {
        "config": PLAIN,
        "description": "",
        "name": "mynet",
        "type": "bridge",
        "used_by": [],
        "managed": True,
        "status": "Created",
        "locations": ["none"],
        "project": "default",
    }
    put = {"config": {**PLAIN, "ipv4.dhcp.ranges": "10.69.0.10-10.69.0.100"}, "description": "d"}
    old = await rest.ask("PUT", f"{PATH}/mynet", put, headers={"If-Match": found.headers["Etag"]})
    assert (old.status, old.metadata) == (200, {})
    stale = await rest.ask("PUT", f"{PATH}/mynet", put, headers={"If-Match": found.headers["Etag"]})
    assert stale.status == 412
    assert (await rest.ask("PATCH", f"{PATH}/mynet", {"config": {"user.a": "b"}})).status == 200
    assert (await rest.ask("POST", f"{PATH}/mynet", {"name": "other"})).status == 201
    assert (await rest.ask("GET", f"{PATH}/other")).metadata["config"]["user.a"] == "b"
    assert (await rest.ask("DELETE", f"{PATH}/other")).status == 200
    assert (await rest.ask("GET", f"{PATH}/other")).status == 404
    actions = [event["action"] for event in rest.lifecycle if event["action"].startswith("network")]
    assert actions == ["network-created", "network-updated", "network-updated", "network-renamed", "network-deleted"]


async def test_leases_and_allocations(rest):
    await create(rest)
    rest.kit.machine.given["mynet"] = [Lease("10.69.0.9", "00:11:22:33:44:55", "x")]
    leases = (await rest.ask("GET", f"{PATH}/mynet/leases")).metadata
    assert leases == [
        {"hostname": "mynet.gw", "hwaddr": "", "address": "10.69.0.1", "type": "gateway", "location": ""},
        {
            "hostname": "x",
            "hwaddr": "00:11:22:33:44:55",
            "address": "10.69.0.9",
            "type": "dynamic",
            "location": "none",
        },
    ]
    for query in ("?project=default", "?all-projects=true"):
        assert (await rest.ask("GET", f"/1.0/network-allocations{query}")).metadata == [
            {
                "addresses": "10.69.0.1/24",
                "used_by": f"{PATH}/mynet",
                "type": "network",
                "nat": True,
                "hwaddr": "",
            }
        ]


async def test_statuses_of_errors(rest):
    await create(rest)
    for method, path, body, status, text in (
        ("POST", PATH, {"name": "mynet"}, 409, 'Network "mynet" already exists'),
        ("POST", PATH, {"name": ""}, 400, "No name provided"),
        ("POST", PATH, {"name": "n1", "config": {"foo": "x"}}, 500, 'Invalid option for network "n1" option "foo"'),
        ("PUT", f"{PATH}/mynet", {"config": {"foo": "x"}}, 400, 'Invalid option for network "mynet" option "foo"'),
        ("PUT", f"{PATH}/lo", {"config": {}}, 404, "Failed loading network: Network not found"),
        ("DELETE", f"{PATH}/lo", None, 404, "Failed loading network: Network not found"),
        ("GET", f"{PATH}/nope/leases", None, 404, "Failed loading network: Network not found"),
        ("GET", f"{PATH}/nope/state", None, 404, 'Network interface "nope" not found'),
        ("GET", f"{PATH}/mynet?target=zz", None, 404, "Cluster member not found"),
    ):
        answer = await rest.ask(method, path, body)
        assert (answer.status, answer.error) == (status, text), (method, path)
