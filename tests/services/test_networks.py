"""Networks: managed ones of the database, interfaces of this machine."""

from __future__ import annotations

import pytest
from service_kit import running_services

from incus_actors.errors import ForbiddenError, MemberError, NotFoundError
from incus_actors.model.resources import NetworksPost, ProfilePut, ProfilesPost, ProjectPut, ProjectsPost
from incus_actors.services import interfaces


@pytest.fixture
async def kit(tmp_path):
    async with running_services(tmp_path) as found:
        yield found


async def test_interfaces_are_unmanaged_networks(kit):
    lo = kit.services.networks.get("default", "lo")
    assert (lo.type, lo.managed, lo.status, lo.locations, lo.project) == ("loopback", False, "", None, "default")
    with pytest.raises(NotFoundError, match=r"^Network not found$"):
        kit.services.networks.get("default", "nope")
    with pytest.raises(NotFoundError, match=r'^Failed to load project "nope": Project not found$'):
        kit.services.networks.list("nope")


async def test_managed_networks_come_first(kit):
    await kit.sql(
        "INSERT INTO networks (id, project_id, name, state, type) VALUES (1, 1, 'br', 1, 0)",
        "INSERT INTO networks_nodes (network_id, node_id, state) VALUES (1, 1, 1)",
        "INSERT INTO networks_config (network_id, key, value) VALUES (1, 'ipv4.nat', 'true')",
    )
    first = kit.services.networks.list("default")[0]
    assert (first.name, first.type, first.managed, first.status, first.locations) == (
        "br",
        "bridge",
        True,
        "Created",
        ["none"],
    )
    assert first.config == {"ipv4.nat": "true"}


async def test_a_restricted_project_sees_the_networks_that_it_names(kit):
    networks, changes = kit.services.networks, kit.services.network_changes
    for name, third in (("n1", "1"), ("n2", "2")):
        config = {"ipv4.address": f"10.9.{third}.1/24", "ipv6.address": "none"}
        await changes.create("default", NetworksPost(name=name, config=config))
    restricted = {"restricted": "true", "features.networks": "false"}
    await kit.services.projects.create(ProjectsPost(name="r1", config=restricted))
    assert [one.name for one in networks.list("r1")] == ["n1", "n2"]  # nothing that is unmanaged
    config = {**kit.services.projects.get("r1").config, "restricted.networks.access": "n1"}
    await kit.services.projects.update("r1", ProjectPut(config=config))
    assert [one.name for one in networks.list("r1")] == ["n1"]
    assert networks.get("r1", "n1").name == "n1"
    for name in ("n2", "lo"):
        for work in (networks.get, networks.row, networks.state):
            with pytest.raises(NotFoundError, match=r"^Network not found$"):
                work("r1", name)
    with pytest.raises(ForbiddenError, match=r"^Network not allowed in project$"):
        await changes.create("r1", NetworksPost(name="n3"))
    nic = {"type": "nic", "network": "n1"}
    await kit.services.profiles.create("r1", ProfilesPost(name="p", devices={"eth0": nic}))
    with pytest.raises(MemberError) as refused:
        await kit.services.profiles.update("r1", "p", ProfilePut(devices={"eth0": {**nic, "network": "n2"}}))
    assert str(refused.value) == (
        'Failed checking if profile update allowed: Invalid device "eth0" on profile "p" of project "r1":'
        " Network not allowed in project"
    )
    with pytest.raises(MemberError) as refused:
        await kit.services.projects.update("r1", ProjectPut(config={**config, "restricted.networks.access": "n2"}))
    assert str(refused.value) == (
        'Conflict detected when changing "restricted.networks.access" in project "r1": Invalid device "eth0" on profile'
        ' "p" of project "r1": Network not allowed in project'
    )
    await kit.services.projects.update(
        "r1", ProjectPut(config={**config, "restricted.networks.access": "", "restricted.devices.nic": "allow"})
    )
    assert "lo" in [one.name for one in networks.list("r1")]


async def test_state_of_an_interface(kit):
    found = kit.services.networks.state("default", "lo")
    assert found["addresses"][0] == {"family": "inet", "address": "127.0.0.1", "netmask": "8", "scope": "local"}
    assert (found["type"], found["hwaddr"], found["mtu"]) == ("loopback", "", 65536)
    for name in ("nope", "..", "a/b", ""):
        with pytest.raises(NotFoundError, match="not found"):
            kit.services.networks.state("default", name)


def test_own_addresses_are_reachable_ones():
    for address in interfaces.global_addresses():
        assert not address.startswith(("127.", "fe80:", "169.254."))
