"""Storage pools: define, make on every member, show, change, delete (CONTRACT 13).

Owns the rules with Incus' texts; called by rest/storage_routes.py. Rows say what is wanted, and each member makes or
removes its own share when it sees that (`PoolKeeper`), so that a crash in between is only a delay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from incus_actors.consensus.api import Consensus
from incus_actors.domain import transactions_storage as transactions
from incus_actors.errors import ApiError, BadRequestError, ConflictError, MemberError, NotFoundError
from incus_actors.identity import Identity
from incus_actors.model import config_keys
from incus_actors.model.resources import Amount, Pool, PoolPut, PoolResources, PoolsPost
from incus_actors.services import project_guard
from incus_actors.services.absence import peer_down
from incus_actors.services.pool_keeper import PoolKeeper, visible
from incus_actors.services.proposing import (
    DuplicateError,
    Expect,
    TransactionConflictError,
    propose,
    until_unchanged,
)
from incus_actors.services.urls import url_of
from incus_actors.state.queries import storage as queries
from incus_actors.state.queries.cluster import member_address
from incus_actors.state.queries.storage import PoolRow, PoolState, PoolUse
from incus_actors.state.reader import Reader

Config = Mapping[str, str]

_NOT_FOUND = "Storage pool not found"
_IN_USE = "The storage pool is currently in use"


class StoragePoolService:
    """`keeper` makes and removes this member's shares; `online` tells whether a member was heard of lately. In every
    method `target` is a member's name."""

    def __init__(
        self,
        *,
        consensus: Consensus,
        database: Reader,
        identity: Identity,
        keeper: PoolKeeper,
        online: Callable[[int], bool] = lambda _member_id: True,
    ) -> None:
        self._online = online
        self._consensus = consensus
        self._database = database
        self._identity = identity
        self._keeper = keeper

    # -- reading ------------------------------------------------------------------------------------------------------

    def list(self, project: str = "default") -> list[Pool]:
        """Return all pools that a project may see; in a cluster without what is one member's own."""
        hidden = project_guard.hidden_pools(self._database, project)
        return [self._shown(row, None) for row in queries.pools(self._database) if row.name not in hidden]

    def get(self, name: str, target: str | None = None) -> Pool:
        """Return one pool, as `target` has it. Raises NotFoundError."""
        member_id = None if target is None else self._member_id(target)
        return self._shown(self._row(name), member_id)

    async def resources(self, name: str) -> PoolResources:
        """Return space and inodes of this member's share. Raises MemberError (500, as Incus)."""
        row = queries.pool(self._database, name)
        if row is None:
            raise MemberError(_NOT_FOUND)
        usage = await self._keeper.usage(row)
        return PoolResources(
            space=Amount(used=usage.used_bytes, total=usage.total_bytes),
            inodes=Amount(used=usage.used_inodes, total=usage.total_inodes),
        )

    def _row(self, name: str) -> PoolRow:
        row = queries.pool(self._database, name)
        if row is None:
            raise NotFoundError(_NOT_FOUND)
        return row

    def _member_id(self, name: str) -> int:
        if not self._identity.clustered and name in {"none", self._identity.name}:
            return self._identity.member_id
        for member_id, member in queries.member_names(self._database).items():
            if member == name:
                return member_id
        raise NotFoundError("Cluster member not found")

    def _shown(self, row: PoolRow, member_id: int | None) -> Pool:
        own = self._identity.member_id
        if member_id is None and not self._identity.clustered:
            config = row.config_on(own)
        elif member_id is None:
            config = row.config
        else:
            config = row.config_on(member_id)
        names = queries.member_names(self._database)
        uses = queries.pool_uses(self._database, row.id, row.name)
        state: PoolState | None = row.state
        if member_id is not None and self._identity.clustered:
            state = row.members.get(member_id)
        return Pool(
            config=visible(config),
            description=row.description,
            name=row.name,
            driver=row.driver,
            used_by=sorted(
                {
                    _url(row.name, use, names.get(use.member_id or 0, "") if self._identity.clustered else "")
                    for use in uses
                    if member_id is None or use.member_id in (None, member_id)
                }
            ),
            status="Unknown" if state is None else state.label,  # not defined on that member
            locations=[names[id_] for id_ in row.members if id_ in names],
        )

    # -- creating -----------------------------------------------------------------------------------------------------

    async def create(self, post: PoolsPost, target: str | None = None) -> None:
        """Create a pool; in a cluster first once with each member as `target`, then once without.

        Raises BadRequestError, ConflictError (409), NotFoundError (target), MemberError (500, as Incus).
        """
        config = self._check_new(post, target)
        if not self._identity.clustered:
            if target is not None:
                self._member_id(target)
            await self._create_alone(post, config)
        elif target is not None:
            await self._define_on(self._member_id(target), target, post, config)
        else:
            await self._create_everywhere(post, config)

    def _check_new(self, post: PoolsPost, target: str | None) -> dict[str, str]:
        if not post.name:
            raise BadRequestError("No name provided")
        if "/" in post.name:
            raise BadRequestError("Storage pool names may not contain slashes")
        if not post.driver:
            raise BadRequestError("No driver provided")
        if any(character.isspace() for character in post.name):
            raise MemberError("Storage name cannot contain white space")
        if post.name in {".", ".."} or len(post.name) > 63 or not post.name.isprintable():
            raise BadRequestError(f'Invalid storage pool name "{post.name}"')
        self._check_driver(post.driver, target)
        config = config_keys.without_empty(post.config)
        try:
            config_keys.validate_pool_config(config, post.driver)
        except config_keys.ConfigError as error:
            raise MemberError(str(error)) from None
        return config

    def _check_driver(self, driver: str, target: str | None) -> None:
        """Raise an ApiError for a driver that doesn't exist (400 in the first phase, as Incus) or doesn't work here; the
        other members find out for themselves."""
        if driver not in config_keys.POOL_DRIVERS:
            raise (MemberError if target is None else BadRequestError)("Unknown driver")
        if driver not in self._keeper.drivers:
            raise MemberError(self._keeper.reasons.get(driver) or "Unknown driver")

    async def _create_alone(self, post: PoolsPost, config: Config) -> None:
        shared, local = _split(config)
        member_id = self._identity.member_id
        transaction = transactions.define_pool(
            post.name, post.driver, post.description or "", shared, (member_id, local)
        )
        try:
            await propose(self._consensus, transaction)
        except DuplicateError:
            row = queries.pool(self._database, post.name)
            if row is None or row.state is not PoolState.PENDING or row.driver != post.driver:
                raise ConflictError("The storage pool already exists: The record already exists") from None
        except TransactionConflictError:
            raise ConflictError("This server has become part of a cluster, try again") from None
        row = self._row(post.name)
        try:
            await self._keeper.make(row)
        except BaseException:
            await propose(self._consensus, transactions.forget_pool(row.id))
            raise

    async def _define_on(self, member_id: int, target: str, post: PoolsPost, config: Config) -> None:
        shared, local = _split(config)
        if shared:
            raise MemberError(f'Config key "{min(shared)}" may not be used as member-specific key')
        transaction = transactions.define_pool_on_member(
            post.name, post.driver, post.description or "", member_id, local
        )
        try:
            await propose(self._consensus, transaction)
        except TransactionConflictError as conflict:
            if conflict.label == "driver":
                raise MemberError("Storage pool already exists with a different driver") from None
            if conflict.label == "created":
                raise MemberError("Storage pool is not in pending state") from None
            texts = {
                "member": "Cluster member not found",
                "exists": f'The storage pool already defined on member "{target}"',
            }
            raise BadRequestError(texts.get(conflict.label, conflict.label)) from None

    async def _create_everywhere(self, post: PoolsPost, config: Config) -> None:
        """The second phase, or both at once where nobody has been named and no member needs keys of its own.

        When a member can't, all take back what they made: the pool is pending again, or gone.
        """
        shared, local = _split(config)
        row = queries.pool(self._database, post.name)
        if row is not None and row.state is not PoolState.CREATED and row.driver != post.driver:
            raise MemberError(
                f'Requested storage pool driver "{post.driver}" doesn\'t match driver in existing database record'
                f' "{row.driver}"'
            )
        if row is None or not row.members:
            await self._create_at_once(post, shared, local)
            return
        if row.state is PoolState.CREATED:
            raise MemberError("The storage pool is already created")
        if local:
            raise MemberError(f'Config key "{min(local)}" is cluster member specific')
        names = queries.member_names(self._database)
        lacking = [name for id_, name in names.items() if id_ not in row.members]
        if lacking:
            raise MemberError(f"Pool not defined on nodes: {', '.join(lacking)}")
        self._require_online(names)
        description = row.description if post.description is None else post.description
        try:
            await propose(self._consensus, transactions.define_pool_config(row.id, row.name, description, shared))
        except TransactionConflictError:
            raise MemberError("The storage pool is already created") from None
        await self._make_or_undo(row.id, row.name, forget=False)

    async def _create_at_once(self, post: PoolsPost, shared: Config, local: Config) -> None:
        if local:
            raise MemberError(f'Config key "{min(local)}" is cluster member specific')
        names = queries.member_names(self._database)
        self._require_online(names)
        transaction = transactions.define_pool_everywhere(
            post.name, post.driver, post.description or "", shared, list(names)
        )
        try:
            await propose(self._consensus, transaction)
        except DuplicateError:
            raise MemberError("The storage pool is already created") from None
        except TransactionConflictError:
            raise ConflictError("The members of the cluster are changing, try again") from None
        await self._make_or_undo(self._row(post.name).id, post.name, forget=True)

    def _require_online(self, members: Iterable[int]) -> None:
        """Raise MemberError when a member that has to make or remove its share isn't there."""
        for member_id in members:
            if member_id != self._identity.member_id and not self._online(member_id):
                raise peer_down(member_address(self._database, member_id))

    async def _make_or_undo(self, pool_id: int, name: str, *, forget: bool) -> None:
        try:
            await self._keeper.made_everywhere(pool_id, name)
        except ApiError:
            await self._keeper.undone_everywhere(pool_id, forget=forget)
            raise

    # -- changing -----------------------------------------------------------------------------------------------------

    async def update(
        self,
        name: str,
        put: PoolPut,
        *,
        target: str | None = None,
        patch: bool = False,
        expect: Expect | None = None,
    ) -> None:
        """Replace or merge the configuration: of every member, or (`target`) what is one member's own.

        Raises NotFoundError, BadRequestError, MemberError (500: the source), PreconditionFailedError.
        """
        member_id = self._identity.member_id if target is None else self._member_id(target)

        async def attempt() -> None:
            row = self._row(name)
            if expect is not None:
                expect(editable(self._shown(row, None if target is None else member_id)))
            given = config_keys.without_empty(put.config)
            self._check_state(row, target)
            self._check_scope(given, target)
            shared, local = self._wanted(row, member_id, put.config or {}, target=target, patch=patch)
            try:
                config_keys.validate_pool_config({**(put.config or {}), **shared, **visible(local)}, row.driver)
            except config_keys.ConfigError as error:
                raise BadRequestError(str(error)) from None
            old_local = row.local.get(member_id, {})
            if (put.config or {}).get("source") == "" and "source" in old_local:
                local["source"] = old_local["source"]  # "" is "not given": the same preseed may come again
            if old_local.get("source", "") != local.get("source", "") and row.state is not PoolState.PENDING:
                raise MemberError("Pool source cannot be changed when not in pending state")
            if old_local.get("size") and not local.get("size") and row.members.get(member_id) is PoolState.CREATED:
                raise MemberError("Pool cannot be shrunk")
            await self._change_here(row, member_id, {**shared, **visible(local)})
            keep = patch or target is not None
            description = row.description if put.description is None and keep else put.description or ""
            await propose(
                self._consensus,
                transactions.update_pool(
                    row.id,
                    name,
                    (row.description, row.config, old_local),
                    (description, shared, local),
                    member_id,
                ),
            )

        await until_unchanged(attempt)

    async def _change_here(self, row: PoolRow, member_id: int, config: Config) -> None:
        """Grow or remount our share before it is recorded, so that what can't be is never recorded. Raises ApiError."""
        old = visible(row.config_on(member_id))
        if member_id == self._identity.member_id and row.state is PoolState.CREATED and dict(config) != old:
            await self._keeper.change(row, config, old)

    def _check_state(self, row: PoolRow, target: str | None) -> None:
        """Raise an ApiError while a pool, or the share of it that is meant, isn't there to be changed."""
        if not self._identity.clustered or row.state is PoolState.CREATED:
            return
        if target is None:
            raise BadRequestError("Cannot update storage pool global config when not in created state")
        if self._member_id(target) not in row.members:
            raise MemberError(f'Storage pool "{row.name}" is not defined on member "{target}"')

    def _check_scope(self, given: Config, target: str | None) -> None:
        _, local = _split(given)
        if self._identity.clustered and target is None and local:
            raise BadRequestError(f'Config key "{min(local)}" is cluster member specific')

    def _wanted(
        self, row: PoolRow, member_id: int, given: Config, *, target: str | None, patch: bool
    ) -> tuple[dict[str, str], dict[str, str]]:
        """Return (shared, local of the member) as they will be. Raises BadRequestError."""
        own = row.local.get(member_id, {})
        shared, local = _split(given)
        if target is not None and self._identity.clustered:
            # `set --target` sends the whole object back, so only a shared key that would change is wrong.
            changed = sorted(key for key, value in shared.items() if row.config.get(key) != value)
            if changed:
                raise BadRequestError(f'Config key "{changed[0]}" may not be used as cluster member specific key')
            return row.config, config_keys.merged(own if patch else _hidden(own), local.items())
        new_shared = config_keys.merged(row.config if patch else {}, shared.items())
        if self._identity.clustered:
            return new_shared, dict(own)
        return new_shared, config_keys.merged(own if patch else _hidden(own), local.items())

    # -- deleting -----------------------------------------------------------------------------------------------------

    async def delete(self, name: str) -> None:
        """Delete a pool on every member. Raises NotFoundError, BadRequestError (in use), MemberError."""
        row = self._row(name)
        if any(use.kind != "image" for use in queries.pool_uses(self._database, row.id, name)):
            raise BadRequestError(_IN_USE)
        self._require_online(row.members)  # otherwise nothing is removed anywhere
        try:
            await propose(self._consensus, transactions.retire_pool(row.id, name))
        except TransactionConflictError as conflict:
            if conflict.label == "in_use":
                raise BadRequestError(_IN_USE) from None
            raise NotFoundError(_NOT_FOUND) from None
        await self._keeper.removed_everywhere(row.id, name)


def editable(pool: Pool) -> object:
    """Return what the ETag of a pool covers."""
    return [pool.name, pool.driver, pool.description, pool.config]


def _split(config: Config) -> tuple[dict[str, str], dict[str, str]]:
    """Return (keys of all members, keys of one member)."""
    shared = {key: value for key, value in config.items() if not config_keys.pool_key_is_local(key)}
    return shared, {key: value for key, value in config.items() if config_keys.pool_key_is_local(key)}


def _hidden(config: Config) -> dict[str, str]:
    shown = visible(config)
    return {key: value for key, value in config.items() if key not in shown}


def _url(pool: str, use: PoolUse, location: str) -> str:
    if use.kind in {"container", "virtual-machine"}:
        return url_of("instances", use.name, project=use.project)
    if use.kind == "image":
        return url_of("images", use.name, project=use.project, target=location)
    if use.kind == "profile":
        return url_of("profiles", use.name, project=use.project)
    return url_of("storage-pools", pool, "volumes", "custom", use.name, project=use.project, target=location)
