"""Reads about instances: whole records with their profiles applied, where one is, what a profile is used by.

Owns the SQL; a record needs a handful of queries however many instances there are. Used by services, actors and
routing; give it a `Database.snapshot()` when several reads must agree.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

from incus_actors.domain.instance_config import HIDDEN_PREFIX, PHASE_KEY
from incus_actors.domain.instances import (
    DEVICE_NAMES,
    INSTANCE_TYPES,
    ProfileLayer,
    expand_config,
    expand_devices,
)
from incus_actors.domain.transactions_instances import FINGERPRINT_SQL
from incus_actors.model.architectures import name_of
from incus_actors.model.transaction import Value
from incus_actors.state.reader import Reader

Config = dict[str, str]
Devices = dict[str, dict[str, str]]
K = TypeVar("K")

DEFAULT_PROJECT = "default"


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """Everything the database knows of one instance. `phase`: "" (fine), "creating" or "deleting"."""

    id: int
    name: str
    project_id: int
    project: str
    node_id: int
    location: str
    architecture: str
    type: str
    ephemeral: bool
    stateful: bool
    description: str
    created_at: str
    last_used_at: str | None
    config: Config
    devices: Devices
    profiles: tuple[str, ...]
    expanded_config: Config
    expanded_devices: Devices
    phase: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where an instance is: all that routing needs."""

    instance_id: int
    node_id: int


_BASE = (
    "SELECT i.id, i.name, i.project_id, p.name AS project, i.node_id, n.name AS location, i.architecture, i.type,"
    " i.ephemeral, i.stateful, i.description, i.creation_date, i.last_use_date FROM instances i"
    " JOIN projects p ON p.id = i.project_id JOIN nodes n ON n.id = i.node_id"
)


def place(db: Reader, project: str, name: str) -> Place | None:
    """Return where the instance is, or None if there is none."""
    row = db.one(
        "SELECT i.id, i.node_id FROM instances i JOIN projects p ON p.id = i.project_id WHERE p.name = ? AND i.name = ?",
        (project, name),
    )
    return None if row is None else Place(row[0], row[1])


def find(db: Reader, project: str, name: str) -> InstanceRecord | None:
    """Return one instance by name, or None."""
    found = place(db, project, name)
    return None if found is None else by_id(db, found.instance_id)


def by_id(db: Reader, instance_id: int) -> InstanceRecord | None:
    """Return one instance by id, or None."""
    records = _load(db, "i.id = ?", (instance_id,))
    return records[0] if records else None


def all_of(db: Reader, *, projects: Collection[str] | None = None, node_id: int | None = None) -> list[InstanceRecord]:
    """Return instances in order of project and name: of these projects (None: all), on this member (None: any)."""
    conditions: list[str] = []
    params: list[Value] = []
    if projects is not None:
        conditions.append(f"p.name IN ({', '.join('?' * len(projects))})")
        params.extend(sorted(projects))
    if node_id is not None:
        conditions.append("i.node_id = ?")
        params.append(node_id)
    return _load(db, " AND ".join(conditions) or "1", tuple(params))


def names(db: Reader, project: str) -> list[str]:
    """Return the names of a project's instances, sorted."""
    sql = "SELECT i.name FROM instances i JOIN projects p ON p.id = i.project_id WHERE p.name = ? ORDER BY i.name"
    return [row[0] for row in db.query(sql, (project,))]


def ids_on(db: Reader, node_id: int) -> list[int]:
    """Return the ids of the instances of one member."""
    return [row[0] for row in db.query("SELECT id FROM instances WHERE node_id = ? ORDER BY id", (node_id,))]


def using_profile(db: Reader, profile_id: int) -> list[tuple[str, str]]:
    """Return (project, name) of the instances that a profile applies to (`used_by`, "currently in use")."""
    rows = db.query(
        "SELECT p.name, i.name FROM instances_profiles ip JOIN instances i ON i.id = ip.instance_id"
        " JOIN projects p ON p.id = i.project_id WHERE ip.profile_id = ? ORDER BY p.name, i.name",
        (profile_id,),
    )
    return [(row[0], row[1]) for row in rows]


