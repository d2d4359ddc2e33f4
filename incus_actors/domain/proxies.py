"""Rules of proxy devices: where they listen, where they connect to, who may do what.

Owns the parsing of `tcp:127.0.0.1:80-82,90` and `unix:/path`, with Incus' texts; used by the rules of devices and by
the proxy driver. Pure.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from incus_actors.errors import BadRequestError
from incus_actors.model.config_values import canonical_bool, is_true

_OPTIONS: Final = frozenset(
    {
        "type",
        "listen",
        "connect",
        "bind",
        "mode",
        "uid",
        "gid",
        "nat",
        "proxy_protocol",
        "security.uid",
        "security.gid",
    }
)
_PORTS_MAX: Final = 256
_OCTAL = re.compile(r"[0-7]{1,4}")
_ID = re.compile(r"[0-9]{1,10}")


@dataclass(frozen=True, slots=True)
class ProxyEnd:
    """One side of a proxy. `host` and `ports` for tcp and udp, `path` for unix (an abstract one begins with @)."""

    protocol: str
    host: str = ""
    ports: tuple[int, ...] = ()
    path: str = ""


def parse_end(text: str) -> ProxyEnd:
    """Return one side. Raises ValueError with the reason."""
    protocol, _, address = text.partition(":")
    if protocol not in ("tcp", "udp", "unix"):
        raise ValueError(f'Unknown protocol type "{protocol if text else ""}"')
    if protocol == "unix":
        if not address.startswith(("/", "@")) or "\0" in address or len(address.encode()) > 107:
            raise ValueError(f'Invalid unix socket path "{address}"')
        return ProxyEnd(protocol, path=address)
    host, ports = _host_and_ports(address)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(f'Not an IP address "{host}"') from None
    return ProxyEnd(protocol, host, tuple(_ports(ports)))


def _host_and_ports(address: str) -> tuple[str, str]:
    if address.startswith("["):
        host, bracket, rest = address[1:].partition("]")
        if not bracket or not rest.startswith(":"):
            raise ValueError(f"address {address}: missing port in address")
        return host, rest[1:]
    if ":" not in address:
        raise ValueError(f"address {address}: missing port in address")
    if address.count(":") > 1:
        raise ValueError(f"address {address}: too many colons in address")
    host, _, ports = address.partition(":")
    return host, ports


def _ports(text: str) -> list[int]:
    found: list[int] = []
    for item in text.split(","):
        first, dash, last = item.partition("-")
        if "-" in last:
            raise ValueError(f'Invalid port range "{item}"')
        low = _port(first)
        high = _port(last) if dash else low
        if dash and high <= low:
            raise ValueError("End port should be higher than start port")
        if len(found) + high - low + 1 > _PORTS_MAX:
            raise ValueError(f'Invalid port range "{item}"')
        found += range(low, high + 1)
    return found


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f'strconv.ParseInt: parsing "{text}": invalid syntax')
    if not 0 < int(text) <= 65535:
        raise ValueError(f'Invalid port number "{text}"')
    return int(text)


def check_proxy(device: Mapping[str, str]) -> None:
    """Raise BadRequestError, without prefix, for what can't be right whatever the machine looks like."""
    ends = {}
    for option in ("listen", "connect"):
        try:
            ends[option] = parse_end(device.get(option, ""))
        except ValueError as error:
            raise _wrong(option, str(error)) from None
    _check_values(device)
    for option in sorted(device):
        if option not in _OPTIONS and not option.startswith("user."):
            raise BadRequestError(f'Invalid device option "{option}"')
    listen, connect = ends["listen"], ends["connect"]
    named = listen.protocol == "unix" and not listen.path.startswith("@")
    if not named and any(device.get(option) for option in ("uid", "gid", "mode")):
        raise BadRequestError("Only proxy devices for non-abstract unix sockets can carry uid, gid, or mode properties")
    if connect.ports and listen.ports and len(connect.ports) not in (1, len(listen.ports)):
        raise BadRequestError("Mismatch between listen port(s) and connect port(s) count")
    nat = is_true(device.get("nat"))
    if is_true(device.get("proxy_protocol")) and (nat or "udp" in (listen.protocol, connect.protocol)):
        raise BadRequestError("The PROXY header can only be sent to tcp servers in non-nat mode")
    if nat:
        _check_nat(listen, connect, device)
    elif (listen.protocol == "udp") != (connect.protocol == "udp"):
        raise BadRequestError(f"Proxying from {listen.protocol} to {connect.protocol} is not supported by this server")


