"""What bootstrap, join and leave need of the daemon, because it owns lanes, listeners and the consensus runtime.

Implements services.cluster_use_cases.Hooks; called by the cluster's services only. Every method may be repeated.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

from incus_actors.actors.raft import PATH as RAFT_PATH
from incus_actors.actors.raft import RestartConsensus
from incus_actors.actors.system import ActorSystem
from incus_actors.consensus.bootstrap import create_standalone
from incus_actors.errors import ApiError
from incus_actors.services import addresses
from incus_actors.transport.lanes import Lanes

log = logging.getLogger(__name__)

RESTART_DEADLINE_S = 60.0


class DaemonHooks:
    """`reload` re-reads identity and configuration and listens where they say; `prepare_state` makes schema and
    first rows of a fresh database; `pools` makes this member's share of pools and networks, `networks` of the latter."""

    def __init__(
        self,
        *,
        directory: Path,
        lanes: Lanes,
        actors: ActorSystem,
        reload: Callable[[], Awaitable[None]],
        listen_also: Callable[[str], Awaitable[None]],
        prepare_state: Callable[[], Awaitable[None]],
        pools: Callable[[], Awaitable[None]],
        networks: Callable[[], Awaitable[None]],
    ) -> None:
        self._directory = directory
        self._lanes = lanes
        self._actors = actors
        self._reload = reload
        self._listen_also = listen_also
        self._prepare_state = prepare_state
        self._pools = pools
        self._networks = networks

    async def open_lanes(self, address: str) -> str:
        """See ClusterHooks."""
        host, _ = addresses.split_host_port(address)
        return await self._lanes.open(host)

    async def close_lanes(self) -> None:
        """See ClusterHooks."""
        await self._lanes.close()

    async def reload_listeners(self) -> None:
        """See ClusterHooks."""
        await self._reload()

    async def move_lanes(self, address: str) -> str:
        """See AddressHooks."""
        before = self._lanes.address
        host, _ = addresses.split_host_port(address)
        await self._lanes.open(host, keep=True)
        return before

    async def lanes_moved(self, back_to: str = "") -> None:
        """See AddressHooks."""
        if back_to:
            await self._lanes.go_back(back_to)
        else:
            await self._lanes.release()

    async def listen_also(self, address: str) -> None:
        """See AddressHooks."""
        await self._listen_also(address)

    async def restart_consensus(self, change: Callable[[], None]) -> None:
        """See ClusterHooks."""
        await self._actors.ref(RAFT_PATH).ask(RestartConsensus(change), deadline_s=RESTART_DEADLINE_S)

    async def own_pools_ready(self) -> None:
        """See ClusterHooks."""
        await self._pools()

    async def become_standalone(self) -> None:
        """See LeaveHooks."""
        database = self._directory / "database"

        def start_over() -> None:
            removed = database.with_name("database.removed")
            shutil.rmtree(removed, ignore_errors=True)
            database.replace(removed)
            create_standalone(database, address="")
            shutil.rmtree(removed)

        await self._lanes.close()
        await self.restart_consensus(start_over)
        await self._prepare_state()
        await self._reload()
        await self._forget_networks()

    async def _forget_networks(self) -> None:
        """The cluster's networks go; what can't be removed now is tried again by NetworkActor."""
        try:
            await self._networks()
        except ApiError as error:
            log.warning("not every network of the cluster is removed yet: %s", error)
