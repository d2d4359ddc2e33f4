"""Work that only the leader does: accepting and removing members, roles, expiry, cleaning up.

Owns LeaderActor (one term long, a child of leadership.py's; everything that it commits is fenced by that term, so a
deposed leader's work is refused). Services reach it by `leader_ref`. Must never keep anything that the next leader would
need: all of it is in the database.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import msgspec

from incus_actors.actors.actor import Actor
from incus_actors.actors.heartbeat import HeartbeatTable
from incus_actors.actors.leader_messages import (
    Accepted,
    AcceptMember,
    HandOver,
    MoveMember,
    Nudge,
    RemoveMember,
    RemoveRaftNode,
    ReplaceMember,
)
from incus_actors.actors.ref import ActorRef
from incus_actors.actors.system import ActorSystem
from incus_actors.consensus.api import Consensus
from incus_actors.consensus.configuration import encode_configuration
from incus_actors.consensus.policy import MemberHealth, PlanPacer, leaves_a_majority, plan, swapped, voter_ids, without
from incus_actors.consensus.types import Configuration, Member, RaftRole, Role
from incus_actors.domain import transactions_cluster as cluster_tx
from incus_actors.domain import transactions_members as members_tx
from incus_actors.domain.members import parse_rfc3339_ns
from incus_actors.errors import ApiError, ConflictError, ForbiddenError, MemberError, UnavailableError
from incus_actors.model.cluster import MemberConfigKey
from incus_actors.model.transaction import Outcome, Transaction
from incus_actors.state.queries import cluster as queries
from incus_actors.state.reader import Reader

log = logging.getLogger(__name__)

PATH = "leader"
WORK = "work"
PLACEMENT = "placement"
TICK_S = 1.0
PENDING_GRACE_S = 120.0  #: a join without any sign of life for this long is undone
ORPHAN_GRACE_S = 3600.0  #: an interactive join has this long between using its token and joining
CHANGE_DEADLINE_S = 15.0
READY_WITHIN_S = 2.0  #: an heir may need this long to show that it is up to date


class Tick(msgspec.Struct, frozen=True):
    """A second has passed."""


@dataclass(frozen=True)
class LeaderTools:
    """What the leader's actors work with."""

    consensus: Consensus
    database: Reader
    heartbeats: HeartbeatTable
    wall_ns: Callable[[], int] = time.time_ns
    monotonic_s: Callable[[], float] = time.monotonic
    tick_s: float = TICK_S


def leader_ref(system: ActorSystem, consensus: Consensus, *, child: str = WORK) -> ActorRef:
    """Return the reference of the present LeaderActor, or of another `child` of its parent.

    Raises UnavailableError if no leader is known.
    """
    leader = consensus.status().leader
    if not leader:
        raise UnavailableError("The cluster has no leader at the moment", remedy="Look at `incus cluster list`.")
    return system.ref(f"{PATH}/{child}", member=leader)


