"""Members as a user sees and changes them.

Owns listing (roles from the live consensus configuration, status from heartbeats), updates, renames, member state
and removal; rest/cluster_routes.py calls it. Must never contact an offline member on a read path.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass

from incus_actors.actors.heartbeat import HeartbeatTable
from incus_actors.actors.host_facts import read_host_facts
from incus_actors.actors.leader import leader_ref
from incus_actors.actors.leader_messages import HandOver, Nudge, RemoveMember, RemoveRaftNode
from incus_actors.actors.system import ActorSystem
from incus_actors.consensus.api import Consensus
from incus_actors.domain import transactions_members as members_tx
from incus_actors.domain.members import (
    MemberFacts,
    assigned_roles,
    check_member_put,
    go_duration,
    shown_roles,
    shown_status,
)
from incus_actors.domain.placement import Candidate
from incus_actors.errors import (
    ApiError,
    BadRequestError,
    ConflictError,
    MemberError,
    NotFoundError,
    UnavailableError,
)
from incus_actors.identity import Identity
from incus_actors.model import architectures
from incus_actors.model.cluster import (
    ClusterMember,
    ClusterMemberPatch,
    ClusterMemberPut,
    ClusterMemberState,
    SystemInfo,
)
from incus_actors.model.transaction import Outcome, Transaction
from incus_actors.services.addresses import normalise
from incus_actors.services.cluster import check_member_name
from incus_actors.state.queries import cluster as queries
from incus_actors.state.reader import Reader
from incus_actors.transport.address import AddressError, parse_address

REMOVE_DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True)
class RemovedMember:
    """What a gateway needs to tell a removed server to reset itself."""

    member_id: int
    name: str
    address: str
    online: bool


class MembersService:
    """Reads are synchronous; writes propose and raise ApiError. `version`: schema and API extensions of this daemon."""

    def __init__(
        self,
        *,
        identity: Identity,
        consensus: Consensus,
        database: Reader,
        heartbeats: HeartbeatTable,
        actors: ActorSystem,
        version: tuple[int, int],
    ) -> None:
        self._identity = identity
        self._consensus = consensus
        self._database = database
        self._heartbeats = heartbeats
        self._actors = actors
        self._version = version

    # -- members --------------------------------------------------------------------------------------------------

    def members(self) -> list[ClusterMember]:
        """Return all members in order of id. Raises BadRequestError if this server is standalone."""
        require_cluster(self._identity)
        facts = queries.members(self._database)
        return self._shown(facts)

    def get(self, name: str) -> ClusterMember:
        """Return one member. Raises NotFoundError."""
        require_cluster(self._identity)
        facts = queries.members(self._database)
        return self._shown([_find(facts, name)])[0]

    def id_of(self, name: str) -> int:
        """Return a member's id. Raises NotFoundError."""
        require_cluster(self._identity)
        found = queries.member_id(self._database, name)
        if found is None:
            raise NotFoundError("Cluster member not found")
        return found

    def online(self, member_id: int) -> bool:
        """Return whether the member was heard of within cluster.offline_threshold."""
        threshold_s = queries.settings(self._database).offline_threshold_s
        return self._heartbeats.online(member_id, self._identity.member_id, threshold_s)

    def candidates(self) -> list[Candidate]:
        """Return every full member as placement sees it (domain.placement.choose takes these)."""
        threshold_s = queries.settings(self._database).offline_threshold_s
        own = self._identity.member_id
        counts = queries.instance_counts(self._database)
        return [
            Candidate(
                member_id=facts.id,
                name=facts.name,
                instances=counts.get(facts.id, 0),
                online=self._heartbeats.online(facts.id, own, threshold_s),
                state=facts.state,
                architectures=frozenset(architectures.runnable(architectures.name_of(facts.architecture))),
                groups=frozenset(facts.groups),
                scheduler=facts.config.get("scheduler.instance") or "all",
            )
            for facts in queries.members(self._database)
        ]

    def _shown(self, wanted: list[MemberFacts]) -> list[ClusterMember]:
        status = self._consensus.status()
        raft_roles = {member.id: member.role.value for member in status.configuration.target}
        threshold_s = queries.settings(self._database).offline_threshold_s
        own = self._identity.member_id
        running = self._running(own)
        newest = max(running.values())
        found = []
        for facts in wanted:
            roles, stores = shown_roles(facts.id, facts.roles, raft_roles, status.leader)
            sighting = self._heartbeats.sighting(facts.id, own)
            shown, message = shown_status(running.get(facts.id, newest), facts.state, sighting, threshold_s, newest)
            found.append(
                ClusterMember(
                    roles=roles,
                    failure_domain=facts.failure_domain,
                    description=facts.description,
                    config=dict(facts.config),
                    groups=list(facts.groups),
                    server_name=facts.name,
                    url=f"https://{facts.address}",
                    database=stores,
                    status=shown,
                    message=message,
                    architecture=architectures.name_of(facts.architecture),
                )
            )
        return found

    def _running(self, own: int) -> dict[int, tuple[int, int]]:
        """Return schema and API extensions of every daemon that we have heard: what the rows say is of when it joined."""
        beats = [health.beat for health in self._heartbeats.view().values() if health.beat is not None]
        return {beat.member_id: (beat.schema, beat.api_extensions) for beat in beats} | {own: self._version}

    async def put(self, name: str, put: ClusterMemberPut) -> None:
        """Replace what can be changed. Raises NotFoundError, BadRequestError, MemberError."""
        require_cluster(self._identity)
        facts = _find(queries.members(self._database), name)
        raft_roles = {member.id: member.role.value for member in self._consensus.status().configuration.target}
        groups = {group.name for group in queries.groups(self._database)}
        check_member_put(put, stores_as_voter=raft_roles.get(facts.id) == "voter", groups=groups)
        await self._commit(
            members_tx.update_member(
                facts.id,
                description=put.description,
                failure_domain=put.failure_domain or "default",
                config=put.config or {},
                roles=assigned_roles(put.roles),
                groups=put.groups or [],
            ),
            {"gone": NotFoundError("Cluster member not found")},
        )

    async def patch(self, name: str, patch: ClusterMemberPatch) -> None:
        """Change what is given; config keys are merged. Raises as `put`."""
        present = self.get(name)
        await self.put(
            name,
            ClusterMemberPut(
                roles=present.roles if patch.roles is None else patch.roles,
                failure_domain=present.failure_domain if patch.failure_domain is None else patch.failure_domain,
                description=present.description if patch.description is None else patch.description,
                config={**present.config, **(patch.config or {})},
                groups=present.groups if patch.groups is None else patch.groups,
            ),
        )

    async def rename(self, name: str, new: str) -> None:
        """Give a member another name. Raises NotFoundError, ConflictError if the name is taken."""
        require_cluster(self._identity)
        check_member_name(new)
        facts = _find(queries.members(self._database), name)
        await self._commit(
            members_tx.rename_member(facts.id, name, new),
            {"exists": ConflictError("Conflict"), "gone": NotFoundError("Cluster member not found")},
        )

    async def state(self) -> ClusterMemberState:
        """Return this member's own system information and pools."""
        host = read_host_facts()
        sources = queries.pool_sources(self._database, self._identity.member_id)
        return ClusterMemberState(
            sysinfo=SystemInfo(
                uptime=host.uptime_s,
                load_averages=list(host.load),
                total_ram=host.total_ram,
                free_ram=host.free_ram,
                shared_ram=host.shared_ram,
                buffered_ram=host.buffered_ram,
                total_swap=host.total_swap,
                free_swap=host.free_swap,
                processes=host.processes,
            ),
            storage_pools=await asyncio.to_thread(_pool_usage, sources),
        )

    # -- removal --------------------------------------------------------------------------------------------------

    async def other_remover(self, name: str) -> int | None:
        """Return the member that must be asked instead if `name` is this one: nobody can answer for its own
        removal. If we lead, leadership goes to somebody else first. Raises UnavailableError."""
        if not self._identity.clustered or name != self._identity.name:
            return None
        if len(queries.members(self._database)) == 1:
            return None  # refused anyway
        if self._consensus.status().leader == self._identity.member_id:
            await leader_ref(self._actors, self._consensus).ask(HandOver(), deadline_s=REMOVE_DEADLINE_S)
        deadline = asyncio.get_running_loop().time() + REMOVE_DEADLINE_S
        while self._consensus.status().leader in (0, self._identity.member_id):
            if asyncio.get_running_loop().time() > deadline:
                raise UnavailableError("Leadership could not be handed over: no other member can take it now")
            await asyncio.sleep(0.05)
        return self._consensus.status().leader

    async def remove(self, name: str, *, force: bool) -> RemovedMember:
        """Take a member out of the cluster. Graceful: it must be empty and online.

        Raises NotFoundError, MemberError (500, with Incus' texts).
        """
        require_cluster(self._identity)
        everyone = queries.members(self._database)
        facts = _find(everyone, name)
        if len(everyone) == 1:
            raise MemberError("Member is the only member in the cluster")
        if facts.id == self._identity.member_id:
            raise MemberError("Another member must be asked to remove this one")
        online = self.online(facts.id)
        if not force:
            self._check_empty(facts)
            if not online:
                raise MemberError(
                    f"Failed to connect to {facts.address}: the member is offline",
                    remedy=f"incus cluster remove {name} --force",
                )
        deadline = asyncio.get_running_loop().time() + REMOVE_DEADLINE_S
        wish = RemoveMember(facts.id, name, graceful=not force)
        while True:
            try:
                await leader_ref(self._actors, self._consensus).ask(wish, deadline_s=REMOVE_DEADLINE_S)
                break
            except ConflictError as error:
                raise MemberError(str(error)) from error
            except ApiError as error:
                if error.status != 503 or asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(0.2)
                if queries.member_state(self._database, facts.id) is None:
                    break
        return RemovedMember(facts.id, name, facts.address, online)

    async def remove_raft_node(self, address: str) -> None:
        """Take a node out of the Raft configuration by its address: that of the API, or host:port of the transport
        for one that the tables don't know. Without a port 8443 is meant. Raises BadRequestError, NotFoundError,
        ApiError."""
        wanted = normalise(address)
        known = {facts.id: facts.address for facts in queries.members(self._database, pending=True)}
        found = None
        for member in self._consensus.status().configuration.members().values():
            if wanted == known.get(member.id) or (member.id not in known and address in _dialled(member.address)):
                found = member.id
        if found is None:
            raise NotFoundError(f'No raft node with address "{address}"')
        deadline = asyncio.get_running_loop().time() + REMOVE_DEADLINE_S
        while found in self._consensus.status().configuration.members():
            try:
                await leader_ref(self._actors, self._consensus).ask(RemoveRaftNode(found), deadline_s=REMOVE_DEADLINE_S)
                return
            except UnavailableError:
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(0.2)

    def _check_empty(self, facts: MemberFacts) -> None:
        for what, found in (
            ("instances", queries.instances_of(self._database, facts.id)),
            ("images", queries.images_only_on(self._database, facts.id)),
            ("custom volumes", queries.custom_volumes_of(self._database, facts.id)),
        ):
            if found:
                raise MemberError(f"Node still has the following {what}: {', '.join(found)}")

    # -- shared ---------------------------------------------------------------------------------------------------

    async def _commit(self, transaction: Transaction, conflicts: Mapping[str, ApiError]) -> Outcome:
        outcome = await self._consensus.propose(transaction)
        if outcome.label in conflicts:
            raise conflicts[outcome.label]
        if not outcome.applied:
            raise MemberError(outcome.error or f"The change was refused: {outcome.label}")
        self._nudge()
        return outcome

    def _nudge(self) -> None:
        """Have the leader look at failure domains and roles now; it would in a second anyway."""
        leader = self._consensus.status().leader
        if leader:
            self._actors.ref("leader/work", member=leader).tell(Nudge())


