"""Where a pool and its volumes are on this machine.

Owns the layout, which is that of Incus (`containers/c1`, `custom/default_v1`, `custom-snapshots/default_v1/s1`), and the
names that may be part of it. Extended by all storage drivers; must never make a path that leaves the pool.
"""

from __future__ import annotations

from pathlib import Path

from incus_actors.drivers.base import PoolSpec, VolumeSpec
from incus_actors.drivers.storage import DISK_FILE
from incus_actors.errors import BadRequestError

KINDS = {"container": "containers", "virtual-machine": "virtual-machines", "custom": "custom", "image": "images"}


class PoolPlaces:
    """`directory` is the daemon's own (`$INCUS_DIR`)."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._base = directory / "storage-pools"

    # --- pools ----------------------------------------------------------------------------------------------

    def _default_path(self, pool: PoolSpec) -> Path:
        if not pool.name or "/" in pool.name or pool.name.startswith("."):
            raise BadRequestError(f"Invalid storage pool name: {pool.name}")
        return self._base / pool.name

    def pool_path(self, pool: PoolSpec) -> Path:
        """Return the directory below which the volumes are."""
        return self._default_path(pool)

    def _file(self, pool: PoolSpec) -> Path:
        """Return the file of ours that stands for a disk where a pool has no other source."""
        return self._directory / "disks" / f"{pool.name}.img"

    def _half_made_file(self, pool: PoolSpec) -> Path:
        """Return where that file is until there is a file system on it."""
        return self._file(pool).with_suffix(".new")

    def _is_on_file(self, pool: PoolSpec) -> bool:
        """Return whether a pool is, or will be, on its file."""
        return pool.config.get("source", "") in ("", str(self._file(pool)))

    def has_traces(self, pool: PoolSpec) -> bool:
        """Return whether something of a pool that a driver of ours made, or half made, may be here."""
        places = (self._default_path(pool), self._file(pool), self._half_made_file(pool))
        return any(place.exists() for place in places)

    # --- volumes --------------------------------------------------------------------------------------------

    def volume_path(self, volume: VolumeSpec) -> Path:
        """Return where the volume is (or would be)."""
        if volume.kind not in KINDS:
            raise BadRequestError(f"Invalid storage volume type: {volume.kind}")
        if volume.disk_name.startswith("."):
            raise BadRequestError(f"Invalid storage volume name: {volume.name}")
        return self.pool_path(volume.pool) / KINDS[volume.kind] / volume.disk_name

    def disk_path(self, volume: VolumeSpec) -> Path:
        """Return the file that a block or ISO volume is."""
        return self.volume_path(volume) / DISK_FILE

    def _snapshots_of(self, volume: VolumeSpec) -> Path:
        path = self.volume_path(volume)
        return path.parent.with_name(f"{path.parent.name}-snapshots") / path.name

    def snapshot_path(self, volume: VolumeSpec, snapshot: str) -> Path:
        """Return where a snapshot is (or would be); whether it can be read there is the driver's to say."""
        if not snapshot or snapshot.startswith(".") or set("/\0\n") & set(snapshot):
            raise BadRequestError(f"Invalid snapshot name: {snapshot}")
        return self._snapshots_of(volume) / snapshot
