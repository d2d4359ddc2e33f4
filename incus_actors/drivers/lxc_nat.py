"""Proxies of running containers that the kernel carries (`nat=true`): addresses of the host that lead inside.

Owns one nftables table per container, and the file `nat.nft` in the directory of an instance, written before there is
a table: whoever finds the file may have one to remove. Called by drivers/lxc_devices.py; must never lead to an address
that no nic of the container has for itself.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from incus_actors.domain.proxies import is_nat, nat_target, parse_end
from incus_actors.drivers import nft
from incus_actors.drivers.base import DriverError, InstanceSpec
from incus_actors.errors import BadRequestError

log = logging.getLogger(__name__)

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,120}")


def nat_proxies(spec: InstanceSpec) -> dict[str, Mapping[str, str]]:
    """Return the proxies of an instance that are the kernel's work."""
    return {name: device for name, device in sorted(spec.devices.items()) if is_nat(device)}


async def plug(spec: InstanceSpec) -> None:
    """Have the host lead to a running container as its proxies say, and not otherwise. Raises DriverError."""
    proxies = nat_proxies(spec)
    if not proxies:
        await _remove(spec)
        return
    forwards = [forward for name, device in proxies.items() for forward in forwards_of(spec, name, device)]
    try:
        await nft.apply(_file(spec), ruleset(table_of(spec), forwards))
    except DriverError as error:
        raise DriverError(f'Failed to start device "{next(iter(proxies))}": {error}') from error


async def ended(spec: InstanceSpec) -> None:
    """The container is gone: lead nowhere."""
    try:
        await _remove(spec)
    except DriverError as error:  # the file stays: the next look tries again
        log.warning("%s: its table of nftables can't be removed: %s", spec.name, error)


async def _remove(spec: InstanceSpec) -> None:
    if _file(spec).exists():
        await nft.remove("inet", table_of(spec))
        _file(spec).unlink(missing_ok=True)


def _file(spec: InstanceSpec) -> Path:
    return spec.instance_dir / "nat.nft"


def table_of(spec: InstanceSpec) -> str:
    """Return the name of a container's table: no other daemon of this machine has the same."""
    digest = hashlib.sha256(str(spec.instance_dir.parent.resolve()).encode()).hexdigest()[:10]
    name = spec.disk_name
    if not _PLAIN_NAME.fullmatch(name):
        name = hashlib.sha256(name.encode()).hexdigest()[:20]
    return f"{nft.PREFIX}_nat_{digest}_{name}"


#: address and ports of the host, protocol, address and port inside, all as nftables writes them
Forward = tuple[str, str, str, str, str]


def forwards_of(spec: InstanceSpec, name: str, device: Mapping[str, str]) -> list[Forward]:
    """Return what one proxy leads where. Raises DriverError when the instance has no such address."""
    listen, connect = parse_end(device["listen"]), parse_end(device["connect"])
    try:
        inside = nat_target(connect, spec.devices)
    except BadRequestError as error:
        raise DriverError(f'Failed to start device "{name}": {error}') from None
    if len(connect.ports) == 1:
        return [(listen.host, _set(listen.ports), listen.protocol, inside, str(connect.ports[0]))]
    pairs = zip(listen.ports, connect.ports, strict=True)
    return [(listen.host, str(outer), listen.protocol, inside, str(inner)) for outer, inner in pairs]


def _set(ports: Iterable[int]) -> str:
    return f"{{ {', '.join(map(str, dict.fromkeys(ports)))} }}"


def ruleset(table: str, forwards: Iterable[Forward]) -> str:
    """Return what `nft -f` makes the table of, whatever was there before."""
    lead, back = [], []
    for host, ports, protocol, inside, port in forwards:
        family = "ip6" if ":" in inside else "ip"
        target = f"[{inside}]" if family == "ip6" else inside
        lead.append(f"{family} daddr {host} {protocol} dport {ports} dnat {family} to {target}:{port}")
        back.append(f"{family} saddr {inside} {family} daddr {inside} {protocol} dport {port} masquerade")
    lines = [f"table inet {table} {{}}", f"delete table inet {table}", f"table inet {table} {{"]
    lines += nft.chain("arriving", "nat", "prerouting", -100, lead)
    lines += nft.chain("own", "nat", "output", -100, lead)
    lines += nft.chain("hairpin", "nat", "postrouting", 100, list(dict.fromkeys(back)))
    return "\n".join([*lines, "}"]) + "\n"
