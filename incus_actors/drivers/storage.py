"""What a driver of storage pools can do.

Owns the protocol StorageDriver. Implemented by storage_dir, storage_btrfs, storage_zfs and storage_lvm, called by
StorageActor. A driver must never touch the database or another member.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol, runtime_checkable

from incus_actors.drivers.base import Availability, Config, DriverInfo, PoolSpec, Progress, Usage, VolumeSpec
from incus_actors.drivers.images import ImageFiles

DISK_FILE = "root.img"  #: block and ISO volumes of drivers that keep them as files
BLOCK_SIZE_DEFAULT = "10GiB"
TAR, RAW = "tar", "raw"  #: formats of streams that every driver understands: of file systems, and of disks
BACKUP = "backup"  #: only received: for each item the tar of a whole backup, of which it takes its part


def backup_prefix(snapshot: str) -> str:
    """Return where a snapshot, or ("") the volume, is in the archive of a backup."""
    return f"backup/volume-snapshots/{snapshot}" if snapshot else "backup/volume"


class VolumeReceiver(Protocol):
    """A volume that comes in, snapshots first (oldest first). It is there after `keep`, and not at all before."""

    async def receive(self, snapshot: str, chunks: AsyncIterator[bytes]) -> None:
        """Take one snapshot, or ("") the volume itself. Raises DriverError."""

    async def keep(self) -> None:
        """Make it visible. Raises DriverError."""


@runtime_checkable
class StorageDriver(Protocol):
    """Keeps volumes in pools of one kind. All calls are idempotent towards repetition after a crash.

    `caches_images`: an image is unpacked once and then cloned. `stream_formats`: what `send` and `receiver` know,
    the best first.
    """

    info: DriverInfo
    caches_images: bool
    stream_formats: tuple[str, ...]

    def availability(self) -> Availability:
        """Return whether this kind of pool works here; looks, changes nothing."""

    # --- pools ---

    def validate_pool(self, pool: PoolSpec) -> None:
        """Raise BadRequestError for config that this driver does not know."""

    async def create_pool(self, pool: PoolSpec) -> Mapping[str, str]:
        """Make it; return the config as it is now (`source` filled in). Raises DriverError if not empty."""

    async def update_pool(self, pool: PoolSpec, old: Config) -> None:
        """Make a changed config (size, mount options) true. Raises MemberError, DriverError."""

    async def activate_pool(self, pool: PoolSpec) -> None:
        """Make it usable after a restart of the machine (mount, import). Raises DriverError."""

    async def delete_pool(self, pool: PoolSpec) -> None:
        """Remove it, cached images with it. Raises DriverError if volumes are left."""

    async def pool_usage(self, pool: PoolSpec) -> Usage:
        """Return space and inodes of the pool."""

    async def reconcile(self, pool: PoolSpec) -> list[str]:
        """At start: remove unfinished work; return a line for each thing removed."""

    async def cached_images(self, pool: PoolSpec) -> list[str]:
        """Return the fingerprints of the images that are cached in a pool."""

    async def delete_image(self, pool: PoolSpec, fingerprint: str) -> None:
        """Drop a cached image; its clones stay. Idempotent."""

    # --- volumes ---

    def volume_path(self, volume: VolumeSpec) -> Path:
        """Return where the volume is (or would be)."""

    def disk_path(self, volume: VolumeSpec) -> Path:
        """Return the file or device that a block or ISO volume is."""

    def has_volume(self, volume: VolumeSpec) -> bool:
        """Return whether it is there, complete."""

    async def activate_volume(self, volume: VolumeSpec) -> Path:
        """Make a volume usable (mounted); return its path. Idempotent. Raises DriverError."""

    async def create_volume(
        self, volume: VolumeSpec, image: ImageFiles | None = None, *, progress: Progress | None = None
    ) -> Path:
        """Make it, empty or from an image, complete or not at all; return its path. Raises DriverError."""

    async def delete_volume(self, volume: VolumeSpec) -> None:
        """Remove it and its snapshots; never follows links or crosses mounts. Idempotent."""

    async def rename_volume(self, volume: VolumeSpec, new: VolumeSpec) -> None:
        """Rename within the pool, snapshots too. Raises DriverError if the new name is taken."""

    async def resize_volume(self, volume: VolumeSpec, size: int) -> None:
        """Limit what it may hold, or give a disk its size; 0 is no limit. Raises MemberError when it can't be."""

    async def volume_usage(self, volume: VolumeSpec) -> Usage:
        """Return what it uses; walks the tree if it must (in a helper)."""

    async def copy_volume(
        self, source: VolumeSpec, target: VolumeSpec, snapshots: Sequence[str] = (), *, progress: Progress | None = None
    ) -> None:
        """Copy within a pool, as cheaply as possible. Raises DriverError if the target is there."""

    # --- snapshots ---

    def snapshot_path(self, volume: VolumeSpec, snapshot: str) -> Path:
        """Return where a snapshot can be read."""

    async def snapshots(self, volume: VolumeSpec) -> list[str]:
        """Return the names of the snapshots that are there, sorted."""

    async def create_snapshot(self, volume: VolumeSpec, snapshot: str) -> None:
        """Keep the volume as it is now. Raises DriverError if the name is taken."""

    async def delete_snapshot(self, volume: VolumeSpec, snapshot: str) -> None:
        """Remove a snapshot. Idempotent."""

    async def rename_snapshot(self, volume: VolumeSpec, snapshot: str, new: str) -> None:
        """Give it another name. Raises DriverError if that is taken."""

    async def restore_snapshot(self, volume: VolumeSpec, snapshot: str) -> None:
        """Make the volume what the snapshot holds; all or nothing. Raises DriverError."""

    def readable(self, volume: VolumeSpec, snapshot: str) -> AbstractAsyncContextManager[Path]:
        """Give a directory that holds a snapshot, or ("") the volume, for as long as the block lasts; at one moment
        if the driver can. Raises DriverError."""

    # --- streams ---

    def send(self, volume: VolumeSpec, snapshot: str, form: str, *, parent: str = "") -> AsyncGenerator[bytes, None]:
        """Yield a snapshot, or ("") the volume as it is, in one of `stream_formats`; relative to an earlier snapshot
        if the format can. Raises DriverError, at the end too."""

    def receiver(self, volume: VolumeSpec, form: str) -> AbstractAsyncContextManager[VolumeReceiver]:
        """Take a new volume in. Leaving the block without `keep` leaves nothing behind."""
