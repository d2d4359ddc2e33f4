"""Firewall and address translation of a network: one nftables table of its own, replaced in one transaction.

Owns the tables whose names begin with PREFIX and our digest; called by drivers/bridge.py and drivers/nics.py. Must
never touch another table.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from incus_actors.drivers.base import DriverError
from incus_actors.drivers.commands import run
from incus_actors.model.config_values import is_true
from incus_actors.model.network_values import Network, subnet_of

PREFIX: Final = "incus_actors"

_ICMP4: Final = "icmp type { destination-unreachable, time-exceeded, parameter-problem }"
_ICMP6_ERRORS: Final = "destination-unreachable, packet-too-big, time-exceeded, parameter-problem"
_ICMP6_IN: Final = f"icmpv6 type {{ {_ICMP6_ERRORS}, nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert, mld2-listener-report }}"
_ICMP6_OUT: Final = f"icmpv6 type {{ {_ICMP6_ERRORS}, echo-request, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, mld2-listener-report }}"


def table_name(digest: str, network: str) -> str:
    """Return the name of a network's table."""
    return f"{PREFIX}_{digest}_{network}"


def ruleset(table: str, network: str, config: Mapping[str, str]) -> str:
    """Return what `nft -f` makes one bridge's table of, whatever was there before."""
    lines = [f"table inet {table} {{}}", f"delete table inet {table}", f"table inet {table} {{"]
    found = {version: subnet_of(config.get(f"ipv{version}.address")) for version in (4, 6)}
    translated = _translation(found, config)
    if translated:
        lines += chain("translate", "nat", "postrouting", 100, translated)
    guarded = [
        version
        for version, subnet in found.items()
        if subnet is not None and is_true(config.get(f"ipv{version}.firewall") or "true")
    ]
    if guarded:
        lines += chain("forwarded", "filter", "forward", 0, _forwarded(network, config, guarded))
        lines += chain("incoming", "filter", "input", 0, _services(network, guarded, "i", "dport", _ICMP6_IN))
        lines += chain("outgoing", "filter", "output", 0, _services(network, guarded, "o", "sport", _ICMP6_OUT))
    lines.append("}")
    return "\n".join(lines) + "\n"


def chain(name: str, kind: str, hook: str, priority: int, rules: list[str]) -> list[str]:
    """Return the lines of a chain with rules."""
    head = f"type {kind} hook {hook} priority {priority}; policy accept;"
    return [f" chain {name} {{", f"  {head}", *(f"  {rule}" for rule in rules), " }"]


def _translation(found: Mapping[int, Network | None], config: Mapping[str, str]) -> list[str]:
    rules = []
    for version, family in ((4, "ip"), (6, "ip6")):
        subnet = found[version]
        if subnet is None or not is_true(config.get(f"ipv{version}.nat")):
            continue
        source = config.get(f"ipv{version}.nat.address")
        action = f"snat {family} to {source}" if source else "masquerade"
        rules.append(f"{family} saddr {subnet} {family} daddr != {subnet} {action}")
    return rules


def _forwarded(network: str, config: Mapping[str, str], versions: list[int]) -> list[str]:
    rules = []
    for version in versions:
        family = "ipv4" if version == 4 else "ipv6"
        routed = is_true(config.get(f"ipv{version}.routing") or "true")
        verdict = "accept" if routed else "drop"
        rules += [f'meta nfproto {family} {way}ifname "{network}" {verdict}' for way in ("o", "i")]
    return rules


def _services(network: str, versions: list[int], way: str, port: str, icmp6: str) -> list[str]:
    device = f'{way}ifname "{network}"'
    rules = [f"{device} tcp {port} 53 accept", f"{device} udp {port} 53 accept"]
    if 4 in versions:
        rules += [f"{device} {_ICMP4} accept", f"{device} udp {port} 67 accept"]
    if 6 in versions:
        rules += [f"{device} {icmp6} accept", f"{device} udp {port} 547 accept"]
    return rules


async def apply(path: Path, text: str) -> None:
    """Write a ruleset to `path` (kept for who looks) and load it in one transaction. Raises DriverError."""
    path.write_text(text)
    await run("nft", "-f", str(path))


async def load(text: str) -> None:
    """Load a ruleset in one transaction. Raises DriverError."""
    with tempfile.NamedTemporaryFile("w", suffix=".nft") as file:
        file.write(text)
        file.flush()
        await run("nft", "-f", file.name)


async def remove(family: str, table: str) -> None:
    """Remove a table; nothing happens if there is none. Raises DriverError."""
    if f"{family} {table}" in await tables():
        await run("nft", "delete", "table", family, table)


async def tables() -> frozenset[str]:
    """Return "family name" of all tables. Raises DriverError."""
    listed = await run("nft", "list", "tables")
    return frozenset(line.removeprefix("table ").strip() for line in listed.splitlines() if line.startswith("table "))


async def tables_of(digest: str) -> list[str]:
    """Return the names of the networks that have a table of ours; none without nftables."""
    prefix = f"inet {PREFIX}_{digest}_"
    try:
        return sorted(name.removeprefix(prefix) for name in await tables() if name.startswith(prefix))
    except DriverError:
        return []
