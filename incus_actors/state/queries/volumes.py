"""Reads of storage volumes: rows with their configuration, snapshots, backups, and who uses a volume.

Owns the queries; services and actors call them with a Database or a snapshot. Must never write. A list of volumes
costs a handful of queries however long it is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from incus_actors.domain.instance_config import HIDDEN_PREFIX, PHASE_KEY
from incus_actors.model.transaction import Value
from incus_actors.state.reader import Reader

TYPE_NAMES = {0: "container", 1: "image", 2: "custom", 3: "virtual-machine"}
TYPE_NUMBERS = {name: number for number, name in TYPE_NAMES.items()}
CONTENT_NAMES = {0: "filesystem", 1: "block", 2: "iso"}
CONTENT_NUMBERS = {name: number for number, name in CONTENT_NAMES.items()}


@dataclass(frozen=True, slots=True)
class VolumeRow:
    """One volume. `node_id` None: no certain member's. `phase`: "" or what its member is doing with it."""

    id: int
    name: str
    type: str
    content: str
    pool_id: int
    pool: str
    driver: str
    node_id: int | None
    location: str
    project_id: int
    project: str
    description: str
    created_at: str
    config: Mapping[str, str]
    phase: str


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """One snapshot of a volume; `expires_at` "" for never."""

    id: int
    volume_id: int
    name: str
    description: str
    created_at: str
    expires_at: str
    config: Mapping[str, str]
    phase: str


@dataclass(frozen=True, slots=True)
class BackupRow:
    """One backup of a volume, kept as a file on the volume's member."""

    id: int
    volume_id: int
    name: str
    created_at: str
    expires_at: str
    volume_only: bool
    optimized: bool


@dataclass(frozen=True, slots=True)
class DiskUse:
    """An instance (on `node_id`) or a profile (None) that has a volume as a disk. `device`: its name there."""

    kind: str
    id: int
    name: str
    project: str
    node_id: int | None
    device: str


@dataclass(frozen=True, slots=True)
class Uses:
    """Who has which volume; ask `of`."""

    disks: Mapping[tuple[str, str, int], list[DiskUse]] = field(default_factory=dict)

    def of(self, volume: VolumeRow) -> list[DiskUse]:
        """Return the instances on the volume's member and the profiles that have a custom volume as a disk."""
        found = self.disks.get((volume.pool, volume.name, volume.project_id), [])
        return [use for use in found if use.node_id is None or volume.node_id in (None, use.node_id)]


_VOLUMES = (
    "SELECT v.id, v.name, v.type, v.content_type, v.storage_pool_id, s.name AS pool, s.driver, v.node_id,"
    " IFNULL(n.name, '') AS location, v.project_id, p.name AS project, v.description, v.creation_date"
    " FROM storage_volumes v JOIN storage_pools s ON s.id = v.storage_pool_id JOIN projects p ON p.id = v.project_id"
    " LEFT JOIN nodes n ON n.id = v.node_id"
)


def volumes(
    db: Reader,
    *,
    pool_id: int | None = None,
    project_ids: Collection[int] | None = None,
    type_: str | None = None,
    name: str | None = None,
    node_id: int | None = None,
) -> list[VolumeRow]:
    """Return volumes in order of type, name and member: all, or those that fit everything given."""
    conditions: list[str] = []
    params: list[Value] = []
    for column, wanted in (("v.storage_pool_id", pool_id), ("v.name", name), ("v.node_id", node_id)):
        if wanted is not None:
            conditions.append(f"{column} = ?")
            params.append(wanted)
    if type_ is not None:
        conditions.append("v.type = ?")
        params.append(TYPE_NUMBERS.get(type_, -1))
    if project_ids is not None:
        conditions.append(f"v.project_id IN ({', '.join('?' * len(project_ids))})")
        params.extend(sorted(project_ids))
    return _load(db, " AND ".join(conditions) or "1", tuple(params))


def by_id(db: Reader, volume_id: int) -> VolumeRow | None:
    """Return one volume, or None."""
    found = _load(db, "v.id = ?", (volume_id,))
    return found[0] if found else None


def _load(db: Reader, where: str, params: tuple[Value, ...]) -> list[VolumeRow]:
    rows = db.query(f"{_VOLUMES} WHERE {where} ORDER BY v.type, v.name, v.node_id, p.name", params)
    if not rows:
        return []
    config: dict[int, dict[str, str]] = {}
    text = "SELECT storage_volume_id, key, value FROM storage_volumes_config"
    ids: tuple[Value, ...] = ()
    if len(rows) == 1:
        text, ids = f"{text} WHERE storage_volume_id = ?", (rows[0]["id"],)
    for owner, key, value in db.query(f"{text} ORDER BY key", ids):
        config.setdefault(owner, {})[key] = value
    return [
        VolumeRow(
            id=row["id"],
            name=row["name"],
            type=TYPE_NAMES.get(row["type"], "custom"),
            content=CONTENT_NAMES.get(row["content_type"], "filesystem"),
            pool_id=row["storage_pool_id"],
            pool=row["pool"],
            driver=row["driver"],
            node_id=row["node_id"],
            location=row["location"],
            project_id=row["project_id"],
            project=row["project"],
            description=row["description"],
            created_at=row["creation_date"],
            config=_visible(config.get(row["id"], {})),
            phase=config.get(row["id"], {}).get(PHASE_KEY, ""),
        )
        for row in rows
    ]


def _visible(config: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in config.items() if not key.startswith(HIDDEN_PREFIX)}


# --- snapshots and backups ----------------------------------------------------------------------------------


