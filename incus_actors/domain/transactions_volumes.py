"""Builders of the transactions that change storage volumes, their snapshots and backups.

Owns their SQL; the volume services and StorageActor propose what these return. Pure. The row comes first, marked with
what its member is about to do; the mark goes when that is done, so that a crash in between is repaired from the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from incus_actors.domain.instance_config import HIDDEN_PREFIX, PHASE_KEY
from incus_actors.model.transaction import Guard, Statement, Transaction, Value

TOPICS = ("volumes",)
CREATING, DELETING, RENAMING = "creating", "deleting", "renaming"

Config = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class NewVolume:
    """What goes into the rows of a new volume; `type` and `content` are the numbers of the database."""

    name: str
    pool_id: int
    node_id: int
    project_id: int
    type: int
    content: int
    description: str
    created_at: str
    config: Config


def create(new: NewVolume, *, phase: str = CREATING) -> Transaction:
    """Statement 0 returns the id. Conflict "pool" (not there on this member); a taken name is a UNIQUE error."""
    key: tuple[Value, ...] = (new.pool_id, new.node_id, new.project_id, new.type, new.name)
    config = {**new.config, PHASE_KEY: phase} if phase else new.config
    return Transaction(
        (
            Statement(
                "INSERT INTO storage_volumes (storage_pool_id, node_id, project_id, type, name, description,"
                " content_type, creation_date) VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
                (*key, new.description, new.content, new.created_at),
            ),
            *(
                Statement(
                    "INSERT INTO storage_volumes_config (storage_volume_id, key, value) VALUES ((SELECT id FROM"
                    " storage_volumes WHERE storage_pool_id = ? AND node_id = ? AND project_id = ? AND type = ?"
                    " AND name = ?), ?, ?)",
                    (*key, k, v),
                )
                for k, v in sorted(config.items())
            ),
        ),
        (
            Guard(
                "SELECT COUNT(*) FROM storage_pools_nodes WHERE storage_pool_id = ? AND node_id = ? AND state = 1",
                (new.pool_id, new.node_id),
                ((1,),),
                "pool",
            ),
        ),
        TOPICS,
    )


def _here(volume_id: int, node_id: int) -> Guard:
    """The volume still exists and still belongs to the member that writes about it."""
    return Guard("SELECT node_id FROM storage_volumes WHERE id = ?", (volume_id,), ((node_id,),), "gone")


def _phase_guard(volume_id: int, phase: str) -> Guard:
    expected: tuple[tuple[Value, ...], ...] = ((phase,),) if phase else ()
    return Guard(
        "SELECT value FROM storage_volumes_config WHERE storage_volume_id = ? AND key = ?",
        (volume_id, PHASE_KEY),
        expected,
        "busy",
    )


def set_phase(volume_id: int, node_id: int, old: str, new: str) -> Transaction:
    """Go from one phase to another ("" is: nothing under way). Conflicts "gone", "busy"."""
    statements = [
        Statement("DELETE FROM storage_volumes_config WHERE storage_volume_id = ? AND key = ?", (volume_id, PHASE_KEY))
    ]
    if new:
        statements.append(
            Statement(
                "INSERT INTO storage_volumes_config (storage_volume_id, key, value) VALUES (?, ?, ?)",
                (volume_id, PHASE_KEY, new),
            )
        )
    guards = (_here(volume_id, node_id), _phase_guard(volume_id, old))
    return Transaction(tuple(statements), guards, TOPICS, frees=new.startswith(DELETING))


def update(
    volume_id: int, node_id: int, old: tuple[str, Config], new: tuple[str, Config], *, phase: str = ""
) -> Transaction:
    """Give a volume new (description, config). Conflicts "gone", "busy", "changed"."""
    where = "WHERE storage_volume_id = ? AND key NOT LIKE ?"
    hidden = f"{HIDDEN_PREFIX}%"
    return Transaction(
        (
            Statement("UPDATE storage_volumes SET description = ? WHERE id = ?", (new[0], volume_id)),
            Statement(f"DELETE FROM storage_volumes_config {where}", (volume_id, hidden)),
            *(
                Statement(
                    "INSERT INTO storage_volumes_config (storage_volume_id, key, value) VALUES (?, ?, ?)",
                    (volume_id, k, v),
                )
                for k, v in sorted(new[1].items())
            ),
        ),
        (
            _here(volume_id, node_id),
            _phase_guard(volume_id, phase),
            Guard("SELECT description FROM storage_volumes WHERE id = ?", (volume_id,), ((old[0],),), "changed"),
            Guard(
                f"SELECT key, value FROM storage_volumes_config {where} ORDER BY key",
                (volume_id, hidden),
                tuple(sorted(old[1].items())),
                "changed",
            ),
        ),
        TOPICS,
    )


@dataclass(frozen=True, slots=True)
class Renaming:
    """A custom volume's way to another name; the disks of instances on its member and of profiles follow."""

    volume_id: int
    node_id: int
    pool: str
    old: str
    new: str
    instance_ids: tuple[int, ...] = ()
    profile_ids: tuple[int, ...] = ()


