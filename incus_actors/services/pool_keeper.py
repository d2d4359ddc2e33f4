"""Makes this member's share of every pool what the rows say it shall be.

Owns the way from `storage_pools_nodes.state` to the machine, through the StorageActor; called by StoragePoolService,
by joins, and by itself when rows change. Everything can be repeated after a crash; must never remove a share that is
not marked for it.
"""

from __future__ import annotations

import asyncio
import logging
import posixpath
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from incus_actors.actors.ref import ActorRef
from incus_actors.actors.storage_messages import CreatePool, DeletePool, PoolUsage, UpdatePool
from incus_actors.consensus.api import Consensus
from incus_actors.domain import transactions_storage as transactions
from incus_actors.drivers.base import PoolSpec, Usage
from incus_actors.errors import ApiError, MemberError
from incus_actors.identity import Identity
from incus_actors.services.absence import peer_failed
from incus_actors.services.member_wait import MemberWait
from incus_actors.services.proposing import TransactionConflictError, propose
from incus_actors.state.database import Database
from incus_actors.state.queries import storage as queries
from incus_actors.state.queries.cluster import member_address
from incus_actors.state.queries.storage import PoolRow, PoolState
from incus_actors.tasks import spawn

_log = logging.getLogger(__name__)

GIVEN: Final = transactions.GIVEN_PREFIX
MADE: Final = transactions.MADE_KEY
MEMBERS_S: Final = 10.0  #: so long the other members have for their shares
_HIDDEN_PREFIX: Final = "volatile.actors."


class PoolBackend(Protocol):
    """The machine's side of pools. Every call may be repeated."""

    async def create(self, pool: PoolSpec) -> Mapping[str, str]:
        """Make it; return its config with the defaults filled in. Raises ApiError."""

    async def update(self, pool: PoolSpec, old: Mapping[str, str]) -> None:
        """Make a changed config true. Raises ApiError."""

    async def delete(self, pool: PoolSpec) -> None:
        """Remove it. Raises ApiError."""

    async def usage(self, pool: PoolSpec) -> Usage:
        """Return its space and inodes. Raises ApiError."""


class StorageActorPools:
    """PoolBackend through this member's StorageActor."""

    def __init__(self, storage: ActorRef, *, deadline_s: float = 60.0) -> None:
        self._storage = storage
        self._deadline_s = deadline_s

    async def create(self, pool: PoolSpec) -> Mapping[str, str]:
        """See PoolBackend."""
        made: Mapping[str, str] = await self._storage.ask(CreatePool(pool), deadline_s=self._deadline_s)
        return made

    async def update(self, pool: PoolSpec, old: Mapping[str, str]) -> None:
        """See PoolBackend."""
        await self._storage.ask(UpdatePool(pool, old), deadline_s=self._deadline_s)

    async def delete(self, pool: PoolSpec) -> None:
        """See PoolBackend."""
        await self._storage.ask(DeletePool(pool), deadline_s=self._deadline_s)

    async def usage(self, pool: PoolSpec) -> Usage:
        """See PoolBackend."""
        found: Usage = await self._storage.ask(PoolUsage(pool), deadline_s=self._deadline_s)
        return found


def visible(config: Mapping[str, str]) -> dict[str, str]:
    """Return a pool's config without what only we use."""
    return {key: value for key, value in config.items() if not key.startswith(_HIDDEN_PREFIX)}