def static_addresses(db: Reader) -> list[tuple[int, str]]:
    """Return (instance id, address) of every address (IP, MAC) in the devices of instances and in those of their
    profiles."""
    keys = "c.key IN ('ipv4.address', 'ipv6.address', 'hwaddr')"
    rows = db.query(
        "SELECT d.instance_id, c.value FROM instances_devices_config c"
        f" JOIN instances_devices d ON d.id = c.instance_device_id WHERE {keys}"
        " UNION SELECT u.instance_id, c.value FROM profiles_devices_config c"
        " JOIN profiles_devices d ON d.id = c.profile_device_id"
        f" JOIN instances_profiles u ON u.profile_id = d.profile_id WHERE {keys} ORDER BY 1, 2"
    )
    return [(row[0], row[1]) for row in rows]


def settings_fingerprint(db: Reader, instance_id: int) -> tuple[tuple[Value, ...], ...]:
    """Return what `transactions_instances.fingerprint_guard` compares: nobody changed the settings meanwhile."""
    return tuple(tuple(row) for row in db.query(FINGERPRINT_SQL, (instance_id,) * 4))


def _load(db: Reader, where: str, params: tuple[Value, ...]) -> list[InstanceRecord]:
    rows = db.query(f"{_BASE} WHERE {where} ORDER BY p.name, i.name", params)
    if not rows:
        return []
    one = len(rows) == 1
    scope, ids = ("= ?", (rows[0]["id"],)) if one else ("IN (SELECT i.id FROM instances i)", ())
    config = _config(
        db, f"SELECT instance_id, key, value FROM instances_config WHERE instance_id {scope} ORDER BY key", ids
    )
    devices = _devices(db, "instances", "instance", scope, ids)
    applied: dict[int, list[int]] = {}
    for row in db.query(
        f"SELECT instance_id, profile_id FROM instances_profiles WHERE instance_id {scope} ORDER BY apply_order, id",
        ids,
    ):
        applied.setdefault(row[0], []).append(row[1])
    layers = profile_layers(db, {profile for found in applied.values() for profile in found})
    records = []
    for row in rows:
        instance_id = row["id"]
        own = config.get(instance_id, {})
        shown = {key: value for key, value in own.items() if not key.startswith(HIDDEN_PREFIX)}
        own_devices = devices.get(instance_id, {})
        profiles = [layers[profile] for profile in applied.get(instance_id, ())]
        records.append(
            InstanceRecord(
                id=instance_id,
                name=row["name"],
                project_id=row["project_id"],
                project=row["project"],
                node_id=row["node_id"],
                location=row["location"],
                architecture=name_of(row["architecture"]),
                type=INSTANCE_TYPES.get(row["type"], "unknown"),
                ephemeral=bool(row["ephemeral"]),
                stateful=bool(row["stateful"]),
                description=row["description"],
                created_at=row["creation_date"],
                last_used_at=row["last_use_date"],
                config=shown,
                devices=own_devices,
                profiles=tuple(layer.name for layer in profiles),
                expanded_config=expand_config(profiles, shown),
                expanded_devices=expand_devices(profiles, own_devices),
                phase=own.get(PHASE_KEY, ""),
            )
        )
    return records


def _config(db: Reader, sql: str, params: tuple[Value, ...]) -> dict[int, Config]:
    found: dict[int, Config] = {}
    for owner, key, value in db.query(sql, params):
        found.setdefault(owner, {})[key] = value
    return found


def _devices(db: Reader, table: str, owner: str, scope: str, params: tuple[Value, ...]) -> dict[int, Devices]:
    """Return the devices of each owner; the type is one of the options, as users see it."""
    found: dict[int, Devices] = {}
    column = f"{owner}_id"
    for owner_id, name, kind, key, value in db.query(
        f"SELECT d.{column}, d.name, d.type, c.key, c.value FROM {table}_devices d"
        f" LEFT JOIN {table}_devices_config c ON c.{owner}_device_id = d.id"
        f" WHERE d.{column} {scope} ORDER BY d.name, c.key",
        params,
    ):
        device = found.setdefault(owner_id, {}).setdefault(name, {})
        if key is not None:
            device[key] = value
        device["type"] = DEVICE_NAMES.get(kind, "none")
    return {owner_id: {n: dict(sorted(d.items())) for n, d in devices.items()} for owner_id, devices in found.items()}


