"""Rules of instances: profiles under own settings, root disk, devices, volatile keys.

Owns what is decided from data alone, with Incus' texts. Used by services, actors and state queries; pure: uuids
and times are parameters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from incus_actors.domain.disk_devices import check_disk, effective
from incus_actors.domain.nics import Networks, check_names, check_nic
from incus_actors.domain.proxies import check_proxy
from incus_actors.domain.unix_devices import check_unix_device
from incus_actors.errors import BadRequestError, MemberError

Config = Mapping[str, str]
Devices = Mapping[str, Mapping[str, str]]

#: Incus' numbers in instances_devices.type and profiles_devices.type.
DEVICE_TYPES: Final[dict[str, int]] = {
    "none": 0,
    "nic": 1,
    "disk": 2,
    "unix-char": 3,
    "unix-block": 4,
    "usb": 5,
    "gpu": 6,
    "infiniband": 7,
    "proxy": 8,
    "unix-hotplug": 9,
    "tpm": 10,
    "pci": 11,
}
DEVICE_NAMES: Final = {number: name for name, number in DEVICE_TYPES.items()}
#: Types of devices that may come and go while an instance runs.
PLUGGABLE: Final = frozenset({"disk", "nic", "proxy", "unix-block", "unix-char"})
SUPPORTED_TYPES: Final = PLUGGABLE | {"none"}  #: the others are known, but no driver can give them
INSTANCE_TYPES: Final = {0: "container", 1: "virtual-machine"}


@dataclass(frozen=True, slots=True)
class ProfileLayer:
    """What one profile contributes."""

    name: str
    config: Config
    devices: Devices


def expand_config(profiles: Iterable[ProfileLayer], own: Config) -> dict[str, str]:
    """Return the profiles' config in order, the instance's own on top; sorted by key."""
    expanded: dict[str, str] = {}
    for profile in profiles:
        expanded.update(profile.config)
    expanded.update(own)
    return dict(sorted(expanded.items()))


def expand_devices(profiles: Iterable[ProfileLayer], own: Devices) -> dict[str, dict[str, str]]:
    """Return whole devices, a later one of the same name replacing an earlier one; sorted by name."""
    expanded: dict[str, dict[str, str]] = {}
    for profile in profiles:
        expanded.update({name: dict(device) for name, device in profile.devices.items()})
    expanded.update({name: dict(device) for name, device in own.items()})
    return dict(sorted(expanded.items()))


# --- devices ------------------------------------------------------------------------------------------------


def is_root_disk(device: Mapping[str, str]) -> bool:
    """Return whether this is the disk that / is on."""
    return device.get("type") == "disk" and device.get("path") == "/" and not device.get("source")


def root_disk(devices: Devices) -> tuple[str, Mapping[str, str]]:
    """Return name and device of the root disk. Raises BadRequestError "No root device could be found"."""
    found = [(name, device) for name, device in devices.items() if is_root_disk(device)]
    if not found:
        raise BadRequestError("No root device could be found")
    return found[0]


def root_giver(profiles: Sequence[ProfileLayer], own: Devices) -> str | None:
    """Return the name of the profile that an instance has its root disk from; None if that is its own, or nobody's."""
    if any(is_root_disk(device) for device in own.values()):
        return None
    giving = (layer.name for layer in reversed(profiles) if any(map(is_root_disk, layer.devices.values())))
    return next(giving, None)


def canonical_devices(devices: Devices | None) -> dict[str, dict[str, str]]:
    """Return devices without their unset ("") options, sorted by name; options, too."""
    return {
        name: {option: value for option, value in sorted(device.items()) if value != "" or option == "type"}
        for name, device in sorted((devices or {}).items())
    }


def check_own_devices(devices: Devices) -> None:
    """Raise BadRequestError for what can be told from the instance's own devices: their type, a "pool" for /."""
    for name, device in sorted(devices.items()):
        kind = device.get("type", "")
        if kind not in DEVICE_TYPES:
            raise BadRequestError(f'Invalid device type "{kind}"')
        if len(name) > 64:
            raise BadRequestError(f"Invalid device name {name!r}: Name must be 1-64 characters long")


def check_expanded_devices(devices: Devices, networks: Networks | None = None, *, project: str = "default") -> None:
    """Raise BadRequestError `Device validation failed for "d": …` for what an instance can't have.

    `networks`: those that the instance may use; without them nics are not looked at.
    """
    _check_each(devices, networks, project, container=True)
    check_names(devices)


def check_profile_devices(devices: Devices, networks: Networks, *, project: str = "default") -> None:
    """Raise BadRequestError `Device validation failed for "d": …` for what no instance can have from a profile."""
    _check_each(devices, networks, project, container=False)


