"""What a decision about a network asks of the members: shares made and removed, changes made true, or all of it undone.

Owns the waiting for them, and the way back by the rows when one fails; called by NetworkChanges after it has written
down what is wanted. Must never decide what is allowed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final

from incus_actors.actors.network_messages import NETWORKS_PATH, ApplyNetwork, Converge
from incus_actors.actors.ref import AskError
from incus_actors.actors.system import ActorSystem
from incus_actors.consensus.api import Consensus
from incus_actors.domain import transactions_networks as transactions
from incus_actors.errors import ApiError, MemberError
from incus_actors.identity import Identity
from incus_actors.services.absence import Absence, peer_down, peer_failed
from incus_actors.services.member_wait import MemberWait
from incus_actors.services.networks import NOT_LOADED
from incus_actors.services.proposing import TransactionConflictError, propose
from incus_actors.state.database import Database
from incus_actors.state.queries import networks as queries
from incus_actors.state.queries.cluster import member_address
from incus_actors.state.queries.networks import NetworkRow, NetworkState

_log = logging.getLogger(__name__)

MEMBERS_S: Final = 20.0  #: so long the members have for their shares
APPLY_S: Final = 20.0
LOOK_S: Final = 0.1


class NetworkShares:
    """`online` tells whether a member was heard of lately."""

    def __init__(
        self,
        *,
        consensus: Consensus,
        database: Database,
        identity: Identity,
        actors: ActorSystem,
        online: Callable[[int], bool],
        members_s: float = MEMBERS_S,
    ) -> None:
        self._consensus = consensus
        self._database = database
        self._identity = identity
        self._actors = actors
        self._online = online
        self._members = MemberWait(
            consensus=consensus,
            database=database,
            topic="networks",
            members_s=members_s,
            reachable=self._reachable,
        )

    async def check_present(self, members: Iterable[int]) -> None:
        """Raise MemberError when one of them can't be reached, or its links stay away: nothing has been changed yet."""
        wanted = set(members)
        for member_id in sorted(wanted):
            if not self._reachable(member_id):
                raise peer_down(self._address(member_id))
        waited_for = wanted & {peer.id for peer in self._consensus.status().peers}
        absence = Absence(self._consensus)
        while True:
            for member_id in absence.gone(waited_for):
                raise peer_down(self._address(member_id))
            if not absence.away:
                return
            await asyncio.sleep(LOOK_S)

    def _reachable(self, member_id: int) -> bool:
        return member_id == self._identity.member_id or self._online(member_id)

    def _address(self, member_id: int) -> str:
        return member_address(self._database, member_id)

    # -- making and removing ------------------------------------------------------------------------------------------

    async def made_everywhere(self, name: str) -> None:
        """Return once every member has its share; else have it undone and raise MemberError with the first reason."""
        row = queries.network(self._database, name)
        if row is None:
            raise MemberError(NOT_LOADED)
        try:
            await self._until(row.id, NetworkState.CREATED)
        except MemberError:
            try:
                await propose(self._consensus, transactions.undo(row.id))
            except TransactionConflictError:
                current = queries.network_by_id(self._database, row.id)
                if current is not None and current.state is NetworkState.CREATED:
                    return  # the last member was only slow
            else:
                await self._undone(row.id)
            raise

    async def _undone(self, network_id: int) -> None:
        """Wait for those members that can be reached; another one does it when it is back."""
        try:
            await self._until(network_id, NetworkState.PENDING)
        except ApiError as error:
            _log.warning("a failed creation of a network is not undone everywhere yet: %s", error)

    async def removed_everywhere(self, network_id: int) -> None:
        """Return once no member has a share, and the network is gone. Raises MemberError."""
        await self._until(network_id, None)

    async def _until(self, network_id: int, wanted: NetworkState | None) -> None:
        await self._members.until(lambda: self._missing(network_id, wanted))

    def _missing(self, network_id: int, wanted: NetworkState | None) -> list[int] | None:
        """Return the members that are not in this state yet, None when all are (None, or gone after an undo: the rows
        are gone). Raises MemberError when a member has failed."""
        with self._database.snapshot() as moment:  # states and reasons of one moment: entries are applied meanwhile
            row = queries.network_by_id(moment, network_id)
        if row is None:
            if wanted is NetworkState.CREATED:
                raise MemberError(NOT_LOADED)
            return None
        missing = [id_ for id_, state in row.members.items() if state is not wanted]
        if wanted is not None and not missing:
            return None
        self._check_failed(row)
        if not missing:  # all that had a share to remove have left the cluster meanwhile
            raise peer_down("?")
        return missing

    def _check_failed(self, row: NetworkRow) -> None:
        """Our own reason goes before those of others; while we are at it, theirs wait."""
        own = self._identity.member_id
        if row.members.get(own) is NetworkState.CREATING:
            return
        for member_id, state in sorted(row.members.items(), key=lambda item: item[0] != own):
            if state is NetworkState.ERRORED:
                reason = row.local.get(member_id, {}).get(transactions.ERROR_KEY, "Network is in an error state")
                if member_id != self._identity.member_id:
                    raise peer_failed(self._address(member_id), reason)
                raise MemberError(reason)

    # -- changing -----------------------------------------------------------------------------------------------------

    async def converge(self) -> None:
        """Have this member make true at once what the rows say. Raises ApiError."""
        await self._actors.ref(NETWORKS_PATH).ask(Converge(), deadline_s=APPLY_S)

    async def make_true(self, before: NetworkRow, after: NetworkRow, member_id: int) -> None:
        """Have the members do it; one that is away does it when it is back. On a failure everything goes back."""
        everywhere = before.config != after.config
        members = [id_ for id_ in after.members if everywhere or id_ == member_id]
        failure = await self._apply(after.name, members)
        if failure is None:
            return
        own = (before.local.get(member_id, {}), after.local.get(member_id, {}))
        back = transactions.update(
            before.id,
            before.name,
            (after.description, after.config, own[1]),
            (before.description, before.config, own[0]),
            member_id,
        )
        try:
            await propose(self._consensus, back)
        except TransactionConflictError:
            _log.warning("network %s: the failed change was followed by another one", before.name)
        else:
            again = await self._apply(before.name, members)
            if again is not None:
                _log.error("network %s is not as it was before the failed change: %s", before.name, again)
        raise failure

    async def _apply(self, name: str, members: list[int]) -> ApiError | None:
        """Return the first failure; our own come first."""
        own = self._identity.member_id
        reachable = sorted((id_ for id_ in members if self._reachable(id_)), key=lambda id_: id_ != own)
        results = await asyncio.gather(*(self._apply_on(id_, name) for id_ in reachable))
        return next((result for result in results if result is not None), None)

    async def _apply_on(self, member_id: int, name: str) -> ApiError | None:
        try:
            await self._actors.ref(NETWORKS_PATH, member_id).ask(ApplyNetwork(name), deadline_s=APPLY_S)
        except AskError as error:
            _log.info("member %d applies the change of network %s later: %s", member_id, name, error)
        except ApiError as error:
            if member_id == self._identity.member_id:
                return error
            return peer_failed(self._address(member_id), error)
        return None
