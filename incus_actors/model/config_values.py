"""What a configuration value must look like: one small rule for each kind, with Incus' words when it doesn't.

Owns RULES, named by `check` in config_keys.json; called by model/config_keys.py. A rule looks at nothing but the
value: no clock, no machine, no database.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any, Final

from incus_actors.model import architectures

Rule = Callable[[str, str], None]

TRUE_WORDS: Final = frozenset({"true", "1", "yes", "on"})
FALSE_WORDS: Final = frozenset({"false", "0", "no", "off"})

_INTEGER = re.compile(r"[+-]?[0-9]+\Z")
_SIZE = re.compile(r"([0-9]+)(bytes|B|bit|(?:[kMGTPE]|[KMGTPE]i)(?:B|bit))?\Z")
_CPU_LIST = re.compile(r"[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*\Z")
_ALLOWANCE = re.compile(r"[0-9]+%\Z|[0-9]+(ms)?/[0-9]+(ms)?\Z")
_EXPIRY = re.compile(r"[0-9]+[SMHdwmy]( [0-9]+[SMHdwmy])*\Z")
_PORT = re.compile(r"[0-9]{1,5}\Z")
_MULTIPLIERS: Final = {
    "": 1,
    **{prefix: 1000**power for power, prefix in enumerate("kMGTPE", start=1)},
    **{f"{prefix}i": 1024**power for power, prefix in enumerate("KMGTPE", start=1)},
}
_COMPRESSIONS: Final = frozenset({"bzip2", "gzip", "lz4", "lzma", "xz", "zstd", "none", "squashfs", "pigz", "pbzip2"})
_SCHEDULE_ALIASES: Final = frozenset(
    f"@{word}"
    for word in ["hourly", "daily", "midnight", "weekly", "monthly", "annually", "yearly", "startup", "never"]
)


def is_true(value: str | None) -> bool:
    """Return whether a configuration value means yes."""
    return (value or "").lower() in TRUE_WORDS


def parse_size(value: str) -> int:
    """Return bytes for "2GiB", "512MB", "1024". Raises ValueError with Incus' text."""
    match = _SIZE.match(value)
    if match is None:
        raise ValueError(f"Invalid value: {value}")
    number, suffix = int(match[1]), match[2] or ""
    if suffix == "bytes":
        return number
    bits = suffix.endswith("bit")
    scaled: int = number * _MULTIPLIERS[suffix.removesuffix("bit").removesuffix("B")]
    if scaled >= 1 << 63:
        raise ValueError(f"Invalid value: {value}")
    return scaled // 8 if bits else scaled


def parse_expiry_s(value: str) -> int:
    """Return the seconds of "1M 2H 3d" (M minutes, m months of 30 days). Raises ValueError with Incus' text."""
    if not value:
        return 0
    if not _EXPIRY.match(value):
        raise ValueError("Invalid expiry expression")
    unit_s = {"S": 1, "M": 60, "H": 3600, "d": 86400, "w": 7 * 86400, "m": 30 * 86400, "y": 365 * 86400}
    return sum(int(word[:-1]) * unit_s[word[-1]] for word in value.split(" "))


def canonical_bool(value: str) -> str:
    """Return "true" or "false". Raises ValueError."""
    lowered = value.lower()
    if lowered in TRUE_WORDS:
        return "true"
    if lowered in FALSE_WORDS:
        return "false"
    raise ValueError(f'Invalid value for a boolean "{value}"')


def parse_integer(value: str) -> int:
    """Return a 64-bit integer as Go reads it: no spaces, no 0x. Raises ValueError."""
    if not _INTEGER.match(value) or not -(1 << 63) <= int(value) < 1 << 63:
        raise ValueError(f'Invalid value for an integer "{value}"')
    return int(value)


def _one_of(value: str, allowed: str) -> None:
    words = allowed.split(",")
    if value not in words:
        raise ValueError(f'Invalid value "{value}" (not one of [{" ".join(words)}])')


