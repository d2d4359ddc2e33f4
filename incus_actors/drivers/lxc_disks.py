"""Disks of running containers: what is plugged in, and plugging in and out.

Owns the file `disks.json` in the directory of an instance, which says what its mount namespace was given, also to a
daemon that comes later. Called by drivers/lxc.py; the mounting itself is done by a helper that enters the container.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

from incus_actors.domain.disk_devices import inside_path, is_required
from incus_actors.drivers import device_notes
from incus_actors.drivers.base import DriverError, InstanceSpec
from incus_actors.drivers.child import helper_argv, run_helper
from incus_actors.model.config_values import is_true

Disk = Mapping[str, str]
_KEYS = ("source", "path", "readonly", "recursive", "shift", "required", "optional", "node", "propagation")
_MADE = "made"  #: the inode number of a mount point that we have made


def disks_of(spec: InstanceSpec) -> dict[str, dict[str, str]]:
    """Return what matters of the disks of an instance, without its root; `path` as it is inside."""
    return {
        name: {**{key: device[key] for key in _KEYS if key in device}, "path": inside_path(device["path"])}
        for name, device in sorted(spec.devices.items())
        if device.get("type") == "disk" and device.get("path") != "/"
    }


def note(spec: InstanceSpec, disks: Mapping[str, Disk]) -> None:
    """Record what a running container has."""
    device_notes.write(_file(spec), disks)


def note_started(spec: InstanceSpec) -> None:
    """Record what a container was given with `start_command`, and which mount points were made for it."""
    try:
        made: dict[str, str] = json.loads(_start_file(spec, ".made").read_text())
    except (OSError, ValueError):
        made = {}
    note(spec, {name: _with_made(disk, made.get(disk["path"], "")) for name, disk in disks_of(spec).items()})


def _with_made(disk: Disk, made: str) -> dict[str, str]:
    return {**disk, _MADE: made} if made else dict(disk)


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
    gone = [
        name for name, disk in there.items() if wanted.get(name) != {key: disk[key] for key in disk if key != _MADE}
    ]
    for name in sorted(gone, key=lambda name: there[name]["path"], reverse=True):  # what is on top goes first
        await _out(spec, pid, there[name])
        del there[name]
        note(spec, there)
    for name, disk in sorted(wanted.items(), key=lambda item: item[1]["path"]):  # what is on top comes later
        if name not in there:
            try:
                made = await _in(spec, pid, disk)
            except DriverError as error:
                raise DriverError(f'Failed to start device "{name}": {error}') from error
            there[name] = _with_made(disk, made)
            note(spec, there)


async def _in(spec: InstanceSpec, pid: int, disk: Disk) -> str:
    """Return the number of the mount point if it was made for this disk."""
    request = _request(spec, disk)
    if not request:
        return ""
    return (await run_helper("mount_helper", ["attach"], [("pid", str(pid)), *request.items()])).get("made", "")


def _request(spec: InstanceSpec, disk: Disk, made: str = "") -> dict[str, str]:
    """Return what the helper is told of a disk, nothing for one that may be missing and is. Raises DriverError.

    `made`: the number of the mount point if it was made for this disk when the container ran before.
    """
    if not Path(disk["source"]).exists():
        if is_required(disk):
            raise DriverError(f'Missing source path "{disk["source"]}"')
        return {}
    return {
        "source": disk["source"],
        "target": disk["path"],
        "unprivileged": "" if spec.privileged else "1",
        "readonly": "1" if is_true(disk.get("readonly")) else "",
        "recursive": "1" if is_true(disk.get("recursive")) else "",
        "idmap": "1" if is_true(disk.get("shift")) and not spec.privileged else "",
        "propagation": disk.get("propagation", ""),
        "made": made,
    }


def start_command(spec: InstanceSpec) -> str:
    """Write down what a container gets before its init begins; return liblxc's hook for it, "" without disks.

    Raises DriverError for a source that is missing.
    """
    made = {disk["path"]: disk.get(_MADE, "") for disk in noted(spec).values()}
    _start_file(spec, ".made").unlink(missing_ok=True)
    requests = []
    for name, disk in disks_of(spec).items():
        try:
            request = _request(spec, disk, made.get(disk["path"], ""))
        except DriverError as error:
            raise DriverError(f'Failed to start device "{name}": {error}') from error
        if request:
            requests.append(request)
    if not requests:
        return ""
    path = _start_file(spec)
    path.write_text(json.dumps(sorted(requests, key=lambda request: request["target"])))
    _start_file(spec, ".error").unlink(missing_ok=True)
    return shlex.join(helper_argv("mount_helper", "hook", str(path)))


def start_error(spec: InstanceSpec) -> str:
    """Return why the disks could not be given to a starting container, "" if that wasn't it."""
    try:
        return _start_file(spec, ".error").read_text()
    except OSError:
        return ""


def _start_file(spec: InstanceSpec, suffix: str = "") -> Path:
    return spec.instance_dir / f"start-disks.json{suffix}"


async def _out(spec: InstanceSpec, pid: int, disk: Disk) -> None:
    fields = {"pid": str(pid), "target": disk["path"], "made": disk.get(_MADE, "")}
    fields["unprivileged"] = "" if spec.privileged else "1"
    await run_helper("mount_helper", ["detach"], fields.items())
