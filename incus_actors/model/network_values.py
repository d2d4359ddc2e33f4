"""What the value of a network's key must look like, with Incus' words when it doesn't.

Owns the rules of addresses, ranges, names and numbers of networks and nics; called by model/network_keys.py and the
rules of devices. A rule looks at nothing but the value.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Final

Rule = Callable[[str], None]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface

MTU_MIN: Final = 1280
MTU_MAX: Final = 16384
NAME_MAX: Final = 15  #: the kernel's IFNAMSIZ without its NUL

_INTERFACE_NAME = re.compile(r"[-_a-zA-Z0-9.]+")
_HWADDR = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
_LEASE_TIME = re.compile(r"[0-9]+[smhdw]?|infinite")
_DOMAIN = re.compile(r"[a-zA-Z0-9_]([a-zA-Z0-9_.-]*[a-zA-Z0-9_])?")
_NUMBER = re.compile(r"[0-9]+")


def list_of(rule: Rule) -> Rule:
    """Return the rule for a comma-separated list."""

    def check(value: str) -> None:
        for item in value.split(","):
            try:
                rule(item.strip())
            except ValueError as error:
                if rule is external_interface:
                    raise
                raise ValueError(f'Item "{item.strip()}": {error}') from None

    return check


def interface_name(value: str) -> None:
    """A name that the kernel takes for an interface. Raises ValueError."""
    if len(value) < 2:
        raise ValueError("Network interface is too short (minimum 2 characters)")
    if len(value) > NAME_MAX:
        raise ValueError("Network interface is too long (maximum 15 characters)")
    if not _INTERFACE_NAME.fullmatch(value):
        raise ValueError("Network interface contains invalid characters")
    if value == "..":
        raise ValueError('Network interface ".." already exists')


def external_interface(value: str) -> None:
    """An interface to be put into a bridge; `name/parent/vlan` makes one. Raises ValueError."""
    words = value.split("/")
    name = words[0] if len(words) == 3 else value
    try:
        interface_name(name)
        if len(words) == 3:
            interface_name(words[1])
            vlan(words[2])
    except ValueError as error:
        raise ValueError(f'Invalid interface name "{name}": {error}') from None


def hwaddr(value: str) -> None:
    """A MAC address of one station. Raises ValueError."""
    if not _HWADDR.fullmatch(value):
        raise ValueError("Invalid MAC address, must be 6 bytes of hex separated by colons")
    if int(value[:2], 16) & 1:
        raise ValueError("Invalid MAC address, must not be a multicast address")


def mtu(value: str) -> None:
    """An MTU. Raises ValueError."""
    if not _NUMBER.fullmatch(value) or int(value) >= 1 << 32:
        raise ValueError(f'Invalid MTU "{value}"')
    if not MTU_MIN <= int(value) <= MTU_MAX:
        raise ValueError(f'Out of MTU range ({MTU_MIN}-{MTU_MAX}) "{value}"')


def vlan(value: str) -> None:
    """A VLAN number. Raises ValueError."""
    if not _NUMBER.fullmatch(value) or len(value) > 9:
        raise ValueError(f'Invalid VLAN ID "{value}"')
    if not 0 <= int(value) <= 4094:
        raise ValueError(f'Out of VLAN ID range (0-4094) "{value}"')


def domain(value: str) -> None:
    """A DNS domain: it becomes an argument of dnsmasq. Raises ValueError."""
    if len(value) > 253 or not _DOMAIN.fullmatch(value):
        raise ValueError(f'Invalid domain "{value}"')


def lease_time(value: str) -> None:
    """How long a lease lasts, in dnsmasq's words. Raises ValueError."""
    if not _LEASE_TIME.fullmatch(value):
        raise ValueError(f'Invalid lease time "{value}"')


def ip_address(version: int = 0) -> Rule:
    """Return the rule for an address of one family, or (0) of any."""

    def check(value: str) -> None:
        try:
            address = ipaddress.ip_address(value)
        except ValueError:
            found = None
        else:
            found = address.version
        if found is None or version not in (0, found):
            kind = f"IPv{version}" if version else "IP"
            raise ValueError(f'Not an {kind} address "{value}"')

    return check


def network(version: int) -> Rule:
    """Return the rule for a subnet, its host bits zero."""

    def check(value: str) -> None:
        found = _cidr(value, version, what="network")
        if found.ip != found.network.network_address:
            raise ValueError(f'Not an IPv{version} network address "{value}"')

    return check


def gateway(version: int) -> Rule:
    """Return the rule for an address with the length of its prefix."""

    def check(value: str) -> None:
        _cidr(value, version)

    return check


def bridge_address(version: int) -> Rule:
    """Return the rule for the address that a bridge has itself: none, auto, or one of a subnet with room for more."""

    def check(value: str) -> None:
        if value in ("none", "auto"):
            return
        found = _cidr(value, version)
        first = found.network.network_address
        single = found.network.prefixlen == found.max_prefixlen
        if found.ip == first or single or found.ip.is_multicast or found.ip.is_unspecified:
            raise ValueError(f'Not a usable IPv{version} address "{value}"')

    return check


def _cidr(value: str, version: int, *, what: str = "address") -> Interface:
    address, slash, prefix = value.partition("/")
    if not slash or not _NUMBER.fullmatch(prefix):
        raise ValueError(f"invalid CIDR address: {value}")
    try:
        found = ipaddress.ip_interface(f"{address}/{int(prefix)}")
    except ValueError:
        raise ValueError(f"invalid CIDR address: {value}") from None
    if found.version != version:
        raise ValueError(f'Not an IPv{version} {what} "{value}"')
    return found


def ip_range(version: int) -> Rule:
    """Return the rule for `first-last`."""
    address = ip_address(version)

    def check(value: str) -> None:
        first, dash, last = value.partition("-")
        if not dash or not first or not last:
            raise ValueError("IP range must contain start and end IP addresses")
        address(first)
        address(last)
        if int(ipaddress.ip_address(first)) > int(ipaddress.ip_address(last)):
            raise ValueError("Start IP address must be before or equal to end IP address")

    return check


def dhcp_routes(value: str) -> None:
    """Pairs of `subnet,gateway` for DHCP option 121. Raises ValueError."""
    words = [word.strip() for word in value.split(",")]
    for index, word in enumerate(words):
        if index % 2 == 0:
            network(4)(word)
        else:
            ip_address(4)(word)
    if len(words) % 2:
        raise ValueError(f"missing gateway for route {words[-1]}")


# -- reading valid values ---------------------------------------------------------------------------------------------


def subnet_of(value: str | None) -> Network | None:
    """Return the subnet of a bridge's address, None for "", none and auto."""
    if not value or value in ("none", "auto"):
        return None
    return ipaddress.ip_interface(value).network


def address_of(value: str | None) -> Address | None:
    """Return a bridge's own address, None for "", none and auto."""
    if not value or value in ("none", "auto"):
        return None
    return ipaddress.ip_interface(value).ip


def parse_ranges(value: str | None) -> list[tuple[Address, Address]]:
    """Return the pairs of a valid list of ranges."""
    found = []
    for item in filter(None, (value or "").split(",")):
        first, _, last = item.strip().partition("-")
        found.append((ipaddress.ip_address(first), ipaddress.ip_address(last)))
    return found


def items(value: str | None) -> list[str]:
    """Return the items of a comma-separated list."""
    return [item.strip() for item in (value or "").split(",") if item.strip()]
