"""Reads of managed networks: rows, the configuration of a member, who uses them.

Owns the queries; services and actors call them with a Database or a snapshot. Must never write.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from incus_actors.domain.networks import TYPE_NAMES
from incus_actors.domain.transactions_networks import ADDRESSES_SQL, HIDDEN_PREFIX, Rows
from incus_actors.state.reader import Reader


class NetworkState(IntEnum):
    """`networks.state` and `networks_nodes.state` (domain.transactions_networks)."""

    PENDING = 0
    CREATED = 1
    ERRORED = 2
    CREATING = 3
    DELETING = 4
    UNDOING = 5

    @property
    def label(self) -> str:
        """The word of the API."""
        if self is NetworkState.UNDOING:
            return "Errored"
        return "Pending" if self in (NetworkState.CREATING, NetworkState.DELETING) else self.name.capitalize()


@dataclass(frozen=True, slots=True)
class NetworkRow:
    """One managed network; `config` is the same everywhere; `local` member id → its own keys; `members` id → state."""

    id: int
    name: str
    description: str
    type: str
    state: NetworkState
    project: str
    config: dict[str, str]
    local: dict[int, dict[str, str]]
    members: dict[int, NetworkState]

    def config_on(self, member_id: int) -> dict[str, str]:
        """Return the whole configuration as one member has it, sorted, without what only we use."""
        found = {**self.config, **self.local.get(member_id, {})}
        return {key: found[key] for key in sorted(found) if not key.startswith(HIDDEN_PREFIX)}


def networks(db: Reader, project_id: int | None = None) -> list[NetworkRow]:
    """Return the networks of a project, or all, in order of name."""
    shared: dict[int, dict[str, str]] = {}
    local: dict[int, dict[int, dict[str, str]]] = {}
    for row in db.query("SELECT network_id, node_id, key, value FROM networks_config ORDER BY key"):
        if row[1] is None:
            shared.setdefault(row[0], {})[row[2]] = row[3]
        else:
            local.setdefault(row[0], {}).setdefault(row[1], {})[row[2]] = row[3]
    members: dict[int, dict[int, NetworkState]] = {}
    for row in db.query("SELECT network_id, node_id, state FROM networks_nodes ORDER BY node_id"):
        members.setdefault(row[0], {})[row[1]] = NetworkState(row[2])
    where, parameters = ("", ()) if project_id is None else (" WHERE n.project_id = ?", (project_id,))
    return [
        NetworkRow(
            id=row[0],
            name=row[1],
            description=row[2],
            type=TYPE_NAMES.get(row[3], "bridge"),
            state=NetworkState(row[4]),
            project=row[5],
            config=shared.get(row[0], {}),
            local=local.get(row[0], {}),
            members=members.get(row[0], {}),
        )
        for row in db.query(
            "SELECT n.id, n.name, n.description, n.type, n.state, p.name FROM networks n"
            f" JOIN projects p ON p.id = n.project_id{where} ORDER BY n.name",
            parameters,
        )
    ]


def network(db: Reader, name: str) -> NetworkRow | None:
    """Return one network by name. There are few, so reading them all costs nothing."""
    return next((row for row in networks(db) if row.name == name), None)


def network_by_id(db: Reader, network_id: int) -> NetworkRow | None:
    """Return one network by id."""
    return next((row for row in networks(db) if row.id == network_id), None)


def addresses(db: Reader) -> Rows:
    """Return what `transactions_networks.addresses_guard` compares."""
    return tuple(tuple(row) for row in db.query(ADDRESSES_SQL))


@dataclass(frozen=True, slots=True)
class NetworkUse:
    """Something that needs a network. `kind`: instance, profile or network."""

    kind: str
    name: str
    project: str


_BY_PROFILE = (
    "SELECT DISTINCT i.name, p.name FROM instances i JOIN projects p ON p.id = i.project_id"
    " JOIN instances_profiles a ON a.instance_id = i.id"
    " JOIN profiles_devices d ON d.profile_id = a.profile_id AND d.type = 1"
    " JOIN profiles_devices_config c ON c.profile_device_id = d.id AND c.key IN ('network', 'parent') AND c.value = ?"
    " WHERE NOT EXISTS (SELECT 1 FROM instances_devices o WHERE o.instance_id = i.id AND o.name = d.name)"
    " AND NOT EXISTS (SELECT 1 FROM instances_profiles b JOIN profiles_devices e ON e.profile_id = b.profile_id"
    " WHERE b.instance_id = i.id AND b.apply_order > a.apply_order AND e.name = d.name)"
    " ORDER BY p.name, i.name"
)


def uses(db: Reader, name: str) -> list[NetworkUse]:
    """Return the instances (by a device of their own or of a profile) and profiles with a nic on a network or on the
    interface of its name, and the networks that have it as their parent."""
    found = [NetworkUse("instance", row[0], row[1]) for row in db.query(_BY_PROFILE, (name,))]
    for kind in ("profile", "instance"):
        found += [
            NetworkUse(kind, row[0], row[1])
            for row in db.query(
                f"SELECT DISTINCT o.name, p.name FROM {kind}s o JOIN projects p ON p.id = o.project_id"
                f" JOIN {kind}s_devices d ON d.{kind}_id = o.id AND d.type = 1"
                f" JOIN {kind}s_devices_config c ON c.{kind}_device_id = d.id AND c.key IN ('network', 'parent')"
                " AND c.value = ? ORDER BY p.name, o.name",
                (name,),
            )
        ]
    found += [
        NetworkUse("network", row[0], row[1])
        for row in db.query(
            "SELECT DISTINCT n.name, p.name FROM networks n JOIN projects p ON p.id = n.project_id"
            " JOIN networks_config c ON c.network_id = n.id AND c.key = 'parent' AND c.value = ? ORDER BY n.name",
            (name,),
        )
    ]
    return list(dict.fromkeys(found))
