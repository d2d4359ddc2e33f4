"""Networks as users see them: managed ones from the database, the host's interfaces as unmanaged (CONTRACT 14).

Owns the reading side with Incus' texts; called by rest/network_routes.py. Creating and changing:
network_changes.py; leases: network_leases.py.
"""

from __future__ import annotations

from typing import Any, Final

from incus_actors.domain.project_rules import network_allowed
from incus_actors.errors import NotFoundError
from incus_actors.identity import Identity
from incus_actors.model.resources import Network
from incus_actors.services import interfaces
from incus_actors.services.project_guard import config_of
from incus_actors.services.urls import url_of
from incus_actors.state.queries import networks as queries
from incus_actors.state.queries.networks import NetworkRow, NetworkState, NetworkUse
from incus_actors.state.queries.projects import DEFAULT_PROJECT, ProjectRow, owner_of
from incus_actors.state.queries.storage import member_names
from incus_actors.state.reader import Reader

NOT_FOUND: Final = "Network not found"
NOT_LOADED: Final = "Failed loading network: Network not found"  #: what every request but a GET is told


class NetworkService:
    """Give it the Database; every call reads the latest state and this machine's interfaces."""

    def __init__(self, *, database: Reader, identity: Identity) -> None:
        self._database = database
        self._identity = identity

    # -- networks -----------------------------------------------------------------------------------------------------

    def list(self, project: str | None) -> list[Network]:
        """Return the networks of a project, or of all (None): managed first. Raises NotFoundError."""
        owner = None if project is None else self.owner(project)
        asking = {} if project is None else config_of(self._database, project)
        found = [self.shown(row) for row in queries.networks(self._database, owner.id if owner else None)]
        if owner is None or owner.name == DEFAULT_PROJECT:
            taken = {network.name for network in found}
            kinds = interfaces.kinds()
            found += [self._unmanaged(name, kinds[name]) for name in kinds if name not in taken and not _of_nic(name)]
        return [one for one in found if network_allowed(asking, one.name, managed=one.managed)]

    def get(self, project: str, name: str, target: str | None = None) -> Network:
        """Return one network, as the member `target` has it. Raises NotFoundError."""
        member_id = None if target is None else self.member_id(target)
        row = self._managed(self.owner(project), name)
        self._check_allowed(project, name, managed=row is not None)
        if row is not None:
            return self.shown(row, member_id)
        kinds = interfaces.kinds()
        if name not in kinds or self.owner(project).name != DEFAULT_PROJECT:
            raise NotFoundError(NOT_FOUND)
        return self._unmanaged(name, kinds[name])

    def is_managed(self, project: str, name: str) -> bool:
        """Return whether there is such a network in the database, the same on every member. Raises NotFoundError."""
        return self._managed(self.owner(project), name) is not None

    def row(self, project: str, name: str) -> NetworkRow:
        """Return a managed network. Raises NotFoundError "Failed loading network: …"."""
        owner = self.owner(project)
        self._check_allowed(project, name, managed=True)
        row = self._managed(owner, name)
        if row is None:
            raise NotFoundError(NOT_LOADED)
        return row

    def _managed(self, owner: ProjectRow, name: str) -> NetworkRow | None:
        rows = queries.networks(self._database, owner.id)
        return next((row for row in rows if row.name == name), None)

    def state(self, project: str, name: str) -> dict[str, Any]:
        """Return addresses and counters of the interface on this machine. Raises NotFoundError."""
        managed = self._managed(self.owner(project), name) is not None
        self._check_allowed(project, name, managed=managed)
        found = interfaces.state(name)
        if found is None:
            raise NotFoundError(f'Network interface "{name}" not found')
        return found

    def _check_allowed(self, project: str, name: str, *, managed: bool) -> None:
        """Raise NotFoundError for what a restricted project may not see."""
        if not network_allowed(config_of(self._database, project), name, managed=managed):
            raise NotFoundError(NOT_FOUND)

    def owner(self, project: str) -> ProjectRow:
        """Return the project whose networks `project` uses. Raises NotFoundError."""
        owner = owner_of(self._database, project, "networks")
        if owner is None:
            raise NotFoundError(f'Failed to load project "{project}": Project not found')
        return owner

    def member_id(self, name: str) -> int:
        """Return the id of a member. Raises NotFoundError "Cluster member not found"."""
        if not self._identity.clustered and name in {"none", self._identity.name}:
            return self._identity.member_id
        for member_id, member in member_names(self._database).items():
            if member == name:
                return member_id
        raise NotFoundError("Cluster member not found")

    def shown(self, row: NetworkRow, member_id: int | None = None) -> Network:
        """Return a row as users see it: of all members, or with what is one member's own."""
        names = member_names(self._database)
        if member_id is None and not self._identity.clustered:
            member_id = self._identity.member_id
            state: NetworkState | None = row.state
        else:
            state = row.state if member_id is None else row.members.get(member_id)
        return Network(
            config=row.config_on(-1 if member_id is None else member_id),
            description=row.description,
            name=row.name,
            type=row.type,
            used_by=used_by(self._database, row.name),
            managed=True,
            status="Unknown" if state is None else state.label,
            locations=[names[id_] for id_ in row.members if id_ in names],
            project=row.project,
        )

    def _unmanaged(self, name: str, kind: str) -> Network:
        return Network(
            config={},
            description="",
            name=name,
            type=kind,
            used_by=used_by(self._database, name),
            managed=False,
            status="",
            locations=None,
            project=DEFAULT_PROJECT,
        )


def used_by(database: Reader, name: str) -> list[str]:
    """Return the URLs of what needs a network."""
    return sorted(_url(use) for use in queries.uses(database, name))


def _of_nic(name: str) -> bool:
    """Whether an interface is the host's end of an instance's nic: those are listed with the instance."""
    return name.startswith("veth")


def _url(use: NetworkUse) -> str:
    kind = {"instance": "instances", "profile": "profiles"}.get(use.kind, "networks")
    return url_of(kind, use.name, project=use.project)
