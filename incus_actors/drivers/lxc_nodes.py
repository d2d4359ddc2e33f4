"""Device nodes of the host in containers (unix-char, unix-block): made beside the instance, then mounted like a file.

Owns the directory `devices/` of an instance and the rules that let its control group use them. Called by
drivers/lxc_devices.py; must never make a node that its device does not name.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from incus_actors.domain.unix_devices import MODE_DEFAULT, paths_of
from incus_actors.drivers.base import DriverError, InstanceSpec
from incus_actors.model.config_values import is_true

TYPES = ("unix-block", "unix-char")


def nodes_of(spec: InstanceSpec) -> dict[str, Mapping[str, str]]:
    """Return the device nodes of an instance."""
    return {name: device for name, device in sorted(spec.devices.items()) if device.get("type") in TYPES}


def number_of(device: Mapping[str, str]) -> tuple[int, int] | None:
    """Return (major, minor): those given, else those of the host's node; None for one that may be missing and is.

    Raises DriverError.
    """
    if device.get("major") and device.get("minor"):
        return int(device["major"]), int(device["minor"])
    path = paths_of(device)[0]
    wanted = stat.S_ISCHR if device["type"] == "unix-char" else stat.S_ISBLK
    try:
        found = os.stat(path)  # noqa: PTH116  # links are followed on purpose: /dev/disk/by-id/…
    except OSError:
        if is_true(device.get("required", "true")):
            raise DriverError(
                "The required device path doesn't exist and the major and minor settings are not specified"
            ) from None
        return None
    if device.get("major") or device.get("minor"):
        raise DriverError(f"Both major and minor must be supplied for device: {path}")
    if not wanted(found.st_mode):
        raise DriverError(f"Path specified is not a {device['type']} device")
    return os.major(found.st_rdev), os.minor(found.st_rdev)


def rule_of(device: Mapping[str, str], number: tuple[int, int]) -> str:
    """Return the rule of the devices control group."""
    return f"{'c' if device['type'] == 'unix-char' else 'b'} {number[0]}:{number[1]} rwm"


def rules(spec: InstanceSpec) -> list[str]:
    """Return the rules that an instance needs. Raises DriverError."""
    found = []
    for name, device in nodes_of(spec).items():
        number = _number(name, device)
        if number is not None:
            found.append(rule_of(device, number))
    return found


def _number(name: str, device: Mapping[str, str]) -> tuple[int, int] | None:
    try:
        return number_of(device)
    except DriverError as error:
        raise DriverError(f'Failed to start device "{name}": {error}') from error


def as_disks(spec: InstanceSpec, base: tuple[int, int]) -> dict[str, dict[str, str]]:
    """Make the nodes and return them as what lxc_disks mounts. `base`: the host's ids of the instance's root.

    Raises DriverError.
    """
    disks = {}
    for name, device in nodes_of(spec).items():
        number = _number(name, device)
        if number is None:
            continue
        node = spec.instance_dir / "devices" / quote(name, safe="")
        kind = stat.S_IFCHR if device["type"] == "unix-char" else stat.S_IFBLK
        try:
            _make(node, kind | int(device.get("mode") or f"{MODE_DEFAULT:o}", 8), os.makedev(*number))
            os.chown(node, base[0] + int(device.get("uid") or 0), base[1] + int(device.get("gid") or 0))
        except OSError as error:
            raise DriverError(f'Failed to start device "{name}": {error.strerror} ({node})') from error
        disks[name] = {"source": str(node), "path": paths_of(device)[1], "node": "true"}
    return disks


def _make(node: Path, mode: int, number: int) -> None:
    node.parent.mkdir(mode=0o711, exist_ok=True)
    try:
        found = node.lstat()
    except FileNotFoundError:
        pass
    else:
        if stat.S_IFMT(found.st_mode) == stat.S_IFMT(mode) and found.st_rdev == number:
            node.chmod(stat.S_IMODE(mode))  # a container that has it keeps it
            return
        node.unlink()
    os.mknod(node, mode, number)
    node.chmod(stat.S_IMODE(mode))  # whatever the umask
