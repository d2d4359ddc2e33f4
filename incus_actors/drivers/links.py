"""The network interfaces of this daemon's own namespace, asked of the kernel by netlink.

Owns no state: every look opens a socket and closes it. Used by services/interfaces.py for what users see of the host;
/sys/class/net would show another namespace when the daemon runs in one of its own. Must never change anything.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from incus_actors.drivers.netlink import attributes_of, dump

_RTM_GETLINK, _RTM_GETADDR = 18, 22
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_STATS64 = 1, 3, 4, 5, 10, 18, 23
_INFO_KIND, _INFO_DATA = 1, 2
_BR_FORWARD_DELAY, _BR_STP_STATE, _BR_VLAN_FILTERING, _BR_BRIDGE_ID, _BR_DEFAULT_PVID = 1, 5, 7, 11, 39
_VLAN_ID = 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFF_UP, _IFF_LOOPBACK, _IFF_POINTOPOINT = 1, 8, 16
_ARPHRD_ETHER: Final = 1
_SCOPES: Final = {0: "global", 200: "global", 253: "link", 254: "local"}


@dataclass(frozen=True, slots=True)
class Bridge:
    """What only bridges have; `forward_delay` in hundredths of a second."""

    id: str
    stp: bool
    forward_delay: int
    vlan_default: int
    vlan_filtering: bool


@dataclass(frozen=True, slots=True)
class Link:
    """One interface. `kind` is the kernel's word ("bridge", "veth", "" for hardware); `counters`: packets received and
    sent, bytes received and sent; `master` and `lower` are indexes, 0: none."""

    index: int
    name: str
    kind: str
    hwaddr: str
    mtu: int
    up: bool
    loopback: bool
    point_to_point: bool
    ethernet: bool
    master: int
    lower: int
    counters: tuple[int, int, int, int]
    bridge: Bridge | None
    vlan: int


@dataclass(frozen=True, slots=True)
class LinkAddress:
    """One address of an interface; scope is global, link or local."""

    index: int
    family: str
    address: str
    prefix: int
    scope: str


def links() -> list[Link]:
    """Return all interfaces in the order of their index. Raises OSError."""
    found = [_link(body) for body in _dump(_RTM_GETLINK, 16)]
    return sorted(found, key=lambda link: link.index)


def addresses() -> list[LinkAddress]:
    """Return the addresses of all interfaces, IPv4 first. Raises OSError."""
    found = [_address(body) for body in _dump(_RTM_GETADDR, 8)]
    return sorted(found, key=lambda address: address.family)


def _dump(kind: int, header_bytes: int) -> Iterator[bytes]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as kernel:
        kernel.settimeout(1)  # it answers at once; this is only against surprises
        yield from dump(kernel, 1, kind, header_bytes)


def _number(raw: bytes | None) -> int:
    return int.from_bytes(raw or b"", "little")


def _link(body: bytes) -> Link:
    hardware, index, flags = struct.unpack_from("=HiI", body[2:])
    attributes = attributes_of(body[16:])
    info = attributes_of(attributes.get(_IFLA_LINKINFO, b""))
    kind = info.get(_INFO_KIND, b"").rstrip(b"\0").decode(errors="replace")
    data = attributes_of(info.get(_INFO_DATA, b""))
    statistics = attributes.get(_IFLA_STATS64, b"")
    values = struct.unpack_from("=4Q", statistics) if len(statistics) >= 32 else (0,) * 4
    hwaddr = attributes.get(_IFLA_ADDRESS, b"")
    return Link(
        index=index,
        name=attributes.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace"),
        kind=kind,
        hwaddr=":".join(f"{byte:02x}" for byte in hwaddr) if any(hwaddr) else "",
        mtu=_number(attributes.get(_IFLA_MTU)),
        up=bool(flags & _IFF_UP),
        loopback=bool(flags & _IFF_LOOPBACK),
        point_to_point=bool(flags & _IFF_POINTOPOINT),
        ethernet=hardware == _ARPHRD_ETHER,
        master=_number(attributes.get(_IFLA_MASTER)),
        lower=_number(attributes.get(_IFLA_LINK)),
        counters=(values[0], values[1], values[2], values[3]),
        bridge=_bridge(data) if kind == "bridge" else None,
        vlan=_number(data.get(_VLAN_ID)) if kind == "vlan" else 0,
    )


def _bridge(data: dict[int, bytes]) -> Bridge:
    raw = data.get(_BR_BRIDGE_ID, b"")
    return Bridge(
        id=f"{raw[:2].hex()}.{raw[2:8].hex()}" if len(raw) >= 8 else "",
        stp=_number(data.get(_BR_STP_STATE)) == 1,
        forward_delay=_number(data.get(_BR_FORWARD_DELAY)),
        vlan_default=_number(data.get(_BR_DEFAULT_PVID)),
        vlan_filtering=_number(data.get(_BR_VLAN_FILTERING)) == 1,
    )


def _address(body: bytes) -> LinkAddress:
    family, prefix, _, scope, index = struct.unpack_from("=BBBBI", body)
    attributes = attributes_of(body[8:])
    raw = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS, b"")
    text = socket.inet_ntop(family, raw) if len(raw) in {4, 16} else ""
    return LinkAddress(
        index=index,
        family="inet" if family == socket.AF_INET else "inet6",
        address=text,
        prefix=prefix,
        scope=_SCOPES.get(scope, "global"),
    )
