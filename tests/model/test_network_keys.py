"""Keys and values of networks, with the words of a real Incus 6.0.4."""

from __future__ import annotations

import re

import pytest

from incus_actors.model import network_keys, network_values
from incus_actors.model.config_keys import ConfigError
from incus_actors.model.network_keys import validate_network_config

GOOD = {
    "bridge.driver": "native",
    "bridge.external_interfaces": "eth1, eth2.5,vl5/eth0/5",
    "bridge.hwaddr": "10:66:6A:00:00:01",
    "bridge.mtu": "1500",
    "dns.domain": "a.b",
    "dns.mode": "managed",
    "dns.nameservers": "1.1.1.1,fd42::1",
    "dns.search": "a,b",
    "ipv4.address": "10.0.0.1/24",
    "ipv4.nat": "true",
    "ipv4.nat.address": "10.1.1.1",
    "ipv4.nat.order": "before",
    "ipv4.dhcp": "yes",
    "ipv4.dhcp.expiry": "1h",
    "ipv4.dhcp.gateway": "10.0.0.2",
    "ipv4.dhcp.ranges": "10.0.0.5-10.0.0.9,10.0.0.20-10.0.0.30",
    "ipv4.dhcp.routes": "0.0.0.0/0,10.0.0.2",
    "ipv4.firewall": "false",
    "ipv4.routes": "10.1.0.0/16",
    "ipv4.routing": "false",
    "ipv6.address": "fd42::1/64",
    "ipv6.dhcp.stateful": "true",
    "ipv6.dhcp.ranges": "fd42::5-fd42::9",
    "raw.dnsmasq": "interface-name=foo,bar",
    "user.anything": "at all",
}

#: (key, value, what Incus says behind `Invalid value for network "n" option "<key>": `)
BAD = [
    ("bridge.driver", "x", 'Invalid value "x" (not one of [native openvswitch])'),
    ("bridge.mtu", "x", 'Invalid MTU "x"'),
    ("bridge.mtu", "-1", 'Invalid MTU "-1"'),
    ("bridge.mtu", "1279", 'Out of MTU range (1280-16384) "1279"'),
    ("bridge.hwaddr", "x", "Invalid MAC address, must be 6 bytes of hex separated by colons"),
    ("bridge.hwaddr", "10:66:6a:00:00:00:00", "Invalid MAC address, must be 6 bytes of hex separated by colons"),
    (
        "bridge.external_interfaces",
        "a/b",
        'Invalid interface name "a/b": Network interface contains invalid characters',
    ),
    (
        "bridge.external_interfaces",
        "x" * 16,
        f'Invalid interface name "{"x" * 16}": Network interface is too long (maximum 15 characters)',
    ),
    ("dns.mode", "x", 'Invalid value "x" (not one of [dynamic managed none])'),
    ("dns.nameservers", "x", 'Item "x": Not an IP address "x"'),
    ("ipv4.address", "x", "invalid CIDR address: x"),
    ("ipv4.address", "10.0.0.1", "invalid CIDR address: 10.0.0.1"),
    ("ipv4.address", "10.0.0.1/33", "invalid CIDR address: 10.0.0.1/33"),
    ("ipv4.address", "AUTO", "invalid CIDR address: AUTO"),
    ("ipv4.address", "10.0.0.0/24", 'Not a usable IPv4 address "10.0.0.0/24"'),
    ("ipv4.address", "10.0.0.1/32", 'Not a usable IPv4 address "10.0.0.1/32"'),
    ("ipv4.address", "0.0.0.0/0", 'Not a usable IPv4 address "0.0.0.0/0"'),
    ("ipv4.address", "fd42::1/64", 'Not an IPv4 address "fd42::1/64"'),
    ("ipv4.nat", "x", 'Invalid value for a boolean "x"'),
    ("ipv4.nat.address", "x", 'Not an IPv4 address "x"'),
    ("ipv4.routes", "fd42::/64", 'Item "fd42::/64": Not an IPv4 network "fd42::/64"'),
    ("ipv4.routes", "10.0.0.5/24", 'Item "10.0.0.5/24": Not an IPv4 network address "10.0.0.5/24"'),
    ("ipv4.dhcp.routes", "1.2.3.0/24", "missing gateway for route 1.2.3.0/24"),
    ("ipv4.dhcp.gateway", "x", 'Not an IPv4 address "x"'),
    ("ipv4.dhcp.ranges", "x", 'Item "x": IP range must contain start and end IP addresses'),
    ("ipv4.dhcp.ranges", "10.0.0.5", 'Item "10.0.0.5": IP range must contain start and end IP addresses'),
    ("ipv4.dhcp.routes", "x", "invalid CIDR address: x"),
    ("ipv4.routes", "x", 'Item "x": invalid CIDR address: x'),
    ("ipv6.address", "fd42::/64", 'Not a usable IPv6 address "fd42::/64"'),
    ("ipv6.address", "fd42::1/128", 'Not a usable IPv6 address "fd42::1/128"'),
    ("ipv6.address", "10.0.0.1/24", 'Not an IPv6 address "10.0.0.1/24"'),
    ("ipv6.nat.order", "x", 'Invalid value "x" (not one of [before after])'),
    ("ipv6.nat.address", "x", 'Not an IPv6 address "x"'),
    ("tunnel.x.protocol", "x", 'Invalid value "x" (not one of [gre vxlan])'),
    ("tunnel.x.id", "x", 'Invalid value for an integer "x"'),
    ("bgp.peers.x.address", "x", 'Not an IP address "x"'),
    ("security.acls.default.ingress.action", "x", 'Invalid value "x" (not one of [allow allow-stateless drop reject])'),
]


