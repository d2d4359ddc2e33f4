"""Rules of nic devices: which options each kind has, what a managed network decides for it, its volatile keys.

Owns what is decided from data alone, with Incus' texts. Used by services and actors, which turn a nic on a network
into the kind that drivers know with `resolved`; pure: randomness comes in.
"""

from __future__ import annotations

import ipaddress
import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from incus_actors.domain.networks import random_hwaddr
from incus_actors.errors import BadRequestError
from incus_actors.model import network_values as values
from incus_actors.model.config_values import RULES, canonical_bool, is_true, parse_size
from incus_actors.model.network_keys import dhcp_enabled
from incus_actors.model.network_values import address_of, subnet_of

Device = Mapping[str, str]
Devices = Mapping[str, Device]

#: Kinds of nics that Incus knows; those in _OPTIONS work here.
NIC_TYPES: Final = ("bridged", "ipvlan", "macvlan", "ovn", "p2p", "physical", "routed", "sriov")
#: What a network of each type makes of a nic.
_OF_NETWORK: Final = {"bridge": "bridged", "macvlan": "macvlan", "physical": "physical"}
#: Options that a managed network decides.
_DECIDED: Final = {
    "bridge": ("nictype", "parent", "mtu"),
    "macvlan": ("nictype", "parent", "mtu", "vlan", "mode", "gvrp"),
    "physical": ("nictype", "parent", "mtu", "vlan", "gvrp"),
}
_HAS_HWADDR: Final = frozenset({"bridged", "macvlan", "p2p"})


@dataclass(frozen=True, slots=True)
class NetworkFacts:
    """What a nic needs to know of a managed network; `config` as one member has it."""

    name: str
    type: str
    config: Mapping[str, str]
    created: bool = True  #: on all members


@dataclass(frozen=True, slots=True)
class Seen:
    """How the interface of a nic looks inside a running instance."""

    host_name: str = ""
    hwaddr: str = ""
    mtu: int = 0


Networks = Mapping[str, NetworkFacts]
Rule = Callable[[str], None]


def _bool(value: str) -> None:
    canonical_bool(value)


def _uint32(value: str) -> None:
    RULES["uint32"](value, "")


def _rate(value: str) -> None:
    """Bits per second, as "10Mbit"."""
    parse_rate(value)


def _one_of(*words: str) -> Rule:
    def check(value: str) -> None:
        if value not in words:
            raise ValueError(f'Invalid value "{value}" (not one of [{" ".join(words)}])')

    return check


def _anything(_: str) -> None:
    return None


_COMMON: Final[dict[str, Rule]] = {
    "type": _anything,
    "network": _anything,
    "nictype": _anything,
    "name": values.interface_name,
    "mtu": values.mtu,
    "hwaddr": values.hwaddr,
    "boot.priority": _uint32,
}
_LIMITS: Final[dict[str, Rule]] = {"limits.ingress": _rate, "limits.egress": _rate, "limits.max": _rate}
_VETH: Final[dict[str, Rule]] = {
    "host_name": values.interface_name,
    "queue.tx.length": _uint32,
    "ipv4.routes": values.list_of(values.network(4)),
    "ipv6.routes": values.list_of(values.network(6)),
    "limits.priority": _uint32,
    **_LIMITS,
}
_OPTIONS: Final[dict[str, dict[str, Rule]]] = {
    "bridged": {
        **_COMMON,
        **_VETH,
        "parent": _anything,
        "ipv4.address": _anything,
        "ipv6.address": _anything,
        "ipv4.routes.external": values.list_of(values.network(4)),
        "ipv6.routes.external": values.list_of(values.network(6)),
        "security.mac_filtering": _bool,
        "security.ipv4_filtering": _bool,
        "security.ipv6_filtering": _bool,
        "security.port_isolation": _bool,
        "security.acls": _anything,
        "vlan": values.vlan,
        "vlan.tagged": _anything,
    },
    "macvlan": {
        **_COMMON,
        "parent": _anything,
        "vlan": values.vlan,
        "gvrp": _bool,
        "mode": _one_of("bridge", "vepa", "passthru", "private"),
    },
    "p2p": {**_COMMON, **_VETH},
    "physical": {**_COMMON, "parent": _anything, "vlan": values.vlan, "gvrp": _bool},
}
#: Known, but without effect here: refused rather than ignored.
_UNSUPPORTED: Final = frozenset(
    {
        "gvrp",
        "ipv4.routes.external",
        "ipv6.routes.external",
        "security.acls",
        "vlan.tagged",
    }
)
#: Volatile keys of nics: device, option.
_OF_NIC: Final = re.compile(r"volatile\.(.+)\.(hwaddr|host_name|name|last_state\.(?:created|hwaddr|ip_addresses|mtu))")
_WHILE_RUNNING: Final = ("host_name", "last_state.created", "last_state.hwaddr", "last_state.mtu")
_NEED_PARENT: Final = frozenset({"bridged", "macvlan", "physical"})


