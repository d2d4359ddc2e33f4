"""Networks: managed ones of the database, interfaces of this machine."""

from __future__ import annotations

import pytest
from service_kit import running_services

from incus_actors.errors import NotFoundError
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
