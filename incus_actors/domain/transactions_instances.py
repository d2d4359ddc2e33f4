"""Transactions about instances: create, mark, update, rename, delete.

Owns the statements and their guards (DESIGN D2); called by services and InstanceActor. Pure and deterministic:
times come in as RFC 3339 text, new ids are found by name inside the transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from incus_actors.domain.instance_config import HIDDEN_PREFIX, PHASE_KEY
from incus_actors.domain.instances import DEVICE_TYPES
from incus_actors.domain.placement import eligible_guard
from incus_actors.model.transaction import Guard, Statement, Transaction, Value

ADDRESSES_TAKEN = "addresses"  #: the conflict of `holders_guard`
TOPICS = ("instances",)

Config = Mapping[str, str]
Devices = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class NewInstance:
    """What goes into the rows of a new instance. `profile_ids` in order of application."""

    name: str
    project_id: int
    volume_project_id: int
    node_id: int
    pool_id: int
    architecture: int
    ephemeral: bool
    stateful: bool
    description: str
    created_at: str
    config: Config
    devices: Devices
    profile_ids: Sequence[int]


def create(new: NewInstance) -> Transaction:
    """Return the rows of `new`, marked as being created. Statement 0 returns the id.

    Conflicts: "placement" (evacuated or gone), "profile" (one is gone), "pool". A taken name is the error
    "UNIQUE constraint failed: instances.project_id, instances.name".
    """
    guards = [
        eligible_guard(new.node_id),
        Guard(
            "SELECT COUNT(*) FROM storage_pools_nodes WHERE storage_pool_id = ? AND node_id = ? AND state = 1",
            (new.pool_id, new.node_id),
            ((1,),),
            "pool",
        ),
        *_profiles_exist(new.profile_ids),
    ]
    key: tuple[Value, ...] = (new.project_id, new.name)
    statements = [
        Statement(
            "INSERT INTO instances (node_id, name, architecture, type, ephemeral, creation_date, stateful,"
            " last_use_date, description, project_id) VALUES (?, ?, ?, 0, ?, ?, ?, NULL, ?, ?) RETURNING id",
            (
                new.node_id,
                new.name,
                new.architecture,
                int(new.ephemeral),
                new.created_at,
                int(new.stateful),
                new.description,
                new.project_id,
            ),
        ),
        *_insert_settings(_BY_NAME, key, {**new.config, PHASE_KEY: "creating"}, new.devices, new.profile_ids),
        Statement(
            "INSERT INTO storage_volumes (name, storage_pool_id, node_id, type, project_id, creation_date)"
            " VALUES (?, ?, ?, 0, ?, ?)",
            (new.name, new.pool_id, new.node_id, new.volume_project_id, new.created_at),
        ),
    ]
    return Transaction(tuple(statements), tuple(guards), (*TOPICS, "storage"))


_BY_NAME = "(SELECT id FROM instances WHERE project_id = ? AND name = ?)"
_BY_ID = "?"


def _profiles_exist(profile_ids: Sequence[int]) -> list[Guard]:
    if not profile_ids:
        return []
    marks = ", ".join("?" * len(profile_ids))
    return [
        Guard(
            f"SELECT COUNT(*) FROM profiles WHERE id IN ({marks})",
            tuple(profile_ids),
            ((len(profile_ids),),),
            "profile",
        )
    ]


def _insert_settings(
    instance: str, key: tuple[Value, ...], config: Config, devices: Devices, profile_ids: Iterable[int]
) -> list[Statement]:
    """Return the inserts below an instance; `instance` is SQL for its id and `key` the parameters of that."""
    statements = [
        Statement(f"INSERT INTO instances_config (instance_id, key, value) VALUES ({instance}, ?, ?)", (*key, k, v))
        for k, v in sorted(config.items())
        if v
    ]
    for name, device in sorted(devices.items()):
        kind = DEVICE_TYPES[device["type"]]
        statements.append(
            Statement(
                f"INSERT INTO instances_devices (instance_id, name, type) VALUES ({instance}, ?, ?)", (*key, name, kind)
            )
        )
        statements.extend(
            Statement(
                "INSERT INTO instances_devices_config (instance_device_id, key, value) VALUES"
                f" ((SELECT id FROM instances_devices WHERE instance_id = {instance} AND name = ?), ?, ?)",
                (*key, name, option, value),
            )
            for option, value in sorted(device.items())
            if option != "type"
        )
    statements.extend(
        Statement(
            f"INSERT INTO instances_profiles (instance_id, profile_id, apply_order) VALUES ({instance}, ?, ?)",
            (*key, profile_id, order),
        )
        for order, profile_id in enumerate(profile_ids, start=1)
    )
    return statements


def _here(instance_id: int, node_id: int) -> Guard:
    """The instance still exists and still belongs to the member that writes about it."""
    return Guard("SELECT node_id FROM instances WHERE id = ?", (instance_id,), ((node_id,),), "moved")


def set_keys(
    instance_id: int, node_id: int, keys: Mapping[str, str | None], *, last_used_at: str | None = None
) -> Transaction:
    """Return the change of single config keys by the host (None or "" removes). Conflict "moved".

    That an instance has ended is taken on a low disk, too: `incus delete --force` stops it first.
    """
    statements: list[Statement] = []
    for key, value in sorted(keys.items()):
        if value:
            statements.append(
                Statement(
                    "INSERT INTO instances_config (instance_id, key, value) VALUES (?, ?, ?)"
                    " ON CONFLICT (instance_id, key) DO UPDATE SET value = excluded.value",
                    (instance_id, key, value),
                )
            )
        else:
            statements.append(
                Statement("DELETE FROM instances_config WHERE instance_id = ? AND key = ?", (instance_id, key))
            )
    if last_used_at is not None:
        statements.append(Statement("UPDATE instances SET last_use_date = ? WHERE id = ?", (last_used_at, instance_id)))
    ended = keys.get("volatile.last_state.power") == "STOPPED"
    return Transaction(tuple(statements), (_here(instance_id, node_id),), TOPICS, frees=ended)


def set_phase(instance_id: int, node_id: int, old: str, new: str) -> Transaction:
    """Return the step from one phase to another ("" is: nothing under way). Conflicts "moved", "phase"."""
    expected: tuple[tuple[Value, ...], ...] = ((old,),) if old else ()
    guard = Guard(
        "SELECT value FROM instances_config WHERE instance_id = ? AND key = ?",
        (instance_id, PHASE_KEY),
        expected,
        "phase",
    )
    step = set_keys(instance_id, node_id, {PHASE_KEY: new})
    return Transaction(step.statements, (*step.guards, guard), TOPICS, frees=new == "deleting")


@dataclass(frozen=True, slots=True)
class InstanceChange:
    """The whole writable part after a PUT or PATCH. `config` holds no hidden key."""

    architecture: int
    ephemeral: bool
    stateful: bool
    description: str
    config: Config
    devices: Devices
    profile_ids: Sequence[int]


def fingerprint_guard(instance_id: int, expected: tuple[tuple[Value, ...], ...]) -> Guard:
    """Return the guard "nobody has changed the settings meanwhile"; `expected` as `fingerprint_rows` reads it."""
    return Guard(FINGERPRINT_SQL, (instance_id, instance_id, instance_id, instance_id), expected, "etag")


def holders_sql(count: int) -> str:
    """Return the query of (instance id, address) of all that have one of `count` static addresses, themselves or from a
    profile. Its parameters are the addresses, and the addresses again."""
    having = f"c.key IN ('ipv4.address', 'ipv6.address', 'hwaddr') AND c.value IN ({', '.join('?' * count)})"
    return (
        "SELECT d.instance_id, c.value FROM instances_devices_config c"
        f" JOIN instances_devices d ON d.id = c.instance_device_id WHERE {having}"
        " UNION SELECT u.instance_id, c.value FROM profiles_devices_config c"
        " JOIN profiles_devices d ON d.id = c.profile_device_id"
        f" JOIN instances_profiles u ON u.profile_id = d.profile_id WHERE {having} ORDER BY 1, 2"
    )


def holders_guard(addresses: Sequence[str], holders: tuple[tuple[Value, ...], ...]) -> Guard:
    """Return the guard "nobody has been given one of these addresses meanwhile"; `holders` as `holders_sql` reads."""
    return Guard(holders_sql(len(addresses)), (*addresses, *addresses), holders, ADDRESSES_TAKEN)


#: Everything that a PUT replaces, as one list of rows.
FINGERPRINT_SQL = (
    "SELECT 'c' AS kind, key AS a, value AS b FROM instances_config WHERE instance_id = ?"
    f" AND key NOT LIKE '{HIDDEN_PREFIX}%'"
    " UNION ALL SELECT 'd', d.name || '/' || IFNULL(c.key, ''), IFNULL(c.value, '') FROM instances_devices d"
    " LEFT JOIN instances_devices_config c ON c.instance_device_id = d.id WHERE d.instance_id = ?"
    " UNION ALL SELECT 'p', CAST(profile_id AS TEXT), CAST(apply_order AS TEXT) FROM instances_profiles"
    " WHERE instance_id = ?"
    " UNION ALL SELECT 'i', description, ephemeral || '/' || stateful || '/' || architecture FROM instances"
    " WHERE id = ? ORDER BY kind, a, b"
)


def update(instance_id: int, node_id: int, change: InstanceChange, guards: Sequence[Guard] = ()) -> Transaction:
    """Return the replacement of everything a user may change. Conflicts: "moved", "profile", those of `guards`."""
    statements = [
        Statement(
            "UPDATE instances SET architecture = ?, ephemeral = ?, stateful = ?, description = ? WHERE id = ?",
            (change.architecture, int(change.ephemeral), int(change.stateful), change.description, instance_id),
        ),
        Statement(
            f"DELETE FROM instances_config WHERE instance_id = ? AND key NOT LIKE '{HIDDEN_PREFIX}%'", (instance_id,)
        ),
        Statement("DELETE FROM instances_devices WHERE instance_id = ?", (instance_id,)),
        Statement("DELETE FROM instances_profiles WHERE instance_id = ?", (instance_id,)),
        *_insert_settings(_BY_ID, (instance_id,), change.config, change.devices, change.profile_ids),
    ]
    all_guards = (_here(instance_id, node_id), *_profiles_exist(change.profile_ids), *guards)
    return Transaction(tuple(statements), all_guards, TOPICS)


def rename(instance_id: int, node_id: int, old_name: str, new_name: str, volume_project_id: int) -> Transaction:
    """Return the rename of an instance and its volume. Conflict "moved"; a taken name is a UNIQUE error."""
    return Transaction(
        (
            Statement("UPDATE instances SET name = ? WHERE id = ?", (new_name, instance_id)),
            Statement(
                "UPDATE storage_volumes SET name = ? WHERE name = ? AND type = 0 AND project_id = ? AND node_id = ?",
                (new_name, old_name, volume_project_id, node_id),
            ),
        ),
        (_here(instance_id, node_id),),
        (*TOPICS, "storage"),
    )


def delete(instance_id: int, node_id: int, name: str, volume_project_id: int) -> Transaction:
    """Return the removal of all rows of an instance. Conflict "moved" (somebody else has it, or it is gone)."""
    return Transaction(
        (
            Statement("DELETE FROM instances WHERE id = ?", (instance_id,)),
            Statement(
                "DELETE FROM storage_volumes WHERE name = ? AND type = 0 AND project_id = ? AND node_id = ?",
                (name, volume_project_id, node_id),
            ),
        ),
        (_here(instance_id, node_id),),
        (*TOPICS, "storage"),
    )
