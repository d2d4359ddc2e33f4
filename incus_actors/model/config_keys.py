"""Every configuration key: type, scope, default and rule, as data (DESIGN D15).

Owns the reading of config_keys.json (made by tools/make_config_keys.py) and the validation of whole configurations
with Incus' texts. Called by services before anything is proposed; must never look at the machine or the database.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from incus_actors.model.config_values import RULES, canonical_bool, parse_integer

Entity = Literal["server", "instance", "kernel", "project", "cluster", "pool", "volume"]


class ConfigError(ValueError):
    """A configuration is wrong; the text is what the user reads."""


@dataclass(frozen=True, slots=True)
class KeySpec:
    """One key. `name` may end in `*` or hold `<name>`. `scope` is "local" (one member's), "global" or ""; `only`
    the type of instances that have it, the drivers of a pool's, or content types and drivers of a volume's; or ""."""

    name: str
    type: Literal["string", "int", "bool"]
    scope: str
    default: str
    check: str
    only: str


@dataclass(frozen=True, slots=True)
class _Table:
    exact: Mapping[str, KeySpec]
    patterns: tuple[tuple[str, str, KeySpec], ...]  #: (prefix, suffix, spec), the longest first

    def find(self, key: str) -> KeySpec | None:
        spec = self.exact.get(key)
        if spec is not None:
            return spec
        for prefix, suffix, candidate in self.patterns:
            if key.startswith(prefix) and key.endswith(suffix) and len(key) >= len(prefix) + len(suffix):
                return candidate
        return None


@cache
def _tables() -> dict[str, _Table]:
    raw = json.loads(Path(__file__).with_suffix(".json").read_text())
    tables = {}
    for entity, keys in raw.items():
        exact: dict[str, KeySpec] = {}
        patterns: list[tuple[str, str, KeySpec]] = []
        for name, data in keys.items():
            spec = KeySpec(
                name=name,
                type=data["type"],
                scope=data.get("scope", ""),
                default=data.get("default", ""),
                check=data.get("check", ""),
                only=data.get("only", ""),
            )
            prefix, found, suffix = name.replace("<name>", "*").partition("*")
            if found:
                patterns.append((prefix, suffix, spec))
            else:
                exact[name] = spec
        patterns.sort(key=lambda p: (-len(p[0]), -len(p[1])))
        tables[entity] = _Table(exact, tuple(patterns))
    return tables


def find(entity: Entity, key: str) -> KeySpec | None:
    """Return what is known of a key, None if there is no such key."""
    return _tables()[entity].find(key)


def check_value(spec: KeySpec, value: str) -> None:
    """Return if `value` may stand for the key; "" (unset) always may. Raises ConfigError with the reason alone."""
    if not value:
        return
    try:
        if spec.type == "bool":
            canonical_bool(value)
        elif spec.type == "int" and not spec.check.startswith("uint32"):
            parse_integer(value)
        if spec.check:
            name, _, argument = spec.check.partition(":")
            RULES[name](value, argument)
    except ValueError as error:
        raise ConfigError(str(error)) from None


# -- server -----------------------------------------------------------------------------------------------------


def is_user_key(key: str) -> bool:
    """Return whether the key is free-form (`user.*`)."""
    return key.startswith("user.")


def is_local(key: str) -> bool:
    """Return whether a server key belongs to one member."""
    spec = find("server", key)
    return spec is not None and spec.scope == "local"


def server_default(key: str) -> str:
    """Return the default of a server key, "" if it has none."""
    spec = find("server", key)
    return "" if spec is None else spec.default


def server_value(config: Mapping[str, str], key: str) -> str:
    """Return what is in effect: the set value, or the default."""
    return config.get(key) or server_default(key)


def canonical_server_values(values: Mapping[str, str]) -> dict[str, str]:
    """Return the values as they are stored: booleans as true/false, and "" where the value is the default.

    Raises ConfigError: `cannot set 'cluster.max_voters' to '4': Value must be …`, for more than one wrong key with
    ` (and 1 more errors)` behind the first by name.
    """
    result: dict[str, str] = {}
    problems: list[str] = []
    for key in sorted(values):
        try:
            result[key] = _canonical_server_value(key, values[key])
        except ConfigError as error:
            problems.append(f"cannot set '{key}' to '{values[key]}': {error}")
    if problems:
        more = f" (and {len(problems) - 1} more errors)" if len(problems) > 1 else ""
        raise ConfigError(problems[0] + more)
    return result


def _canonical_server_value(key: str, value: str) -> str:
    if is_user_key(key):
        return value
    spec = find("server", key)
    if spec is None:
        raise ConfigError("unknown key")
    try:
        check_value(spec, value)
        stored = canonical_bool(value) if value and spec.type == "bool" else value
    except ConfigError as error:
        # The server's own keys have shorter words for these two than instances have.
        for long, short in (
            ("Invalid value for a boolean", "invalid boolean"),
            ("Invalid value for an integer", "invalid integer"),
        ):
            if str(error).startswith(long):
                raise ConfigError(short) from None
        raise
    return "" if stored == spec.default else stored


# -- everything else ----------------------------------------------------------------------------------------------


def validate_instance_config(
    config: Mapping[str, str], *, profile: bool = False, instance_type: str = "container"
) -> None:
    """Check the keys and values of an instance, or (`profile`) of a profile, which fits any type of instance.

    Raises ConfigError without prefix, such as `Unknown configuration key: foo.bar`; callers for instances put
    "Invalid config: " or "Failed creating instance record: " before it.
    """
    for key in sorted(config):
        if profile and key.startswith("volatile."):
            raise ConfigError("Volatile keys can only be set on instances")
        if key.startswith("image."):
            if profile:
                raise ConfigError("Image keys can only be set on instances")
            continue
        if key.startswith("limits.kernel."):
            continue
        spec = find("instance", key)
        if spec is None or (not profile and spec.only not in {"", instance_type}):
            raise ConfigError(f"Unknown configuration key: {key}")
        if not (profile and key == "raw.idmap"):  # looked at when an instance gets it
            check_value(spec, config[key])


def validate_project_config(config: Mapping[str, str]) -> None:
    """Raises ConfigError: `Invalid project configuration key "foo"` and, for values, ` value: …` behind it."""
    _validate(config, "project", 'Invalid project configuration key "{}"', " value: {}")


def validate_pool_config(config: Mapping[str, str], driver: str) -> None:
    """Raises ConfigError: `Invalid option "foo"`, `Invalid value for option "rsync.bwlimit": …`."""
    for key in sorted(config):
        spec = find("pool", key)
        if spec is None or (spec.only and driver not in spec.only.split()):
            raise ConfigError(f'Invalid option "{key}"')
        try:
            check_value(spec, config[key])
        except ConfigError as error:
            raise ConfigError(f'Invalid value for option "{key}": {error}') from None


POOL_DRIVERS = frozenset({"dir", "btrfs", "lvm", "zfs"})


def volume_key_fits(key: str, driver: str, content: str) -> bool:
    """Return whether a volume of this content in a pool of this driver has such a key."""
    spec = find("volume", key)
    if spec is None:
        return False
    only = set(spec.only.split())
    return not only or (content in only and (driver in only or not only & POOL_DRIVERS))


def validate_volume_config(name: str, config: Mapping[str, str], driver: str, content: str) -> None:
    """`content` is filesystem, block or iso. Raises ConfigError: `Invalid option for volume "v" option "foo"`,
    `Invalid value for volume "v" option "size": …`."""
    for key in sorted(config):
        spec = find("volume", key)
        if spec is None or not volume_key_fits(key, driver, content):
            raise ConfigError(f'Invalid option for volume "{name}" option "{key}"')
        try:
            check_value(spec, config[key])
        except ConfigError as error:
            raise ConfigError(f'Invalid value for volume "{name}" option "{key}": {error}') from None


def validate_member_config(config: Mapping[str, str]) -> None:
    """Check a cluster member's config. Raises ConfigError: `Invalid cluster configuration key "foo"[ value]`."""
    _validate(config, "cluster", 'Invalid cluster configuration key "{}"', " value")


def _validate(config: Mapping[str, str], entity: Entity, unknown: str, reason: str) -> None:
    for key in sorted(config):
        spec = find(entity, key)
        if spec is None:
            raise ConfigError(unknown.format(key))
        try:
            check_value(spec, config[key])
        except ConfigError as error:
            raise ConfigError(unknown.format(key) + reason.format(error)) from None


def pool_key_is_local(key: str) -> bool:
    """Return whether a pool's key has a value of its own on each member (CONTRACT 5.1)."""
    return key in LOCAL_POOL_KEYS


LOCAL_POOL_KEYS = frozenset(
    [
        "size",
        "source",
        "source.wipe",
        "volatile.initial_source",
        "zfs.pool_name",
        "lvm.thinpool_name",
        "lvm.vg_name",
        "lvm.vg.force_reuse",
    ]
)

LOCAL_NETWORK_KEYS = frozenset(["bridge.external_interfaces", "parent", "bgp.ipv4.nexthop", "bgp.ipv6.nexthop"])


def without_empty(config: Mapping[str, str] | None) -> dict[str, str]:
    """Return the config without its unset ("") keys, sorted by key."""
    given = config or {}
    return {key: given[key] for key in sorted(given) if given[key] != ""}


def merged(old: Mapping[str, str], changes: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return `old` with `changes` over it (PATCH); "" removes a key."""
    return without_empty({**old, **dict(changes)})