def parse_rate(value: str) -> int:
    """Return bits per second of "10Mbit", "1Gibit", "500kbit" or a number. Raises ValueError."""
    if value.isascii() and value.isdigit() and len(value) < 19:
        return int(value)
    if not value.endswith("bit"):
        raise ValueError(f"Invalid value: {value}")
    return parse_size(value) * 8


# -- checking ---------------------------------------------------------------------------------------------------------


def kind_of(name: str, device: Device, networks: Networks, project: str = "default") -> str:
    """Return the kind of a nic. Raises BadRequestError `Failed loading device "eth0": …`."""
    network = device.get("network", "")
    if network:
        found = networks.get(network)
        if found is None:
            raise BadRequestError(
                f'Failed loading device "{name}": Failed to load network "{network}" for project "{project}":'
                " Network not found"
            )
        return _OF_NETWORK.get(found.type, "bridged")
    kind = device.get("nictype", "")
    if kind not in NIC_TYPES:
        raise BadRequestError(f'Failed loading device "{name}": Unsupported device type')
    return kind


def check_nic(name: str, device: Device, networks: Networks, *, project: str = "default") -> None:
    """Raise BadRequestError, without prefix, for what can't be right whatever the machine looks like."""
    kind = kind_of(name, device, networks, project)
    network = networks.get(device.get("network", ""))
    if network is not None:
        for option in _DECIDED.get(network.type, ()):
            if device.get(option):
                raise BadRequestError(f'Cannot use "{option}" property in conjunction with "network" property')
        if not network.created:
            raise BadRequestError("Specified network is not fully created")
    if kind not in _OPTIONS:
        raise BadRequestError(f'nictype "{kind}" is not supported by this server')
    _check_options(kind, device)
    if network is None and kind in _NEED_PARENT and not device.get("parent"):
        raise BadRequestError('Invalid value for device option "parent": Required value')
    if kind == "bridged":
        _check_addresses(device, networks.get(device.get("network") or device.get("parent", "")))


def _check_options(kind: str, device: Device) -> None:
    table = _OPTIONS[kind]
    for option in sorted(device):
        if option.startswith("user."):
            continue
        rule = table.get(option)
        if rule is None:
            raise BadRequestError(f'Invalid device option "{option}"')
        if not device[option]:
            continue
        _check_value(option, device[option], rule)
        harmless = rule is _bool and not is_true(device[option])
        if option in _UNSUPPORTED and not harmless:
            raise BadRequestError(f'The device option "{option}" is not supported by this server')
    if device.get("vlan") and kind == "bridged":
        raise BadRequestError('The device option "vlan" of bridged nics is not supported by this server')


def _check_value(option: str, value: str, rule: Rule) -> None:
    try:
        rule(value)
    except ValueError as error:
        raise BadRequestError(f'Invalid value for device option "{option}": {error}') from None


