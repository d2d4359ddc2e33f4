"""Rules of disk devices of instances and profiles, with Incus' texts.

Owns which options a disk may have and what their values look like. Called by domain/instances.py and the profile service;
must never look at the machine (does a source exist, is there such a volume: actors/disks.py finds out).
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping
from typing import Final

from incus_actors.errors import BadRequestError
from incus_actors.model.config_values import RULES, canonical_bool, parse_size

Device = Mapping[str, str]

PROPAGATIONS: Final = frozenset(
    ["private", "shared", "slave", "unbindable", "rprivate", "rshared", "rslave", "runbindable"]
)


def _bool(value: str) -> None:
    canonical_bool(value)


def _propagation(value: str) -> None:
    if value not in PROPAGATIONS:
        raise ValueError(f'Invalid propagation mode "{value}"')


def _throughput(value: str) -> None:
    if not value.removesuffix("iops").isdecimal():
        parse_size(value)


def _rule(name: str, argument: str = "") -> Callable[[str], None]:
    return lambda value: RULES[name](value, argument)


def _anything(_value: str) -> None:
    return


_OPTIONS: Final[dict[str, Callable[[str], None]]] = {
    "boot.priority": _rule("uint32"),
    "ceph.cluster_name": _anything,
    "ceph.user_name": _anything,
    "initial.gid": _rule("uint32"),
    "initial.mode": _anything,
    "initial.uid": _rule("uint32"),
    "io.bus": _rule("one_of", "nvme,virtio-blk,virtio-scsi,auto,9p,virtiofs,usb"),
    "io.cache": _rule("one_of", "none,metadata,writeback,unsafe"),
    "limits.max": _throughput,
    "limits.read": _throughput,
    "limits.write": _throughput,
    "optional": _bool,  # the older name of not required
    "path": _anything,
    "pool": _anything,
    "propagation": _propagation,
    "raw.mount.options": _anything,
    "readonly": _bool,
    "recursive": _bool,
    "required": _bool,
    "shift": _bool,
    "size": _rule("size"),
    "size.state": _rule("size"),
    "source": _anything,
    "type": _anything,
}
_BARE: Final = frozenset(
    ["limits.max", "limits.read", "limits.write", "propagation"]
)  #: their texts need no option's name
_CONTAINERS_HAVE_NO: Final = {"io.cache": "IO cache", "io.bus": "IO bus"}
#: Looked at when an instance is made or starts, never while it runs.
_INDIFFERENT: Final = ("boot.priority", "initial.", "limits.", "raw.mount.options", "readonly", "size", "size.state")


def check_disk(device: Device, *, container: bool) -> None:
    """Raise BadRequestError for a disk that can't be; `container`: of a container, not of a profile."""
    for option in sorted(device):
        if container and option.startswith("user."):
            continue
        check = _OPTIONS.get(option)
        if check is None:
            raise BadRequestError(f'Invalid device option "{option}"')
        if device[option]:
            _check_value(option, device[option], check)
    if device.get("required") and device.get("optional"):
        raise BadRequestError('Cannot use both "required" and deprecated "optional" properties at the same time')
    _check_place(device, container=container)
    _check_source(device)
    for option, what in _CONTAINERS_HAVE_NO.items():
        if container and device.get(option):
            raise BadRequestError(f"{what} configuration cannot be applied to containers")


def _check_value(option: str, value: str, check: Callable[[str], None]) -> None:
    try:
        check(value)
    except ValueError as error:
        prefix = "" if option in _BARE else f'Invalid value for device option "{option}": '
        raise BadRequestError(f"{prefix}{error}") from None


def _check_place(device: Device, *, container: bool) -> None:
    """Raise BadRequestError unless a disk has a place and something to put there, or is a root disk."""
    path, source, pool = (device.get(option, "") for option in ("path", "source", "pool"))
    if path == "/":
        if source:
            raise BadRequestError('Root disk entry may not have a "source" property set')
        if not pool:
            raise BadRequestError('Root disk entry must have a "pool" property set')
        if device.get("recursive"):
            raise BadRequestError("The recursive option is only supported for additional bind-mounted paths")
        return
    if not source or (container and not path and not pool):
        raise BadRequestError('Disk entry is missing the required "source" or "path" property')
    if path and inside_path(path) == "/":
        raise BadRequestError(f'Invalid disk path "{path}": only a root disk can be at "/"')
    if device.get("size"):
        raise BadRequestError("Only the root disk may have a size quota")
    if device.get("size.state"):
        raise BadRequestError("Only the root disk may have a migration size quota")


def _check_source(device: Device) -> None:
    source, pool = device.get("source", ""), device.get("pool", "")
    if pool and source.startswith("/"):
        raise BadRequestError("Storage volumes cannot be specified as absolute paths")
    if pool and source and device.get("shift"):
        raise BadRequestError(
            'The "shift" property cannot be used with custom storage volumes (set "security.shifted=true" on the'
            " volume instead)"
        )
    ceph = source.startswith(("ceph:", "cephfs:"))
    if not ceph and (device.get("ceph.cluster_name") or device.get("ceph.user_name")):
        raise BadRequestError(f'Invalid options ceph.cluster_name/ceph.user_name for source "{source}"')
    if not source or pool or source.startswith("/"):
        return
    if source in ("cloud-init:config", "agent:config"):
        raise BadRequestError(f"disks with source={source} are only supported by virtual machines")
    if ceph:
        raise BadRequestError("Disks on Ceph are not supported")
    raise BadRequestError("Source path must be absolute for local sources")


def is_required(device: Device) -> bool:
    """Return whether an instance can't start without a disk's source."""
    if device.get("optional"):
        return canonical_bool(device["optional"]) == "false"
    return canonical_bool(device.get("required") or "true") == "true"


def inside_path(path: str) -> str:
    """Return where in a container a disk's `path` is: "srv/x" and "/../srv/x" mean "/srv/x"."""
    return posixpath.normpath(f"/{path.lstrip('/')}")


def effective(device: Device) -> dict[str, str]:
    """Return what of a disk can't change in a running instance without something being done."""
    return {key: value for key, value in device.items() if not key.startswith(_INDIFFERENT)}
