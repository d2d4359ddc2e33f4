"""Networks, read only so far: managed ones from the database, the host's interfaces as unmanaged (CONTRACT 14).

Owns how they are listed; called by rest/network_routes.py. Creating networks is issue 4.
"""

from __future__ import annotations

from typing import Any

from incus_actors.errors import NotFoundError
from incus_actors.identity import Identity
from incus_actors.model.resources import Network
from incus_actors.services import interfaces
from incus_actors.services.urls import url_of
from incus_actors.state.queries import networks as queries
from incus_actors.state.queries.networks import NetworkRow
from incus_actors.state.queries.projects import DEFAULT_PROJECT, ProjectRow, owner_of
from incus_actors.state.queries.storage import member_names
from incus_actors.state.reader import Reader


class NetworkService:
    """Give it the Database; every call reads the latest state and this machine's interfaces."""

    def __init__(self, *, database: Reader, identity: Identity) -> None:
        self._database = database
        self._identity = identity

    def list(self, project: str | None) -> list[Network]:
        """Return the networks of a project, or of all (None): managed first. Raises NotFoundError."""
        owner = None if project is None else self._owner(project)
        found = [self._managed(row) for row in queries.networks(self._database, owner.id if owner else None)]
        if owner is None or owner.name == DEFAULT_PROJECT:
            taken = {network.name for network in found}
            found += [_unmanaged(name) for name in interfaces.names() if name not in taken]
        return found

    def get(self, project: str, name: str) -> Network:
        """Return one network. Raises NotFoundError."""
        for network in self.list(project):
            if network.name == name:
                return network
        raise NotFoundError("Network not found")

    def state(self, project: str, name: str) -> dict[str, Any]:
        """Return addresses and counters of the interface on this machine. Raises NotFoundError."""
        self._owner(project)
        found = interfaces.state(name)
        if found is None:
            raise NotFoundError(f'Network interface "{name}" not found')
        return found

    def _owner(self, project: str) -> ProjectRow:
        owner = owner_of(self._database, project, "networks")
        if owner is None:
            raise NotFoundError(f'Failed to load project "{project}": Project not found')
        return owner

    def _managed(self, row: NetworkRow) -> Network:
        names = member_names(self._database)
        config = dict(row.config)
        if not self._identity.clustered:
            config.update(row.local.get(self._identity.member_id, {}))
        return Network(
            config=dict(sorted(config.items())),
            description=row.description,
            name=row.name,
            type=row.type,
            used_by=_used_by(self._database, row.name),
            managed=True,
            status=row.state.label,
            locations=[names[id_] for id_ in row.members if id_ in names],
            project=row.project,
        )


def _used_by(database: Reader, network: str) -> list[str]:
    used = []
    for kind in ("profile", "instance"):
        used += [
            url_of(f"{kind}s", found[0], project=found[1])
            for found in database.query(
                f"SELECT DISTINCT o.name, p.name FROM {kind}s o JOIN projects p ON p.id = o.project_id"
                f" JOIN {kind}s_devices d ON d.{kind}_id = o.id AND d.type = 1"
                f" JOIN {kind}s_devices_config c ON c.{kind}_device_id = d.id AND c.key = 'network' AND c.value = ?"
                " ORDER BY p.name, o.name",
                (network,),
            )
        ]
    return sorted(used)


def _unmanaged(name: str) -> Network:
    return Network(
        config={},
        description="",
        name=name,
        type=interfaces.kind(name),
        used_by=[],
        managed=False,
        status="",
        locations=None,
        project=DEFAULT_PROJECT,
    )