def offline_threshold_s(database: Reader) -> int:
    """Return cluster.offline_threshold; its default while there is nothing to read."""
    try:
        return queries.settings(database).offline_threshold_s
    except UnavailableError:
        return queries.ClusterSettings().offline_threshold_s


def why_offline(database: Reader, heartbeats: HeartbeatTable, member_id: int, own: int) -> str:
    """Return why a member counts as offline, "" if it doesn't; for whoever would wait for it in vain."""
    sighting = heartbeats.sighting(member_id, own)
    if sighting.age_s <= offline_threshold_s(database):
        return ""
    name = database.scalar("SELECT name FROM nodes WHERE id = ?", (member_id,)) or f"member {member_id}"
    return f"cluster member {name} is offline, no heartbeat for {go_duration(int(sighting.age_s) * 10**9)}"


def require_cluster(identity: Identity) -> None:
    """Raise BadRequestError while this server is standalone."""
    if not identity.clustered:
        raise BadRequestError("This server is not clustered")


def _dialled(address: str) -> set[str]:
    """What an operator may call a raft node that only the transport knows."""
    try:
        peer = parse_address(address)
    except AddressError:
        return {address}
    return {peer.host, f"{peer.host}:{peer.control_port}", f"[{peer.host}]:{peer.control_port}"}


def _find(facts: list[MemberFacts], name: str) -> MemberFacts:
    found = next((member for member in facts if member.name == name), None)
    if found is None:
        raise NotFoundError("Cluster member not found")
    return found


def _pool_usage(sources: Mapping[str, str]) -> dict[str, dict[str, dict[str, int]]]:
    usage = {}
    for pool, source in sources.items():
        try:
            stat = os.statvfs(source)
        except OSError:
            continue  # not there on this machine: a warning of the storage service's says so
        usage[pool] = {
            "space": {"used": (stat.f_blocks - stat.f_bfree) * stat.f_frsize, "total": stat.f_blocks * stat.f_frsize},
            "inodes": {"used": stat.f_files - stat.f_ffree, "total": stat.f_files},
        }
    return usage
