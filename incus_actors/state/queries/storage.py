"""Reads of storage pools: rows, configuration of a member, who uses them.

Owns the queries; services and actors call them with a Database or a snapshot. Must never write.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from incus_actors.state.reader import Reader


class PoolState(IntEnum):
    """`storage_pools.state` and `storage_pools_nodes.state` (domain.transactions_storage)."""

    PENDING = 0
    CREATED = 1
    ERRORED = 2
    CREATING = 3
    DELETING = 4
    UNDOING = 5

    @property
    def label(self) -> str:
        """The word of the API."""
        return "Pending" if self in _PENDING else self.name.capitalize()


_PENDING = (PoolState.CREATING, PoolState.DELETING, PoolState.UNDOING)

VOLUME_TYPES = {0: "container", 1: "image", 2: "custom", 3: "virtual-machine"}


@dataclass(frozen=True, slots=True)
class PoolRow:
    """One pool. `config` is the same everywhere; `local` member id → its own keys; `members` id → state."""

    id: int
    name: str
    driver: str
    description: str
    state: PoolState
    config: dict[str, str]
    local: dict[int, dict[str, str]]
    members: dict[int, PoolState]

    def config_on(self, member_id: int) -> dict[str, str]:
        """Return the whole configuration as one member has it, sorted."""
        return dict(sorted({**self.config, **self.local.get(member_id, {})}.items()))


@dataclass(frozen=True, slots=True)
class PoolUse:
    """Something that needs a pool. `kind`: container, virtual-machine, image, custom or profile; member_id None: no
    certain member's."""

    kind: str
    name: str
    project: str
    member_id: int | None


def pools(db: Reader) -> list[PoolRow]:
    """Return all pools in order of name."""
    shared: dict[int, dict[str, str]] = {}
    local: dict[int, dict[int, dict[str, str]]] = {}
    for row in db.query("SELECT storage_pool_id, node_id, key, value FROM storage_pools_config ORDER BY key"):
        if row[1] is None:
            shared.setdefault(row[0], {})[row[2]] = row[3]
        else:
            local.setdefault(row[0], {}).setdefault(row[1], {})[row[2]] = row[3]
    members: dict[int, dict[int, PoolState]] = {}
    for row in db.query("SELECT storage_pool_id, node_id, state FROM storage_pools_nodes ORDER BY node_id"):
        members.setdefault(row[0], {})[row[1]] = PoolState(row[2])
    return [
        PoolRow(
            id=row["id"],
            name=row["name"],
            driver=row["driver"],
            description=row["description"],
            state=PoolState(row["state"]),
            config=shared.get(row["id"], {}),
            local=local.get(row["id"], {}),
            members=members.get(row["id"], {}),
        )
        for row in db.query("SELECT id, name, driver, description, state FROM storage_pools ORDER BY name")
    ]


def pool(db: Reader, name: str) -> PoolRow | None:
    """Return one pool. There are few, so reading them all costs nothing."""
    return next((row for row in pools(db) if row.name == name), None)


def pool_uses(db: Reader, pool_id: int, name: str) -> list[PoolUse]:
    """Return what is in a pool or names it: volumes of every type, and profiles with a disk on it."""
    found = [
        PoolUse(VOLUME_TYPES.get(row[0], "custom"), row[1], row[2], row[3])
        for row in db.query(
            "SELECT v.type, v.name, p.name, v.node_id FROM storage_volumes v JOIN projects p ON p.id = v.project_id"
            " WHERE v.storage_pool_id = ? ORDER BY v.type, p.name, v.name, v.node_id",
            (pool_id,),
        )
    ]
    found += [
        PoolUse("profile", row[0], row[1], None)
        for row in db.query(
            "SELECT DISTINCT f.name, p.name FROM profiles f JOIN projects p ON p.id = f.project_id"
            " JOIN profiles_devices d ON d.profile_id = f.id AND d.type = 2"
            " JOIN profiles_devices_config c ON c.profile_device_id = d.id AND c.key = 'pool' AND c.value = ?"
            " ORDER BY p.name, f.name",
            (name,),
        )
    ]
    return found


def member_names(db: Reader) -> dict[int, str]:
    """Return id → name of all members, joining ones too."""
    return {row[0]: row[1] for row in db.query("SELECT id, name FROM nodes ORDER BY id")}