def rename(step: Renaming) -> Transaction:
    """The new name, in rows and devices. Conflict "gone"; a taken name is a UNIQUE error."""
    statements = [Statement("UPDATE storage_volumes SET name = ? WHERE id = ?", (step.new, step.volume_id))]
    for owner, ids in (("instance", step.instance_ids), ("profile", step.profile_ids)):
        statements += [
            Statement(
                f"UPDATE {owner}s_devices_config SET value = ? WHERE key = 'source' AND value = ?"
                f" AND {owner}_device_id IN (SELECT d.id FROM {owner}s_devices d JOIN {owner}s_devices_config c"
                f" ON c.{owner}_device_id = d.id AND c.key = 'pool' AND c.value = ?"
                f" WHERE d.{owner}_id = ? AND d.type = 2)",
                (step.new, step.old, step.pool, owner_id),
            )
            for owner_id in ids
        ]
    clear = Statement(
        "DELETE FROM storage_volumes_config WHERE storage_volume_id = ? AND key = ?", (step.volume_id, PHASE_KEY)
    )
    return Transaction((*statements, clear), (_here(step.volume_id, step.node_id),), (*TOPICS, "instances", "profiles"))


def repoint(step: Renaming, pool: str) -> Transaction:
    """Let the disks of a volume that has been copied mean the copy, in another pool perhaps."""
    statements = []
    for owner, ids in (("instance", step.instance_ids), ("profile", step.profile_ids)):
        device = (
            f"SELECT d.id FROM {owner}s_devices d"
            f" JOIN {owner}s_devices_config c ON c.{owner}_device_id = d.id AND c.key = 'pool' AND c.value = ?"
            f" JOIN {owner}s_devices_config e ON e.{owner}_device_id = d.id AND e.key = 'source' AND e.value = ?"
            f" WHERE d.{owner}_id = ? AND d.type = 2"
        )
        for owner_id in ids:
            both = (step.pool, step.old, owner_id)
            # One statement for both keys: after the first of two, the devices would not be found any more.
            statements.append(
                Statement(
                    f"UPDATE {owner}s_devices_config SET value = CASE key WHEN 'pool' THEN ? ELSE ? END"
                    f" WHERE key IN ('pool', 'source') AND {owner}_device_id IN ({device})",
                    (pool, step.new, *both),
                )
            )
    return Transaction(tuple(statements), topics=(*TOPICS, "instances", "profiles"))


def delete(volume_id: int, node_id: int) -> Transaction:
    """The rows go, those of snapshots and backups too. Conflict "gone"."""
    return Transaction(
        (Statement("DELETE FROM storage_volumes WHERE id = ?", (volume_id,)),), (_here(volume_id, node_id),), TOPICS
    )


def remember_image(fingerprint: str, pool_id: int, node_id: int, created_at: str) -> Transaction:
    """A pool holds an unpacked copy of an image; once is enough."""
    return Transaction(
        (
            Statement(
                "INSERT INTO storage_volumes (storage_pool_id, node_id, project_id, type, name, creation_date)"
                " VALUES (?, ?, (SELECT id FROM projects WHERE name = 'default'), 1, ?, ?) ON CONFLICT DO NOTHING",
                (pool_id, node_id, fingerprint, created_at),
            ),
        ),
        (Guard("SELECT COUNT(*) FROM storage_pools WHERE id = ?", (pool_id,), ((1,),), "gone"),),
        TOPICS,
    )


# --- snapshots ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NewSnapshot:
    """What goes into the rows of a new snapshot; `expires_at` "" for never."""

    name: str
    description: str
    created_at: str
    expires_at: str
    config: Config


