"""Can this server listen there? Found out by doing it, before the address is stored.

Owns the trial bind with Go's words for what goes wrong; called by ServerConfigService. Leaves no socket behind.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Mapping
from typing import Final

from incus_actors.errors import BadRequestError, MemberError
from incus_actors.model.config_values import is_wildcard, split_address

_DEFAULT_PORTS: Final = {"core.https_address": 8443, "cluster.https_address": 8443, "core.metrics_address": 9100}
_WHAT: Final = {"core.metrics_address": "metrics socket"}


async def check_bind(key: str, address: str, current: Mapping[str, str]) -> None:
    """Return if `address` can be bound. `current` are the local keys in effect: what we listen on already is ours.

    Raises BadRequestError for a name that doesn't resolve, MemberError (500) for what can't be bound.
    """
    host, port_text = split_address(address, _DEFAULT_PORTS.get(key, 8443))
    shown = f"[{host}]:{port_text}" if ":" in host else f"{host}:{port_text}"
    what = f'Cannot listen on {_WHAT.get(key, "network HTTPS socket")} "{shown}": listen tcp'
    if not (port_text.isascii() and port_text.isdigit()):
        raise MemberError(f"{what}: lookup tcp/{port_text}: unknown port")
    port = int(port_text)
    if not 0 <= port < 65536:
        raise MemberError(f"{what}: address {port_text}: invalid port")
    family, target = await _resolve(key, address, host, port)
    try:
        _bind(family, target)
    except OSError as error:
        if error.errno == errno.EADDRINUSE and port in _own_ports(key, current):
            return
        reason = os.strerror(error.errno or 0).lower()
        raise MemberError(f"{what} {shown}: bind: {reason}") from None


async def check_resolves(key: str, address: str) -> None:
    """Return if `address` means a place, for what is never listened on here. Raises BadRequestError."""
    host, _ = split_address(address)
    await _resolve(key, address, host, 0)


async def _resolve(key: str, address: str, host: str, port: int) -> tuple[int, tuple[str, int]]:
    if is_wildcard(host):
        return (socket.AF_INET, ("0.0.0.0", port)) if host == "0.0.0.0" else (socket.AF_INET6, ("::", port))  # noqa: S104
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        raise BadRequestError(f"cannot set '{key}' to '{address}': Couldn't resolve \"{host}\"") from None
    family, _, _, _, target = found[0]
    return family, (str(target[0]), port)


def _bind(family: int, target: tuple[str, int]) -> None:
    """Bind and close. Never listens: nobody can connect meanwhile."""
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and target[0] == "::":
            trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        trial.bind(target)


def _own_ports(wanted: str, current: Mapping[str, str]) -> set[int]:
    """Return the ports that are ours already and may be used for `wanted`: metrics never share with the API."""
    ports = set()
    for key, default in _DEFAULT_PORTS.items():
        if current.get(key) and (key in _WHAT) == (wanted in _WHAT):
            port = split_address(current[key], default)[1]
            if port.isdigit():
                ports.add(int(port))
    return ports
