"""Rules between nics on one managed bridge: each static address (IP, MAC) once, each name in DNS once per instance.

Owns what is decided from data alone, with Incus' texts. Used by the actors of instances, which know the other
instances; pure.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Final

from incus_actors.domain.nics import Device, Devices, Networks
from incus_actors.errors import BadRequestError

#: Options that hold an address, and what it is called.
ADDRESS_KEYS: Final = {"hwaddr": "MAC address", "ipv4.address": "IP address", "ipv6.address": "IP address"}


def canonical(address: str) -> str:
    """Return an address as it is compared: IPv6 and MAC addresses have many spellings."""
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        return address.lower()


def static_addresses(devices: Devices) -> set[str]:
    """Return the addresses that these nics have for themselves."""
    return {address for device in devices.values() for address in _addresses(device)}


def check_conflicts(
    instance: str, devices: Devices, stages: Mapping[str, str], others: Iterable[Devices], networks: Networks
) -> None:
    """Raise BadRequestError `Failed add validation for device "eth1": …` for a nic that gets in another's way.

    `stages`: the devices to check, and what is done with each ("add", "update", "start"); `others`: the devices of
    other instances of this member: each member has a bridge of its own.
    """
    elsewhere = {use for one in others for device in one.values() for use in _uses(device, networks)}
    for name, stage in sorted(stages.items()):
        problem = _problem(instance, name, devices, elsewhere, networks)
        if problem:
            raise BadRequestError(f'Failed {stage} validation for device "{name}": {problem}')


def _problem(instance: str, name: str, devices: Devices, elsewhere: set[tuple[str, str]], networks: Networks) -> str:
    bridge = _bridge(devices[name], networks)
    if not bridge:
        return ""
    beside = [other for other in sorted(devices) if other != name and _bridge(devices[other], networks) == bridge]
    if beside and networks[bridge].config.get("dns.mode") != "none":
        return (
            f'Instance DNS name "{instance}" conflict between "{name}" and "{beside[0]}" because both are connected to'
            " same network"
        )
    taken = elsewhere.union(*(_uses(devices[other], networks) for other in beside))
    for key, kind in ADDRESS_KEYS.items():
        address = devices[name].get(key, "")
        if (bridge, canonical(address)) in taken:
            return f'{kind} "{address}" already defined on another NIC'
    return ""


def _bridge(device: Device, networks: Networks) -> str:
    """Return the managed bridge that a nic is on, or nothing."""
    if device.get("type") != "nic":
        return ""
    name = device.get("network") or (device.get("parent", "") if device.get("nictype") == "bridged" else "")
    return name if name in networks and networks[name].type == "bridge" else ""


def _addresses(device: Device) -> set[str]:
    if device.get("type") != "nic":
        return set()
    return {canonical(device[key]) for key in ADDRESS_KEYS if device.get(key) and device[key] != "none"}


def _uses(device: Device, networks: Networks) -> set[tuple[str, str]]:
    bridge = _bridge(device, networks)
    return {(bridge, address) for address in _addresses(device)} if bridge else set()
