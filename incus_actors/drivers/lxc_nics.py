"""Nics of running containers: what is plugged in, plugging in and out, rates and filters.

Owns the file `nics.json` in the directory of an instance, which says what its network namespace was given, also to a
daemon that comes later, and the nftables tables of single nics. Called by drivers/lxc.py; interfaces are changed by
the network helper. Must never touch an interface that is not in the file.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from incus_actors.domain.nics import parse_rate
from incus_actors.drivers import device_notes, nft
from incus_actors.drivers.base import DriverError, InstanceSpec
from incus_actors.drivers.lxc_config import PAIRED, host_interface, inside_name, nic_parent, peer_interface
from incus_actors.drivers.network_helper import NetworkHelper
from incus_actors.model.config_values import is_true
from incus_actors.model.network_values import items

log = logging.getLogger(__name__)

Nic = Mapping[str, str]

#: What can change without taking the nic out.
_TUNED: Final = (
    "limits.ingress",
    "limits.egress",
    "limits.max",
    "limits.priority",
    "security.port_isolation",
    "security.mac_filtering",
    "security.ipv4_filtering",
    "security.ipv6_filtering",
    "ipv4.address",
    "ipv6.address",
    "ipv4.routes",
    "ipv6.routes",
)
#: Where a neighbour advertisement says whose address is whose MAC address.
_NA_TARGET: Final = "@nh,384,128"
_NA_STATION: Final = "@nh,528,48"
_PLUGGED: Final = "plugged"  #: in the file: it came while the container ran, so liblxc does not know of it
#: In the file, of an interface of the host: what it was like there.
_WAS: Final = ("was.hwaddr", "was.mtu")
_MADE: Final = ("nictype", "parent", "name", "hwaddr", "mtu", "vlan", "mode", "queue.tx.length")


def nics_of(spec: InstanceSpec) -> dict[str, dict[str, str]]:
    """Return what matters of the nics of an instance, with what its volatile keys add."""
    found = {}
    for name, device in sorted(spec.devices.items()):
        if device.get("type") != "nic":
            continue
        nic = {key: device[key] for key in (*_MADE, *_TUNED) if device.get(key)}
        nic["name"] = inside_name(spec, name)
        nic["host_name"] = host_interface(spec, name)
        hwaddr = device.get("hwaddr") or spec.config.get(f"volatile.{name}.hwaddr", "")
        if hwaddr:
            nic["hwaddr"] = hwaddr
        found[name] = nic
    return found


def note(spec: InstanceSpec, nics: Mapping[str, Nic]) -> None:
    """Record what a running container has."""
    device_notes.write(_file(spec), nics)


def noted(spec: InstanceSpec) -> dict[str, dict[str, str]]:
    """Return what a running container has."""
    return device_notes.read(_file(spec))


def _file(spec: InstanceSpec) -> Path:
    return spec.instance_dir / "nics.json"


def _made(nic: Nic) -> dict[str, str]:
    return {key: value for key, value in _asked(nic).items() if key not in _TUNED}


def _asked(nic: Nic) -> dict[str, str]:
    """Return a nic of the file without what only we note."""
    return {key: value for key, value in nic.items() if key != _PLUGGED and key not in _WAS}


async def _as_it_was(helper: NetworkHelper, nic: Nic) -> dict[str, str]:
    """Return what must be noted of an interface of the host before it is given away. Raises DriverError."""
    if nic["nictype"] != "physical":
        return {}
    found = await helper.call("link_facts", {"name": nic_parent(nic)})
    return {"was.hwaddr": str(found["hwaddr"]), "was.mtu": str(found["mtu"])}


async def prepare(helper: NetworkHelper, spec: InstanceSpec) -> None:
    """Before liblxc starts a container: record its nics, make the pairs that it gets one end of. Raises DriverError."""
    nics = nics_of(spec)
    note(spec, nics)
    for name, nic in nics.items():
        try:
            was = await _as_it_was(helper, nic)
            if was:
                nics[name] = {**nic, **was}
                note(spec, nics)
            if nic["nictype"] in PAIRED:
                await helper.call("nic_pair", _request(nic, 0))
            await _tune(helper, nic)
        except DriverError as error:
            raise DriverError(f'Failed to start device "{name}": {error}') from error


async def plug(helper: NetworkHelper, spec: InstanceSpec, pid: int) -> None:
    """Give a running container (by its init's pid) exactly the nics of `spec`: first out, then in, then tuned.

    Raises DriverError; what was done until then is recorded.
    """
    wanted, there = nics_of(spec), noted(spec)
    for name in [name for name, nic in there.items() if _made(wanted.get(name, {})) != _made(nic)]:
        await _untune(helper, there[name])
        await helper.call("nic_remove", _request(there[name], pid))
        del there[name]
        note(spec, there)
    for name, nic in wanted.items():
        before = there.get(name, {})
        if _asked(before) == nic:
            continue
        try:
            if name not in there:
                was = await _as_it_was(helper, nic)
                await helper.call("nic_add", _request(nic, pid))
                before = there[name] = {**_made(nic), **was, _PLUGGED: "1"}
                note(spec, there)
            await _tune(helper, nic, before)
        except DriverError as error:
            raise DriverError(f'Failed to start device "{name}": {error}') from error
        there[name] = {**nic, **{key: before[key] for key in (_PLUGGED, *_WAS) if key in before}}
        note(spec, there)


async def release(helper: NetworkHelper, spec: InstanceSpec, pid: int) -> None:
    """Before a container ends: give back interfaces of the host that liblxc would not give back."""
    for name, nic in noted(spec).items():
        if nic.get("nictype") == "physical" and _PLUGGED in nic:
            try:
                await helper.call("nic_remove", _request(nic, pid))
            except DriverError as error:
                log.warning("%s: %s of %s does not come back: %s", spec.name, nic["parent"], name, error)


async def ended(helper: NetworkHelper, spec: InstanceSpec) -> None:
    """The container is gone: remove what its nics leave on the host."""
    for name, nic in noted(spec).items():
        try:
            await _untune(helper, nic)
            if nic.get("nictype") in PAIRED:
                await helper.call("nic_remove", _request(nic, 0))
            elif "was.mtu" in nic:
                await helper.call("link_restore", _request(nic, 0))
        except DriverError as error:  # the next start, or the next look, tries again
            log.warning("%s: what nic %s leaves can't be removed: %s", spec.name, name, error)
            return
    _file(spec).unlink(missing_ok=True)


def _request(nic: Nic, pid: int) -> dict[str, Any]:
    return {
        "kind": nic["nictype"],
        "host_name": nic["host_name"],
        "peer": peer_interface(nic["host_name"]),
        "name": nic["name"],
        "parent": nic_parent(nic),
        "hwaddr": nic.get("hwaddr", ""),
        "mtu": int(nic.get("mtu") or 0),
        "mode": nic.get("mode", ""),
        "queue": int(nic.get("queue.tx.length") or 0),
        "was": {"address": nic.get("was.hwaddr", ""), "mtu": int(nic.get("was.mtu") or 0)},
        "pid": pid,
    }


# -- rates and filters ------------------------------------------------------------------------------------------------


def rates_bytes(nic: Nic) -> tuple[int, int]:
    """Return bytes per second (towards the instance, from it); 0: no limit."""
    both = nic.get("limits.max", "")
    ingress, egress = both or nic.get("limits.ingress"), both or nic.get("limits.egress")
    return (parse_rate(ingress) // 8 if ingress else 0, parse_rate(egress) // 8 if egress else 0)


def _tuned(nic: Nic) -> bool:
    return any(nic.get(key) for key in _TUNED if not key.endswith(".address"))


async def _tune(helper: NetworkHelper, nic: Nic, old: Nic | None = None) -> None:
    if nic.get("nictype") not in PAIRED or not (_tuned(nic) or _tuned(old or {})):
        return
    ingress, _ = rates_bytes(nic)
    request = {
        "host_name": nic["host_name"],
        "rate_bytes": ingress,
        "isolated": is_true(nic.get("security.port_isolation")),
        **_routes(nic, old or {}),
    }
    await helper.call("nic_tune", request)
    await nft.load(nic_rules(nic))


def _routes(nic: Nic, old: Nic) -> dict[str, Any]:
    """Return the routes to what is behind a nic, those that go, and the bridge that they lead over: what is a port of a
    bridge never hears the answers to its ARP requests."""
    wanted, before = ([*items(one.get("ipv4.routes")), *items(one.get("ipv6.routes"))] for one in (nic, old))
    bridge = nic_parent(nic) if nic.get("nictype") == "bridged" else ""
    return {"bridge": bridge, "routes": wanted, "gone": [route for route in before if route not in wanted]}


async def _untune(helper: NetworkHelper, nic: Nic) -> None:
    """Remove the tables and routes of a nic that goes; its end on the host takes its rate along."""
    if nic.get("nictype") == "bridged" and (nic.get("ipv4.routes") or nic.get("ipv6.routes")):
        await helper.call("nic_unroute", _routes({**nic, "ipv4.routes": "", "ipv6.routes": ""}, nic))
    if not _may_have_tables(nic):
        return
    there = await nft.tables()
    table = table_of(nic["host_name"])
    for family in ("netdev", "bridge"):
        if f"{family} {table}" in there:
            await nft.remove(family, table)


def _may_have_tables(nic: Nic) -> bool:
    return nic.get("nictype") in PAIRED and any(
        nic.get(key) for key in _TUNED if not key.endswith((".address", ".routes"))
    )


def table_of(host_name: str) -> str:
    """Return the name of the tables of one nic."""
    return f"{nft.PREFIX}_nic_{host_name}"


def nic_rules(nic: Nic) -> str:
    """Return what `nft -f` makes the tables of one nic of, whatever was there before."""
    table, host_name = table_of(nic["host_name"]), nic["host_name"]
    lines = [line for f in ("netdev", "bridge") for line in (f"table {f} {table} {{}}", f"delete table {f} {table}")]
    device = f'device "{host_name}" priority 0;'
    chains = []
    _, egress = rates_bytes(nic)
    if egress:
        burst = max(egress // 10, 65536)
        rule = f"limit rate over {egress} bytes/second burst {burst} bytes drop"
        chains += _chain("nic", f"type filter hook ingress {device}", [rule])
    if nic.get("limits.priority"):
        chains += _chain(
            "egress", f"type filter hook egress {device}", [f"meta priority set 0:{nic['limits.priority']}"]
        )
    lines += _table("netdev", table, chains)
    filters = _filters(nic)
    if filters:
        rules = [f'iifname "{host_name}" {rule}' for rule in filters]
        lines += _table("bridge", table, _chain("nic", "type filter hook prerouting priority -300;", rules))
    return "\n".join(lines) + "\n"


def _table(family: str, table: str, chains: list[str]) -> list[str]:
    return [f"table {family} {table} {{", *chains, "}"] if chains else []


def _chain(name: str, hook: str, rules: list[str]) -> list[str]:
    return [f" chain {name} {{", f"  {hook} policy accept;", *(f"  {rule}" for rule in rules), " }"]


def _filters(nic: Nic) -> list[str]:
    """Only frames and packets with the nic's own addresses may come from it."""
    rules = []
    hwaddr = nic.get("hwaddr", "")
    mac = is_true(nic.get("security.mac_filtering"))
    four, six = is_true(nic.get("security.ipv4_filtering")), is_true(nic.get("security.ipv6_filtering"))
    if hwaddr and (mac or four or six):
        rules += [
            f"ether saddr != {hwaddr} drop",
            f"ether type arp arp saddr ether != {hwaddr} drop",
            f"icmpv6 type nd-neighbor-advert {_NA_STATION} != 0x{hwaddr.replace(':', '')} drop",
        ]
    if four:
        rules += _only(nic, 4)
    if six:
        rules += ["icmpv6 type nd-router-advert drop", *_only(nic, 6)]
    if four or six:
        rules.append("ether type != { arp, ip, ip6 } drop")
    return rules


def _only(nic: Nic, version: int) -> list[str]:
    """Let through what comes from the nic's address and what is behind it; everything is dropped if it has none."""
    address, family = nic.get(f"ipv{version}.address", "none"), "ip" if version == 4 else "ip6"
    if address == "none":
        return [f"ether type {kind} drop" for kind in (("arp", "ip") if version == 4 else ("ip6",))]
    own = ", ".join([address, *items(nic.get(f"ipv{version}.routes"))])
    if version == 6:
        target = f"@nh,384,10 != 0x3fa {_NA_TARGET} != {hex(int(ipaddress.ip_address(address)))}"  # 0x3fa: fe80::/10
        return [
            f"icmpv6 type nd-neighbor-advert {target} drop",
            f"ether type ip6 ip6 saddr != {{ {own}, ::, fe80::/10 }} drop",
        ]
    return [
        f"ether type arp arp saddr ip != {{ {own}, 0.0.0.0 }} drop",
        "ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp dport 67 accept",
        f"ether type ip {family} saddr != {{ {own} }} drop",
    ]
