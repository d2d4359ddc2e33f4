"""Rules of nics, with the words of a real Incus 6.0.4."""

from __future__ import annotations

import random

import pytest

from incus_actors.domain import nics
from incus_actors.domain.instances import check_expanded_devices
from incus_actors.domain.nics import NetworkFacts
from incus_actors.errors import BadRequestError

NETWORKS = {
    "b1": NetworkFacts("b1", "bridge", {"ipv4.address": "10.50.0.1/24", "ipv6.address": "fd42::1/64"}),
    "b2": NetworkFacts("b2", "bridge", {"ipv4.address": "10.51.0.1/24", "ipv4.dhcp": "false", "bridge.mtu": "1400"}),
    "b6": NetworkFacts("b6", "bridge", {"ipv6.address": "fd42::1/64", "ipv6.dhcp.stateful": "true"}),
    "m1": NetworkFacts("m1", "macvlan", {"parent": "eth0", "vlan": "5", "mtu": "9000"}),
    "p1": NetworkFacts("p1", "physical", {"parent": "eth1"}),
    "half": NetworkFacts("half", "bridge", {}, created=False),
}
ON_B1 = {"network": "b1"}
BRIDGED = {"nictype": "bridged", "parent": "br"}

GOOD = [
    ON_B1,
    {"network": "m1"},
    {"network": "p1"},
    BRIDGED,
    {**BRIDGED, "mtu": "1400", "host_name": "veth0", "hwaddr": "10:66:6A:00:00:01", "name": "eth0", "user.x": "y"},
    {**ON_B1, "ipv4.address": "10.50.0.5"},
    {**ON_B1, "ipv4.address": "none", "security.ipv4_filtering": "false", "limits.max": "1Mbit"}
    | {"ipv4.address": "10.50.0.6"},
    {**ON_B1, "security.ipv4_filtering": "true", "security.ipv6_filtering": "true"},
    {**BRIDGED, "security.ipv4_filtering": "true", "ipv4.address": "10.1.2.3"},
    {**ON_B1, "limits.ingress": "1Mbit", "limits.egress": "500000", "security.mac_filtering": "true"},
    {"nictype": "bridged", "parent": "b1", "ipv4.address": "10.50.0.6"},
    {**ON_B1, "security.port_isolation": "true", "queue.tx.length": "500", "limits.priority": "3"},
    {"network": "b6", "ipv6.address": "fd42::7"},
    {"nictype": "macvlan", "parent": "eth0", "vlan": "5", "mode": "vepa"},
    {"nictype": "p2p", "ipv4.routes": "10.0.0.0/24"},
    {"nictype": "physical", "parent": "eth0", "hwaddr": "10:66:6a:00:00:19"},
]

