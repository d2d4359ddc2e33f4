"""Which configuration keys an instance or profile may have, and what their values must look like.

Owns the rules with Incus' texts (the prefixes "Invalid config: " and "Failed creating instance record: " belong to
the callers). Used by the instance and profile services; pure.
"""

# ruff: noqa: SIM905  # long word lists read better as text
from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping
from typing import Final

from incus_actors.errors import BadRequestError

Check = Callable[[str], None]

HIDDEN_PREFIX: Final = "volatile.actors."  #: our own rows, never shown, never taken from a user
PHASE_KEY: Final = "volatile.actors.phase"  #: "creating" or "deleting" while the host is at it

_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})


def is_true(value: str | None) -> bool:
    """Return whether Incus takes this value as true."""
    return (value or "").lower() in _TRUE


def is_false(value: str | None) -> bool:
    """Return whether Incus takes this value as an explicit false."""
    return (value or "").lower() in _FALSE


def parse_size(value: str) -> int:
    """Return the bytes of "10MiB", "1GB", "512"... Raises BadRequestError "Invalid value: x"."""
    match = re.fullmatch(r"(\d+)\s?([A-Za-z]*)", value)
    factor = _SIZES.get(match.group(2)) if match else None
    if match is None or factor is None:
        raise BadRequestError(f"Invalid value: {value}")
    return int(match.group(1)) * factor


_SIZES: Final[dict[str, int]] = {
    **dict.fromkeys(("", "B", "bytes"), 1),
    **{f"{unit}B": 1000**n for n, unit in enumerate("kMGTPE", start=1)},
    **{f"{unit}iB": 1024**n for n, unit in enumerate("KMGTPE", start=1)},
}


def _any(_value: str) -> None:
    return


def _bool(value: str) -> None:
    if value.lower() not in _TRUE | _FALSE:
        raise BadRequestError(f'Invalid value for a boolean "{value}"')


def _int(value: str) -> None:
    if not re.fullmatch(r"[+-]?\d{1,18}", value):
        raise BadRequestError(f'Invalid value for an integer "{value}"')


def _uint32(value: str) -> None:
    if not value.isascii() or not value.isdigit():
        raise BadRequestError(
            f'Invalid value for uint32 "{value}": strconv.ParseUint: parsing "{value}": invalid syntax'
        )
    if int(value) >= 1 << 32:
        raise BadRequestError(
            f'Invalid value for uint32 "{value}": strconv.ParseUint: parsing "{value}": value out of range'
        )


def _priority(value: str) -> None:
    _int(value)
    if not 0 <= int(value) <= 10:
        raise BadRequestError(f'Invalid value for a limit "{value}". Must be between 0 and 10')


def _one_of(*allowed: str) -> Check:
    def check(value: str) -> None:
        if value not in allowed:
            raise BadRequestError(f'Invalid value "{value}" (not one of [{" ".join(allowed)}])')

    return check


def _size(value: str) -> None:
    parse_size(value)


def _memory(value: str) -> None:
    if value.endswith("%"):
        _percent(value)
    else:
        parse_size(value)


def _percent(value: str) -> None:
    if not value[:-1].isdigit():
        raise BadRequestError(f'strconv.ParseInt: parsing "{value[:-1]}": invalid syntax')


def _swap(value: str) -> None:
    if value.lower() in _TRUE | _FALSE:
        return
    try:
        parse_size(value)
    except BadRequestError:
        raise BadRequestError(f'"{value}" isn\'t a valid value') from None


def parse_cpu_set(value: str) -> frozenset[int]:
    """Return the CPUs of "0-3,7" (a pinned set). Raises BadRequestError "Invalid CPU limit syntax"."""
    cpus: set[int] = set()
    for part in value.split(","):
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part.strip())
        if match is None:
            raise BadRequestError("Invalid CPU limit syntax")
        first, last = int(match.group(1)), int(match.group(2) or match.group(1))
        if last < first:
            raise BadRequestError("Invalid CPU limit syntax")
        cpus.update(range(first, last + 1))
    return frozenset(cpus)


def _cpu(value: str) -> None:
    if not value.isdigit():
        parse_cpu_set(value)


def _allowance(value: str) -> None:
    if not re.fullmatch(r"\d{1,6}%|\d{1,9}ms/\d{1,9}ms", value):
        raise BadRequestError(f"Invalid allowance: {value}")


def _uuid(value: str) -> None:
    try:
        uuid.UUID(value)
    except ValueError:
        raise BadRequestError("Invalid UUID") from None


def _raw_lxc(value: str) -> None:
    for line in value.splitlines():
        stripped = line.strip()
        if stripped and not stripped.startswith("#") and "=" not in stripped:
            raise BadRequestError(f"Invalid raw.lxc line: {line}")


def _raw_idmap(value: str) -> None:
    for line in filter(None, value.splitlines()):
        if not re.fullmatch(r"(both|uid|gid) \d+(-\d+)? \d+(-\d+)?", line):
            raise BadRequestError(f"Invalid ID map line: {line}")


