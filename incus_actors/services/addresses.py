"""Rules about addresses of members: host:port, never a wildcard (WANTS 26).

Owns normalising and refusing; bootstrap and join call it. Must never resolve names.
"""

from __future__ import annotations

from ipaddress import ip_address

from incus_actors.errors import BadRequestError

DEFAULT_PORT = 8443


def split_host_port(address: str, default_port: int = DEFAULT_PORT) -> tuple[str, int]:
    """Return host and port of "host", "host:port", "[v6]:port", ":port" (host ""). Raises BadRequestError."""
    text = address.strip()
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise BadRequestError(f"Invalid address: {address}")
        port_text = rest[1:]
    elif text.count(":") > 1:
        host, port_text = text, ""
    else:
        host, _, port_text = text.partition(":")
    if port_text and not (port_text.isascii() and port_text.isdigit() and 0 < int(port_text) < 65536):
        raise BadRequestError(f"Invalid address: {address}")
    return host, int(port_text) if port_text else default_port


def join_host(host: str, port: int) -> str:
    """Return "host:port", with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def normalise(address: str) -> str:
    """Return `address` as host:port with the default port filled in. Raises BadRequestError."""
    return join_host(*split_host_port(address))


def is_wildcard(address: str) -> bool:
    """Return whether the host part means "every address"."""
    host, _ = split_host_port(address)
    if not host or host == "*":
        return True
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return False
