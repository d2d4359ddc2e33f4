"""Moving a running member to another cluster address: `incus config set cluster.https_address=… --target m`.

Owns the order of its steps; ServerConfigService calls it around its transaction (an extension of ours: Incus can only
do it with the database stopped). First the member listens at both places, then the transaction tells everybody where,
then a configuration entry tells the consensus transports. Must never leave a member that nobody can dial: what a kill
interrupts is finished at the next start.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from incus_actors.actors.leader import leader_ref
from incus_actors.actors.leader_messages import MoveMember
from incus_actors.actors.system import ActorSystem
from incus_actors.consensus.api import Consensus
from incus_actors.errors import ApiError, BadRequestError, MemberError
from incus_actors.identity import Identity
from incus_actors.services import addresses
from incus_actors.state.queries import cluster as queries
from incus_actors.state.reader import Reader
from incus_actors.tasks import spawn

log = logging.getLogger(__name__)

LEADER_S = 15.0
ANNOUNCED_S = 5.0  #: how long the answer waits for the configuration entry; it comes in any case
RETRY_S = 0.2
SETTLE_S = 2.0  #: the others dial the new place as soon as they apply the configuration entry


class AddressHooks(Protocol):
    """What the daemon does, because it owns lanes and listeners."""

    async def move_lanes(self, address: str) -> str:
        """Listen for other members on the host of `address` too. Return the transport address of before."""

    async def lanes_moved(self, back_to: str = "") -> None:
        """Listen for other members at one place again: the new one, or that of before."""

    async def listen_also(self, address: str) -> None:
        """Listen for HTTPS at `address` beside what is configured, until `reload_listeners`. Raises MemberError."""

    async def reload_listeners(self) -> None:
        """Listen where the configuration says now."""


class ClusterAddressService:
    """`lanes_address()` gives where our lanes listen now, in transport form ("": nowhere)."""

    def __init__(
        self,
        *,
        identity: Identity,
        consensus: Consensus,
        database: Reader,
        hooks: AddressHooks,
        actors: ActorSystem,
        lanes_address: Callable[[], str],
    ) -> None:
        self._identity = identity
        self._consensus = consensus
        self._database = database
        self._hooks = hooks
        self._actors = actors
        self._lanes_address = lanes_address
        self._announcing = asyncio.Lock()
        self._before = ""

    def check(self, address: str) -> str:
        """Return a new cluster address with its port. Raises BadRequestError, MemberError (500, as Incus)."""
        if not address:
            raise MemberError("Changing cluster.https_address is currently not supported")
        if addresses.is_wildcard(address):
            raise BadRequestError(f"Cannot use a wildcard address for a member: {address}")
        wanted = addresses.normalise(address)
        for facts in queries.members(self._database, pending=True):
            if facts.address == wanted and facts.id != self._identity.member_id:
                raise BadRequestError(f"Member {facts.name} has the address {wanted} already")
        return wanted

    async def prepare(self, address: str) -> None:
        """Listen at the new place too. Raises MemberError; then everything is as before."""
        await self._hooks.listen_also(address)
        try:
            self._before = await self._hooks.move_lanes(address)
        except Exception as error:
            await self._hooks.reload_listeners()
            raise MemberError(f"Failed to listen for members at {address}: {error}") from error

    async def undo(self) -> None:
        """The transaction did not come about: be where we were."""
        await self._hooks.lanes_moved(self._before)
        await self._hooks.reload_listeners()

    async def announce(self) -> None:
        """The transaction is committed: have the others dial our new place. Returns when they do, or know of it soon."""
        self._identity.refresh()
        await self._hooks.reload_listeners()
        spawn(self.resume(), name="announce the new address")
        deadline = asyncio.get_running_loop().time() + ANNOUNCED_S
        while not self._announced():
            await asyncio.sleep(0.02)
            if asyncio.get_running_loop().time() > deadline:
                break

    async def resume(self) -> None:
        """Until the consensus configuration says where our lanes are, ask the leader for that; also at start."""
        async with self._announcing:
            while self._identity.clustered:
                if self._announced():
                    break
                try:
                    wish = MoveMember(self._consensus.member_id, self._lanes_address())
                    await leader_ref(self._actors, self._consensus).ask(wish, deadline_s=LEADER_S)
                except ApiError as error:
                    log.info("the new address can't be announced yet: %s", error)
                await asyncio.sleep(RETRY_S)
            if self._before:
                await asyncio.sleep(SETTLE_S)
                self._before = ""
                await self._hooks.lanes_moved()

    def _announced(self) -> bool:
        """Whether the configuration has nothing to learn from us."""
        here = self._lanes_address()
        own = self._consensus.status().configuration.members().get(self._consensus.member_id)
        return not here or own is None or own.address == here
