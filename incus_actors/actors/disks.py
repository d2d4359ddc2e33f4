"""Disk devices of instances: what they mean on this member, and what is wrong with them.

Owns the way from a volume's name to a path of the host, with Incus' texts. Used by Host for every specification, and
by the services before a device is recorded. Must never make a path that leaves the volume.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from incus_actors.domain.disk_devices import is_required
from incus_actors.domain.instance_config import is_true
from incus_actors.drivers.base import PoolSpec, VolumeSpec
from incus_actors.errors import BadRequestError, MemberError, NotFoundError
from incus_actors.state.queries import instances as instance_queries
from incus_actors.state.queries import volumes as queries
from incus_actors.state.queries.volumes import VolumeRow

if TYPE_CHECKING:
    from incus_actors.actors.host import Host

Devices = Mapping[str, Mapping[str, str]]


def is_volume(device: Mapping[str, str]) -> bool:
    """Return whether a device is a custom volume (not the root disk, nor a path of the host)."""
    return device.get("type") == "disk" and bool(device.get("pool")) and bool(device.get("source"))


def _row(host: Host, project: str, device: Mapping[str, str]) -> VolumeRow:
    """Return the custom volume of a device. Raises BadRequestError with Incus' reasons."""
    database, pool = host.database(), device["pool"]
    try:
        pool_id = host.pool(pool).id
    except NotFoundError:
        raise BadRequestError(f'Failed to get storage pool "{pool}": Storage pool not found') from None
    project_id = instance_queries.effective_project(database, project, "features.storage.volumes") or 0
    name = device["source"].partition("/")[0]
    found = queries.volumes(
        database, pool_id=pool_id, project_ids=[project_id], type_="custom", name=name, node_id=host.member_id()
    )
    if not found or found[0].phase.startswith(("creating", "deleting")):
        raise BadRequestError("Failed loading custom volume: Storage volume not found")
    return found[0]


def check(host: Host, project: str, name: str, device: Mapping[str, str]) -> None:
    """Raise BadRequestError `Failed add validation for device "d": …` for a disk that can't be given to an instance
    of this member."""
    if device.get("type") != "disk" or device.get("path") == "/":
        return
    try:
        if is_volume(device):
            row = _row(host, project, device)
            if row.content != "filesystem":
                kind = "ISO" if row.content == "iso" else "block"
                raise BadRequestError(f"Custom {kind} volumes cannot be used on containers")
            if not device.get("path"):
                raise BadRequestError("Custom filesystem volumes require a path to be defined")
            _inside(Path("/"), device["source"])
            return
        source = device.get("source", "")
        if is_required(device) and source.startswith("/") and not Path(source).exists():
            raise BadRequestError(f'Missing source path "{source}" for disk "{name}"')
    except BadRequestError as error:
        raise BadRequestError(f'Failed add validation for device "{name}": {error}') from None


def check_changed(host: Host, project: str, old: Devices, new: Devices) -> None:
    """Check the disks that are new or different. Raises BadRequestError."""
    for name, device in sorted(new.items()):
        if device != old.get(name):
            check(host, project, name, device)


def resolved(host: Host, project: str, devices: Devices) -> dict[str, dict[str, str]]:
    """Return the devices with every volume's place on this member instead of its name. Raises BadRequestError."""
    found: dict[str, dict[str, str]] = {}
    for name, device in devices.items():
        found[name] = dict(device)
        if is_volume(device):
            try:
                found[name] = _resolved(host, project, device)
            except BadRequestError as error:
                raise BadRequestError(f'Failed to start device "{name}": {error}') from None
    return found


def _resolved(host: Host, project: str, device: Mapping[str, str]) -> dict[str, str]:
    row = _row(host, project, device)
    volume = spec_of(host, row)
    driver = host.storage.get(row.driver)
    if driver is None:
        raise MemberError(f'Failed loading storage driver "{row.driver}": Unknown storage driver')
    plain = {key: value for key, value in device.items() if key not in ("pool", "shift")}
    plain["source"] = str(_inside(driver.volume_path(volume), device["source"]))
    if not is_true(row.config.get("security.unmapped")):
        plain["shift"] = "true"  # owners inside the volume are those inside the instance
    return plain


def _inside(root: Path, source: str) -> Path:
    """Return the place that "volume/some/path" means. Raises BadRequestError for one outside of the volume."""
    below = source.partition("/")[2]
    if ".." in PurePosixPath(below).parts:
        raise BadRequestError(f'Volume sub-path "{below}" resolves outside of the volume')
    return root / below.lstrip("/") if below else root


def spec_of(host: Host, row: VolumeRow) -> VolumeSpec:
    """Return a volume for its driver. Raises NotFoundError when its pool isn't usable here."""
    pool = host.pool(row.pool)
    return VolumeSpec(
        PoolSpec(pool.name, pool.driver, pool.config),
        row.name,
        row.project,
        row.type,
        row.config,
        row.content,  # type: ignore[arg-type]
    )


def volumes_of(host: Host, project: str, devices: Devices) -> list[VolumeSpec]:
    """Return the custom volumes that an instance needs, to be made usable before it starts. Raises BadRequestError."""
    return [spec_of(host, _row(host, project, device)) for _, device in sorted(devices.items()) if is_volume(device)]
