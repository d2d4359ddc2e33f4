"""Configuration keys of networks, by type of network: what there is and what a value must look like.

Owns the tables (a real Incus 6.0.4 was asked for each key) and `validate_network_config` with Incus' texts; called
by the network service before anything is proposed. Pure; must never look at the machine or the database.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from incus_actors.model import network_values as values
from incus_actors.model.config_keys import LOCAL_NETWORK_KEYS, ConfigError
from incus_actors.model.config_values import canonical_bool, is_true, parse_integer
from incus_actors.model.network_values import Rule

NETWORK_TYPES: Final = ("bridge", "macvlan", "physical")


@dataclass(frozen=True, slots=True)
class _Key:
    rule: Rule
    supported: bool = True  #: False: Incus knows it, this server refuses it


def _text(_: str) -> None:
    return None


def _bool(value: str) -> None:
    canonical_bool(value)


def _int(value: str) -> None:
    parse_integer(value)


def _one_of(*words: str) -> Rule:
    def check(value: str) -> None:
        if value not in words:
            raise ValueError(f'Invalid value "{value}" (not one of [{" ".join(words)}])')

    return check


def _family(version: int) -> dict[str, _Key]:
    """Return the keys that a bridge has for IPv4 or IPv6."""
    prefix = f"ipv{version}"
    address = values.ip_address(version)
    networks = values.list_of(values.network(version))
    ranges = values.list_of(values.ip_range(version))
    found = {
        "address": _Key(values.bridge_address(version)),
        "nat": _Key(_bool),
        "nat.order": _Key(_one_of("before", "after")),
        "nat.address": _Key(address),
        "dhcp": _Key(_bool),
        "dhcp.expiry": _Key(values.lease_time),
        "dhcp.ranges": _Key(ranges),
        "firewall": _Key(_bool),
        "routing": _Key(_bool),
        "routes": _Key(networks),
        "ovn.ranges": _Key(ranges, supported=False),
    }
    if version == 4:
        found["dhcp.gateway"] = _Key(address)
        found["dhcp.routes"] = _Key(values.dhcp_routes)
    else:
        found["dhcp.stateful"] = _Key(_bool)
    return {f"{prefix}.{key}": value for key, value in found.items()}


_ACL_ACTION: Final = _one_of("allow", "allow-stateless", "drop", "reject")

_BRIDGE: Final[dict[str, _Key]] = {
    "bridge.driver": _Key(_one_of("native", "openvswitch")),
    "bridge.external_interfaces": _Key(values.list_of(values.external_interface)),
    "bridge.hwaddr": _Key(values.hwaddr),
    "bridge.mtu": _Key(values.mtu),
    **_family(4),
    **_family(6),
    "dns.domain": _Key(values.domain),
    "dns.mode": _Key(_one_of("dynamic", "managed", "none")),
    "dns.nameservers": _Key(values.list_of(values.ip_address())),
    "dns.search": _Key(values.list_of(values.domain)),
    "dns.zone.forward": _Key(_text, supported=False),
    "dns.zone.reverse.ipv4": _Key(_text, supported=False),
    "dns.zone.reverse.ipv6": _Key(_text, supported=False),
    "raw.dnsmasq": _Key(_text),
    "bgp.ipv4.nexthop": _Key(values.ip_address(4), supported=False),
    "bgp.ipv6.nexthop": _Key(values.ip_address(6), supported=False),
    "security.acls": _Key(_text, supported=False),
    "security.acls.default.ingress.action": _Key(_ACL_ACTION, supported=False),
    "security.acls.default.egress.action": _Key(_ACL_ACTION, supported=False),
    "security.acls.default.ingress.logged": _Key(_bool, supported=False),
    "security.acls.default.egress.logged": _Key(_bool, supported=False),
}

_MACVLAN: Final[dict[str, _Key]] = {
    "parent": _Key(values.interface_name),
    "mtu": _Key(values.mtu),
    "vlan": _Key(values.vlan),
    "gvrp": _Key(_bool, supported=False),
}

_PHYSICAL: Final[dict[str, _Key]] = {
    **_MACVLAN,
    "ipv4.gateway": _Key(values.gateway(4), supported=False),
    "ipv6.gateway": _Key(values.gateway(6), supported=False),
    "ipv4.ovn.ranges": _Key(values.list_of(values.ip_range(4)), supported=False),
    "ipv6.ovn.ranges": _Key(values.list_of(values.ip_range(6)), supported=False),
    "ipv4.routes": _Key(values.list_of(values.network(4)), supported=False),
    "ipv6.routes": _Key(values.list_of(values.network(6)), supported=False),
    "ipv4.routes.anycast": _Key(_bool, supported=False),
    "ipv6.routes.anycast": _Key(_bool, supported=False),
    "dns.nameservers": _Key(values.list_of(values.ip_address()), supported=False),
    "ovn.ingress_mode": _Key(_one_of("l2proxy", "routed"), supported=False),
    "volatile.last_state.created": _Key(_bool),
}

_TABLES: Final = {"bridge": _BRIDGE, "macvlan": _MACVLAN, "physical": _PHYSICAL}

#: Keys with a name in the middle: (prefix, suffix) → rule. None of them does anything here yet.
_PEERS: Final[dict[str, Rule]] = {
    "address": values.ip_address(),
    "asn": _int,
    "password": _text,
    "holdtime": _int,
}
_TUNNELS: Final[dict[str, Rule]] = {
    "protocol": _one_of("gre", "vxlan"),
    "local": values.ip_address(),
    "remote": values.ip_address(),
    "group": values.ip_address(),
    "port": _int,
    "id": _int,
    "interface": values.interface_name,
    "ttl": _int,
}


def _find(kind: str, key: str) -> _Key | None:
    found = _TABLES[kind].get(key)
    if found is not None:
        return found
    words = key.split(".")
    if len(words) == 4 and words[:2] == ["bgp", "peers"] and kind in ("bridge", "physical"):
        rule = _PEERS.get(words[3])
        return None if rule is None else _Key(rule, supported=False)
    if len(words) == 3 and words[0] == "tunnel" and kind == "bridge":
        rule = _TUNNELS.get(words[2])
        return None if rule is None else _Key(rule, supported=False)
    return None


def is_local(key: str) -> bool:
    """Return whether a network's key has a value of its own on each member."""
    return key in LOCAL_NETWORK_KEYS


