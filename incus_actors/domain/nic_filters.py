"""Addresses that the filters of a nic let through: those it was given, those that were chosen for it, or none at all.

Owns what is decided from data alone, as a real Incus does it. Used by the actors of instances and networks; pure.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterator, Mapping

from incus_actors.domain.networks import slaac_address
from incus_actors.domain.nics import Device, Devices, NetworkFacts, Networks
from incus_actors.model.config_values import is_true
from incus_actors.model.network_keys import dhcp_enabled
from incus_actors.model.network_values import Address, Network, address_of, parse_ranges, subnet_of

Config = Mapping[str, str]


def chosen_key(name: str) -> str:
    """Return the volatile key for the address that was chosen for a nic."""
    return f"volatile.{name}.last_state.ip_addresses"


def bridge_of(device: Device, networks: Networks) -> NetworkFacts | None:
    """Return the managed bridge that a nic is on."""
    if device.get("type") != "nic":
        return None
    on = device.get("network") or (device.get("parent", "") if device.get("nictype") == "bridged" else "")
    found = networks.get(on)
    return found if found is not None and found.type == "bridge" else None


def filled(name: str, device: Device, networks: Networks, config: Config) -> dict[str, str]:
    """Return a nic with the addresses that its filters let through; "none" where it can have none.

    `config`: of the instance, with its volatile keys.
    """
    found = dict(device)
    bridge = bridge_of(device, networks)
    if bridge is None:
        return found
    for version in (4, 6):
        key = f"ipv{version}.address"
        if not is_true(device.get(f"security.ipv{version}_filtering")) or device.get(key):
            continue
        subnet = subnet_of(bridge.config.get(key)) if dhcp_enabled(bridge.config, version) else None
        if version == 4:
            found[key] = _chosen(subnet, config.get(chosen_key(name), ""))
        else:
            hwaddr = device.get("hwaddr") or config.get(f"volatile.{name}.hwaddr", "")
            alone = subnet is not None and subnet.prefixlen == 64 and hwaddr
            found[key] = slaac_address(subnet, hwaddr) if alone and subnet is not None else "none"
    return found


def _chosen(subnet: Network | None, address: str) -> str:
    return address if subnet is not None and address and ipaddress.ip_address(address) in subnet else "none"


def lacking(devices: Devices, config: Config, networks: Networks) -> dict[str, NetworkFacts]:
    """Return the nics for which an IPv4 address must be chosen, and their bridges."""
    found = {}
    for name, device in sorted(devices.items()):
        bridge = bridge_of(device, networks)
        if bridge is None or device.get("ipv4.address") or not is_true(device.get("security.ipv4_filtering")):
            continue
        if dhcp_enabled(bridge.config, 4) and filled(name, device, networks, config)["ipv4.address"] == "none":
            found[name] = bridge
    return found


def choose(bridge: NetworkFacts, taken: Collection[str]) -> str:
    """Return the first free IPv4 address that DHCP of a bridge may give out, "" if there is none."""
    own = address_of(bridge.config.get("ipv4.address"))
    free = (str(one) for one in _given_out(bridge.config) if one != own)
    return next((one for one in free if one not in taken), "")


def _given_out(config: Config) -> Iterator[Address]:
    ranges = parse_ranges(config.get("ipv4.dhcp.ranges"))
    for first, last in ranges:
        for number in range(int(first), int(last) + 1):
            yield ipaddress.IPv4Address(number)
    subnet = subnet_of(config.get("ipv4.address"))
    if not ranges and subnet is not None:
        yield from subnet.hosts()