BAD = [
    ({}, 'Failed loading device "d": Unsupported device type'),
    ({"nictype": "x"}, 'Failed loading device "d": Unsupported device type'),
    (
        {"network": "nope"},
        'Failed loading device "d": Failed to load network "nope" for project "default": Network not found',
    ),
    ({"nictype": "bridged"}, 'Invalid value for device option "parent": Required value'),
    ({"nictype": "macvlan"}, 'Invalid value for device option "parent": Required value'),
    ({**ON_B1, "nictype": "bridged"}, 'Cannot use "nictype" property in conjunction with "network" property'),
    ({**ON_B1, "parent": "b1"}, 'Cannot use "parent" property in conjunction with "network" property'),
    ({**ON_B1, "mtu": "x"}, 'Cannot use "mtu" property in conjunction with "network" property'),
    ({"network": "m1", "vlan": "5"}, 'Cannot use "vlan" property in conjunction with "network" property'),
    ({"network": "m1", "mode": "vepa"}, 'Cannot use "mode" property in conjunction with "network" property'),
    ({"network": "half", "parent": "b1"}, 'Cannot use "parent" property in conjunction with "network" property'),
    ({"network": "half", "foo": "bar"}, "Specified network is not fully created"),
    ({**ON_B1, "foo": "bar"}, 'Invalid device option "foo"'),
    ({**ON_B1, "name": "a/b"}, 'Invalid value for device option "name": Network interface contains invalid characters'),
    (
        {**ON_B1, "name": "x" * 16},
        'Invalid value for device option "name": Network interface is too long (maximum 15 characters)',
    ),
    ({**BRIDGED, "mtu": "x"}, 'Invalid value for device option "mtu": Invalid MTU "x"'),
    (
        {**ON_B1, "hwaddr": "x"},
        'Invalid value for device option "hwaddr": Invalid MAC address, must be 6 bytes of hex separated by colons',
    ),
    ({**ON_B1, "ipv4.address": "x"}, 'Device IP address "x" not within network "b1" subnet'),
    ({**ON_B1, "ipv4.address": "10.51.0.5"}, 'Device IP address "10.51.0.5" not within network "b1" subnet'),
    ({**ON_B1, "ipv4.address": "none"}, "Cannot have ipv4.address as none unless using security.ipv4_filtering"),
    (
        {**ON_B1, "ipv4.address": "10.50.0.1"},
        'IP address "10.50.0.1" is assigned to parent managed network device "b1"',
    ),
    (
        {**ON_B1, "ipv6.address": "fd42::5"},
        (
            'Cannot specify "ipv6.address" when DHCP or "ipv6.dhcp.stateful" are disabled (unless using'
            ' security.ipv6_filtering) on network "b1"'
        ),
    ),
    (
        {"network": "b2", "ipv4.address": "10.51.0.5"},
        'Cannot specify "ipv4.address" when DHCP is disabled (unless using security.ipv4_filtering) on network "b2"',
    ),
    (
        {**BRIDGED, "ipv4.address": "1.2.3.4"},
        "Cannot use manually specified ipv4.address when using unmanaged parent bridge",
    ),
    ({**ON_B1, "vlan": "x"}, 'Invalid value for device option "vlan": Invalid VLAN ID "x"'),
    (
        {**ON_B1, "boot.priority": "x"},
        (
            'Invalid value for device option "boot.priority": Invalid value for uint32 "x": strconv.ParseUint: parsing'
            ' "x": invalid syntax'
        ),
    ),
    ({**ON_B1, "limits.ingress": "x"}, 'Invalid value for device option "limits.ingress": Invalid value: x'),
    ({**ON_B1, "limits.ingress": "1MB"}, 'Invalid value for device option "limits.ingress": Invalid value: 1MB'),
    (
        {"nictype": "macvlan", "parent": "eth0", "mode": "x"},
        'Invalid value for device option "mode": Invalid value "x" (not one of [bridge vepa passthru private])',
    ),
    ({"nictype": "macvlan", "parent": "eth0", "limits.max": "1bit"}, 'Invalid device option "limits.max"'),
    ({"nictype": "p2p", "parent": "eth0"}, 'Invalid device option "parent"'),
    ({"nictype": "routed", "parent": "eth0"}, 'nictype "routed" is not supported by this server'),
    ({**ON_B1, "vlan": "5"}, 'The device option "vlan" of bridged nics is not supported by this server'),
    ({**ON_B1, "security.acls": "a"}, 'The device option "security.acls" is not supported by this server'),
    (
        {**BRIDGED, "security.ipv6_filtering": "true"},
        "IPv6 filtering requires a manually specified ipv6.address when using an unmanaged parent bridge",
    ),
    (
        {**BRIDGED, "security.ipv4_filtering": "true", "ipv4.address": "x"},
        'Invalid value for device option "ipv4.address": Not an IPv4 address "x"',
    ),
]


@pytest.mark.parametrize("device", GOOD)
def test_what_incus_takes_is_taken(device):
    nics.check_nic("d", {"type": "nic", **device}, NETWORKS)


@pytest.mark.parametrize(("device", "text"), BAD)
def test_what_is_refused(device, text):
    with pytest.raises(BadRequestError) as caught:
        nics.check_nic("d", {"type": "nic", **device}, NETWORKS)
    assert str(caught.value) == text


def test_two_nics_can_not_have_one_name():
    devices = {name: {"type": "nic", **ON_B1, "name": "eth0"} for name in ("a", "b")}
    with pytest.raises(BadRequestError) as caught:
        check_expanded_devices(devices, NETWORKS)
    assert str(caught.value) == (
        'Device validation failed for "a": Invalid value for device option "name": Duplicate NIC name detected "eth0"'
    )


def test_rates():
    assert [nics.parse_rate(text) for text in ("10Mbit", "1kbit", "2Gbit", "800", "1Kibit")] == [
        10_000_000,
        1000,
        2_000_000_000,
        800,
        1024,
    ]


