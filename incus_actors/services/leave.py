"""Leaving a cluster: what happens on the machine that was removed.

Owns noticing and telling that a server was removed, and making it a standalone one again. A removed member usually
learns of it from the log (its row is gone); who doesn't is told over HTTPS. Must never reset a server that is still
a member, nor one whose vote may still be needed to remove it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from incus_actors.consensus.api import Consensus
from incus_actors.domain.transactions_cluster import set_server_config
from incus_actors.errors import ApiError, ConflictError, MemberError, UnavailableError
from incus_actors.identity import STANDALONE_NAME, Identity
from incus_actors.security import certificates
from incus_actors.services.join_journal import JoinJournal
from incus_actors.services.members import RemovedMember
from incus_actors.services.peer_client import PeerClient
from incus_actors.state.reader import Reader
from incus_actors.tasks import spawn

log = logging.getLogger(__name__)

RESET_PATH = "/internal/cluster/reset"
VOTE_NEEDED_S = 5.0  #: at most this long a removed member stays to acknowledge its own removal
KEPT_KEYS = ("core.https_address",)


class LeaveHooks(Protocol):
    """What the daemon does, because it owns the database and the listeners."""

    async def become_standalone(self) -> None:
        """Throw the database away, keep server.crt, start anew as a fresh standalone server."""

    async def reload_listeners(self) -> None:
        """Listen where the configuration says now."""


class LeaveService:
    """Resets removed servers, and this one if it is removed. `config` reads a key of this server ("": unset)."""

    def __init__(
        self,
        *,
        directory: Path,
        identity: Identity,
        consensus: Consensus,
        database: Reader,
        peers: PeerClient,
        hooks: LeaveHooks,
        config: Callable[[str], str],
    ) -> None:
        self._directory = directory
        self._identity = identity
        self._consensus = consensus
        self._database = database
        self._peers = peers
        self._hooks = hooks
        self._config = config
        self._kept: dict[str, str] = {}
        self._leaving = asyncio.Lock()

    async def start(self) -> None:
        """Follow the log from now on; reset at once if this server was removed before it was stopped."""
        self._consensus.subscribe_applied(self._applied)
        if self.removed():
            await self._reset()
        else:
            self._remember()

    def removed(self) -> bool:
        """Return whether the database, which is that of a cluster, does not know us (any more)."""
        try:
            names = [row[0] for row in self._database.query("SELECT name FROM nodes ORDER BY id")]
            own = self._database.scalar("SELECT name FROM nodes WHERE id = ?", (self._consensus.member_id,))
        except UnavailableError:
            return False
        return bool(names) and own is None and JoinJournal(self._directory).phase() == "none"

    def _applied(self, _index: int, topics: frozenset[str]) -> None:
        if "members" not in topics or self._leaving.locked():
            return
        if self.removed():
            spawn(self._leave_by_log(), name="leave the cluster")
        else:
            self._remember()

    def _remember(self) -> None:
        """What a server keeps when its rows go."""
        if self._identity.clustered:
            self._kept = {key: value for key in KEPT_KEYS if (value := self._config(key))}

    async def _leave_by_log(self) -> None:
        """Reset when nobody needs our acknowledgement any more."""
        own = self._consensus.member_id
        deadline = asyncio.get_running_loop().time() + VOTE_NEEDED_S
        while own in self._consensus.status().configuration.members():
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(0.05)
        if self.removed():
            await self._reset()

    async def _reset(self) -> None:
        async with self._leaving:
            log.warning("this server was removed from its cluster: it starts anew as a standalone server")
            await self._hooks.become_standalone()
            certificates.remove_pair(self._directory, certificates.CLUSTER)
            kept, self._kept = self._kept, {}
            if kept:
                await self._consensus.propose(set_server_config(self._consensus.member_id, kept))
                await self._hooks.reload_listeners()

    async def tell(self, removed: RemovedMember) -> None:
        """Have a removed server reset itself, if it can be reached; it isn't a member any more in any case.

        Raises MemberError if this member has no cluster certificate.
        """
        pair = certificates.load_pair(self._directory, certificates.CLUSTER)
        if pair is None:
            raise MemberError("This member has no cluster certificate")
        body = {"member_id": removed.member_id}
        try:
            await self._peers.post(
                removed.address, RESET_PATH, body, certificate_pem=pair.certificate_pem, timeout_s=15
            )
        except ApiError as error:  # it is doing so by itself, or it is gone
            log.info("%s was removed and can't be told to reset itself: %s", removed.name, error)

    async def reset(self, member_id: int) -> None:
        """Become a standalone server at the word of a member. Raises ConflictError if that isn't us."""
        own = self._consensus.member_id
        name = self._database.scalar("SELECT name FROM nodes WHERE id = ?", (own,))
        if member_id != own or name == STANDALONE_NAME or self._leaving.locked():
            raise ConflictError("This server is not that member")
        await self._reset()