def _check_addresses(device: Device, network: NetworkFacts | None) -> None:
    """Static addresses of a bridged nic: DHCP of its network gives them out, so it must be able to."""
    for version in (4, 6):
        key, filtering = f"ipv{version}.address", f"security.ipv{version}_filtering"
        value = device.get(key, "")
        filtered = is_true(device.get(filtering))
        managed = network is not None and network.type == "bridge"
        if filtered and not value and not managed:
            raise BadRequestError(
                f"IPv{version} filtering requires a manually specified {key} when using an unmanaged parent bridge"
            )
        if not value:
            continue
        if value == "none":
            if not filtered:
                raise BadRequestError(f"Cannot have {key} as none unless using {filtering}")
            continue
        if network is None or not managed:
            if not filtered:
                raise BadRequestError(f"Cannot use manually specified {key} when using unmanaged parent bridge")
            _check_value(key, value, values.ip_address(version))
            continue
        _check_dhcp(version, network, filtering, filtered)
        _check_in_subnet(value, version, network)


def _check_dhcp(version: int, network: NetworkFacts, filtering: str, filtered: bool) -> None:
    if filtered:
        return
    key = f"ipv{version}.address"
    stateful = is_true(network.config.get("ipv6.dhcp.stateful"))
    if version == 6 and not (dhcp_enabled(network.config, 6) and stateful):
        raise BadRequestError(
            f'Cannot specify "{key}" when DHCP or "ipv6.dhcp.stateful" are disabled (unless using {filtering})'
            f' on network "{network.name}"'
        )
    if version == 4 and not dhcp_enabled(network.config, 4):
        raise BadRequestError(
            f'Cannot specify "{key}" when DHCP is disabled (unless using {filtering}) on network "{network.name}"'
        )


def _check_in_subnet(value: str, version: int, network: NetworkFacts) -> None:
    own = network.config.get(f"ipv{version}.address")
    subnet = subnet_of(own)
    outside = f'Device IP address "{value}" not within network "{network.name}" subnet'
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        raise BadRequestError(outside) from None
    if subnet is None or address.version != version or address not in subnet:
        raise BadRequestError(outside)
    if address == address_of(own):
        raise BadRequestError(f'IP address "{value}" is assigned to parent managed network device "{network.name}"')


def check_names(devices: Devices) -> None:
    """Raise BadRequestError when two nics shall have one name inside the instance."""
    seen: dict[str, str] = {}
    for name, device in sorted(devices.items()):
        wanted = device.get("name", "")
        if device.get("type") != "nic" or not wanted:
            continue
        if wanted in seen:
            raise BadRequestError(
                f'Device validation failed for "{seen[wanted]}": Invalid value for device option "name":'
                f' Duplicate NIC name detected "{wanted}"'
            )
        seen[wanted] = name


# -- what drivers get -------------------------------------------------------------------------------------------------


def resolved(devices: Devices, networks: Networks) -> dict[str, dict[str, str]]:
    """Return the devices with every nic on a managed network as the kind of nic that this means on this member.

    A nic whose network is not known stays as it is: drivers refuse it.
    """
    found = {}
    for name, device in devices.items():
        network = networks.get(device.get("network", "")) if device.get("type") == "nic" else None
        found[name] = dict(device) if network is None else _resolved_nic(device, network)
    return found


def _resolved_nic(device: Device, network: NetworkFacts) -> dict[str, str]:
    kind = _OF_NETWORK.get(network.type, "bridged")
    found = {key: value for key, value in device.items() if key != "network"}
    found["nictype"] = kind
    if kind == "bridged":
        found["parent"] = network.name
        mtu = network.config.get("bridge.mtu", "")
    else:
        found["parent"] = network.config.get("parent", "")
        mtu = network.config.get("mtu", "")
        if network.config.get("vlan"):
            found["vlan"] = network.config["vlan"]
    if mtu:
        found["mtu"] = mtu
    return found


# -- volatile keys ----------------------------------------------------------------------------------------------------


