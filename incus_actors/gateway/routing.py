"""Which member must answer? By ?target=, by the place of an instance, by the member id in an operation's UUID.

Owns these look-ups in the state database. Called by the REST middleware and handlers after the read barrier; it must
never ask the network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from incus_actors.errors import NotFoundError, UnavailableError
from incus_actors.model.config_values import is_true

if TYPE_CHECKING:
    from incus_actors.state.reader import Reader


class Routing:
    """`database()` and `member_id()` are asked anew each time: a join replaces both."""

    def __init__(self, *, database: Callable[[], Reader], member_id: Callable[[], int]) -> None:
        self._database = database
        self._member_id = member_id

    def is_here(self, member_id: int) -> bool:
        """Return whether `member_id` is this member."""
        return member_id == self._member_id()

    def member_named(self, name: str) -> int:
        """Return the id of a member. Raises NotFoundError "Cluster member not found"."""
        found = self._database().scalar("SELECT id FROM nodes WHERE name = ?", (name,))
        if found is None:
            raise NotFoundError("Cluster member not found")
        return int(found)

    def name_of(self, member_id: int) -> str | None:
        """Return the name of a member, None if there is no such member."""
        found = self._database().scalar("SELECT name FROM nodes WHERE id = ?", (member_id,))
        return None if found is None else str(found)

    def address_of(self, member_id: int) -> str | None:
        """Return "host:port" of a member's API, None if there is no such member."""
        found = self._database().scalar("SELECT address FROM nodes WHERE id = ?", (member_id,))
        return None if found is None else str(found)

    def instance_location(self, project: str, name: str) -> int:
        """Return the id of the member that has an instance. Raises NotFoundError "Instance not found"."""
        found = self._database().scalar(
            "SELECT i.node_id FROM instances i JOIN projects p ON p.id = i.project_id WHERE p.name = ? AND i.name = ?",
            (project, name),
        )
        if found is None:
            raise NotFoundError("Instance not found")
        return int(found)

    def owning_project(self, project: str, feature: str) -> str:
        """Return the project whose things `project` uses: itself if it has `feature`, else the default one."""
        value = self._database().scalar(
            "SELECT c.value FROM projects_config c JOIN projects p ON p.id = c.project_id WHERE p.name = ? AND c.key = ?",
            (project, feature),
        )
        return project if is_true(value) else "default"

    def others(self) -> dict[int, str]:
        """Return id → name of every other member; empty while standalone, and while a join exchanges the database."""
        own = self._member_id()
        try:
            rows = self._database().query("SELECT id, name FROM nodes")
        except UnavailableError:
            return {}
        return {int(id_): str(name) for id_, name in rows if id_ != own}