def _check_nat(listen: ProxyEnd, connect: ProxyEnd, device: Mapping[str, str]) -> None:
    if listens_inside(device):
        raise BadRequestError("Only host-bound proxies can use NAT")
    if listen.protocol == "unix" or listen.protocol != connect.protocol:
        raise BadRequestError(f"Proxying {listen.protocol} <-> {connect.protocol} is not supported when using NAT")
    listening, inside = ipaddress.ip_address(listen.host), ipaddress.ip_address(connect.host)
    if listening.is_unspecified:
        raise BadRequestError(f'Cannot listen on wildcard address "{listen.host}" when in nat mode')
    if listening.version != inside.version:
        raise BadRequestError("Cannot mix IP versions between listen and connect in nat mode")


def is_nat(device: Mapping[str, str]) -> bool:
    """Return whether a device is a proxy that the kernel carries."""
    return device.get("type") == "proxy" and is_true(device.get("nat"))


def nat_target(connect: ProxyEnd, devices: Mapping[str, Mapping[str, str]]) -> str:
    """Return the static address of an instance that a nat proxy leads to. Raises BadRequestError if it has none, or
    not that one."""
    wanted = ipaddress.ip_address(connect.host)
    version = wanted.version
    static = [
        ipaddress.ip_address(address.strip())
        for _, device in sorted(devices.items())
        if device.get("type") == "nic" and device.get(f"ipv{version}.address", "none") not in ("", "none")
        for address in device[f"ipv{version}.address"].split(",")
    ]
    if wanted.is_unspecified and not static:
        raise BadRequestError(f"Instance has no static IPv{version} address assigned to be used as the connect IP")
    if not wanted.is_unspecified and wanted not in static:
        raise BadRequestError(
            f'Connect IP "{connect.host}" must be one of the instance\'s static IPv{version} addresses'
        )
    return str(static[0] if wanted.is_unspecified else wanted)


def _wrong(option: str, reason: str) -> BadRequestError:
    return BadRequestError(f'Invalid value for device option "{option}": {reason}')


def _check_values(device: Mapping[str, str]) -> None:
    if device.get("bind") and device["bind"] not in ("host", "instance", "guest", "container"):
        raise _wrong("bind", 'Invalid binding side given. Must be "host" or "instance"')
    for option in ("gid", "security.gid", "security.uid", "uid"):
        if device.get(option):
            check_id(option, device[option])
    if device.get("mode"):
        check_mode(device["mode"])
    for option in ("nat", "proxy_protocol"):
        if device.get(option):
            try:
                canonical_bool(device[option])
            except ValueError as error:
                raise _wrong(option, str(error)) from None


def check_id(option: str, value: str) -> None:
    """Raise BadRequestError unless `value` is a user or group id."""
    if not _ID.fullmatch(value) or int(value) >= 1 << 32:
        raise _wrong(option, "Invalid value for a UNIX ID")


def check_mode(value: str) -> None:
    """Raise BadRequestError unless `value` is a file mode in octal digits."""
    if not _OCTAL.fullmatch(value):
        raise _wrong("mode", "Invalid value for an octal file mode")


def listens_inside(device: Mapping[str, str]) -> bool:
    """Return whether the listening side is in the instance."""
    return device.get("bind") in ("instance", "guest", "container")