def text_of(kind: str, config: dict[str, str]) -> str:
    with pytest.raises(ConfigError) as caught:
        validate_network_config("n", kind, config)
    return str(caught.value)


def test_what_incus_takes_is_taken():
    validate_network_config("n", "bridge", GOOD)
    for key in GOOD:
        validate_network_config("n", "bridge", {key: ""})
    for address in ("auto", "none", "10.0.0.1/31", "10.0.0.255/24"):
        validate_network_config("n", "bridge", {"ipv4.address": address})
    validate_network_config("n", "macvlan", {"parent": "eth0", "mtu": "1400", "vlan": "5"})
    validate_network_config("n", "physical", {"parent": "eth0", "volatile.last_state.created": "false"})


@pytest.mark.parametrize(("key", "value", "reason"), BAD)
def test_bad_values_are_refused_in_the_words_of_incus(key, value, reason):
    assert text_of("bridge", {key: value}) == f'Invalid value for network "n" option "{key}": {reason}'


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("bridge", "foo"),
        ("bridge", "parent"),
        ("bridge", "mtu"),
        ("bridge", "bridge.mode"),
        ("bridge", "volatile.bridge.hwaddr"),
        ("bridge", "tunnel.x"),
        ("macvlan", "ipv4.address"),
        ("macvlan", "bgp.peers.a.asn"),
        ("physical", "ipv4.address"),
    ],
)
def test_keys_of_no_network_and_of_other_types(kind, key):
    assert text_of(kind, {key: "x"}) == f'Invalid option for network "n" option "{key}"'


def test_wrong_values_come_before_unknown_keys():
    assert text_of("macvlan", {"foo": "x", "mtu": "x"}).endswith('"mtu": Invalid MTU "x"')
    assert text_of("macvlan", {"vlan": "x"}).endswith('"vlan": Invalid VLAN ID "x"')


def test_what_would_have_no_effect_is_refused():
    for kind, key, value in (
        ("bridge", "bridge.driver", "openvswitch"),
        ("bridge", "security.acls", "x"),
        ("bridge", "tunnel.x.protocol", "gre"),
        ("bridge", "ipv4.ovn.ranges", "10.0.0.5-10.0.0.9"),
        ("physical", "ipv4.gateway", "10.1.1.1/24"),
    ):
        assert text_of(kind, {key: value}) == f"The configuration key {key} is not supported by this server"


def test_texts_that_become_arguments_of_dnsmasq_are_words():
    for key in ("dns.domain", "dns.search", "ipv4.dhcp.expiry"):
        for value in ("x y", "-x", "x\ny"):
            assert text_of("bridge", {key: value}).startswith(f'Invalid value for network "n" option "{key}": ')


def test_ranges_lie_in_the_subnet():
    config = {"ipv4.address": "10.0.0.1/24", "ipv4.dhcp.ranges": "10.9.0.5-10.9.0.9"}
    assert "does not fall within" in text_of("bridge", config)
    assert "Start IP address" in text_of("bridge", {"ipv4.dhcp.ranges": "10.0.0.9-10.0.0.5"})


def test_names_of_interfaces():
    for good in ("abcdefghijklmno", "1abc", "A-b_c.d", "eth0"):
        network_values.interface_name(good)
    for bad, reason in (
        ("a", "is too short (minimum 2 characters)"),
        ("abcdefghijklmnop", "is too long (maximum 15 characters)"),
        ("a/b", "contains invalid characters"),
        ("a b", "contains invalid characters"),
        ("é1", "contains invalid characters"),
    ):
        with pytest.raises(ValueError, match=f"Network interface {re.escape(reason)}"):
            network_values.interface_name(bad)


def test_a_parent_is_needed_by_those_that_have_one():
    network_keys.require_parent("n", "bridge", {})
    with pytest.raises(ConfigError, match=r'^Invalid value for network "n" option "parent": Required value$'):
        network_keys.require_parent("n", "macvlan", {})


def test_keys_of_one_member():
    assert network_keys.split({"parent": "a", "mtu": "1", "bridge.external_interfaces": "b"}) == (
        {"mtu": "1"},
        {"parent": "a", "bridge.external_interfaces": "b"},
    )


def test_dhcp_is_on_where_there_is_an_address():
    assert network_keys.dhcp_enabled({"ipv4.address": "10.0.0.1/24"}, 4)
    assert not network_keys.dhcp_enabled({"ipv4.address": "10.0.0.1/24", "ipv4.dhcp": "false"}, 4)
    assert not network_keys.dhcp_enabled({"ipv4.address": "none", "ipv4.dhcp": "true"}, 4)
    assert network_keys.network_domain({}) == "incus"
