"""Networks are made, changed, renamed and deleted here: in two phases over a cluster, or (ours) in one (CONTRACT 14).

Owns the rules with Incus' texts; called by rest/network_routes.py. Rows say what is wanted and each member's
NetworkActor does its share, so that a crash in between is only a delay; NetworkShares waits for them, and has what fails
undone by the rows, too.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from incus_actors.consensus.api import Consensus
from incus_actors.domain import networks as rules
from incus_actors.domain import transactions_networks as transactions
from incus_actors.domain.project_rules import NETWORK_NOT_ALLOWED, network_allowed
from incus_actors.domain.transactions_networks import HIDDEN_PREFIX
from incus_actors.errors import ApiError, BadRequestError, ConflictError, ForbiddenError, MemberError, NotFoundError
from incus_actors.identity import Identity
from incus_actors.model import network_keys
from incus_actors.model.config_keys import ConfigError, merged, without_empty
from incus_actors.model.network_values import Network
from incus_actors.model.resources import Network as ShownNetwork
from incus_actors.model.resources import NetworkPut, NetworksPost
from incus_actors.services import interfaces
from incus_actors.services.network_shares import NetworkShares
from incus_actors.services.networks import NOT_LOADED, NetworkService
from incus_actors.services.project_guard import config_of
from incus_actors.services.proposing import (
    DuplicateError,
    Expect,
    TransactionConflictError,
    propose,
    until_unchanged,
)
from incus_actors.state.queries import networks as queries
from incus_actors.state.queries.networks import NetworkRow, NetworkState
from incus_actors.state.queries.projects import DEFAULT_PROJECT, owner_of
from incus_actors.state.queries.storage import member_names
from incus_actors.state.reader import Reader

Config = Mapping[str, str]


class NetworkChanges:
    """`networks` is the reading side; `shares` has the members do what was decided. In every method `target` is a
    member's name."""

    def __init__(
        self,
        *,
        consensus: Consensus,
        database: Reader,
        identity: Identity,
        networks: NetworkService,
        shares: NetworkShares,
        rng: random.Random,
    ) -> None:
        self._consensus = consensus
        self._database = database
        self._identity = identity
        self._networks = networks
        self._shares = shares
        self._rng = rng

    # -- creating -----------------------------------------------------------------------------------------------------

    async def create(self, project: str, post: NetworksPost, target: str | None = None) -> None:
        """Create a network; in a cluster first once with each member as `target`, then once without; or only that
        where no member needs a key of its own.

        Raises BadRequestError, ConflictError (409), NotFoundError (target), MemberError (500, as Incus).
        """
        rules.check_name(post.name)
        kind = rules.check_type(post.type)
        owner = owner_of(self._database, project, "networks")
        if owner is None:
            raise NotFoundError(f'Failed to load project "{project}": Project not found')
        if owner.name != DEFAULT_PROJECT:
            raise BadRequestError("Network type does not support non-default projects")
        if not network_allowed(config_of(self._database, project), post.name, managed=True):
            raise ForbiddenError(NETWORK_NOT_ALLOWED)
        config = without_empty(post.config)
        if not self._identity.clustered:
            if target is not None:
                self._networks.member_id(target)
            await until_unchanged(lambda: self._create_alone(post, kind, config))
        elif target is not None:
            await self._define_on(self._networks.member_id(target), target, post, kind, config)
        else:
            await until_unchanged(lambda: self._create_everywhere(post, kind, config))

    async def _create_alone(self, post: NetworksPost, kind: str, config: Config) -> None:
        if queries.network(self._database, post.name) is not None:
            raise ConflictError(f'Network "{post.name}" already exists')
        await self._define(post, kind, config, {self._identity.member_id: ""})

    async def _define(self, post: NetworksPost, kind: str, config: Config, members: Mapping[int, str]) -> None:
        """One step: the rows for all members, then wait. Conflict "changed" goes through."""
        shared, local = network_keys.split(config)
        locals_ = {id_: dict(local) if len(members) == 1 else {} for id_ in members}
        shared = self._complete(post.name, kind, shared, locals_, new=True, error=MemberError)
        try:
            await propose(
                self._consensus,
                transactions.define_network(
                    post.name,
                    rules.TYPE_NUMBERS[kind],
                    post.description or "",
                    shared,
                    locals_,
                    queries.addresses(self._database),
                ),
            )
        except DuplicateError:
            raise ConflictError(f'Network "{post.name}" already exists') from None
        except TransactionConflictError as conflict:
            raise TransactionConflictError("changed") from conflict  # others have joined or left: look again
        await self._shares.made_everywhere(post.name)

    def _complete(
        self,
        name: str,
        kind: str,
        shared: Config,
        local: Mapping[int, Config],
        *,
        new: bool,
        error: type[ApiError],
    ) -> dict[str, str]:
        """Return the shared config with addresses chosen, after everything was checked. Raises `error`."""
        try:
            for own in local.values():
                own = _shown(own)
                network_keys.validate_network_config(name, kind, {**shared, **own})
                network_keys.require_parent(name, kind, own)
            if not local:
                network_keys.validate_network_config(name, kind, shared)
        except ConfigError as wrong:
            raise error(str(wrong)) from None
        self._check_parents(name, kind, local, error)
        if kind != "bridge":
            return dict(shared)
        others = {r.name: r.config for r in queries.networks(self._database) if r.name != name and r.type == "bridge"}
        complete = rules.with_addresses(shared, self._taken(others), self._rng, new=new)
        try:
            rules.check_overlap(name, complete, others)
        except BadRequestError as overlap:
            raise error(str(overlap)) from None
        return complete

    def _check_parents(self, name: str, kind: str, local: Mapping[int, Config], error: type[ApiError]) -> None:
        if kind != "physical":
            return
        for row in queries.networks(self._database):
            for member_id, own in local.items():
                parent = row.local.get(member_id, {}).get("parent")
                if row.name != name and parent and parent == own.get("parent"):
                    raise error(f'Parent interface "{parent}" in use by another network')

    def _taken(self, others: Mapping[str, Config]) -> list[Network]:
        """Return the subnets that a new bridge must not choose by itself."""
        taken = interfaces.subnets()
        for config in others.values():
            taken += rules.subnets(config)
        return taken

    async def _define_on(self, member_id: int, target: str, post: NetworksPost, kind: str, config: Config) -> None:
        shared, local = network_keys.split(config)
        if shared:
            raise BadRequestError(f'Config key "{min(shared)}" may not be used as member-specific key')
        try:
            network_keys.validate_network_config(post.name, kind, local)
        except ConfigError as wrong:
            raise BadRequestError(str(wrong)) from None
        transaction = transactions.define_on_member(
            post.name, rules.TYPE_NUMBERS[kind], post.description or "", member_id, local
        )
        try:
            await propose(self._consensus, transaction)
        except TransactionConflictError as conflict:
            match conflict.label:
                case "member":
                    raise NotFoundError("Cluster member not found") from None
                case "state":
                    raise MemberError("Network is not in pending state") from None
                case "type":
                    raise MemberError("Requested network type doesn't match type in existing database record") from None
                case _:
                    raise ConflictError(f'Network "{post.name}" is already defined on member "{target}"') from None

    async def _create_everywhere(self, post: NetworksPost, kind: str, config: Config) -> None:
        shared, local = network_keys.split(config)
        row = queries.network(self._database, post.name)
        if row is not None and row.state is NetworkState.CREATED:
            raise MemberError("The network is already created")
        if row is not None and post.type and kind != row.type:
            raise MemberError(
                f'Requested network type "{kind}" doesn\'t match type in existing database record "{row.type}"'
            )
        if local:
            raise MemberError(f'Config key "{min(local)}" is cluster member specific')
        names = member_names(self._database)
        if row is None or not row.members:
            if kind != "bridge" or row is not None:
                raise MemberError("Network not pending on any node (use --target <node> first)")
            await self._shares.check_present(names)
            await self._define(post, kind, config, names)
            return
        lacking = [name for id_, name in names.items() if id_ not in row.members]
        if lacking:
            raise MemberError(f"Network not defined on nodes: {', '.join(lacking)}")
        own = {id_: row.local.get(id_, {}) for id_ in row.members}
        complete = self._complete(row.name, row.type, shared, own, new=True, error=MemberError)
        await self._shares.check_present(row.members)
        description = row.description if post.description is None else post.description
        try:
            await propose(
                self._consensus,
                transactions.begin(row.id, row.name, description, complete, queries.addresses(self._database)),
            )
        except TransactionConflictError as conflict:
            if conflict.label == "changed":
                raise
            raise MemberError("The network is already created") from None
        await self._shares.made_everywhere(row.name)

    # -- changing -----------------------------------------------------------------------------------------------------

    async def update(
        self,
        project: str,
        name: str,
        put: NetworkPut,
        *,
        target: str | None = None,
        patch: bool = False,
        expect: Expect | None = None,
    ) -> None:
        """Replace or merge the configuration: of every member, or (`target`) what is one member's own.

        It is made true on every member that can be reached; when one of them can't, all go back. Raises NotFoundError,
        BadRequestError, MemberError, PreconditionFailedError.
        """
        self._networks.row(project, name)
        member_id = self._identity.member_id if target is None else self._networks.member_id(target)

        async def attempt() -> tuple[NetworkRow, NetworkRow] | None:
            row = self._networks.row(project, name)
            if expect is not None:
                expect(editable(self._networks.shown(row, None if target is None else member_id)))
            if row.state is not NetworkState.CREATED and (target is None or not self._identity.clustered):
                raise BadRequestError("Cannot update network global config when not in created state")
            return await self._change(row, member_id, put, target=target, patch=patch)

        changed = await until_unchanged(attempt)
        if changed is not None:
            before, after = changed
            await self._shares.make_true(before, after, member_id)

    async def _change(
        self, row: NetworkRow, member_id: int, put: NetworkPut, *, target: str | None, patch: bool
    ) -> tuple[NetworkRow, NetworkRow] | None:
        """Write the change down; return the row before and after it, None if nothing has to be done on machines."""
        shared, local = self._wanted(row, member_id, put.config, target=target, patch=patch)
        locals_ = {id_: row.local.get(id_, {}) for id_ in row.members} | {member_id: local}
        wanted = self._complete(row.name, row.type, shared, locals_, new=False, error=BadRequestError)
        keep = patch or target is not None
        description = row.description if put.description is None and keep else put.description or ""
        old_local = row.local.get(member_id, {})
        await propose(
            self._consensus,
            transactions.update(
                row.id,
                row.name,
                (row.description, row.config, old_local),
                (description, wanted, local),
                member_id,
                queries.addresses(self._database),
            ),
        )
        after = queries.network_by_id(self._database, row.id)
        if after is None or (wanted, local) == (row.config, old_local) or row.state is not NetworkState.CREATED:
            return None
        return row, after

    def _wanted(
        self, row: NetworkRow, member_id: int, config: Config | None, *, target: str | None, patch: bool
    ) -> tuple[dict[str, str], dict[str, str]]:
        """Return (shared, local of the member) as they will be. Raises BadRequestError."""
        own = row.local.get(member_id, {})
        hidden = {key: value for key, value in own.items() if key.startswith(HIDDEN_PREFIX)}
        shared, local = network_keys.split(config or {})
        if any(key.startswith(HIDDEN_PREFIX) for key in shared):
            raise BadRequestError(f'Invalid option for network "{row.name}" option "{HIDDEN_PREFIX}"')
        try:
            network_keys.check_known(row.name, row.type, config or {})
        except ConfigError as wrong:
            raise BadRequestError(str(wrong)) from None
        if self._identity.clustered and target is not None:
            # `set --target` sends the whole object back, so only a shared key that would change is wrong.
            changed = sorted(key for key, value in shared.items() if row.config.get(key, "") != value)
            if changed:
                raise BadRequestError(f'Config key "{changed[0]}" may not be used as member-specific key')
            return row.config, merged(own if patch else hidden, local.items())
        new_shared = merged(row.config if patch else {}, shared.items())
        if self._identity.clustered:
            given = sorted(key for key, value in local.items() if value)
            if given:
                raise BadRequestError(f'Config key "{given[0]}" is cluster member specific')
            return new_shared, dict(own)
        return new_shared, merged(own if patch else hidden, local.items())

    # -- renaming and deleting ----------------------------------------------------------------------------------------

    async def rename(self, project: str, name: str, new_name: str) -> None:
        """Rename an unused network of a server that is alone. Raises NotFoundError, BadRequestError, ConflictError."""
        if self._identity.clustered:
            raise BadRequestError("Renaming clustered network not supported")
        row = self._networks.row(project, name)
        if not new_name:
            raise BadRequestError("New network name not provided")
        rules.check_name(new_name)
        if queries.network(self._database, new_name) is not None:
            raise ConflictError(f'Network "{new_name}" already exists')
        if row.type == "bridge" and new_name in interfaces.names():
            raise MemberError(f'Network interface "{new_name}" already exists')
        try:
            await propose(self._consensus, transactions.rename(row.id, name, new_name))
        except DuplicateError:
            raise ConflictError(f'Network "{new_name}" already exists') from None
        except TransactionConflictError as conflict:
            if conflict.label == "in_use":
                raise BadRequestError("Network is currently in use") from None
            raise NotFoundError(NOT_LOADED) from None
        try:
            await self._shares.converge()
        except ApiError:
            await propose(self._consensus, transactions.rename(row.id, new_name, name))
            raise

    async def delete(self, project: str, name: str) -> None:
        """Delete a network on every member. Raises NotFoundError, BadRequestError (in use), MemberError."""
        row = self._networks.row(project, name)
        await self._shares.check_present(id_ for id_, state in row.members.items() if state is not NetworkState.PENDING)
        try:
            await propose(self._consensus, transactions.retire(row.id, name))
        except TransactionConflictError as conflict:
            if conflict.label == "in_use":
                raise BadRequestError("The network is currently in use") from None
            raise NotFoundError(NOT_LOADED) from None
        await self._shares.removed_everywhere(row.id)


def editable(network: ShownNetwork) -> object:
    """Return what the ETag of a network covers."""
    return [network.name, network.managed, network.type, network.description, network.config]


def _shown(config: Config) -> dict[str, str]:
    return {key: value for key, value in config.items() if not key.startswith(HIDDEN_PREFIX)}
