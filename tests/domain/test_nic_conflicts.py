"""Rules between nics on one bridge, with the words of a real Incus 6.0.4."""

from __future__ import annotations

import pytest

from incus_actors.domain.nic_conflicts import check_conflicts, static_addresses
from incus_actors.domain.nics import NetworkFacts
from incus_actors.errors import BadRequestError

NETWORKS = {
    "b1": NetworkFacts("b1", "bridge", {}),
    "b2": NetworkFacts("b2", "bridge", {"dns.mode": "none"}),
    "m1": NetworkFacts("m1", "macvlan", {}),
}
B1, B2 = {"type": "nic", "network": "b1"}, {"type": "nic", "network": "b2"}
FIXED = {"type": "nic", "network": "b1", "ipv4.address": "10.0.0.9"}


def refusal(devices, stages, *others) -> str:
    with pytest.raises(BadRequestError) as refused:
        check_conflicts("c1", devices, stages, others, NETWORKS)
    return str(refused.value)


@pytest.mark.parametrize("added", [B1, {"type": "nic", "nictype": "bridged", "parent": "b1"}])
def test_an_instance_has_one_name_on_a_network(added):
    assert refusal({"eth1": B1, "eth9": added}, {"eth9": "add"}) == (
        'Failed add validation for device "eth9": Instance DNS name "c1" conflict between "eth9" and "eth1"'
        " because both are connected to same network"
    )


def test_an_address_is_given_once_per_network():
    text = 'Failed start validation for device "eth0": IP address "10.0.0.9" already defined on another NIC'
    assert refusal({"eth0": FIXED}, {"eth0": "start"}, {"x": FIXED}) == text
    old = {"type": "nic", "nictype": "bridged", "parent": "b1", "ipv4.address": "10.0.0.9"}
    assert refusal({"eth0": FIXED}, {"eth0": "start"}, {}, {"x": old}) == text
    long, short = ({**B1, "ipv6.address": address} for address in ("fd42:0::0005", "fd42::5"))
    assert "fd42:0::0005" in refusal({"eth0": long}, {"eth0": "update"}, {"x": short})
    same = {**B2, "ipv4.address": "10.0.0.9"}
    assert 'IP address "10.0.0.9"' in refusal({"a": same, "b": same}, {"b": "add"})


def test_a_mac_address_is_given_once_per_network():
    small, big = ({**B1, "hwaddr": address} for address in ("00:16:3e:00:00:0a", "00:16:3E:00:00:0A"))
    assert refusal({"eth0": small}, {"eth0": "add"}, {"x": big}) == (
        'Failed add validation for device "eth0": MAC address "00:16:3e:00:00:0a" already defined on another NIC'
    )
    check_conflicts("c1", {"eth0": small}, {"eth0": "add"}, [{"x": {**big, "network": "b2"}}], NETWORKS)


@pytest.mark.parametrize(
    ("devices", "other"),
    [
        ({"a": B1, "b": B2, "c": B2}, B1),
        ({"a": FIXED}, {**B2, "ipv4.address": "10.0.0.9"}),
        ({"a": FIXED}, {"type": "disk", "network": "b1", "ipv4.address": "10.0.0.9"}),
        ({"a": {**B1, "ipv4.address": "none"}}, {**B1, "ipv4.address": "none"}),
        ({"a": {"type": "nic", "network": "m1"}, "b": {"type": "nic", "network": "m1"}}, FIXED),
        (
            {"a": {"type": "nic", "nictype": "p2p"}, "b": {"type": "nic", "nictype": "p2p"}, "root": {"type": "disk"}},
            {},
        ),
    ],
)
def test_what_is_fine(devices, other):
    check_conflicts("c1", devices, dict.fromkeys(devices, "start"), [{"x": other}], NETWORKS)


def test_only_what_is_new_is_looked_at():
    check_conflicts("c1", {"a": B1, "b": B1, "c": B2}, {"c": "add"}, [], NETWORKS)


def test_static_addresses():
    devices = {"a": FIXED, "b": {**B1, "ipv4.address": "none", "ipv6.address": "FD42::0:5"}, "d": {"type": "disk"}}
    assert static_addresses(devices) == {"10.0.0.9", "fd42::5"}