def split(config: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return (keys of all members, keys of one member)."""
    shared = {key: value for key, value in config.items() if not is_local(key)}
    return shared, {key: value for key, value in config.items() if is_local(key)}


def validate_network_config(name: str, kind: str, config: Mapping[str, str]) -> None:
    """Check keys and values of a network of type `kind`; "" means unset.

    Raises ConfigError: `Invalid option for network "n" option "k"`, `Invalid value for network "n" option "k": …`.
    """
    for key in sorted(config):
        spec = None if key.startswith("user.") else _find(kind, key)
        if spec is None or not config[key]:
            continue
        try:
            spec.rule(config[key])
        except ValueError as error:
            raise ConfigError(f'Invalid value for network "{name}" option "{key}": {error}') from None
        if not spec.supported or (key, config[key]) == ("bridge.driver", "openvswitch"):
            raise ConfigError(f"The configuration key {key} is not supported by this server")
    check_known(name, kind, config)
    if kind == "bridge":
        _check_together(name, config)


def check_known(name: str, kind: str, config: Mapping[str, str]) -> None:
    """Raise ConfigError `Invalid option for network "n" option "k"` for a key that a network of this type hasn't, also
    for one that is to be unset."""
    for key in sorted(config):
        if not key.startswith("user.") and _find(kind, key) is None:
            raise ConfigError(f'Invalid option for network "{name}" option "{key}"')


def _check_together(name: str, config: Mapping[str, str]) -> None:
    """What two keys of a bridge say must fit: DHCP ranges and the gateway lie in the network's own subnet."""
    for version in (4, 6):
        own = values.subnet_of(config.get(f"ipv{version}.address"))
        if own is None:
            continue
        key = f"ipv{version}.dhcp.ranges"
        for first, last in values.parse_ranges(config.get(key)):
            if first not in own or last not in own:
                raise ConfigError(
                    f'Invalid value for network "{name}" option "{key}": IP range "{first}-{last}" does not fall within'
                    f" the network's subnet {own}"
                )


def require_parent(name: str, kind: str, config: Mapping[str, str]) -> None:
    """Raise ConfigError unless a network that needs a parent on each member has one."""
    if kind in ("macvlan", "physical") and not config.get("parent"):
        raise ConfigError(f'Invalid value for network "{name}" option "parent": Required value')


def dhcp_enabled(config: Mapping[str, str], version: int) -> bool:
    """Return whether a bridge hands out addresses of this family (IPv6: at least router advertisements)."""
    if values.subnet_of(config.get(f"ipv{version}.address")) is None:
        return False
    value = config.get(f"ipv{version}.dhcp", "")
    return is_true(value) if value else True


def network_domain(config: Mapping[str, str]) -> str:
    """Return the DNS domain of a bridge."""
    return config.get("dns.domain") or "incus"
