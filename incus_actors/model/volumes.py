"""Storage volumes, their snapshots and backups as the REST API shows and takes them (CONTRACT 13).

Owns the shapes, fields in Incus' order; used by services and rest. Must hold no behaviour. A `None` in what is taken
means "not given": PUT makes it empty, PATCH leaves the old value.
"""

from __future__ import annotations

import msgspec

Config = dict[str, str]


class VolumeSource(msgspec.Struct, kw_only=True):
    """Where a new volume comes from; an empty `type` is: from nowhere."""

    name: str = ""
    type: str = ""
    pool: str = ""
    certificate: str = ""
    mode: str = ""
    operation: str = ""
    project: str = ""
    volume_only: bool = False
    refresh: bool = False
    refresh_exclude_older: bool = False
    location: str = ""


class VolumePut(msgspec.Struct, kw_only=True):
    """PUT and PATCH of a volume; `restore` names a snapshot."""

    config: Config | None = None
    description: str | None = None
    restore: str = ""


class VolumesPost(VolumePut, kw_only=True):
    """POST …/volumes/custom."""

    name: str = ""
    type: str = ""
    content_type: str = ""
    source: VolumeSource = msgspec.field(default_factory=VolumeSource)


class VolumePost(msgspec.Struct, kw_only=True):
    """POST on a volume: rename it, or move it to another pool, project or member."""

    name: str = ""
    pool: str = ""
    project: str = ""
    migration: bool = False
    volume_only: bool = False
    source: VolumeSource = msgspec.field(default_factory=VolumeSource)


class Volume(msgspec.Struct, kw_only=True):
    """One volume; a snapshot in a list of volumes is called "volume/snapshot"."""

    config: Config
    description: str
    name: str
    type: str
    used_by: list[str]
    location: str
    content_type: str
    project: str
    created_at: str


class VolumeUsage(msgspec.Struct, kw_only=True):
    """Bytes; total 0: no limit."""

    used: int = 0
    total: int = 0


class VolumeState(msgspec.Struct, kw_only=True):
    """GET …/state; of a snapshot nothing is measured."""

    usage: VolumeUsage | None


class SnapshotsPost(msgspec.Struct, kw_only=True):
    """POST …/snapshots; without `expires_at` the volume's `snapshots.expiry` holds."""

    name: str = ""
    description: str = ""
    expires_at: str | None = None


class SnapshotPut(msgspec.Struct, kw_only=True):
    """PUT and PATCH of a snapshot."""

    description: str | None = None
    expires_at: str | None = None


class Snapshot(msgspec.Struct, kw_only=True):
    """One snapshot."""

    description: str
    expires_at: str | None
    name: str
    config: Config
    content_type: str
    created_at: str


class BackupsPost(msgspec.Struct, kw_only=True):
    """POST …/backups."""

    name: str = ""
    expires_at: str | None = None
    volume_only: bool = False
    optimized_storage: bool = False
    compression_algorithm: str = ""


class Backup(msgspec.Struct, kw_only=True):
    """One backup."""

    name: str
    created_at: str
    expires_at: str
    volume_only: bool
    optimized_storage: bool