def test_drivers_see_what_a_network_means():
    devices = {
        "a": {"type": "nic", "network": "b2", "ipv4.address": "10.51.0.5"},
        "b": {"type": "nic", "network": "m1", "name": "eth7"},
        "c": {"type": "nic", "network": "gone"},
        "d": {"type": "disk", "network": "b1"},
    }
    assert nics.resolved(devices, NETWORKS) == {
        "a": {"type": "nic", "nictype": "bridged", "parent": "b2", "mtu": "1400", "ipv4.address": "10.51.0.5"},
        "b": {"type": "nic", "nictype": "macvlan", "parent": "eth0", "mtu": "9000", "vlan": "5", "name": "eth7"},
        "c": devices["c"],
        "d": devices["d"],
    }


def test_volatile_keys_are_made_once():
    devices = {
        "d0": {"type": "nic", **ON_B1},
        "d1": {"type": "nic", **ON_B1, "name": "eth0"},
        "d2": {"type": "nic", "network": "p1"},
        "root": {"type": "disk"},
    }
    keys = nics.missing_volatile(devices, {}, NETWORKS, random.Random(1))
    assert {key: value for key, value in keys.items() if key.endswith(".name")} == {
        "volatile.d0.name": "eth1",
        "volatile.d2.name": "eth2",
    }
    assert sorted(key for key in keys if key.endswith(".hwaddr")) == ["volatile.d0.hwaddr", "volatile.d1.hwaddr"]
    assert nics.missing_volatile(devices, keys, NETWORKS, random.Random(2)) == {}


def test_volatile_keys_go_with_their_device():
    config = {"volatile.d0.hwaddr": "x", "volatile.d.1.name": "y", "volatile.uuid": "z", "user.d0.name": "u"}
    old = {"d0": {"type": "nic"}, "d.1": {"type": "nic"}}
    assert nics.stale_volatile(config, old, {"d.1": {"type": "nic"}}) == ["volatile.d0.hwaddr"]
    assert nics.stale_volatile(config, old, {**old, "d0": {"type": "none"}}) == ["volatile.d0.hwaddr"]
    assert nics.stale_volatile(config, old, old) == []


def test_an_option_replaces_its_volatile_key():
    old = {"d0": {"type": "nic", **ON_B1}}
    config = dict.fromkeys(("volatile.d0.hwaddr", "volatile.d0.name", "volatile.d0.host_name"), "x")
    new = {"d0": {"type": "nic", **ON_B1, "hwaddr": "10:66:6a:00:00:01", "host_name": "veth1"}}
    assert nics.stale_volatile(config, old, new) == ["volatile.d0.hwaddr"]


def test_volatile_keys_that_no_nic_needs():
    config = {
        "volatile.d0.hwaddr": "x",
        "volatile.gone.name": "eth1",
        "volatile.gone.last_state.mtu": "1500",
        "volatile.last_state.power": "RUNNING",
        "volatile.idmap.base": "0",
        "volatile.uuid.generation": "u",
    }
    devices = {"d0": {"type": "nic"}, "idmap": {"type": "disk"}}
    assert nics.unneeded_volatile(config, devices) == ["volatile.gone.name", "volatile.gone.last_state.mtu"]


@pytest.mark.parametrize(
    ("nic", "seen", "keys"),
    [
        (ON_B1, nics.Seen("veth1", "x", 1500), {"host_name": "veth1"}),
        (
            {"nictype": "physical", "parent": "eth7"},
            nics.Seen("veth1", "x", 1500),
            {
                "host_name": "eth7",
                "last_state.created": "false",
                "last_state.hwaddr": "x",
                "last_state.mtu": "1500",
            },
        ),
        ({"network": "m1"}, nics.Seen("", "x", 1500), {"host_name": "macc386bbc4", "last_state.created": "false"}),
        (
            {"network": "p1", "hwaddr": "y"},
            nics.Seen("", "y", 1500),
            {"host_name": "eth1", "last_state.created": "false", "last_state.mtu": "1500"},
        ),
    ],
)
def test_volatile_keys_of_a_running_nic(nic, seen, keys):
    expected = {f"volatile.d.{key}": value for key, value in keys.items()}
    device = {"type": "nic", **nic}
    assert nics.running_volatile("d", device, NETWORKS, {}, seen, random.Random(1)) == expected
    assert nics.running_volatile("d", device, NETWORKS, expected, seen, random.Random(2)) == {}
    assert nics.running_volatile("d", device, NETWORKS, expected, None, random.Random(2)) == dict.fromkeys(expected)
