"""From rows to what the network driver needs: one NetworkSpec per network of this member, with the hosts that DHCP and
DNS know.

Owns no state; called by NetworkActor. Must only read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from incus_actors.domain.networks import bridge_hwaddr
from incus_actors.domain.nic_filters import filled
from incus_actors.domain.nics import NetworkFacts
from incus_actors.drivers.bridge import NetworkSpec
from incus_actors.drivers.dnsmasq import host_line
from incus_actors.state.queries.instances import InstanceRecord
from incus_actors.state.queries.networks import NetworkRow

_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")


def network_spec(row: NetworkRow, member_id: int, instances: Iterable[InstanceRecord], cluster_id: str) -> NetworkSpec:
    """Return what one network shall be here. `instances`: those of this member."""
    config = row.config_on(member_id)
    return NetworkSpec(
        name=row.name,
        type=row.type,
        config=config,
        hwaddr=bridge_hwaddr(cluster_id, row.name),
        hosts=_hosts(row.name, config, instances) if row.type == "bridge" else {},
    )


def nics_on(network: str, record: InstanceRecord) -> list[tuple[str, Mapping[str, str], str]]:
    """Return (device, options, MAC address) of the nics of an instance that are on a bridge."""
    found: list[tuple[str, Mapping[str, str], str]] = []
    for name, device in sorted(record.expanded_devices.items()):
        if device.get("type") != "nic":
            continue
        on = device.get("network") or (device.get("parent") if device.get("nictype") == "bridged" else "")
        hwaddr = device.get("hwaddr") or record.config.get(f"volatile.{name}.hwaddr", "")
        if on == network and hwaddr:
            found.append((name, device, hwaddr.lower()))
    return found


def _hosts(network: str, config: Mapping[str, str], instances: Iterable[InstanceRecord]) -> dict[str, str]:
    hosts = {}
    bridge = {network: NetworkFacts(network, "bridge", config)}
    for record in instances:
        for device, given_options, hwaddr in nics_on(network, record):
            options = filled(device, given_options, bridge, record.config)
            addresses = [options.get(key, "") for key in ("ipv4.address", "ipv6.address")]
            given = [address for address in addresses if address and address != "none"]
            name = f"{record.project}_{record.name}.{_UNSAFE.sub('-', device)}"
            hosts[_UNSAFE.sub("-", name)] = host_line(hwaddr, given, record.name, config)
    return hosts
