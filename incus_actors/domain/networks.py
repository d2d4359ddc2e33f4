"""Rules of networks: names, the defaults of a new one, addresses that must not meet, who uses one.

Owns what is decided from data alone, with Incus' texts. Used by services and actors; pure: randomness comes in.
"""

from __future__ import annotations

import hashlib
import ipaddress
import random
from collections.abc import Iterable, Mapping
from typing import Final

from incus_actors.errors import BadRequestError, ConflictError
from incus_actors.model import network_values
from incus_actors.model.network_keys import NETWORK_TYPES
from incus_actors.model.network_values import Network, subnet_of

Config = Mapping[str, str]

#: Incus' numbers in networks.type.
TYPE_NUMBERS: Final = {"bridge": 0, "macvlan": 1, "sriov": 2, "ovn": 3, "physical": 4}
TYPE_NAMES: Final = {number: name for name, number in TYPE_NUMBERS.items()}

#: The maker's part of the addresses that we give out, as Incus 6.0.4 does.
HWADDR_PREFIX: Final = "10:66:6a"
_NO_INTERFACE: Final = frozenset({"none", "all", "default"})  #: words of the API and of /proc/sys/net
_TRIES: Final = 200


def check_name(name: str) -> None:
    """Raise BadRequestError for what can't be the name of a network."""
    if not name:
        raise BadRequestError("No name provided")
    try:
        network_values.interface_name(name)
    except ValueError as error:
        raise BadRequestError(str(error)) from None
    if name in _NO_INTERFACE:
        raise BadRequestError(f"Network name '{name}' is not valid")


def check_type(kind: str) -> str:
    """Return the type of a new network ("" is a bridge). Raises BadRequestError "Unknown driver"."""
    found = kind or "bridge"
    if found not in NETWORK_TYPES:
        raise BadRequestError("Unknown driver")
    return found


# -- addresses --------------------------------------------------------------------------------------------------------


def with_addresses(config: Config, taken: Iterable[Network], rng: random.Random, *, new: bool) -> dict[str, str]:
    """Return a bridge's config with `auto` (and for a `new` one a missing address) replaced by a free subnet.

    What gets its address this way at creation is also translated (NAT) unless the config says otherwise. Raises
    ConflictError when no subnet is free.
    """
    found = dict(config)
    used = list(taken)
    for version in (4, 6):
        key, nat = f"ipv{version}.address", f"ipv{version}.nat"
        value = found.get(key, "auto" if new else "")
        if value != "auto":
            continue
        found[key] = free_address(version, used, rng)
        if new and not found.get(nat):
            found[nat] = "true"
    return dict(sorted(found.items()))


def free_address(version: int, taken: Iterable[Network], rng: random.Random) -> str:
    """Return the first address of a random private subnet, with its prefix. Raises ConflictError."""
    used = [network for network in taken if network.version == version]
    for _ in range(_TRIES):
        candidate: Network
        if version == 4:
            candidate = ipaddress.ip_network(f"10.{rng.randrange(256)}.{rng.randrange(256)}.0/24")
        else:
            words = ":".join(f"{rng.randrange(1 << 16):x}" for _ in range(3))
            candidate = ipaddress.ip_network(f"fd42:{words}::/64")
        if not any(candidate.overlaps(other) for other in used):
            return f"{candidate.network_address + 1}/{candidate.prefixlen}"
    raise ConflictError(f"Failed to automatically find an unused IPv{version} subnet, manual configuration required")


def subnets(config: Config) -> list[Network]:
    """Return the subnets of one bridge."""
    found = [subnet_of(config.get(f"ipv{version}.address")) for version in (4, 6)]
    return [network for network in found if network is not None]


def check_overlap(name: str, config: Config, others: Mapping[str, Config]) -> None:
    """Raise BadRequestError when an address of a bridge lies in the subnet of another one."""
    for version in (4, 6):
        key = f"ipv{version}.address"
        own = subnet_of(config.get(key))
        if own is None:
            continue
        for other_name, other in sorted(others.items()):
            subnet = subnet_of(other.get(key))
            if subnet is not None and own.overlaps(subnet):
                raise BadRequestError(
                    f'Invalid value for network "{name}" option "{key}": Subnet {own} overlaps with {subnet}'
                    f' of network "{other_name}"'
                )


def bridge_hwaddr(cluster_id: str, name: str) -> str:
    """Return the MAC address of a bridge that has none configured: the same on every member of a cluster."""
    digest = hashlib.sha256(f"{cluster_id}/{name}".encode()).digest()
    return HWADDR_PREFIX + "".join(f":{byte:02x}" for byte in digest[:3])


def random_hwaddr(rng: random.Random) -> str:
    """Return a MAC address for a new nic."""
    return HWADDR_PREFIX + "".join(f":{rng.randrange(256):02x}" for _ in range(3))


def slaac_address(network: Network, hwaddr: str) -> str:
    """Return the address that a station with this MAC address gives itself in a /64 (EUI-64)."""
    octets = bytes.fromhex(hwaddr.replace(":", ""))
    suffix = bytes([octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]])
    return str(ipaddress.IPv6Address(int(network.network_address) | int.from_bytes(suffix, "big")))
