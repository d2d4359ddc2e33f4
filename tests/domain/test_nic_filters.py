"""Addresses of filtered nics, as a real Incus 6.0.4 chose them."""

from __future__ import annotations

import pytest

from incus_actors.domain import nic_filters
from incus_actors.domain.nics import NetworkFacts, unneeded_volatile

NETWORKS = {
    "none": NetworkFacts("none", "bridge", {"ipv4.address": "none", "ipv6.address": "none"}),
    "still": NetworkFacts("still", "bridge", {"ipv4.address": "10.9.1.1/24", "ipv4.dhcp": "false"}),
    "ranged": NetworkFacts(
        "ranged",
        "bridge",
        {"ipv4.address": "10.9.2.1/24", "ipv4.dhcp.ranges": "10.9.2.50-10.9.2.51", "ipv6.address": "fd42:92::1/64"},
    ),
    "plain": NetworkFacts("plain", "bridge", {"ipv4.address": "10.9.3.1/30"}),
    "mv": NetworkFacts("mv", "macvlan", {"parent": "eth0"}),
}
FILTERED = {"type": "nic", "security.ipv4_filtering": "true", "security.ipv6_filtering": "true"}
CONFIG = {"volatile.d.hwaddr": "10:66:6a:00:00:01", "volatile.d.last_state.ip_addresses": "10.9.2.50"}


@pytest.mark.parametrize(
    ("network", "four", "six"),
    [
        ("none", "none", "none"),
        ("still", "none", "none"),
        ("ranged", "10.9.2.50", "fd42:92::1266:6aff:fe00:1"),
        ("plain", "none", "none"),  # what was chosen is of another network
    ],
)
def test_what_filters_let_through(network, four, six):
    found = nic_filters.filled("d", {**FILTERED, "network": network}, NETWORKS, CONFIG)
    assert (found["ipv4.address"], found["ipv6.address"]) == (four, six)


def test_what_needs_nothing_stays_as_it_is():
    for device in (
        {"type": "nic", "network": "ranged"},
        {"type": "nic", "network": "mv", "security.ipv4_filtering": "true"},
        {**FILTERED, "network": "ranged", "ipv4.address": "10.9.2.7", "ipv6.address": "none"},
        {"type": "disk", "source": "/x"},
    ):
        assert nic_filters.filled("d", device, NETWORKS, CONFIG) == device
        assert nic_filters.lacking({"d": device}, {}, NETWORKS) == {}


def test_an_address_is_chosen_once():
    devices = {"d": {**FILTERED, "network": "ranged"}, "e": {**FILTERED, "network": "still"}}
    assert nic_filters.lacking(devices, CONFIG, NETWORKS) == {}
    assert nic_filters.lacking(devices, {}, NETWORKS) == {"d": NETWORKS["ranged"]}
    assert nic_filters.choose(NETWORKS["ranged"], {"10.9.2.50"}) == "10.9.2.51"
    assert nic_filters.choose(NETWORKS["ranged"], {"10.9.2.50", "10.9.2.51"}) == ""
    assert nic_filters.choose(NETWORKS["plain"], set()) == "10.9.3.2"  # the first is the bridge's own


def test_what_was_chosen_goes_with_the_filter():
    key = "volatile.d.last_state.ip_addresses"
    assert unneeded_volatile(CONFIG, {"d": {**FILTERED, "network": "ranged"}}) == []
    assert unneeded_volatile(CONFIG, {"d": {**FILTERED, "ipv4.address": "10.9.2.7"}}) == [key]
    assert unneeded_volatile(CONFIG, {"d": {"type": "nic", "network": "ranged"}}) == [key]
