"""One standalone server's plain services over real consensus and a real database; storage is a dictionary."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from network_kit import MemoryNetworks, network_actor

from incus_actors.actors.system import ActorSystem
from incus_actors.consensus.bootstrap import create_standalone
from incus_actors.consensus.lanes import NoLane
from incus_actors.consensus.runtime import ConsensusRuntime
from incus_actors.drivers.base import DriverInfo, PoolSpec, Usage
from incus_actors.errors import MemberError
from incus_actors.gateway.operations import new_operation_id
from incus_actors.identity import Identity
from incus_actors.model.transaction import Statement, Transaction
from incus_actors.security import certificates
from incus_actors.services import network_use_cases
from incus_actors.services.join_tokens import TokenOperations
from incus_actors.services.pool_keeper import PoolKeeper
from incus_actors.services.profile_followers import ProfileFollowers
from incus_actors.services.profiles import ProfileService
from incus_actors.services.projects import ProjectService
from incus_actors.services.registry import Services
from incus_actors.services.server_config import ServerConfigService
from incus_actors.services.server_info import ServerInfoService
from incus_actors.services.sql import SqlService
from incus_actors.services.storage_pools import StoragePoolService
from incus_actors.services.trust import TrustService
from incus_actors.services.warnings import WarningService
from incus_actors.state import schema

NOW_NS = 1_790_000_000_000_000_000
NOW = "2026-09-21T14:13:20Z"


class MemoryPools:
    """services.pool_keeper.PoolBackend: pools exist in a dictionary, `broken` names fail."""

    def __init__(self) -> None:
        self.made: dict[str, PoolSpec] = {}
        self.broken: set[str] = set()
        self.updated: list[tuple[str, dict[str, str], dict[str, str]]] = []

    async def create(self, pool: PoolSpec) -> Mapping[str, str]:
        if pool.name in self.broken:
            raise MemberError(f"Source path '{pool.config.get('source', '')}' doesn't exist")
        self.made[pool.name] = pool
        return {**pool.config, "source": pool.config.get("source") or f"/pools/{pool.name}"}

    async def update(self, pool: PoolSpec, old: Mapping[str, str]) -> None:
        if pool.name in self.broken:
            raise MemberError("Pool cannot be shrunk")
        self.updated.append((pool.name, dict(old), dict(pool.config)))

    async def delete(self, pool: PoolSpec) -> None:
        if pool.name in self.broken:
            raise MemberError("Storage pool directory is busy")
        self.made.pop(pool.name, None)

    async def usage(self, pool: PoolSpec) -> Usage:
        return Usage(used_bytes=1, total_bytes=2, used_inodes=3, total_inodes=4)


class JoinTokensElsewhere:
    """services.join_tokens.JoinTokens is part F2's; here only whether it is asked matters."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def trust_certificate(self, text: str, fingerprint: str, certificate_pem: str) -> str:
        self.asked.append(fingerprint)
        return "node2"


@dataclass
class ServiceKit:
    consensus: ConsensusRuntime
    identity: Identity
    services: Services
    keeper: PoolKeeper
    pools: MemoryPools
    join_tokens: JoinTokensElsewhere
    token_operations: TokenOperations
    bound: list[tuple[str, str]]
    actors: ActorSystem
    machine: MemoryNetworks
    online: set[int]
    clock_ns: list[int] = field(default_factory=lambda: [NOW_NS])

    @property
    def database(self) -> Any:
        return self.consensus.database

    async def sql(self, *statements: str) -> None:
        """Write rows of parts that are not here."""
        outcome = await self.consensus.propose(
            Transaction(
                tuple(Statement(sql) for sql in statements), topics=("members", "storage", "config", "networks")
            )
        )
        assert outcome.applied, outcome

    async def become_clustered(self) -> None:
        await self.sql("UPDATE nodes SET name = 'node1', address = '127.0.0.1:8443' WHERE id = 1")
        self.identity.refresh()

    async def add_member(self, number: int, name: str) -> None:
        await self.sql(
            f"INSERT INTO nodes (id, name, address, schema, api_extensions, arch)"
            f" VALUES ({number}, '{name}', '10.0.0.{number}:8443', 1, 1, 2)"
        )

    async def add_instance(self, name: str, *, profile: str = "default", pool: str = "", number: int = 1) -> None:
        statements = [
            (
                "INSERT INTO instances (id, node_id, name, architecture, type, creation_date, project_id)"
                f" VALUES ({number}, 1, '{name}', 2, 0, '{NOW}', 1)"
            ),
            (
                f"INSERT INTO instances_profiles (instance_id, profile_id) VALUES ({number},"
                f" (SELECT id FROM profiles WHERE name = '{profile}' AND project_id = 1))"
            ),
        ]
        if pool:
            statements.append(
                "INSERT INTO storage_volumes (name, storage_pool_id, node_id, type, project_id)"
                f" VALUES ('{name}', (SELECT id FROM storage_pools WHERE name = '{pool}'), 1, 0, 1)"
            )
        await self.sql(*statements)