def _items_of(value: str, allowed: str) -> None:
    for item in value.split(","):
        try:
            _one_of(item.strip(), allowed)
        except ValueError as error:
            raise ValueError(f'Item "{item.strip()}": {error}') from None


def _int_between(value: str, bounds: str) -> None:
    low, high = (int(b) for b in bounds.split(","))
    if not low <= parse_integer(value) <= high:
        raise ValueError(f"Value must be between {low} and {high}")


def _limit(value: str, bounds: str) -> None:
    low, high = (int(b) for b in bounds.split(","))
    if not low <= parse_integer(value) <= high:
        raise ValueError(f'Invalid value for a limit "{value}". Must be between {low} and {high}')


def _odd_from(value: str, low: str) -> None:
    number = parse_integer(value)
    if number < int(low) or number % 2 == 0:
        raise ValueError(f"Value must be an odd number equal to or higher than {low}")


def _greater_than(value: str, low: str) -> None:
    if parse_integer(value) <= int(low):
        raise ValueError(f"Value must be greater than '{low}'")


def _image_replicas(value: str, _: str) -> None:
    number = parse_integer(value)
    if number < 1 and number != -1:
        raise ValueError("Invalid value for image replica count")


def _asn(value: str, _: str) -> None:
    if not _INTEGER.match(value):
        raise ValueError("invalid integer")
    if not 0 <= int(value) <= 4294967294:
        raise ValueError("Value isn't within valid range. Must be between 0 and 4294967294")


def _uint32(value: str, _: str) -> None:
    if not re.match(r"[0-9]+\Z", value):
        reason = "invalid syntax"
    elif int(value) >= 1 << 32:
        reason = "value out of range"
    else:
        return
    raise ValueError(f'Invalid value for uint32 "{value}": strconv.ParseUint: parsing "{value}": {reason}')


def _expiry(value: str, _: str) -> None:
    parse_expiry_s(value)


def _compression(value: str, _: str) -> None:
    program = value.split()[0] if value.split() else value
    if program not in _COMPRESSIONS:
        raise ValueError(f'Compression algorithm "{program}" isn\'t currently supported')


def _architecture(value: str, _: str) -> None:
    _one_of(value, ",".join(architectures.NAMES.values()))


def _ipv4(value: str, _: str) -> None:
    try:
        ipaddress.IPv4Address(value)
    except ValueError:
        raise ValueError(f'Not an IPv4 address "{value}"') from None


def split_address(value: str, default_port: int = 8443) -> tuple[str, str]:
    """Return (host, port) of "1.2.3.4", "[::1]:8443", ":8443", "name:port"; host "" means every address."""
    text = value.strip()
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, rest.removeprefix(":") or str(default_port)
    if text.count(":") > 1:  # a bare IPv6 address
        return text, str(default_port)
    host, _, port = text.partition(":")
    return host, port or str(default_port)


def is_wildcard(host: str) -> bool:
    """Return whether listening on `host` means every address."""
    return host in {"", "0.0.0.0", "::", "[::]", "*"}  # noqa: S104  # compared, not bound


def _listen_address(value: str, mode: str) -> None:
    """Only the form; whether it can be bound is found out by binding, on the member that is meant."""
    host, _port = split_address(value)
    if mode == "strict" and is_wildcard(host):
        raise ValueError("Wildcard addresses aren't allowed")
    if not is_wildcard(host) and not re.match(r"[0-9A-Za-z_.:%-]+\Z", host):
        raise ValueError(f'Couldn\'t resolve "{host}"')


def _no_line_break(value: str, _: str) -> None:
    if "\n" in value:
        raise ValueError("Environment variables cannot contain line breaks")


def _cpu_set(value: str, _: str) -> None:
    if not _CPU_LIST.match(value):
        raise ValueError("Invalid CPU limit syntax")
    if re.match(r"0+\Z", value):
        raise ValueError(f"Invalid cpuset value: {value}")


def _cpu_nodes(value: str, _: str) -> None:
    if value != "balanced" and not _CPU_LIST.match(value):
        raise ValueError(f'"{value}" isn\'t a valid value')


