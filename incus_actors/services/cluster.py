"""Turning a standalone server into the first member of a cluster, and what a cluster says about itself.

Owns the bootstrap and the cluster certificate; rest/cluster_routes.py calls it, services/join.py shares its hooks.
Must never lose anything of the standalone server: ids, instances, pools and images stay as they are.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from incus_actors.consensus.api import Consensus
from incus_actors.consensus.types import Member, Role
from incus_actors.domain import transactions_cluster as cluster_tx
from incus_actors.errors import ApiError, BadRequestError, ConflictError, MemberError
from incus_actors.identity import Identity
from incus_actors.model.cluster import Cluster, ClusterPut, MemberConfigKey
from incus_actors.model.transaction import Outcome
from incus_actors.security import certificates
from incus_actors.services import addresses
from incus_actors.state.queries import cluster as queries
from incus_actors.state.reader import Reader

log = logging.getLogger(__name__)


class ClusterHooks(Protocol):
    """What the daemon does for bootstrap and join, because it owns listeners, lanes and the consensus runtime.

    All of them may be called again when they were done already.
    """

    async def open_lanes(self, address: str) -> str:
        """Listen for other members on the host of `address` (host:port of HTTPS). Return the transport address."""

    async def close_lanes(self) -> None:
        """Stop that: we are a standalone server again."""

    async def reload_listeners(self) -> None:
        """Listen where the configuration says now, showing cluster.crt if there is one, else server.crt.

        Raises MemberError if an address can't be bound.
        """

    async def restart_consensus(self, change: Callable[[], None]) -> None:
        """Stop the consensus runtime, run `change` in a thread, start it again on what is in the directory then.

        The runtime is started again even if `change` raises, which is then raised from here. The Consensus and
        Database objects that services hold stay valid.
        """

    async def own_pools_ready(self) -> None:
        """Make this member's share of every storage pool and network exist on this machine."""


class ClusterService:
    """`config` reads a server configuration key of this member ("" if unset)."""

    def __init__(
        self,
        *,
        directory: Path,
        identity: Identity,
        consensus: Consensus,
        database: Reader,
        hooks: ClusterHooks,
        config: Callable[[str], str],
        hostname: str | None = None,
    ) -> None:
        self._directory = directory
        self._identity = identity
        self._consensus = consensus
        self._database = database
        self._hooks = hooks
        self._config = config
        self._hostname = hostname or socket.gethostname()

    def view(self) -> Cluster:
        """Return GET /1.0/cluster."""
        identity = self._identity
        keys = queries.member_config_keys(self._database, identity.member_id)
        return Cluster(
            server_name=identity.name if identity.clustered else "",
            enabled=identity.clustered,
            member_config=[
                MemberConfigKey(
                    entity=entity,
                    name=name,
                    key=key,
                    description=f'"{key}" property for {entity.replace("-", " ")} "{name}"',
                )
                for entity, name, key in keys
            ],
        )

    def certificate(self) -> certificates.KeyPair:
        """Return the pair that our HTTPS listeners show: cluster.crt, or server.crt while standalone."""
        pair = certificates.load_pair(self._directory, certificates.CLUSTER) if self._identity.clustered else None
        return pair or self.server_certificate()

    def server_certificate(self) -> certificates.KeyPair:
        """Return our own pair, made at the first start."""
        return certificates.load_or_create(self._directory, certificates.SERVER, self._hostname)

    # -- bootstrap ------------------------------------------------------------------------------------------------

    def check_bootstrap(self, put: ClusterPut) -> str:
        """Return the cluster address. Raises BadRequestError, MemberError for what can be refused at once."""
        if self._identity.clustered:
            raise BadRequestError("This server is already clustered")
        if not put.server_name:
            raise BadRequestError("ServerName is required when enabling clustering")
        check_member_name(put.server_name)
        address = self._config("cluster.https_address") or self._config("core.https_address")
        if not address:
            raise MemberError(
                "Cannot enable clustering: core.https_address is not set",
                status=400,
                remedy="incus config set core.https_address=<address of this server>:8443",
            )
        if addresses.is_wildcard(address):
            raise MemberError(
                "Cannot use wildcard core.https_address for cluster.https_address. "
                "Please specify a new cluster.https_address or core.https_address",
                status=400,
            )
        return addresses.normalise(address)

    async def bootstrap(self, put: ClusterPut) -> None:
        """Become the first member. All or nothing; run as the operation "Creating bootstrap node".

        Raises ApiError.
        """
        address = self.check_bootstrap(put)
        server = self.server_certificate()
        member_id = self._consensus.member_id
        # Always a new one: what may lie there is of another cluster, or of a try that was killed.
        pair = certificates.make_certificate(self._hostname)
        certificates.write_pair(self._directory, certificates.CLUSTER, *pair)
        try:
            transport = await self._hooks.open_lanes(address)
            trusted = cluster_tx.TrustedServer(put.server_name, server.fingerprint, server.certificate_pem)
            outcome = await self._consensus.propose(cluster_tx.bootstrap(member_id, put.server_name, address, trusted))
            _check_bootstrapped(outcome)
        except BaseException:
            await self._undo_files()
            raise
        try:
            await self._announce(member_id, transport)
            self._identity.refresh()
            await self._hooks.reload_listeners()
        except BaseException as error:
            await self._undo_bootstrap(member_id, server.fingerprint, error)
            raise
        log.info("this server is now the first member, %s at %s", put.server_name, address)

    async def _announce(self, member_id: int, transport: str) -> None:
        """Put our real transport address into the consensus configuration."""
        target = (Member(member_id, transport, Role.VOTER),)
        if self._consensus.status().configuration.old != target:
            await self._consensus.change_configuration(target)

    async def _undo_bootstrap(self, member_id: int, fingerprint: str, cause: BaseException) -> None:
        log.warning("bootstrap failed, undoing it: %s", cause)
        try:
            await self._consensus.propose(cluster_tx.undo_bootstrap(member_id, fingerprint))
        except ApiError:
            log.exception("the bootstrap could not be undone; this server stays the only member of its cluster")
            return
        await self._undo_files()
        await self._hooks.reload_listeners()

    async def _undo_files(self) -> None:
        certificates.remove_pair(self._directory, certificates.CLUSTER)
        self._identity.refresh()
        await self._hooks.close_lanes()

    async def ensure_announced(self) -> None:
        """At start: finish a bootstrap that was killed between its transaction and the configuration entry."""
        identity = self._identity
        own = self._consensus.status().configuration.members().get(identity.member_id)
        if not identity.clustered or own is None:
            return
        if certificates.load_pair(self._directory, certificates.CLUSTER) is None:
            pair = certificates.make_certificate(self._hostname)
            certificates.write_pair(self._directory, certificates.CLUSTER, *pair)
        members = self._consensus.status().configuration.old
        transport = await self._hooks.open_lanes(identity.address)
        if len(members) == 1 and own.address != transport:
            await self._announce(identity.member_id, transport)


def _check_bootstrapped(outcome: Outcome) -> None:
    if outcome.applied:
        return
    if outcome.label == "clustered":
        raise ConflictError("This server is already clustered", status=400)
    raise MemberError(f"Failed to create the bootstrap node: {outcome.error or outcome.label}")


def check_member_name(name: str) -> None:
    """Raise BadRequestError for a name that can't be shown or stored; Incus checks hardly anything else."""
    if not name or len(name) > 255 or any(ord(c) < 32 for c in name):
        raise BadRequestError("Invalid server name")
    if name in ("none", ".", ".."):
        raise BadRequestError(f'Invalid server name "{name}"')
