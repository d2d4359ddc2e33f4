"""The network interfaces of this machine, as users see them.

Owns the words of Incus for them; used for `environment.addresses`, the list of unmanaged networks and their state.
Must never change anything.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from incus_actors.drivers import links
from incus_actors.drivers.links import Link, LinkAddress
from incus_actors.model.network_values import Network


def names() -> list[str]:
    """Return the names of all interfaces in the order of their index."""
    return [link.name for link in links.links()]


def kinds() -> dict[str, str]:
    """Return name → network type in Incus' words (loopback, bridge, vlan, bond, physical or unknown), by index."""
    return {link.name: _kind(link) for link in links.links()}


def _kind(link: Link) -> str:
    if link.loopback:
        return "loopback"
    if link.kind in ("bridge", "vlan", "bond"):
        return link.kind
    return "physical" if link.ethernet else "unknown"


def global_addresses() -> list[str]:
    """Return every address of this machine that others could reach, IPv4 first."""
    found = {address.address for address in links.addresses() if _reachable(address)}
    return sorted(found, key=lambda text: (":" in text, ipaddress.ip_address(text)))


def _reachable(address: LinkAddress) -> bool:
    parsed = ipaddress.ip_address(address.address)
    return address.scope == "global" and not parsed.is_loopback and not parsed.is_link_local


def subnets() -> list[Network]:
    """Return the subnets that this machine has an address in."""
    return [
        ipaddress.ip_network(f"{address.address}/{address.prefix}", strict=False)
        for address in links.addresses()
        if _reachable(address)
    ]


def state(name: str) -> dict[str, Any] | None:
    """Return GET /1.0/networks/<name>/state of an interface, None if there is no such interface."""
    all_links = links.links()
    link = next((link for link in all_links if link.name == name), None)
    if link is None:
        return None
    packets_in, packets_out, bytes_in, bytes_out = link.counters
    lower = next((other.name for other in all_links if other.index == link.lower), "")
    return {
        "addresses": [
            {"family": a.family, "address": a.address, "netmask": str(a.prefix), "scope": a.scope}
            for a in links.addresses()
            if a.index == link.index
        ],
        "counters": {
            "bytes_received": bytes_in,
            "bytes_sent": bytes_out,
            "packets_received": packets_in,
            "packets_sent": packets_out,
        },
        "hwaddr": link.hwaddr,
        "mtu": link.mtu,
        "state": "up" if link.up else "down",
        "type": "loopback" if link.loopback else "point-to-point" if link.point_to_point else "broadcast",
        "bond": None,
        "bridge": _bridge(link, all_links),
        "vlan": {"lower_device": lower, "vid": link.vlan} if link.kind == "vlan" else None,
        "ovn": None,
    }


def _bridge(link: Link, all_links: list[Link]) -> dict[str, Any] | None:
    found = link.bridge
    if found is None:
        return None
    return {
        "id": found.id,
        "stp": found.stp,
        "forward_delay": found.forward_delay,
        "vlan_default": found.vlan_default,
        "vlan_filtering": found.vlan_filtering,
        "upper_devices": sorted(other.name for other in all_links if other.master == link.index),
    }
