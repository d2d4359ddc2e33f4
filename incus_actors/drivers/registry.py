"""Which drivers this machine has, and why not the others.

Owns the choice at start. Called by the daemon's composition root and by the server object; must never choose in
silence: every driver that is left out has its reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from incus_actors.drivers.base import Availability, InstanceDriver
from incus_actors.drivers.image_files import ImageFileStore
from incus_actors.drivers.lxc import LxcDriver
from incus_actors.drivers.network_helper import NetworkHelper
from incus_actors.drivers.process import ProcessDriver
from incus_actors.drivers.storage import StorageDriver
from incus_actors.drivers.storage_btrfs import BtrfsStorage
from incus_actors.drivers.storage_dir import DirStorage
from incus_actors.drivers.storage_lvm import LvmStorage
from incus_actors.drivers.storage_zfs import ZfsStorage
from incus_actors.errors import BadRequestError, MemberError


@dataclass(frozen=True, slots=True)
class Drivers:
    """What the actors work with. `reasons`: every driver looked at → what was found."""

    instances: InstanceDriver
    storage: dict[str, StorageDriver]
    images: ImageFileStore
    reasons: dict[str, Availability] = field(default_factory=dict)

    def storage_driver(self, name: str) -> StorageDriver:
        """Return a storage driver. Raises BadRequestError for one that this machine has not."""
        try:
            return self.storage[name]
        except KeyError:
            known = self.reasons.get(name)
            detail = f": {known.reason}" if known is not None and known.reason else ""
            raise BadRequestError(f'Storage driver "{name}" is not supported on this server{detail}') from None


def choose_drivers(directory: Path, *, instance_driver: str = "", helper: NetworkHelper | None = None) -> Drivers:
    """Look what works; `instance_driver` ("lxc", "process") insists on one. Blocks some 20 ms.

    Raises MemberError when the one insisted on does not work here.
    """
    lxc: InstanceDriver = LxcDriver(directory, helper)
    process: InstanceDriver = ProcessDriver(directory)
    reasons = {"lxc": lxc.availability(), "process": process.availability()}
    if instance_driver and instance_driver not in reasons:
        raise MemberError(f"There is no instance driver {instance_driver}")
    if instance_driver and not reasons[instance_driver].available:
        raise MemberError(f"The instance driver {instance_driver} does not work: {reasons[instance_driver].reason}")
    use_lxc = reasons["lxc"].available and instance_driver != "process"
    storage: dict[str, StorageDriver] = {}
    candidates: dict[str, StorageDriver] = {
        "dir": DirStorage(directory),
        "btrfs": BtrfsStorage(directory),
        "zfs": ZfsStorage(directory),
        "lvm": LvmStorage(directory),
    }
    for name, driver in candidates.items():
        reasons[name] = driver.availability()
        if reasons[name].available:
            storage[name] = driver
    return Drivers(
        instances=lxc if use_lxc else process,
        storage=storage,
        images=ImageFileStore(directory / "images"),
        reasons=reasons,
    )
