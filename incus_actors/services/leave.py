"""Leaving a cluster: what happens on the machine that was removed.

Owns telling a removed server to become a standalone one again, and doing so when told. Called by
rest/cluster_routes.py behind MembersService.remove. Must never reset a server that is still a member.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Protocol

from incus_actors.errors import ApiError, ConflictError, MemberError
from incus_actors.identity import Identity
from incus_actors.security import certificates
from incus_actors.services.members import RemovedMember
from incus_actors.services.peer_client import PeerClient

log = logging.getLogger(__name__)

RESET_PATH = "/internal/cluster/reset"


class LeaveHooks(Protocol):
    """What the daemon does, because it owns the database and the listeners."""

    async def become_standalone(self) -> None:
        """Throw the database away, keep server.crt and the addresses, start anew as a fresh standalone server."""


class LeaveService:
    """Resets removed servers, and this one if it is removed."""

    def __init__(self, *, directory: Path, identity: Identity, peers: PeerClient, hooks: LeaveHooks) -> None:
        self._directory = directory
        self._identity = identity
        self._peers = peers
        self._hooks = hooks

    async def tell(self, removed: RemovedMember) -> None:
        """Have a removed server reset itself, if it can be reached; it isn't a member any more in any case."""
        pair = certificates.load_pair(self._directory, certificates.CLUSTER)
        if pair is None:
            raise MemberError("This member has no cluster certificate")
        if removed.member_id == self._identity.member_id:
            return
        try:
            await self._peers.post(
                removed.address, RESET_PATH, {"member_id": removed.member_id}, certificate_pem=pair.certificate_pem,
                timeout_s=15,
            )  # fmt: skip
        except ApiError as error:
            log.warning("%s was removed, but could not be told to reset itself: %s", removed.name, error)

    async def reset(self, member_id: int) -> None:
        """Become a standalone server again. Raises ConflictError if that isn't us."""
        if not self._identity.clustered or member_id != self._identity.member_id:
            raise ConflictError("This server is not that member")
        log.warning("this server was removed from its cluster: it starts anew as a standalone server")
        certificates.remove_pair(self._directory, certificates.CLUSTER)
        await self._hooks.become_standalone()