class LeaderActor(Actor):
    """The leader's chores in one term, one at a time."""

    def __init__(self, tools: LeaderTools, term: int) -> None:
        self._tools = tools
        self._term = term
        self._began_s = tools.monotonic_s()
        self._pacer = PlanPacer()
        self._pending_since: dict[int, float] = {}
        self._orphans_since: dict[str, float] = {}
        self._unsubscribe: Callable[[], None] | None = None

    async def started(self) -> None:
        """Begin to tick, and look at once when members change."""
        own = self.context.self_ref
        self.context.tell_every(self._tools.tick_s, Tick())

        def told(_index: int, topics: frozenset[str]) -> None:
            if "members" in topics:
                own.tell(Tick())

        self._unsubscribe = self._tools.consensus.subscribe_applied(told)

    async def stopped(self, reason: str) -> None:
        """Listen no more."""
        if self._unsubscribe is not None:
            self._unsubscribe()

    async def receive(self, message: object) -> object:
        """Accept, remove, tick."""
        match message:
            case AcceptMember():
                return await self._accept(message)
            case ReplaceMember():
                return await self._replace(message)
            case RemoveMember():
                await self._remove(message)
            case RemoveRaftNode():
                await self._remove_raft_node(message.member_id)
            case MoveMember():
                await self._move(message)
            case HandOver():
                await self._hand_over()
            case Tick() | Nudge():
                await self._chores()
            case _:
                return self.unhandled(message)
        return None

    # -- joining and leaving --------------------------------------------------------------------------------------

    async def _accept(self, wish: AcceptMember) -> Accepted:
        tools = self._tools
        newcomer = cluster_tx.Newcomer(
            server=cluster_tx.TrustedServer(wish.name, wish.fingerprint, wish.certificate),
            address=wish.address,
            core_address=wish.core_address or wish.address,
            architecture=wish.architecture,
            schema=wish.schema,
            api_extensions=wish.api_extensions,
            storage_root=wish.storage_root,
            member_config=tuple(
                MemberConfigKey(entity=entity, name=name, key=key, value=value)
                for entity, name, key, value in wish.member_config
            ),
        )
        outcome = await tools.consensus.propose(
            cluster_tx.accept(
                newcomer,
                token_uuid=wish.token_uuid or None,
                pools=queries.pool_names(tools.database),
                now=wish.now,
                fence_term=self._term,
            )
        )
        _check_accepted(outcome, wish)
        member_id = cluster_tx.accepted_id(outcome)
        added = Member(member_id, wish.transport, Role.SPARE)
        try:
            target = await self._change(lambda members: (*self._with_rows(members), added))
        except ApiError:
            await self._propose_quietly(
                members_tx.remove_member(member_id, wish.name, only_pending=True, fence_term=self._term)
            )
            raise
        tools.heartbeats.watch(member_id)
        status = tools.consensus.status()
        known = status.configuration if member_id in status.configuration.members() else Configuration(target)
        log.info("accepted %s as member %d", wish.name, member_id)
        return Accepted(member_id, status.cluster_id, status.epoch, encode_configuration(known))

    async def _replace(self, wish: ReplaceMember) -> Accepted:
        """The burnt id leaves and the new one comes in one step; it becomes a voter again by the usual rule."""
        tools = self._tools
        found = queries.member(tools.database, wish.name)
        if found is None:
            raise ForbiddenError(f"There is no member {wish.name} in this cluster any more")
        if any(peer.id == found.id and peer.link for peer in tools.consensus.status().peers):
            raise UnavailableError(f"Member {wish.name} is still connected under its old id; ask again")
        outcome = await tools.consensus.propose(
            members_tx.replace_member(
                found.id,
                wish.name,
                version=(wish.schema, wish.api_extensions),
                now=wish.now,
                fence_term=self._term,
            )
        )
        if not outcome.applied:
            raise UnavailableError(f"Member {wish.name} can't be replaced now: {outcome.label or outcome.error}")
        member_id = cluster_tx.accepted_id(outcome)
        added = Member(member_id, wish.transport, Role.SPARE, found.failure_domain)
        target = await self._change(lambda members: self._swapped(members, found.id, added))
        tools.heartbeats.watch(member_id)
        status = tools.consensus.status()
        known = status.configuration if member_id in status.configuration.members() else Configuration(target)
        log.warning(
            "%s has forgotten what it promised as member %d: it is member %d now", wish.name, found.id, member_id
        )
        return Accepted(member_id, status.cluster_id, status.epoch, encode_configuration(known))

    async def _remove(self, wish: RemoveMember) -> None:
        tools = self._tools
        if wish.member_id == tools.consensus.member_id and not wish.only_pending:
            await self._hand_over()
            raise UnavailableError("The leader hands over before it leaves; ask again")
        transaction = members_tx.remove_member(
            wish.member_id, wish.name, only_pending=wish.only_pending, fence_term=self._term
        )
        if wish.graceful:
            guards = (*transaction.guards, *members_tx.removal_guards(wish.member_id))
            transaction = replace(transaction, guards=guards)
        self._check_majority(wish.member_id)
        outcome = await tools.consensus.propose(transaction)
        if not outcome.applied:
            raise ConflictError(f"Member {wish.name} can't be removed: {outcome.label or outcome.error}")
        await self._change(self._with_rows)
        log.info("removed member %d (%s)", wish.member_id, wish.name)

    def _check_majority(self, member_id: int) -> None:
        """Before a member is forgotten in the database: see that the voters without it can go on."""
        status = self._tools.consensus.status()
        members = status.configuration.target
        if not leaves_a_majority(members, self._without(members, {member_id}), self._health(), status.member_id):
            raise UnavailableError("Too few of the other voters of the database answer: they can't go on without it")

    async def _move(self, wish: MoveMember) -> None:
        """Only the member itself says where it listens."""
        if self.context.sender_member != wish.member_id:
            raise ForbiddenError
        await self._change(
            lambda members: tuple(replace(m, address=wish.transport) if m.id == wish.member_id else m for m in members)
        )
        log.info("member %d has moved", wish.member_id)

    async def _remove_raft_node(self, member_id: int) -> None:
        if member_id == self._tools.consensus.member_id:
            await self._hand_over()
            raise UnavailableError("The leader hands over before it leaves; ask again")

        def without(members: tuple[Member, ...]) -> tuple[Member, ...]:
            left = self._without(members, {member_id})
            if not voter_ids(left):
                raise ConflictError("The last voter of the database can't be removed")
            return left

        await self._change(without)
        log.info("removed member %d from the raft configuration", member_id)

    async def _hand_over(self) -> None:
        """Give leadership away; with nobody else to vote (two members) the other one gets a vote first."""
        consensus = self._tools.consensus
        status = consensus.status()
        if voter_ids(status.configuration.old) == {status.member_id}:
            heir = await self._ready_heir()
            await self._change(
                lambda members: tuple(replace(m, role=Role.VOTER) if m.id == heir else m for m in members)
            )
        await consensus.transfer_leadership()

    async def _ready_heir(self) -> int:
        deadline = self._tools.monotonic_s() + READY_WITHIN_S
        while True:
            ready = {m: health.lag for m, health in self._health().items() if health.caught_up}
            if ready:
                return min(ready, key=lambda member: (ready[member], member))
            if self._tools.monotonic_s() > deadline:
                raise UnavailableError("No other member is up to date enough to take over")
            await asyncio.sleep(0.05)

    def _with_rows(self, members: tuple[Member, ...]) -> tuple[Member, ...]:
        """Leave out those that the database does not know any more."""
        known = {facts.id for facts in queries.members(self._tools.database, pending=True)}
        return self._without(members, {member.id for member in members} - known)

    def _without(self, members: tuple[Member, ...], gone: Collection[int]) -> tuple[Member, ...]:
        return without(members, gone, self._health(), queries.settings(self._tools.database).max_voters)

    def _swapped(self, members: tuple[Member, ...], burnt: int, newcomer: Member) -> tuple[Member, ...]:
        settings = queries.settings(self._tools.database)
        return self._with_rows(swapped(members, burnt, newcomer, self._health(), settings.max_voters))

    def _health(self) -> dict[int, MemberHealth]:
        """Return the health of the others whose join has ended: nobody else may stand by or vote."""
        joined = {facts.id for facts in queries.members(self._tools.database)}
        return {m: health for m, health in self._tools.consensus.status().health().items() if m in joined}

    async def _change(self, edit: Callable[[tuple[Member, ...]], tuple[Member, ...]]) -> tuple[Member, ...]:
        """Change the configuration, waiting for one that is in flight. Raises UnavailableError."""
        deadline = self._tools.monotonic_s() + CHANGE_DEADLINE_S
        while True:
            target = tuple(sorted(edit(self._tools.consensus.status().configuration.target), key=lambda m: m.id))
            try:
                await self._tools.consensus.change_configuration(target)
            except ConflictError as error:
                if self._tools.monotonic_s() > deadline:
                    raise UnavailableError(str(error)) from error
                await asyncio.sleep(0.05)
            except ForbiddenError as error:
                raise UnavailableError("The leader has just changed; ask again") from error
            else:
                return target

    # -- once a second --------------------------------------------------------------------------------------------

    async def _chores(self) -> None:
        for chore in (self._expire_tokens, self._drop_stale_joins, self._drop_orphans, self._roles):
            try:
                await chore()
            except ApiError as error:  # the next tick tries again; a lost term ends this actor anyway
                log.warning("leader: %s: %s", chore.__name__.strip("_"), error)

    async def _expire_tokens(self) -> None:
        now = self._tools.wall_ns()
        gone = [
            token.uuid
            for kind in ("join", "certificate")
            for token in queries.tokens(self._tools.database, kind)
            if token.expires_at and not token.expires_at.startswith("0001") and parse_rfc3339_ns(token.expires_at) < now
        ]
        if gone:
            await self._tools.consensus.propose(cluster_tx.delete_tokens(gone, fence_term=self._term))

    async def _drop_stale_joins(self) -> None:
        now = self._tools.monotonic_s()
        alive = {peer.id for peer in self._tools.consensus.status().peers if peer.link}
        pending = queries.pending_members(self._tools.database)
        kept = {member_id: self._pending_since.get(member_id, now) for member_id, _, _ in pending}
        self._pending_since = {m: now if m in alive else since for m, since in kept.items()}
        for member_id, name, _ in pending:
            if now - self._pending_since[member_id] > PENDING_GRACE_S:
                log.warning("the join of %s (member %d) never ended: undoing it", name, member_id)
                await self._remove(RemoveMember(member_id, name, only_pending=True))

    async def _drop_orphans(self) -> None:
        now = self._tools.monotonic_s()
        found = queries.orphan_certificates(self._tools.database)
        self._orphans_since = {f: self._orphans_since.get(f, now) for f in found}
        old = [f for f, since in self._orphans_since.items() if now - since > ORPHAN_GRACE_S]
        if old:
            await self._tools.consensus.propose(cluster_tx.forget_certificates(old, fence_term=self._term))

    async def _roles(self) -> None:
        tools = self._tools
        status = tools.consensus.status()
        if status.configuration.joint or status.role is not RaftRole.LEADER:
            return
        facts = {f.id: f for f in queries.members(tools.database, pending=True)}
        old, now_ms = status.configuration.old, int(tools.monotonic_s() * 1000)
        if len(facts) <= 1 and len(old) <= 1:
            return
        known = self._without(old, {m.id for m in old} - facts.keys() - {status.member_id})
        target = tuple(replace(m, domain=facts[m.id].failure_domain) if m.id in facts else m for m in known)
        settings = queries.settings(tools.database)
        wanted = plan(
            Configuration(target, removed=status.configuration.removed),
            self._health(),
            settings.max_voters,
            settings.max_standby,
            leader=status.member_id,
            offline_after_ms=settings.offline_threshold_s * 1000,
        )
        if wanted is None or not self._pacer.may_go(old, wanted, now_ms, int(self._began_s * 1000)):
            wanted = target
        if wanted == old:
            return
        await tools.consensus.change_configuration(wanted)
        self._pacer.went(old, wanted, now_ms)
        if voter_ids(wanted) != voter_ids(old):
            log.info("voters are now %s", sorted(voter_ids(wanted)))

    async def _propose_quietly(self, transaction: Transaction) -> None:
        """Try to clean up; what stays is found by `_drop_stale_joins`."""
        try:
            await self._tools.consensus.propose(transaction)
        except ApiError as error:
            log.warning("leader: cleaning up must wait: %s", error)


def _check_accepted(outcome: Outcome, wish: AcceptMember) -> None:
    if outcome.applied:
        return
    match outcome.label:
        case "name":
            raise MemberError(f"The cluster already has a member with name: {wish.name}")
        case "address":
            raise MemberError(f"The cluster already has a member with address: {wish.address}")
        case "token":
            raise ForbiddenError("No matching cluster join operation found")
        case "standalone":
            raise MemberError("This server is not clustered", status=400)
        case "fence":
            raise UnavailableError("The leader has just changed; ask again")
    raise MemberError(f"Failed to add the member: {outcome.error or outcome.label}")