def _services(kit_directory: Path, consensus: ConsensusRuntime, identity: Identity, kit: dict[str, Any]) -> Services:
    database = consensus.database

    async def check_bind(key: str, address: str, _current: Mapping[str, str]) -> None:
        kit["bound"].append((key, address))
        if address.startswith("1.2.3.4"):
            raise MemberError(f'Cannot listen on network HTTPS socket "{address}"')

    config = ServerConfigService(consensus=consensus, database=database, identity=identity, check_bind=check_bind)
    driver = DriverInfo("lxc", "5.0.2", {"cgroup2": True})
    server = ServerInfoService(
        config=config,
        database=database,
        identity=identity,
        certificate=lambda: certificates.load_or_create(kit_directory, "server", "host"),
        instance_driver=driver,
        storage_drivers={name: DriverInfo(name, "1") for name in ("btrfs", "dir")},
    )
    networks, network_changes, network_leases = network_use_cases.build(
        consensus=consensus,
        database=database,
        identity=identity,
        actors=kit["actors"],
        online=lambda member_id: member_id in kit["online"],
        rng=random.Random(1),
        members_s=0.5,
    )
    followers = ProfileFollowers(database, identity, kit["actors"], lambda member_id: member_id in kit["online"])
    return Services(
        config=config,
        profiles=ProfileService(consensus=consensus, database=database, followers=followers),
        projects=ProjectService(consensus=consensus, database=database),
        storage=StoragePoolService(consensus=consensus, database=database, identity=identity, keeper=kit["keeper"]),
        trust=TrustService(
            consensus=consensus,
            database=database,
            identity=identity,
            join_tokens=kit["join_tokens"],
            addresses=server.addresses,
            fingerprint=lambda: server.certificate().fingerprint,
            config=config.value,
            new_operation_id=lambda: new_operation_id(identity.member_id),
            clock_ns=lambda: kit["clock_ns"][0],
        ),
        warnings=WarningService(consensus=consensus, database=database, clock_ns=lambda: kit["clock_ns"][0]),
        server=server,
        networks=networks,
        network_changes=network_changes,
        network_leases=network_leases,
        cluster=cast(Any, SimpleNamespace()),
        members=cast(Any, SimpleNamespace()),
        sql=SqlService(consensus=consensus, database=database, path=lambda: consensus.database.path, identity=identity),
        metrics=cast(Any, SimpleNamespace()),
        instances=SimpleNamespace(),
        images=SimpleNamespace(),
    )


@asynccontextmanager
async def running_services(directory: Path) -> AsyncIterator[ServiceKit]:
    """A fresh standalone server with the rows that it starts with."""
    create_standalone(directory / "database", address="one")
    consensus = ConsensusRuntime(directory / "database", NoLane, realtime=False)
    await consensus.start()
    for transaction in (
        *schema.pending_migrations(0, NOW),
        schema.initial_rows(NOW, architecture=2, api_extensions=30),
    ):
        outcome = await consensus.propose(transaction)
        assert outcome.applied, outcome
    identity = Identity(database=lambda: consensus.database, member_id=lambda: consensus.member_id, hostname="host")
    identity.refresh()
    pools = MemoryPools()
    keeper = PoolKeeper(
        consensus=consensus,
        database=consensus.database,
        identity=identity,
        backend=pools,
        drivers=frozenset({"btrfs", "dir"}),
        members_s=0.3,
    )
    kit: dict[str, Any] = {
        "keeper": keeper,
        "pools": pools,
        "join_tokens": JoinTokensElsewhere(),
        "bound": [],
        "clock_ns": [NOW_NS],
        "actors": ActorSystem(member_id=lambda: consensus.member_id),
        "machine": MemoryNetworks(),
        "online": {1},
    }
    services = _services(directory, consensus, identity, kit)
    services.config.start()
    keeper.start()
    await kit["actors"].start([network_actor(consensus, kit["machine"], services.warnings)])
    token_operations = TokenOperations(
        consensus=consensus, database=consensus.database, identity=identity, wall_ns=lambda: kit["clock_ns"][0]
    )
    try:
        yield ServiceKit(consensus, identity, services, token_operations=token_operations, **kit)
    finally:
        keeper.stop()
        services.config.stop()
        await kit["actors"].stop()
        await consensus.stop()


class Seen:
    """An If-Match of something that was read earlier."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __call__(self, current: object) -> None:
        from incus_actors.errors import PreconditionFailedError

        if current != self.value:
            raise PreconditionFailedError("ETag doesn't match: current vs given")
