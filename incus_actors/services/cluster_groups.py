"""Cluster groups: named sets of members that placement can be limited to.

Owns their rules with Incus' texts; rest/cluster_routes.py calls it. Must never leave a member without a group.
"""

from __future__ import annotations

from collections.abc import Mapping

from incus_actors.consensus.api import Consensus
from incus_actors.domain import transactions_members as members_tx
from incus_actors.domain.members import check_group_name
from incus_actors.errors import ApiError, BadRequestError, ConflictError, ForbiddenError, MemberError, NotFoundError
from incus_actors.identity import Identity
from incus_actors.model.cluster import ClusterGroup, ClusterGroupPost, ClusterGroupPut
from incus_actors.model.transaction import Transaction
from incus_actors.services.members import require_cluster
from incus_actors.state.queries import cluster as queries
from incus_actors.state.reader import Reader


class GroupsService:
    """Reads are synchronous; writes propose and raise ApiError."""

    def __init__(self, *, identity: Identity, consensus: Consensus, database: Reader) -> None:
        self._identity = identity
        self._consensus = consensus
        self._database = database

    def groups(self) -> list[ClusterGroup]:
        """Return all groups in order of name."""
        require_cluster(self._identity)
        return [
            ClusterGroup(description=g.description, members=list(g.members), name=g.name)
            for g in queries.groups(self._database)
        ]

    def get(self, name: str) -> ClusterGroup:
        """Return one group. Raises NotFoundError."""
        found = next((group for group in self.groups() if group.name == name), None)
        if found is None:
            raise NotFoundError("Cluster_group not found")
        return found

    async def create(self, post: ClusterGroupPost) -> None:
        """Create a group. Raises BadRequestError, MemberError (500: the name is taken)."""
        require_cluster(self._identity)
        check_group_name(post.name)
        members = self._known_members(post.members)
        outcome = await self._consensus.propose(members_tx.create_group(post.name, post.description, members))
        if not outcome.applied:
            raise MemberError(f'Failed to create "cluster_groups" entry: {outcome.error or outcome.label}')

    async def put(self, name: str, put: ClusterGroupPut) -> None:
        """Replace description and members. Raises NotFoundError, BadRequestError."""
        present = self.get(name)
        members = self._known_members(put.members)
        description = present.description if put.description is None else put.description
        self._check_not_groupless(name, members)
        await self._commit(
            members_tx.update_group(name, description, members), {"gone": NotFoundError("Cluster_group not found")}
        )

    async def patch(self, name: str, put: ClusterGroupPut) -> None:
        """Change what is given."""
        present = self.get(name)
        await self.put(
            name,
            ClusterGroupPut(
                description=put.description, members=present.members if put.members is None else put.members
            ),
        )

    async def rename(self, name: str, new: str) -> None:
        """Rename. Raises NotFoundError, ForbiddenError, ConflictError."""
        self.get(name)
        if name == "default":
            raise ForbiddenError('The "default" group cannot be renamed')
        check_group_name(new)
        await self._commit(
            members_tx.rename_group(name, new),
            {
                "gone": NotFoundError("Cluster_group not found"),
                "exists": ConflictError(f'Name "{new}" already in use'),
            },
        )

    async def delete(self, name: str) -> None:
        """Delete an empty group. Raises NotFoundError, ForbiddenError, MemberError."""
        if name == "default":
            raise ForbiddenError("The 'default' cluster group cannot be deleted")
        self.get(name)
        await self._commit(
            members_tx.delete_group(name),
            {
                "gone": NotFoundError("Cluster_group not found"),
                "not_empty": MemberError("Only empty cluster groups can be removed"),
            },
        )

    def _known_members(self, names: list[str] | None) -> list[str]:
        known = {facts.name for facts in queries.members(self._database)}
        for name in names or ():
            if name not in known:
                raise NotFoundError("Cluster member not found")
        return names or []

    def _check_not_groupless(self, group: str, kept: list[str]) -> None:
        for facts in queries.members(self._database):
            if facts.groups == (group,) and facts.name not in kept:
                raise BadRequestError("Cluster members need to belong to at least one group")

    async def _commit(self, transaction: Transaction, conflicts: Mapping[str, ApiError]) -> None:
        outcome = await self._consensus.propose(transaction)
        if outcome.label in conflicts:
            raise conflicts[outcome.label]
        if not outcome.applied:
            raise MemberError(outcome.error or f"The change was refused: {outcome.label}")