class PoolKeeper:
    """`drivers` are the names of the kinds of pools that work here, `reasons` why others don't."""

    def __init__(
        self,
        *,
        consensus: Consensus,
        database: Database,
        identity: Identity,
        backend: PoolBackend,
        drivers: frozenset[str],
        reasons: Mapping[str, str] | None = None,
        members_s: float = MEMBERS_S,
    ) -> None:
        self.drivers = drivers
        self.reasons = reasons or {}
        self._consensus = consensus
        self._database = database
        self._identity = identity
        self._backend = backend
        self._members = MemberWait(consensus=consensus, database=database, topic="storage", members_s=members_s)
        self._working = asyncio.Lock()
        self._unsubscribe: Callable[[], None] | None = None
        self._known: dict[int, Mapping[str, str]] = {}  #: pool id → our config of it, as the machine has it

    # -- following the rows -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Finish what a crash interrupted, and follow the rows from now on."""
        self._changed()
        self._unsubscribe = self._consensus.subscribe_applied(self._applied)
        spawn(self._catch_up(), name="pools")

    def stop(self) -> None:
        """Follow no more."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None

    def _applied(self, _index: int, topics: frozenset[str]) -> None:
        if "storage" in topics and (self._marked() or self._changed()):
            spawn(self._catch_up(), name="pools")

    def _changed(self) -> list[PoolRow]:
        """Return the pools whose config isn't what the machine has; the first look only takes note."""
        changed = []
        for row in queries.pools(self._database):
            if self._state(row) is PoolState.CREATED and row.state is PoolState.CREATED:
                config = visible(row.config_on(self._identity.member_id))
                if self._known.setdefault(row.id, config) != config:
                    changed.append(row)
        return changed

    def _state(self, row: PoolRow) -> PoolState | None:
        return row.members.get(self._identity.member_id)

    def _marked(self) -> list[PoolRow]:
        """Return the pools of which this member has to make or remove its share."""
        wanted = (PoolState.CREATING, PoolState.DELETING, PoolState.UNDOING)
        return [row for row in queries.pools(self._database) if self._state(row) in wanted]

    async def _catch_up(self) -> None:
        for row in self._marked():
            try:
                if self._state(row) is PoolState.CREATING:
                    await self.make(row)
                elif self._state(row) is PoolState.UNDOING:
                    await self._undo(row)
                else:
                    await self._remove(row)
            except ApiError as error:
                _log.error("storage pool %s: %s", row.name, error)
        for row in self._changed():
            old, config = self._known[row.id], visible(row.config_on(self._identity.member_id))
            self._known[row.id] = config
            try:
                await self.change(row, config, old)
            except ApiError as error:
                _log.error("storage pool %s doesn't follow its configuration: %s", row.name, error)

    async def change(self, row: PoolRow, config: Mapping[str, str], old: Mapping[str, str]) -> None:
        """Make a changed config of our share true, before or after it is recorded. Raises ApiError."""
        await self._backend.update(PoolSpec(row.name, row.driver, config), old)

    async def own_pools_ready(self) -> None:
        """Make this member's share of every pool that the rows say it has (after a join). Raises ApiError."""
        async with self._working:
            for row in queries.pools(self._database):
                if self._state(row) is PoolState.CREATED:
                    await self._make_now(row)
        await self._catch_up()

    # -- one share ----------------------------------------------------------------------------------------------------

    async def make(self, row: PoolRow) -> None:
        """Make our share. Raises ApiError with the driver's reason, which is also noted for other members."""
        async with self._working:
            current = self._current(row.id)
            if current is None or self._is_made(current):
                return
            if self._state(current) is PoolState.ERRORED:
                raise MemberError(self._reason(current, self._identity.member_id))
            try:
                self._check_source(current)
                await self._make_now(current)
            except ApiError as error:
                await self._note(current, str(error))
                raise

    def _check_source(self, row: PoolRow) -> None:
        """Raise MemberError if another pool has the same source here: an empty pool looks like an unfinished one."""
        member_id = self._identity.member_id
        source = row.config_on(member_id).get("source", "")
        for other in queries.pools(self._database):
            theirs = other.config_on(member_id).get("source", "")
            if source and theirs and other.id != row.id and posixpath.normpath(theirs) == posixpath.normpath(source):
                raise MemberError(f"Source path '{source}' isn't empty: it is storage pool \"{other.name}\"")

    def _is_made(self, row: PoolRow) -> bool:
        """Return whether our share is there and recorded. When all shares are and the pool isn't, a member that had to
        make one has left: to record ours once more completes the pool."""
        others_to_come = any(state is not PoolState.CREATED for state in row.members.values())
        return self._state(row) is PoolState.CREATED and (row.state is PoolState.CREATED or others_to_come)

    async def _make_now(self, row: PoolRow) -> None:
        member_id = self._identity.member_id
        made = await self._backend.create(self._spec(row))
        own = row.local.get(member_id, {})
        local = {key: made[key] for key in sorted(made) if key not in row.config}
        if MADE in own or self._state(row) is not PoolState.CREATING:
            hidden = {key: value for key, value in own.items() if key == MADE or key.startswith(GIVEN)}
        elif not self._identity.clustered:
            hidden = {}  # alone, a pool that can't be made is forgotten
        else:
            hidden = {MADE: "true", **{f"{GIVEN}{key}": value for key, value in visible(own).items()}}
        local = dict(sorted({**local, **hidden}.items()))
        done = self._state(row) is PoolState.CREATED and row.state is PoolState.CREATED
        if not done or local != own:
            try:
                await propose(self._consensus, transactions.pool_made(row.id, row.name, {member_id: local}))
            except TransactionConflictError:
                _log.info("storage pool %s is not wanted any more", row.name)  # its mark says what to do about it

    async def _undo(self, row: PoolRow) -> None:
        """Take our share back: the second phase failed elsewhere. Raises ApiError with the driver's reason."""
        async with self._working:
            current = self._current(row.id)
            if current is None or self._state(current) is not PoolState.UNDOING:
                return
            own = current.local.get(self._identity.member_id, {})
            given = {key.removeprefix(GIVEN): value for key, value in own.items() if key.startswith(GIVEN)}
            try:
                await self._backend.delete(self._spec(current))
            except ApiError as error:
                await self._note(current, str(error))
                raise
            kept = given if MADE in own else visible(own)
            try:
                await propose(
                    self._consensus,
                    transactions.pool_undone(current.id, current.name, self._identity.member_id, kept),
                )
            except TransactionConflictError:
                _log.info("storage pool %s is wanted again already", row.name)

    async def _remove(self, row: PoolRow) -> None:
        async with self._working:
            current = self._current(row.id)
            if current is None or self._state(current) is not PoolState.DELETING:
                return
            try:
                await self._backend.delete(self._spec(current))
            except ApiError as error:
                await self._note(current, str(error))
                raise
            try:
                await propose(self._consensus, transactions.pool_removed(row.id, self._identity.member_id))
            except TransactionConflictError:
                _log.info("storage pool %s is gone already", row.name)

    async def _note(self, row: PoolRow, reason: str) -> None:
        member_id = self._identity.member_id
        state = row.members.get(member_id, PoolState.PENDING)
        try:
            await propose(self._consensus, transactions.pool_failed(row.id, row.name, member_id, state, reason))
        except TransactionConflictError:
            _log.info("storage pool %s is gone, or something else is to be done about it: %s", row.name, reason)

    async def usage(self, row: PoolRow) -> Usage:
        """Return space and inodes of our share. Raises ApiError."""
        return await self._backend.usage(self._spec(row))

    def _spec(self, row: PoolRow) -> PoolSpec:
        return PoolSpec(row.name, row.driver, visible(row.config_on(self._identity.member_id)))

    def _current(self, pool_id: int) -> PoolRow | None:
        with self._database.snapshot() as moment:  # states and reasons of one moment: entries are applied meanwhile
            return next((row for row in queries.pools(moment) if row.id == pool_id), None)

    def _reason(self, row: PoolRow, member_id: int) -> str:
        return row.local.get(member_id, {}).get(transactions.ERROR_KEY, "Storage pool is in an error state")

    # -- all shares ---------------------------------------------------------------------------------------------------

    async def made_everywhere(self, pool_id: int, name: str) -> None:
        """Return once every member has its share. Raises MemberError with the first reason why not."""
        row = self._current(pool_id)
        if row is not None:
            await self.make(row)
        await self._until(pool_id, PoolState.CREATED)

    async def undone_everywhere(self, pool_id: int, *, forget: bool) -> None:
        """Have every member take its share back, ours at once; return when all that answer in time have.

        What can't be taken back is Errored; members that are away do it when they return.
        """
        try:
            await propose(self._consensus, transactions.undo_pool(pool_id, forget=forget))
        except TransactionConflictError as conflict:
            _log.info("storage pool %d is not undone: %s", pool_id, conflict.label)
            return
        row = self._current(pool_id)
        try:
            if row is not None:
                await (self._remove(row) if forget else self._undo(row))
            await self._until(pool_id, None if forget else PoolState.PENDING)
        except ApiError as error:
            _log.warning("storage pool %d is not undone on every member: %s", pool_id, error)

    async def removed_everywhere(self, pool_id: int, name: str) -> None:
        """Return once no member has a share, and the pool is gone. Raises MemberError."""
        row = self._current(pool_id)
        if row is not None and row.members:
            await self._remove(row)
        elif row is not None:  # every member that had a share has left the cluster
            await propose(self._consensus, transactions.forget_pool(pool_id))
        await self._until(pool_id, None)

    async def _until(self, pool_id: int, wanted: PoolState | None) -> None:
        await self._members.until(lambda: self._missing(pool_id, wanted))

    def _missing(self, pool_id: int, wanted: PoolState | None) -> list[int] | None:
        """Return the members whose shares are not in this state yet, None when the whole pool is (None: when it is
        gone). Raises MemberError when a member has failed."""
        row = self._current(pool_id)
        if row is None:
            if wanted is None:
                return None
            raise MemberError("Storage pool not found")
        failed = [id_ for id_, state in row.members.items() if state is PoolState.ERRORED]
        if failed:
            reason = self._reason(row, failed[0])
            if failed[0] != self._identity.member_id:
                raise peer_failed(member_address(self._database, failed[0]), reason)
            raise MemberError(reason)
        missing = [id_ for id_, state in row.members.items() if state is not wanted]
        return None if wanted is not None and row.state is wanted and not missing else missing