def _check_each(devices: Devices, networks: Networks | None, project: str, *, container: bool) -> None:
    paths: set[str] = set()
    for name, device in sorted(devices.items()):
        try:
            _check_name_and_type(name, device)
            if device["type"] == "disk":
                _check_disk(device, paths, container=container)
            elif device["type"] != "nic":
                _check_options(device)
            elif networks is not None:
                check_nic(name, device, networks, project=project)
        except BadRequestError as error:
            raise BadRequestError(f'Device validation failed for "{name}": {error}') from None


def unsupported(kind: str) -> str:
    """Return what is said of a known type of devices that no driver can give, "" of any other; of profiles, too."""
    return "" if kind in SUPPORTED_TYPES else f'Unsupported device type "{kind}"'


def _check_name_and_type(name: str, device: Mapping[str, str]) -> None:
    if not re.fullmatch(r"[A-Za-z0-9/:_.-]{1,64}", name) or ".." in name.split("/"):
        raise BadRequestError(
            "Name can only contain alphanumeric, forward slash, hyphen, colon, underscore and full stop characters"
        )
    kind = device.get("type", "")
    if not kind:
        raise BadRequestError(f'Failed loading device "{name}": Missing device type in config')
    if kind not in DEVICE_TYPES:
        raise BadRequestError(f'Failed loading device "{name}": Unsupported device type')
    if problem := unsupported(kind):
        raise BadRequestError(problem)


def _check_options(device: Mapping[str, str]) -> None:
    if device["type"] == "none":
        for option in sorted(device):
            if option != "type" and not option.startswith("user."):
                raise BadRequestError(f'Invalid device option "{option}"')
    elif device["type"] == "proxy":
        check_proxy(device)
    elif device["type"] in ("unix-char", "unix-block"):
        check_unix_device(device)


def _check_disk(device: Mapping[str, str], paths: set[str], *, container: bool) -> None:
    check_disk(device, container=container)
    path = device.get("path", "")
    if path in paths:
        raise BadRequestError(f'More than one disk device uses the same path "{path}"')
    if path:
        paths.add(path)


def check_hotplug(old: Devices, new: Devices) -> None:
    """Raise BadRequestError when a device would have to come, go or change while the instance runs.

    What nothing is done about while it runs (a disk's size or limits, user.* options, devices of type none) may change any
    time, and what the driver plugs in and out (PLUGGABLE).
    """
    for name in sorted(old.keys() | new.keys()):
        before, after = _effective(old.get(name)), _effective(new.get(name))
        if before != after and not (_pluggable(before) and _pluggable(after)):
            raise BadRequestError(f'Invalid devices: Device "{name}" can only be changed while the instance is stopped')


def _pluggable(device: Mapping[str, str]) -> bool:
    return not device or (device.get("type") in PLUGGABLE and not is_root_disk(device))


def _effective(device: Mapping[str, str] | None) -> dict[str, str]:
    if device is None or device.get("type") == "none":
        return {}
    changing = effective(device) if device.get("type") == "disk" else device
    return {key: value for key, value in changing.items() if not key.startswith("user.")}


# --- volatile keys ------------------------------------------------------------------------------------------


def first_volatile(*, fingerprint: str, uuid: str, instance_id: str, idmap: str | None, start: bool) -> dict[str, str]:
    """Return the volatile keys of a new container. `idmap`: JSON as `idmap_json` gives, None if privileged."""
    keys = {
        "volatile.base_image": fingerprint,
        "volatile.cloud-init.instance-id": instance_id,
        "volatile.idmap.base": "0",
        "volatile.idmap.next": idmap if idmap is not None else "[]",
        "volatile.last_state.idmap": "[]",
        "volatile.uuid": uuid,
        "volatile.uuid.generation": uuid,
    }
    if not start:
        keys["volatile.apply_template"] = "create"
    return keys


def idmap_json(entries: Iterable[tuple[bool, bool, int, int, int]]) -> str:
    """Return Incus' JSON of an id map; each entry is (is uid, is gid, host, inside, count)."""
    return json.dumps(
        [
            {"Isuid": uid, "Isgid": gid, "Hostid": host, "Nsid": inside, "Maprange": count}
            for uid, gid, host, inside, count in entries
        ],
        separators=(",", ":"),
    )


def check_volatile_kept(old: Config, new: Config) -> None:
    """Raise MemberError when a user's PUT drops volatile idmap keys."""
    if any(key.startswith("volatile.idmap.") and not new.get(key) for key in old):
        raise MemberError("Volatile idmap keys can't be deleted by the user")