def create_snapshot(volume_id: int, node_id: int, new: NewSnapshot, *, phase: str = CREATING) -> Transaction:
    """Conflicts "gone", "busy" (the volume); a taken name is a UNIQUE error."""
    config = {**new.config, PHASE_KEY: phase} if phase else new.config
    return Transaction(
        (
            Statement(
                "INSERT INTO storage_volumes_snapshots (storage_volume_id, name, description, expiry_date,"
                " creation_date) VALUES (?, ?, ?, ?, ?) RETURNING id",
                (volume_id, new.name, new.description, new.expires_at or None, new.created_at),
            ),
            *(
                Statement(
                    "INSERT INTO storage_volumes_snapshots_config (storage_volume_snapshot_id, key, value) VALUES"
                    " ((SELECT id FROM storage_volumes_snapshots WHERE storage_volume_id = ? AND name = ?), ?, ?)",
                    (volume_id, new.name, k, v),
                )
                for k, v in sorted(config.items())
            ),
        ),
        (_here(volume_id, node_id),),
        TOPICS,
    )


def set_snapshot_phase(snapshot_id: int, old: str, new: str) -> Transaction:
    """Go from one phase to another. Conflicts "gone", "busy"."""
    statements = [
        Statement(
            "DELETE FROM storage_volumes_snapshots_config WHERE storage_volume_snapshot_id = ? AND key = ?",
            (snapshot_id, PHASE_KEY),
        )
    ]
    if new:
        statements.append(
            Statement(
                "INSERT INTO storage_volumes_snapshots_config (storage_volume_snapshot_id, key, value)"
                " VALUES (?, ?, ?)",
                (snapshot_id, PHASE_KEY, new),
            )
        )
    expected: tuple[tuple[Value, ...], ...] = ((old,),) if old else ()
    busy = Guard(
        "SELECT value FROM storage_volumes_snapshots_config WHERE storage_volume_snapshot_id = ? AND key = ?",
        (snapshot_id, PHASE_KEY),
        expected,
        "busy",
    )
    guards = (_snapshot_there(snapshot_id), busy)
    return Transaction(tuple(statements), guards, TOPICS, frees=new.startswith(DELETING))


def _snapshot_there(snapshot_id: int) -> Guard:
    return Guard("SELECT COUNT(*) FROM storage_volumes_snapshots WHERE id = ?", (snapshot_id,), ((1,),), "gone")


def update_snapshot(snapshot_id: int, description: str, expires_at: str) -> Transaction:
    """Conflict "gone"."""
    return Transaction(
        (
            Statement(
                "UPDATE storage_volumes_snapshots SET description = ?, expiry_date = ? WHERE id = ?",
                (description, expires_at or None, snapshot_id),
            ),
        ),
        (_snapshot_there(snapshot_id),),
        TOPICS,
    )


def rename_snapshot(snapshot_id: int, name: str) -> Transaction:
    """Conflict "gone"; a taken name is a UNIQUE error."""
    return Transaction(
        (Statement("UPDATE storage_volumes_snapshots SET name = ? WHERE id = ?", (name, snapshot_id)),),
        (_snapshot_there(snapshot_id),),
        TOPICS,
    )


def delete_snapshot(snapshot_id: int) -> Transaction:
    """The row goes; one that is gone is fine."""
    return Transaction(
        (Statement("DELETE FROM storage_volumes_snapshots WHERE id = ?", (snapshot_id,)),), topics=TOPICS
    )


# --- backups ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NewBackup:
    """What goes into the row of a new backup."""

    name: str
    created_at: str
    expires_at: str
    volume_only: bool
    optimized: bool


def create_backup(volume_id: int, node_id: int, new: NewBackup) -> Transaction:
    """Conflict "gone"; a taken name is a UNIQUE error."""
    return Transaction(
        (
            Statement(
                "INSERT INTO storage_volumes_backups (storage_volume_id, name, creation_date, expiry_date, volume_only,"
                " optimized_storage) VALUES (?, ?, ?, ?, ?, ?)",
                (
                    volume_id,
                    new.name,
                    new.created_at,
                    new.expires_at or None,
                    int(new.volume_only),
                    int(new.optimized),
                ),
            ),
        ),
        (_here(volume_id, node_id),),
        TOPICS,
    )


def delete_backup(volume_id: int, name: str) -> Transaction:
    """The row goes; one that is gone is fine."""
    return Transaction(
        (Statement("DELETE FROM storage_volumes_backups WHERE storage_volume_id = ? AND name = ?", (volume_id, name)),),
        topics=TOPICS,
    )


def rename_backup(volume_id: int, name: str, new: str) -> Transaction:
    """Conflict "gone"; a taken name is a UNIQUE error."""
    there = "SELECT COUNT(*) FROM storage_volumes_backups WHERE storage_volume_id = ? AND name = ?"
    return Transaction(
        (
            Statement(
                "UPDATE storage_volumes_backups SET name = ? WHERE storage_volume_id = ? AND name = ?",
                (new, volume_id, name),
            ),
        ),
        (Guard(there, (volume_id, name), ((1,),), "gone"),),
        TOPICS,
    )
