"""Everything about networks that the gateways reach.

Owns their construction; called by the composition root. Must never hold logic.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from incus_actors.actors.system import ActorSystem
from incus_actors.consensus.api import Consensus
from incus_actors.identity import Identity
from incus_actors.services.network_changes import NetworkChanges
from incus_actors.services.network_leases import NetworkLeases
from incus_actors.services.network_shares import MEMBERS_S, NetworkShares
from incus_actors.services.networks import NetworkService
from incus_actors.state.database import Database


def build(
    *,
    consensus: Consensus,
    database: Database,
    identity: Identity,
    actors: ActorSystem,
    online: Callable[[int], bool],
    rng: random.Random,
    members_s: float = MEMBERS_S,
) -> tuple[NetworkService, NetworkChanges, NetworkLeases]:
    """Return them. `online` tells whether a member was heard of lately; `rng` chooses free subnets."""
    networks = NetworkService(database=database, identity=identity)
    shares = NetworkShares(
        consensus=consensus,
        database=database,
        identity=identity,
        actors=actors,
        online=online,
        members_s=members_s,
    )
    changes = NetworkChanges(
        consensus=consensus, database=database, identity=identity, networks=networks, shares=shares, rng=rng
    )
    leases = NetworkLeases(database=database, identity=identity, actors=actors, networks=networks, online=online)
    return networks, changes, leases
