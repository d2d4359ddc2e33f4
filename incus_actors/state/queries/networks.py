"""Reads of managed networks (their creation is a later issue; the rows are those of Incus).

Owns the queries; services call them with a Database. Must never write.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from incus_actors.state.queries.storage import PoolState
from incus_actors.state.reader import Reader

TYPES: Final = {0: "bridge", 1: "macvlan", 2: "sriov", 3: "ovn", 4: "physical"}


@dataclass(frozen=True, slots=True)
class NetworkRow:
    """One managed network; `local` member id → its own keys; `members` ids that have it."""

    id: int
    name: str
    description: str
    type: str
    state: PoolState
    project: str
    config: dict[str, str]
    local: dict[int, dict[str, str]]
    members: tuple[int, ...]


def networks(db: Reader, project_id: int | None = None) -> list[NetworkRow]:
    """Return the networks of a project, or all, in order of name."""
    shared: dict[int, dict[str, str]] = {}
    local: dict[int, dict[int, dict[str, str]]] = {}
    for row in db.query("SELECT network_id, node_id, key, value FROM networks_config ORDER BY key"):
        if row[1] is None:
            shared.setdefault(row[0], {})[row[2]] = row[3]
        else:
            local.setdefault(row[0], {}).setdefault(row[1], {})[row[2]] = row[3]
    members: dict[int, list[int]] = {}
    for row in db.query("SELECT network_id, node_id FROM networks_nodes ORDER BY node_id"):
        members.setdefault(row[0], []).append(row[1])
    where, parameters = ("", ()) if project_id is None else (" WHERE n.project_id = ?", (project_id,))
    return [
        NetworkRow(
            id=row[0],
            name=row[1],
            description=row[2],
            type=TYPES.get(row[3], "bridge"),
            state=PoolState(row[4]),
            project=row[5],
            config=shared.get(row[0], {}),
            local=local.get(row[0], {}),
            members=tuple(members.get(row[0], ())),
        )
        for row in db.query(
            "SELECT n.id, n.name, n.description, n.type, n.state, p.name FROM networks n"
            f" JOIN projects p ON p.id = n.project_id{where} ORDER BY n.name",
            parameters,
        )
    ]
