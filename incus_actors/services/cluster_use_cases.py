"""Everything about the cluster that a gateway needs, as one object: `Services.cluster`.

Owns the construction order of the cluster's services; built by the composition root. Must hold no logic.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from incus_actors.actors.heartbeat import HeartbeatTable
from incus_actors.actors.system import ActorSystem
from incus_actors.consensus.api import Consensus
from incus_actors.identity import Identity
from incus_actors.security.cluster_files import ClusterFiles
from incus_actors.services.acceptance import AcceptService, ServerFacts
from incus_actors.services.cluster import ClusterHooks, ClusterService
from incus_actors.services.cluster_address import AddressHooks, ClusterAddressService
from incus_actors.services.cluster_certificate import ClusterCertificateService
from incus_actors.services.cluster_groups import GroupsService
from incus_actors.services.join import JoinService
from incus_actors.services.join_tokens import JoinTokens, TokenOperations
from incus_actors.services.leave import LeaveHooks, LeaveService
from incus_actors.services.members import MembersService
from incus_actors.services.peer_client import PeerClient
from incus_actors.services.replace import ReplaceService
from incus_actors.state.reader import Reader


class Hooks(ClusterHooks, LeaveHooks, AddressHooks, Protocol):
    """All that the daemon does for the cluster's services."""


@dataclass(frozen=True)
class ClusterUseCases:
    """`Services.cluster`; `members` is also `Services.members`."""

    bootstrap: ClusterService
    join: JoinService
    acceptance: AcceptService
    leave: LeaveService
    members: MembersService
    groups: GroupsService
    tokens: JoinTokens
    token_operations: TokenOperations
    certificate: ClusterCertificateService
    address: ClusterAddressService
    replace: ReplaceService


def build_cluster_use_cases(
    *,
    directory: Path,
    hostname: str,
    identity: Identity,
    consensus: Consensus,
    database: Reader,
    hooks: Hooks,
    heartbeats: HeartbeatTable,
    actors: ActorSystem,
    facts: ServerFacts,
    config: Callable[[str], str],
    wall_ns: Callable[[], int] = time.time_ns,
    peers: PeerClient | None = None,
    files: ClusterFiles | None = None,
    lanes_address: Callable[[], str] = lambda: "",
) -> ClusterUseCases:
    """Return the cluster's services. `directory` is $INCUS_DIR; `config` reads one of this server's keys ("": unset)."""
    peers = peers or PeerClient(directory / "server.crt", directory / "server.key")
    bootstrap = ClusterService(
        directory=directory,
        identity=identity,
        consensus=consensus,
        database=database,
        hooks=hooks,
        config=config,
        hostname=hostname,
    )
    tokens = JoinTokens(
        identity=identity,
        consensus=consensus,
        database=database,
        heartbeats=heartbeats,
        fingerprint=lambda: bootstrap.certificate().fingerprint,
        wall_ns=wall_ns,
    )
    members = MembersService(
        identity=identity,
        consensus=consensus,
        database=database,
        heartbeats=heartbeats,
        actors=actors,
        version=(facts.schema, facts.api_extensions),
    )
    return ClusterUseCases(
        bootstrap=bootstrap,
        join=JoinService(
            directory=directory,
            identity=identity,
            consensus=consensus,
            database=database,
            hooks=hooks,
            peers=peers,
            facts=facts,
            config=config,
        ),
        acceptance=AcceptService(
            directory=directory,
            identity=identity,
            consensus=consensus,
            database=database,
            tokens=tokens,
            actors=actors,
            facts=facts,
            wall_ns=wall_ns,
        ),
        leave=LeaveService(
            directory=directory,
            identity=identity,
            consensus=consensus,
            database=database,
            peers=peers,
            hooks=hooks,
            config=config,
        ),
        members=members,
        groups=GroupsService(identity=identity, consensus=consensus, database=database),
        tokens=tokens,
        token_operations=TokenOperations(consensus=consensus, database=database, identity=identity, wall_ns=wall_ns),
        address=ClusterAddressService(
            identity=identity,
            consensus=consensus,
            database=database,
            hooks=hooks,
            actors=actors,
            lanes_address=lanes_address,
        ),
        certificate=ClusterCertificateService(
            files=files or ClusterFiles(directory),
            identity=identity,
            consensus=consensus,
            database=database,
            peers=peers,
            online=members.online,
            reload=hooks.reload_listeners,
            wall_ns=wall_ns,
        ),
        replace=ReplaceService(
            directory=directory,
            identity=identity,
            consensus=consensus,
            database=database,
            actors=actors,
            wall_ns=wall_ns,
        ),
    )
