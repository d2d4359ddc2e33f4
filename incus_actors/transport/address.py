"""How a member is reached by the others: the string in `consensus.types.Member.address`.

Owns its grammar, `host:control_port:bulk_port:public_key_hex` with an IPv6 host in brackets; used wherever members
are made or dialled. Must never accept what it would not print the same way.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):([0-9]{1,5}):([0-9]{1,5}):([0-9a-f]{64})")


class AddressError(ValueError):
    """Not the address of a member."""


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Host (a name or an IP address, no brackets), the two ports and the CURVE public key."""

    host: str
    control_port: int
    bulk_port: int
    public_key_hex: str

    @property
    def public_key(self) -> bytes:
        """The key as 32 raw bytes."""
        return bytes.fromhex(self.public_key_hex)


def format_address(address: PeerAddress) -> str:
    """Return the string. Raises AddressError if a part can't be right."""
    host = f"[{address.host}]" if ":" in address.host else address.host
    text = f"{host}:{address.control_port}:{address.bulk_port}:{address.public_key_hex}"
    if parse_address(text) != address:
        raise AddressError(f"not an address: {text!r}")
    return text


def parse_address(text: str) -> PeerAddress:
    """Return the parts. Raises AddressError."""
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise AddressError(f"not an address: {text[:200]!r}")
    host, control, bulk, key = match.groups()
    try:
        if host.startswith("["):
            host = host[1:-1]
            ipaddress.IPv6Address(host)
        elif _HOST_NAME.fullmatch(host) is None:
            raise ValueError(host)
        elif re.fullmatch(r"[0-9.]+", host):
            ipaddress.IPv4Address(host)
    except ValueError as error:
        raise AddressError(f"not a host: {host[:200]!r}") from error
    ports = (int(control), int(bulk))
    if not all(0 < port < 65536 for port in ports):
        raise AddressError(f"not a port in {text[:200]!r}")
    return PeerAddress(host, *ports, key)


def endpoint(host: str, port: int) -> str:
    """Return the ZeroMQ endpoint of a host and port (0: any free port)."""
    shown = f"[{host}]" if ":" in host else host
    return f"tcp://{shown}:{port or '*'}"


def control_address(text: str) -> str:
    """Return host:port of the control lane for people to read; a text that is no address as it is."""
    try:
        peer = parse_address(text)
    except AddressError:
        return text
    return f"[{peer.host}]:{peer.control_port}" if ":" in peer.host else f"{peer.host}:{peer.control_port}"
