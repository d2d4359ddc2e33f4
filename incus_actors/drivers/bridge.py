"""The networks of this machine: bridges with address, firewall, DHCP and DNS; parents of macvlan and physical ones.

Owns `<dir>/networks/<name>`, the interfaces that carry this daemon's mark and the nftables tables with its digest.
Called by NetworkActor. Everything says what shall be and may be repeated; must never touch an interface, a table or a
process that it did not make.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from incus_actors.drivers import dnsmasq, nft
from incus_actors.drivers.base import Availability, DriverError
from incus_actors.drivers.commands import missing
from incus_actors.drivers.dnsmasq import Dnsmasq, Lease
from incus_actors.drivers.network_helper import NetworkHelper, library_directory
from incus_actors.errors import BadRequestError
from incus_actors.model.config_values import is_true
from incus_actors.model.network_values import items, subnet_of

MTU_DEFAULT: Final = 1500
_STATE: Final = "network.json"


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """One network on this member. `hwaddr` is used unless `bridge.hwaddr` is configured, for a new bridge or in its place.
    `hosts`: file name → dnsmasq's line of a nic."""

    name: str
    type: str
    config: Mapping[str, str]
    hwaddr: str = ""
    hosts: Mapping[str, str] = field(default_factory=dict)


class NetworkDriver:
    """`directory` is $INCUS_DIR; `helper` is shared with whoever else changes interfaces."""

    def __init__(self, directory: Path, helper: NetworkHelper | None = None) -> None:
        self._directory = directory / "networks"
        self.digest = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:10]
        self.mark = f"incus-actors {self.digest}"
        self.helper = NetworkHelper() if helper is None else helper

    def availability(self) -> Availability:
        """Return whether managed networks work here; looks, changes nothing."""
        if os.geteuid() != 0:
            return Availability(False, "managed networks need root")
        if library_directory() is None:
            return Availability(False, "the Python library pyroute2 is not installed")
        lacking = missing("nft", "dnsmasq")
        if lacking:
            return Availability(False, f"not installed: {', '.join(lacking)} (Debian: nftables, dnsmasq-base)")
        return Availability(True)

    def directory_of(self, name: str) -> Path:
        """Return where the files of a network are."""
        return self._directory / name

    # -- one network --------------------------------------------------------------------------------------------------

    async def ensure(self, spec: NetworkSpec) -> list[str]:
        """Make it what the spec says, without its DHCP and DNS; return what could not be done but is no failure.

        Raises DriverError, BadRequestError.
        """
        available = self.availability()
        if spec.type == "bridge":
            if not available.available:
                raise DriverError(f"Managed networks don't work here: {available.reason}")
            return await self._ensure_bridge(spec)
        await self._ensure_parent(spec)
        return []

    async def _ensure_bridge(self, spec: NetworkSpec) -> list[str]:
        config = spec.config
        directory = self._make_directory(spec.name)
        state = _read_state(directory)
        external = items(config.get("bridge.external_interfaces"))
        release = [name for name in state.get("external", []) if name not in external]
        # Written before it is done: after a kill it is better to know too many of our own than too few.
        fixed = bool(config.get("bridge.hwaddr"))
        was_fixed = fixed or bool(state.get("fixed_hwaddr"))
        all_external = sorted({*external, *release})
        _write_state(directory, {"type": spec.type, "external": all_external, "fixed_hwaddr": was_fixed})
        request = {
            "name": spec.name,
            "mark": self.mark,
            "temporary": self._temporary,
            "mtu": int(config.get("bridge.mtu") or MTU_DEFAULT),
            "hwaddr": (config.get("bridge.hwaddr") or spec.hwaddr).lower(),
            "fixed_hwaddr": was_fixed,
            "addresses": [a for a in (_address(config, 4), _address(config, 6)) if a],
            "routes": [*items(config.get("ipv4.routes")), *items(config.get("ipv6.routes"))],
            "ipv6": _address(config, 6) != "",
            "route4": _routed(config, 4),
            "route6": _routed(config, 6),
            "external": external,
            "release": release,
        }
        answer = await self.helper.call("bridge_up", request)
        try:
            table = nft.table_name(self.digest, spec.name)
            await nft.apply(directory / "nft.rules", nft.ruleset(table, spec.name, config))
        except BaseException:
            if answer["created"]:
                await self.helper.call("bridge_down", self._down(spec.name, external))
                shutil.rmtree(directory, ignore_errors=True)
            raise
        _write_state(directory, {"type": spec.type, "external": external, "fixed_hwaddr": fixed})
        return [str(problem) for problem in answer["problems"]]

    async def _ensure_parent(self, spec: NetworkSpec) -> None:
        parent = spec.config.get("parent", "")
        if not _exists(parent):
            raise BadRequestError(f'Parent interface "{parent}" not found', status=500)
        directory = self._make_directory(spec.name)
        vlan = spec.config.get("vlan", "")
        made = _read_state(directory).get("vlan", "")
        name = f"{parent}.{vlan}" if vlan else ""
        if made and made != name:
            await self.helper.call("link_down", {"name": made, "mark": self.mark})
        _write_state(directory, {"type": spec.type, "vlan": name})
        if name:
            request = {"name": name, "parent": parent, "vlan": int(vlan), "mark": self.mark}
            await self.helper.call("vlan_up", request)

    def _make_directory(self, name: str) -> Path:
        directory = self.directory_of(name)
        directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        return directory

    async def remove(self, name: str) -> None:
        """Remove all that we have made for a network of this name. Idempotent. Raises DriverError."""
        directory = self.directory_of(name)
        state = _read_state(directory)
        await Dnsmasq(directory).stop()
        if state.get("vlan"):
            await self.helper.call("link_down", {"name": state["vlan"], "mark": self.mark})
        if state.get("type", "bridge") == "bridge" and library_directory() is not None:
            await self.helper.call("bridge_down", self._down(name, state.get("external", [])))
            if not missing("nft"):
                await nft.remove("inet", nft.table_name(self.digest, name))
        await asyncio.to_thread(shutil.rmtree, directory, True)

    def _down(self, name: str, external: list[str]) -> dict[str, Any]:
        return {"name": name, "mark": self.mark, "temporary": self._temporary, "release": external}

    @property
    def _temporary(self) -> str:
        return f"ia{self.digest}"

    async def made(self) -> set[str]:
        """Return the names of all networks that have left anything on this machine."""
        found = {path.name for path in self._directory.iterdir()} if self._directory.is_dir() else set()
        return found | set(await nft.tables_of(self.digest))

    # -- DHCP and DNS -------------------------------------------------------------------------------------------------

    def process(self, name: str) -> Dnsmasq:
        """Return the handle of a network's dnsmasq."""
        return Dnsmasq(self.directory_of(name))

    async def serve(self, process: Dnsmasq, spec: NetworkSpec) -> bool:
        """Have dnsmasq run as the network wants it, or not at all; return whether it runs. Raises DriverError."""
        if spec.type != "bridge" or not dnsmasq.wanted(spec.config):
            await process.stop()
            return False
        argv = dnsmasq.arguments(self.directory_of(spec.name), spec.name, spec.config)
        await process.ensure(argv, spec.config.get("raw.dnsmasq", ""), spec.hosts)
        return True

    def leases(self, name: str) -> list[Lease]:
        """Return the leases that were given out here."""
        return dnsmasq.read_leases(self.directory_of(name))

    async def close(self) -> None:
        """Let go; networks and dnsmasq go on."""
        await self.helper.close()


def _address(config: Mapping[str, str], version: int) -> str:
    value = config.get(f"ipv{version}.address")
    return value or "" if subnet_of(value) is not None else ""


def _routed(config: Mapping[str, str], version: int) -> bool:
    return bool(_address(config, version)) and is_true(config.get(f"ipv{version}.routing") or "true")


def _exists(name: str) -> bool:
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def _read_state(directory: Path) -> dict[str, Any]:
    try:
        found = json.loads((directory / _STATE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_state(directory: Path, state: Mapping[str, Any]) -> None:
    temporary = directory / f"{_STATE}.new"
    temporary.write_text(json.dumps(state))
    temporary.replace(directory / _STATE)
