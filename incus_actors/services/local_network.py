"""The interfaces on which servers can find each other.

Owns the choice of interfaces and addresses for discovery; both sides use it. Looks only, changes nothing.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from incus_actors.drivers import links
from incus_actors.errors import BadRequestError


@dataclass(frozen=True, slots=True)
class LocalInterface:
    """An interface with addresses that others on its network can reach, IPv4 first."""

    name: str
    addresses: tuple[str, ...]


def local_interfaces(names: tuple[str, ...] = (), *, ipv4_only: bool = False) -> list[LocalInterface]:
    """Return the named interfaces, or all but loopback, that have usable addresses.

    Raises BadRequestError for a name that does not exist or has no such address.
    """
    by_index = {link.index: link for link in links.links()}
    found: dict[str, list[str]] = {}
    for each in links.addresses():
        link = by_index.get(each.index)
        parsed = ipaddress.ip_address(each.address)
        if link is None or link.loopback or parsed.is_link_local or parsed.is_loopback:
            continue
        if ipv4_only and parsed.version == 6:
            continue
        found.setdefault(link.name, []).append(each.address)
    for name in names:
        if name not in {link.name for link in by_index.values()}:
            raise BadRequestError(f'There is no interface "{name}"')
        if name not in found:
            kind = "IPv4 address" if ipv4_only else "address that others could reach"
            raise BadRequestError(f'Interface "{name}" has no {kind}')
    chosen = names or tuple(found)
    return [LocalInterface(name, tuple(sorted(found[name], key=lambda a: (":" in a, a)))) for name in chosen]
