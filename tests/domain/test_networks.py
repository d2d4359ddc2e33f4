"""Rules of networks: names, free subnets, overlaps, MAC addresses."""

from __future__ import annotations

import ipaddress
import random

import pytest

from incus_actors.domain import networks
from incus_actors.errors import BadRequestError, ConflictError

RNG = random.Random(1)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("", "No name provided"),
        ("a", "Network interface is too short (minimum 2 characters)"),
        ("abcdefghijklmnop", "Network interface is too long (maximum 15 characters)"),
        ("a/b", "Network interface contains invalid characters"),
        ("a:b", "Network interface contains invalid characters"),
        ("none", "Network name 'none' is not valid"),
        ("all", "Network name 'all' is not valid"),
    ],
)
def test_names(name, text):
    with pytest.raises(BadRequestError) as caught:
        networks.check_name(name)
    assert str(caught.value) == text


def test_types():
    assert networks.check_type("") == "bridge"
    assert networks.check_type("macvlan") == "macvlan"
    for kind in ("foo", "ovn", "sriov"):
        with pytest.raises(BadRequestError, match=r"^Unknown driver$"):
            networks.check_type(kind)


def test_a_new_bridge_gets_free_subnets_and_nat():
    config = networks.with_addresses({}, [], random.Random(2), new=True)
    assert set(config) == {"ipv4.address", "ipv4.nat", "ipv6.address", "ipv6.nat"}
    assert ipaddress.ip_interface(config["ipv4.address"]).network.prefixlen == 24
    assert config["ipv6.address"].startswith("fd42:")
    given = {"ipv4.address": "10.0.0.1/24", "ipv6.address": "none"}
    assert networks.with_addresses(given, [], RNG, new=True) == given
    assert "ipv4.nat" not in networks.with_addresses({"ipv4.address": "auto"}, [], RNG, new=False)
    assert networks.with_addresses({}, [], RNG, new=False) == {}
    assert networks.with_addresses({"ipv4.nat": "false"}, [], RNG, new=True)["ipv4.nat"] == "false"


def test_subnets_in_use_are_not_given_out():
    with pytest.raises(ConflictError, match="Failed to automatically find an unused IPv4 subnet"):
        networks.free_address(4, [ipaddress.ip_network("10.0.0.0/8")], RNG)
    taken = [ipaddress.ip_network("10.0.0.0/9"), ipaddress.ip_network("fd00::/8")]
    for _ in range(20):
        assert ipaddress.ip_interface(networks.free_address(4, taken, RNG)).ip >= ipaddress.ip_address("10.128.0.0")


def test_overlaps_are_refused():
    others = {"b1": {"ipv4.address": "10.0.0.1/24"}, "b2": {"ipv4.address": "none", "ipv6.address": "fd42::1/64"}}
    networks.check_overlap("n", {"ipv4.address": "10.0.1.1/24", "ipv6.address": "fd43::1/64"}, others)
    networks.check_overlap("n", {"ipv4.address": "auto", "ipv6.address": "none"}, others)
    for key, value, name in (("ipv4.address", "10.0.0.9/16", "b1"), ("ipv6.address", "fd42::9/80", "b2")):
        with pytest.raises(BadRequestError, match=f'option "{key}": Subnet .* overlaps with .* of network "{name}"$'):
            networks.check_overlap("n", {key: value}, others)


def test_mac_addresses():
    assert networks.bridge_hwaddr("id", "br0") == networks.bridge_hwaddr("id", "br0")
    assert networks.bridge_hwaddr("id", "br0") != networks.bridge_hwaddr("id", "br1")
    assert networks.random_hwaddr(RNG).startswith("10:66:6a:")
    subnet = ipaddress.ip_network("fd42:71f1:59c5:2ad3::/64")
    assert networks.slaac_address(subnet, "10:66:6a:b2:64:8e") == "fd42:71f1:59c5:2ad3:1266:6aff:feb2:648e"