def _expiry(value: str) -> None:
    if not all(re.fullmatch(r"\d+[SMHdwmy]", part) for part in value.split()):
        raise BadRequestError("Invalid expiry expression")


_KEYS: Final[dict[str, Check]] = {
    **dict.fromkeys(
        "boot.autorestart boot.autostart migration.stateful migration.incremental.memory nvidia.runtime "
        "security.guestapi security.guestapi.images security.idmap.isolated security.nesting security.privileged "
        "security.protection.delete security.protection.shift security.syscalls.deny_compat "
        "security.syscalls.deny_default security.syscalls.intercept.bpf security.syscalls.intercept.bpf.devices "
        "security.syscalls.intercept.mknod security.syscalls.intercept.mount security.syscalls.intercept.mount.shift "
        "security.syscalls.intercept.sched_setscheduler security.syscalls.intercept.setxattr "
        "security.syscalls.intercept.sysinfo snapshots.schedule.stopped volatile.last_state.ready".split(),
        _bool,
    ),
    **dict.fromkeys(
        "boot.autostart.delay boot.autostart.priority boot.host_shutdown_timeout boot.stop.priority limits.processes "
        "migration.incremental.memory.goal migration.incremental.memory.iterations".split(),
        _int,
    ),
    **dict.fromkeys(
        "cloud-init.network-config cloud-init.user-data cloud-init.vendor-data linux.kernel_modules "
        "limits.cpu.nodes nvidia.driver.capabilities nvidia.require.cuda nvidia.require.driver raw.apparmor "
        "raw.seccomp security.syscalls.allow security.syscalls.deny security.syscalls.intercept.mount.allowed "
        "security.syscalls.intercept.mount.fuse snapshots.pattern snapshots.schedule volatile.apply_template "
        "volatile.base_image volatile.cloud-init.instance-id volatile.cluster.group volatile.cpu.nodes "
        "volatile.evacuate.origin volatile.idmap.base volatile.idmap.current volatile.idmap.next "
        "volatile.last_state.idmap volatile.last_state.power volatile.rebalance.last_move".split(),
        _any,
    ),
    **dict.fromkeys(("limits.cpu.priority", "limits.disk.priority", "limits.memory.swap.priority"), _priority),
    **dict.fromkeys([f"limits.hugepages.{size}" for size in ("64KB", "1MB", "2MB", "1GB")], _size),
    **dict.fromkeys(("security.idmap.base", "security.idmap.size"), _uint32),
    **dict.fromkeys(("volatile.uuid", "volatile.uuid.generation"), _uuid),
    "boot.host_shutdown_action": _one_of("stop", "force-stop", "stateful-stop"),
    "cluster.evacuate": _one_of("auto", "migrate", "live-migrate", "stop", "stateful-stop", "force-stop"),
    "limits.cpu": _cpu,
    "limits.cpu.allowance": _allowance,
    "limits.memory": _memory,
    "limits.memory.enforce": _one_of("soft", "hard"),
    "limits.memory.swap": _swap,
    "raw.idmap": _raw_idmap,
    "raw.lxc": _raw_lxc,
    "snapshots.expiry": _expiry,
}
_FAMILIES: Final = ("environment.", "image.", "limits.kernel.", "linux.sysctl.", "user.")
_DEVICE_VOLATILE: Final = frozenset(
    "apply_quota host_name hwaddr name last_state.created last_state.hwaddr last_state.ip_addresses last_state.mtu "
    "last_state.pci.driver last_state.pci.parent last_state.pci.slot.name last_state.usb.bus last_state.usb.device "
    "last_state.vdpa.name last_state.vf.hwaddr last_state.vf.id last_state.vf.parent last_state.vf.spoofcheck "
    "last_state.vf.vlan mig.uuid vgpu.uuid ceph_rbd".split()
)
#: Taken over by a running container at once; every other key waits for the next start.
LIVE_KEYS: Final = frozenset(
    "limits.cpu limits.cpu.allowance limits.cpu.priority limits.memory limits.memory.enforce limits.memory.swap "
    "limits.memory.swap.priority limits.processes limits.disk.priority".split()
)


def _check_of(key: str) -> Check | None:
    found = _KEYS.get(key)
    if found is not None or key.startswith(HIDDEN_PREFIX):
        return found
    if key.startswith(_FAMILIES):
        return _any
    match = re.fullmatch(r"volatile\.([^.]+(?:\.[^.]+)??)\.(.+)", key)
    if match is not None and any(key.endswith(f".{suffix}") for suffix in _DEVICE_VOLATILE):
        return _any
    return None


def check_config(config: Mapping[str, str], *, profile: bool = False) -> None:
    """Raise BadRequestError at the first key (in order of name) that is unknown or has an impossible value.

    Empty values mean "unset" and are always fine. A profile may have no volatile and no image keys.
    """
    for key, value in sorted(config.items()):
        check = _check_of(key)
        if profile and key.startswith(("volatile.", "image.")):
            raise BadRequestError(f"{'Volatile' if key[0] == 'v' else 'Image'} keys can only be set on instances")
        if check is None:
            raise BadRequestError(f"Unknown configuration key: {key}")
        if value:
            check(value)
