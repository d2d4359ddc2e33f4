"""What StorageActor is asked to do; all local, because requests about a volume go to the member that has it.

Owns only data. Used by the storage services, InstanceActors and StorageActor.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from incus_actors.drivers.base import Config, PoolSpec, Progress, VolumeSpec
from incus_actors.drivers.images import ImageFiles

# --- pools --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CreatePool:
    """Make a pool here. Answer: its config with the defaults filled in."""

    pool: PoolSpec


@dataclass(frozen=True, slots=True)
class UpdatePool:
    """Make a changed config true."""

    pool: PoolSpec
    old: Config


@dataclass(frozen=True, slots=True)
class DeletePool:
    """Remove a pool from this machine."""

    pool: PoolSpec


@dataclass(frozen=True, slots=True)
class PoolUsage:
    """Answer: Usage."""

    pool: PoolSpec


@dataclass(frozen=True, slots=True)
class CheckPool:
    """Is this pool there? Asked before what would seem to work on an empty mount point. Answer: None, or
    UnavailableError."""

    pool: PoolSpec


# --- volumes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CreateVolume:
    """Make a volume, empty or from an image. Answer: its path."""

    volume: VolumeSpec
    image: ImageFiles | None = None
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class DeleteVolume:
    """Remove a volume with its snapshots; nothing happens if there is none."""

    volume: VolumeSpec


@dataclass(frozen=True, slots=True)
class RenameVolume:
    """Give a volume another name within its pool."""

    volume: VolumeSpec
    new: VolumeSpec


@dataclass(frozen=True, slots=True)
class ActivateVolume:
    """Make a volume usable. Answer: its path."""

    volume: VolumeSpec


@dataclass(frozen=True, slots=True)
class ResizeVolume:
    """Limit a volume to so many bytes; 0 is no limit."""

    volume: VolumeSpec
    size: int


@dataclass(frozen=True, slots=True)
class VolumeUsage:
    """Answer: Usage."""

    volume: VolumeSpec


@dataclass(frozen=True, slots=True)
class CopyVolume:
    """Copy within a pool, where the driver does that cheaply."""

    source: VolumeSpec
    target: VolumeSpec
    snapshots: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ReceiveVolume:
    """Make a volume of streams: (snapshot or "", bytes), the volume itself last."""

    volume: VolumeSpec
    form: str
    items: AsyncIterator[tuple[str, AsyncIterator[bytes]]]


# --- snapshots ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CreateSnapshot:
    """Keep a volume as it is now."""

    volume: VolumeSpec
    snapshot: str


@dataclass(frozen=True, slots=True)
class DeleteSnapshot:
    """Remove a snapshot; nothing happens if there is none."""

    volume: VolumeSpec
    snapshot: str


@dataclass(frozen=True, slots=True)
class RenameSnapshot:
    """Give a snapshot another name."""

    volume: VolumeSpec
    snapshot: str
    new: str


@dataclass(frozen=True, slots=True)
class RestoreSnapshot:
    """Make a volume what a snapshot holds."""

    volume: VolumeSpec
    snapshot: str


# --- from the actor to itself -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ForgetImages:
    """Images may be gone: drop their unpacked copies."""


@dataclass(frozen=True, slots=True)
class RepairVolumes:
    """Finish or take back what a crash or a lost quorum interrupted. `abandoned`: the id of a volume of this daemon's own
    work that could not be taken back at once."""

    abandoned: int | None = None
