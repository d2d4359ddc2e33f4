"""The network interfaces of this machine, read from /proc and /sys without a process.

Owns the reading; used for `environment.addresses` and the list of unmanaged networks. Must never change anything.
"""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_SYS: Final = Path("/sys/class/net")
_IF_INET6: Final = Path("/proc/net/if_inet6")
_FIB_TRIE: Final = Path("/proc/net/fib_trie")
_SIOCGIFADDR: Final = 0x8915
_SIOCGIFNETMASK: Final = 0x891B
_TYPE_LOOPBACK: Final = 772


@dataclass(frozen=True, slots=True)
class Address:
    """One address of an interface; scope is global, link or local."""

    family: str
    address: str
    prefix: int
    scope: str


def names() -> list[str]:
    """Return the names of all interfaces in the order of their index."""
    return [name for _, name in sorted(socket.if_nameindex())]


def kind(name: str) -> str:
    """Return the network type of an interface in Incus' words: loopback, bridge, vlan, bond, physical or unknown."""
    base = _SYS / name
    if _text(base / "type") == str(_TYPE_LOOPBACK):
        return "loopback"
    for directory, word in (("bridge", "bridge"), ("bonding", "bond")):
        if (base / directory).is_dir():
            return word
    if (Path("/proc/net/vlan") / name).exists():
        return "vlan"
    return "physical" if (base / "device").exists() or _text(base / "type") == "1" else "unknown"


def addresses(name: str) -> list[Address]:
    """Return the addresses of one interface: IPv4 first."""
    return _ipv4(name) + [address for owner, address in _ipv6() if owner == name]


def global_addresses() -> list[str]:
    """Return every address of this machine that others could reach, IPv4 first."""
    found = _all_ipv4()
    found += [address.address for _, address in _ipv6() if address.scope == "global"]
    return sorted(set(found), key=lambda text: (":" in text, ipaddress.ip_address(text)))


def state(name: str) -> dict[str, Any] | None:
    """Return GET /1.0/networks/<name>/state of an interface, None if there is no such interface."""
    base = _SYS / name
    if "/" in name or name in {"", ".", ".."} or not base.is_dir():
        return None
    hwaddr = _text(base / "address")
    flags = int(_text(base / "flags") or "0", 16)
    statistics = base / "statistics"
    return {
        "addresses": [
            {"family": a.family, "address": a.address, "netmask": str(a.prefix), "scope": a.scope}
            for a in addresses(name)
        ],
        "counters": {
            "bytes_received": _number(statistics / "rx_bytes"),
            "bytes_sent": _number(statistics / "tx_bytes"),
            "packets_received": _number(statistics / "rx_packets"),
            "packets_sent": _number(statistics / "tx_packets"),
        },
        "hwaddr": "" if hwaddr == "00:00:00:00:00:00" else hwaddr,
        "mtu": _number(base / "mtu"),
        "state": "up" if flags & 1 else "down",
        "type": "loopback" if kind(name) == "loopback" else "broadcast",
        "bond": None,
        "bridge": _bridge(name),
        "vlan": None,
        "ovn": None,
    }


def _bridge(name: str) -> dict[str, Any] | None:
    base = _SYS / name / "bridge"
    if not base.is_dir():
        return None
    members = _SYS / name / "brif"
    return {
        "id": _text(base / "bridge_id"),
        "stp": _text(base / "stp_state") == "1",
        "forward_delay": _number(base / "forward_delay"),
        "vlan_default": _number(base / "default_pvid"),
        "vlan_filtering": _text(base / "vlan_filtering") == "1",
        "upper_devices": sorted(p.name for p in members.iterdir()) if members.is_dir() else [],
    }


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(path: Path) -> int:
    text = _text(path)
    return int(text) if text.isdigit() else 0


def _ipv4(name: str) -> list[Address]:
    """Return the first IPv4 address of an interface (further ones have labels of their own)."""
    request = struct.pack("256s", name.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            address = fcntl.ioctl(probe, _SIOCGIFADDR, request)[20:24]
            mask = fcntl.ioctl(probe, _SIOCGIFNETMASK, request)[20:24]
        except OSError:
            return []
    text = socket.inet_ntoa(address)
    prefix = int.from_bytes(mask, "big").bit_count()
    return [Address("inet", text, prefix, _scope(text))]


def _ipv6() -> list[tuple[str, Address]]:
    found = []
    for line in _text(_IF_INET6).splitlines():
        digits, _, prefix, _, _, name = line.split()
        text = str(ipaddress.IPv6Address(int(digits, 16)))
        found.append((name, Address("inet6", text, int(prefix, 16), _scope(text))))
    return found


def _all_ipv4() -> list[str]:
    """Return the machine's own IPv4 addresses from the routing table: the leaves that are `host LOCAL`."""
    found = []
    leaf = ""
    for line in _text(_FIB_TRIE).splitlines():
        stripped = line.strip()
        if stripped.startswith("|-- "):
            leaf = stripped[4:]
        elif "host LOCAL" in stripped and _scope(leaf) == "global":
            found.append(leaf)
    return found


def _scope(text: str) -> str:
    address = ipaddress.ip_address(text)
    if address.is_loopback:
        return "local"
    return "link" if address.is_link_local else "global"