# --- profiles and projects as instances need them -----------------------------------------------------------


def profile_layers(db: Reader, profile_ids: Collection[int]) -> dict[int, ProfileLayer]:
    """Return what these profiles contribute, by id; ids that don't exist are missing."""
    if not profile_ids:
        return {}
    marks = f"IN ({', '.join('?' * len(profile_ids))})"
    ids = tuple(sorted(profile_ids))
    config = _config(
        db, f"SELECT profile_id, key, value FROM profiles_config WHERE profile_id {marks} ORDER BY key", ids
    )
    devices = _devices(db, "profiles", "profile", marks, ids)
    return {
        row[0]: ProfileLayer(row[1], config.get(row[0], {}), devices.get(row[0], {}))
        for row in db.query(f"SELECT id, name FROM profiles WHERE id {marks} ORDER BY id", ids)
    }


def profile_ids(db: Reader, project: str, wanted: Collection[str]) -> dict[str, int]:
    """Return name → id of those profiles of the project (or of "default" if it shares those) that exist."""
    if not wanted:
        return {}
    rows = db.query(
        f"SELECT id, name FROM profiles WHERE project_id = ? AND name IN ({', '.join('?' * len(wanted))}) ORDER BY id",
        (effective_project(db, project, "features.profiles") or 0, *sorted(wanted)),
    )
    return {row[1]: row[0] for row in rows}


def project_id(db: Reader, project: str) -> int | None:
    """Return the id of a project, or None."""
    found = db.scalar("SELECT id FROM projects WHERE name = ?", (project,))
    return None if found is None else int(found)


def effective_project(db: Reader, project: str, feature: str) -> int | None:
    """Return the id of the project whose things `project` uses: its own if it has `feature`, else the default one's."""
    own = project_id(db, project)
    if own is None or project == DEFAULT_PROJECT:
        return own
    value = db.scalar("SELECT value FROM projects_config WHERE project_id = ? AND key = ?", (own, feature))
    return own if value in {"true", "1", "yes", "on"} else project_id(db, DEFAULT_PROJECT)


# --- storage as instances need it ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PoolRecord:
    """A storage pool as one member sees it. `usable`: created here."""

    id: int
    name: str
    driver: str
    config: Mapping[str, str]
    usable: bool


def pool(db: Reader, name: str, node_id: int) -> PoolRecord | None:
    """Return a pool with the config that holds on one member, or None if there is no such pool."""
    found = [record for record in pools(db, node_id) if record.name == name]
    return found[0] if found else None


def pools(db: Reader, node_id: int) -> list[PoolRecord]:
    """Return all pools with the config that holds on one member."""
    config = _config(
        db,
        "SELECT storage_pool_id, key, value FROM storage_pools_config WHERE node_id IS NULL OR node_id = ?"
        " ORDER BY storage_pool_id, key",
        (node_id,),
    )
    return [
        PoolRecord(row["id"], row["name"], row["driver"], config.get(row["id"], {}), row["here"] == 1)
        for row in db.query(
            "SELECT p.id, p.name, p.driver, n.state AS here FROM storage_pools p LEFT JOIN storage_pools_nodes n"
            " ON n.storage_pool_id = p.id AND n.node_id = ? ORDER BY p.id",
            (node_id,),
        )
    ]


def volume_pools(db: Reader, node_id: int) -> dict[tuple[str, str], str]:
    """Return (project, instance) → pool of the root volumes on one member."""
    return {
        (row[0], row[1]): row[2]
        for row in db.query(
            "SELECT p.name, v.name, s.name FROM storage_volumes v JOIN projects p ON p.id = v.project_id"
            " JOIN storage_pools s ON s.id = v.storage_pool_id WHERE v.type = 0 AND v.node_id = ? ORDER BY v.id",
            (node_id,),
        )
    }