def _cpu_allowance(value: str, _: str) -> None:
    if not _ALLOWANCE.match(value):
        raise ValueError(f"Invalid allowance: {value}")


def _size(value: str, _: str) -> None:
    parse_size(value)


def _memory(value: str, _: str) -> None:
    if value == "0":
        raise ValueError("Memory limit can't be 0")
    if not re.match(r"[0-9]+%\Z", value):
        parse_size(value)


def _swap(value: str, _: str) -> None:
    if value.lower() in TRUE_WORDS | FALSE_WORDS:
        return
    try:
        parse_size(value)
    except ValueError:
        raise ValueError(f'"{value}" isn\'t a valid value') from None


def _raw_lxc(value: str, _: str) -> None:
    for line in value.split("\n"):
        stripped = line.strip()
        if stripped and not stripped.startswith("#") and "=" not in stripped:
            raise ValueError(f"Invalid raw.lxc line: {line}")


def _raw_idmap(value: str, _: str) -> None:
    for line in filter(None, value.split("\n")):
        if not re.match(r"(both|uid|gid) [0-9]+(-[0-9]+)? [0-9]+(-[0-9]+)?\Z", line):
            raise ValueError(f"Invalid ID map line: {line}")


def _uuid(value: str, _: str) -> None:
    if not re.match(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z", value):
        raise ValueError("Invalid UUID")


def _schedule(value: str, _: str) -> None:
    if len(value.split(" ")) != 5 and any(w.strip() not in _SCHEDULE_ALIASES for w in value.split(",")):
        raise ValueError("Schedule must be of the form: <minute> <hour> <day-of-month> <month> <day-of-week>")


def _yaml_map(value: str, _: str) -> None:
    import yaml  # heavy, and few set this key

    try:
        parsed: Any = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"yaml: {error}") from None
    if parsed is not None and not isinstance(parsed, dict):
        raise ValueError(f"yaml: unmarshal errors:\n  line 1: cannot unmarshal !!str `{value}` into struct {{}}")


def _id_ranges(value: str, _: str) -> None:
    for item in value.split(","):
        if not re.match(r"[0-9]+(-[0-9]+)?\Z", item.strip()):
            raise ValueError(f'Item "{item.strip()}": Invalid number "{item.strip()}"')


def _absolute_paths(value: str, _: str) -> None:
    for item in value.split(","):
        if not item.strip().startswith("/"):
            raise ValueError(f'Item "{item.strip()}": Must be absolute file path')


def _uplink_subnets(value: str, _: str) -> None:
    for item in value.split(","):
        network, colon, subnet = item.strip().partition(":")
        if not (network and colon and subnet):
            raise ValueError(f'Subnet "{item.strip()}" invalid, must be in the format of "<uplink network>:<subnet>"')


def _daemon_volume(value: str, _: str) -> None:
    if value.count("/") != 1 or value.startswith("/") or value.endswith("/"):
        raise ValueError("Invalid syntax for volume, must be <pool>/<volume>")


RULES: Final[dict[str, Rule]] = {
    "absolute_paths": _absolute_paths,
    "architecture": _architecture,
    "asn": _asn,
    "compression": _compression,
    "cpu_allowance": _cpu_allowance,
    "cpu_nodes": _cpu_nodes,
    "cpu_set": _cpu_set,
    "daemon_volume": _daemon_volume,
    "expiry": _expiry,
    "greater_than": _greater_than,
    "id_ranges": _id_ranges,
    "image_replicas": _image_replicas,
    "int_between": _int_between,
    "ipv4": _ipv4,
    "items_of": _items_of,
    "limit": _limit,
    "listen_address": _listen_address,
    "memory": _memory,
    "no_line_break": _no_line_break,
    "odd_from": _odd_from,
    "one_of": _one_of,
    "raw_idmap": _raw_idmap,
    "raw_lxc": _raw_lxc,
    "schedule": _schedule,
    "size": _size,
    "swap": _swap,
    "uint32": _uint32,
    "uplink_subnets": _uplink_subnets,
    "uuid": _uuid,
    "yaml_map": _yaml_map,
}