def missing_volatile(
    devices: Devices, config: Mapping[str, str], networks: Networks, rng: random.Random
) -> dict[str, str]:
    """Return the volatile keys that the nics of an instance need and don't have: MAC address and name inside."""
    nics = {name: device for name, device in sorted(devices.items()) if device.get("type") == "nic"}
    keys: dict[str, str] = {}
    taken = {device.get("name") or config.get(f"volatile.{name}.name", "") for name, device in nics.items()}
    for name, device in nics.items():
        if not device.get("name") and not config.get(f"volatile.{name}.name"):
            number = next(n for n in range(len(nics) + len(taken) + 1) if f"eth{n}" not in taken)
            keys[f"volatile.{name}.name"] = f"eth{number}"
            taken.add(f"eth{number}")
        kind = _kind(device, networks)
        if kind in _HAS_HWADDR and not device.get("hwaddr") and not config.get(f"volatile.{name}.hwaddr"):
            keys[f"volatile.{name}.hwaddr"] = random_hwaddr(rng)
    return keys


def stale_volatile(config: Iterable[str], old: Devices, new: Devices) -> list[str]:
    """Return the volatile keys of devices that are no more, or have become something else, and what `unneeded` says."""
    gone = {name for name, device in old.items() if name not in new or new[name].get("type") != device.get("type")}
    keys = [key for key in config if key.startswith("volatile.")]
    unused = set(unneeded_volatile(keys, new))
    return [key for key in keys if key in unused or _device_of(key) in gone]


def unneeded_volatile(config: Iterable[str], devices: Devices) -> list[str]:
    """Return the volatile keys of nics that are no more, and those that an option of the nic has replaced."""
    found = []
    for key in config:
        match = _OF_NIC.fullmatch(key)
        if match is not None:
            device = devices.get(match[1], {})
            replaced = match[2] in ("hwaddr", "name") and device.get(match[2])
            unfiltered = match[2] == "last_state.ip_addresses" and (
                not is_true(device.get("security.ipv4_filtering")) or device.get("ipv4.address")
            )
            if device.get("type") != "nic" or replaced or unfiltered:
                found.append(key)
    return found


def running_volatile(
    name: str, nic: Device, networks: Networks, config: Mapping[str, str], seen: Seen | None, rng: random.Random
) -> dict[str, str | None]:
    """Return the volatile keys of a nic that change when its instance starts or stops, or it is plugged (None: remove).

    `seen`: how its interface looks inside, None if it isn't there.
    """
    wanted = {} if seen is None else _while_running(name, nic, networks, config, seen, rng)
    keys: dict[str, str | None] = {}
    for suffix in _WHILE_RUNNING:
        key, value = f"volatile.{name}.{suffix}", wanted.get(suffix, "")
        if value != config.get(key, ""):
            keys[key] = value or None
    return keys


def _while_running(
    name: str, nic: Device, networks: Networks, config: Mapping[str, str], seen: Seen, rng: random.Random
) -> dict[str, str]:
    kind = _kind(nic, networks)
    if kind == "macvlan":  # it has no end on the host; Incus shows the name that it had before it was given away
        known = config.get(f"volatile.{name}.host_name", "")
        made_up = known if known.startswith("mac") else f"mac{rng.randrange(1 << 32):08x}"
        return {"host_name": made_up, "last_state.created": "false"}
    if kind != "physical":
        return {"host_name": seen.host_name}
    network = networks.get(nic.get("network", ""))
    found = {
        "host_name": (nic if network is None else network.config).get("parent", ""),
        "last_state.created": "false",
    }
    for option, value in (("hwaddr", seen.hwaddr), ("mtu", str(seen.mtu))):  # as it was on the host
        known = config.get(f"volatile.{name}.last_state.{option}", "")
        found[f"last_state.{option}"] = known or ("" if nic.get(option) else value)
    return found


def _kind(nic: Device, networks: Networks) -> str:
    network = networks.get(nic.get("network", ""))
    return nic.get("nictype", "") if network is None else _OF_NETWORK.get(network.type, "bridged")


def _device_of(key: str) -> str:
    """Return "eth0" for "volatile.eth0.hwaddr", "a.b" for "volatile.a.b.name"."""
    return key.removeprefix("volatile.").rpartition(".")[0]