def snapshots(db: Reader, volume_ids: Collection[int] | None = None) -> dict[int, list[SnapshotRow]]:
    """Return the snapshots of these volumes (None: of all), the oldest first."""
    where = "1"
    ids: tuple[Value, ...] = ()
    if volume_ids is not None:
        if not volume_ids:
            return {}
        ids = tuple(sorted(volume_ids))
        where = f"s.storage_volume_id IN ({', '.join('?' * len(ids))})"
    config: dict[int, dict[str, str]] = {}
    for owner, key, value in db.query(
        "SELECT c.storage_volume_snapshot_id, c.key, c.value FROM storage_volumes_snapshots_config c"
        f" JOIN storage_volumes_snapshots s ON s.id = c.storage_volume_snapshot_id WHERE {where} ORDER BY c.key",
        ids,
    ):
        config.setdefault(owner, {})[key] = value
    found: dict[int, list[SnapshotRow]] = {}
    for row in db.query(
        "SELECT s.id, s.storage_volume_id, s.name, s.description, s.creation_date, s.expiry_date"
        f" FROM storage_volumes_snapshots s WHERE {where} ORDER BY s.creation_date, s.id",
        ids,
    ):
        own = config.get(row[0], {})
        found.setdefault(row[1], []).append(
            SnapshotRow(row[0], row[1], row[2], row[3], row[4], row[5] or "", _visible(own), own.get(PHASE_KEY, ""))
        )
    return found


def backups(db: Reader, volume_id: int) -> list[BackupRow]:
    """Return the backups of a volume in the order of their making."""
    return [
        BackupRow(row[0], row[1], row[2], row[3], row[4] or "", bool(row[5]), bool(row[6]))
        for row in db.query(
            "SELECT id, storage_volume_id, name, creation_date, expiry_date, volume_only, optimized_storage"
            " FROM storage_volumes_backups WHERE storage_volume_id = ? ORDER BY id",
            (volume_id,),
        )
    ]


def expired_backups(db: Reader, node_id: int, now: str) -> list[tuple[int, str]]:
    """Return (volume id, backup name) of what should be gone on this member; times compare as text (RFC 3339 UTC)."""
    rows = db.query(
        "SELECT b.storage_volume_id, b.name FROM storage_volumes_backups b JOIN storage_volumes v"
        " ON v.id = b.storage_volume_id WHERE v.node_id = ? AND b.expiry_date IS NOT NULL AND b.expiry_date <> ''"
        " AND b.expiry_date <= ? ORDER BY b.id",
        (node_id, now),
    )
    return [(row[0], row[1]) for row in rows]


# --- who uses a volume --------------------------------------------------------------------------------------


def _effective_projects(db: Reader) -> dict[int, int]:
    """Return project id → id of the project whose custom volumes it uses."""
    shared = db.scalar("SELECT id FROM projects WHERE name = 'default'")
    own = {
        row[0]
        for row in db.query(
            "SELECT project_id FROM projects_config WHERE key = 'features.storage.volumes'"
            " AND lower(value) IN ('true', '1', 'yes', 'on')"
        )
    }
    return {row[0]: row[0] if row[0] in own else shared for row in db.query("SELECT id FROM projects")}


_DEVICE = (
    " JOIN {0}s_devices d ON d.{0}_id = {1}.id AND d.type = 2"
    " JOIN {0}s_devices_config a ON a.{0}_device_id = d.id AND a.key = 'pool'"
    " JOIN {0}s_devices_config b ON b.{0}_device_id = d.id AND b.key = 'source'"
)


def uses(db: Reader, *, pool: str | None = None) -> Uses:
    """Return who has custom volumes as disks: instances by themselves or through a profile, and profiles."""
    effective = _effective_projects(db)
    where, params = ("", ()) if pool is None else (" WHERE a.value = ?", (pool,))
    disks: dict[tuple[str, str, int], list[DiskUse]] = {}

    def add(owner_project: int, pool_name: str, source: str, use: DiskUse) -> None:
        # "v1/path" is a place inside the volume "v1"
        known = disks.setdefault((pool_name, source.partition("/")[0], effective.get(owner_project, 0)), [])
        if all((other.kind, other.id) != (use.kind, use.id) for other in known):
            known.append(use)

    columns = "i.id, i.name, i.project_id, p.name, i.node_id, d.name, a.value, b.value"
    owned = {
        (row[0], row[1])
        for row in db.query("SELECT instance_id, name FROM instances_devices ORDER BY instance_id, name")
    }
    for row in db.query(
        f"SELECT {columns} FROM instances i JOIN projects p ON p.id = i.project_id"
        f"{_DEVICE.format('instance', 'i')}{where} ORDER BY p.name, i.name",
        params,
    ):
        add(row[2], row[6], row[7], DiskUse("instance", row[0], row[1], row[3], row[4], row[5]))
    for row in db.query(
        f"SELECT {columns} FROM instances i JOIN projects p ON p.id = i.project_id"
        " JOIN instances_profiles ip ON ip.instance_id = i.id JOIN profiles f ON f.id = ip.profile_id"
        f"{_DEVICE.format('profile', 'f')}{where} ORDER BY p.name, i.name",
        params,
    ):
        if (row[0], row[5]) not in owned:
            add(row[2], row[6], row[7], DiskUse("instance", row[0], row[1], row[3], row[4], row[5]))
    for row in db.query(
        "SELECT f.id, f.name, f.project_id, p.name, d.name, a.value, b.value FROM profiles f"
        f" JOIN projects p ON p.id = f.project_id{_DEVICE.format('profile', 'f')}{where} ORDER BY p.name, f.name",
        params,
    ):
        add(row[2], row[5], row[6], DiskUse("profile", row[0], row[1], row[3], None, row[4]))
    return Uses(disks)
