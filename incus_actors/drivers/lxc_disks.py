"""Disks of running containers: what is plugged in, and plugging in and out.

Owns the file `disks.json` in the directory of an instance, which says what its mount namespace was given, also to a
daemon that comes later. Called by drivers/lxc.py; the mounting itself is done by a helper that enters the container.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

from incus_actors.drivers import device_notes
from incus_actors.drivers.base import DriverError, InstanceSpec
from incus_actors.drivers.child import helper_argv, run_helper
from incus_actors.model.config_values import is_true

Disk = Mapping[str, str]
_KEYS = ("source", "path", "readonly", "recursive", "shift", "required", "node")


def disks_of(spec: InstanceSpec) -> dict[str, dict[str, str]]:
    """Return what matters of the disks of an instance, without its root."""
    return {
        name: {key: device[key] for key in _KEYS if key in device}
        for name, device in sorted(spec.devices.items())
        if device.get("type") == "disk" and device.get("path") != "/"
    }


def note(spec: InstanceSpec, disks: Mapping[str, Disk]) -> None:
    """Record what a running container has."""
    device_notes.write(_file(spec), disks)


def noted(spec: InstanceSpec) -> dict[str, dict[str, str]]:
    """Return what a running container has."""
    return device_notes.read(_file(spec))


def _file(spec: InstanceSpec) -> Path:
    return spec.instance_dir / "disks.json"


async def plug(spec: InstanceSpec, pid: int) -> None:
    """Give a running container (by its init's pid) exactly the disks of `spec`: first out, then in.

    Raises DriverError; what was done until then is recorded.
    """
    wanted, there = disks_of(spec), noted(spec)
    for name in [name for name, disk in there.items() if wanted.get(name) != disk]:
        await _out(pid, there[name])
        del there[name]
        note(spec, there)
    for name, disk in sorted(wanted.items(), key=lambda item: item[1]["path"]):  # what is on top comes later
        if name not in there:
            try:
                await _in(spec, pid, disk)
            except DriverError as error:
                raise DriverError(f'Failed to start device "{name}": {error}') from error
            there[name] = disk
            note(spec, there)


async def _in(spec: InstanceSpec, pid: int, disk: Disk) -> None:
    request = _request(spec, disk)
    if request:
        await run_helper("mount_helper", ["attach"], [("pid", str(pid)), *request.items()])


def _request(spec: InstanceSpec, disk: Disk) -> dict[str, str]:
    """Return what the helper is told of a disk, nothing for one that may be missing and is. Raises DriverError."""
    if not Path(disk["source"]).exists():
        if is_true(disk.get("required", "true")):
            raise DriverError(f'Missing source path "{disk["source"]}"')
        return {}
    return {
        "source": disk["source"],
        "target": disk["path"],
        "unprivileged": "" if spec.privileged else "1",
        "readonly": "1" if is_true(disk.get("readonly")) else "",
        "recursive": "1" if is_true(disk.get("recursive")) else "",
        "idmap": "1" if is_true(disk.get("shift")) and not spec.privileged else "",
    }


def start_command(spec: InstanceSpec) -> str:
    """Write down what a container gets before its init begins; return liblxc's hook for it, "" without disks.

    Raises DriverError for a source that is missing.
    """
    requests = []
    for name, disk in disks_of(spec).items():
        try:
            request = _request(spec, disk)
        except DriverError as error:
            raise DriverError(f'Failed to start device "{name}": {error}') from error
        if request:
            requests.append(request)
    if not requests:
        return ""
    path = spec.instance_dir / "start-disks.json"
    path.write_text(json.dumps(sorted(requests, key=lambda request: request["target"])))
    _error_file(spec).unlink(missing_ok=True)
    return shlex.join(helper_argv("mount_helper", "hook", str(path)))


def start_error(spec: InstanceSpec) -> str:
    """Return why the disks could not be given to a starting container, "" if that wasn't it."""
    try:
        return _error_file(spec).read_text()
    except OSError:
        return ""


def _error_file(spec: InstanceSpec) -> Path:
    return spec.instance_dir / "start-disks.json.error"


async def _out(pid: int, disk: Disk) -> None:
    await run_helper(
        "mount_helper", ["detach"], [("pid", str(pid)), ("target", disk["path"]), ("remove", disk.get("node", ""))]
    )
