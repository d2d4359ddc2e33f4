"""Every part of one member, built and connected but not yet started.

Owns who knows whom; called by daemon/member.py once. Must hold no behaviour beyond small adapters between parts.
"""

from __future__ import annotations

import random
import secrets
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from incus_actors import __version__
from incus_actors.actors.actor import ChildSpec
from incus_actors.actors.heartbeat import PATH as HEARTBEAT_PATH
from incus_actors.actors.heartbeat import HeartbeatActor, HeartbeatTable, LinkUp, OwnFacts
from incus_actors.actors.host import IMAGES_PATH, INSTANCES_PATH, STATES_PATH, STORAGE_PATH, Host
from incus_actors.actors.images import ImagesActor
from incus_actors.actors.instance_states import InstanceStatesActor
from incus_actors.actors.instances import InstancesSupervisor
from incus_actors.actors.leader import PATH as LEADER_PATH
from incus_actors.actors.leader import LeaderTools
from incus_actors.actors.leadership import LeadershipActor
from incus_actors.actors.network import NetworkActor
from incus_actors.actors.network_messages import NETWORKS_PATH, Converge
from incus_actors.actors.offline_watch import PATH as OFFLINE_PATH
from incus_actors.actors.offline_watch import OfflineWatchActor
from incus_actors.actors.raft import raft_spec
from incus_actors.actors.storage import StorageActor
from incus_actors.actors.system import ActorSystem
from incus_actors.actors.transport import transport_spec
from incus_actors.consensus.runtime import ConsensusRuntime
from incus_actors.consensus.types import Limits
from incus_actors.daemon.cluster_hooks import DaemonHooks
from incus_actors.daemon.journal import RoleJournal
from incus_actors.daemon.state_setup import own_architecture, prepare_state
from incus_actors.drivers.bridge import NetworkDriver
from incus_actors.drivers.network_helper import NetworkHelper
from incus_actors.drivers.registry import Drivers, choose_drivers
from incus_actors.gateway.access import Access, read_trusted_certificates
from incus_actors.gateway.detour import Detours
from incus_actors.gateway.event_relay import EventRelay, EventRelayActor
from incus_actors.gateway.events import EventHub
from incus_actors.gateway.forwarding import Forwarder
from incus_actors.gateway.image_transfer import MemberImages
from incus_actors.gateway.operations import Operations, new_operation_id
from incus_actors.gateway.routing import Routing
from incus_actors.gateway.volume_transfer import MemberVolumes
from incus_actors.identity import Identity
from incus_actors.model.api_extensions import API_EXTENSIONS
from incus_actors.rest.context import Gateway
from incus_actors.security import certificates
from incus_actors.security.cluster_files import ClusterFiles
from incus_actors.security.tls import client_context
from incus_actors.services import instance_use_cases, network_use_cases, volume_use_cases
from incus_actors.services.acceptance import ServerFacts
from incus_actors.services.cluster_use_cases import ClusterUseCases, build_cluster_use_cases
from incus_actors.services.members import offline_threshold_s, why_offline
from incus_actors.services.metrics import MetricsService
from incus_actors.services.pool_keeper import PoolKeeper, StorageActorPools
from incus_actors.services.profile_followers import ProfileFollowers
from incus_actors.services.profiles import ProfileService
from incus_actors.services.projects import ProjectService
from incus_actors.services.registry import Services
from incus_actors.services.server_config import ServerConfigService
from incus_actors.services.server_info import ServerInfoService
from incus_actors.services.sql import SqlService
from incus_actors.services.storage_pools import StoragePoolService
from incus_actors.services.trust import TrustService
from incus_actors.services.warnings import WarningKind, WarningService
from incus_actors.settings import Settings
from incus_actors.state.database import Database
from incus_actors.state.kept_reader import KeptReader
from incus_actors.state.queries import warnings as warning_queries
from incus_actors.state.queries.cluster import instance_counts
from incus_actors.state.schema import SCHEMA_VERSION
from incus_actors.transport.lanes import Lanes


@dataclass
class Parts:
    """What member.py starts and stops. `foundation` are the actors below everything, `upper_actors` the others."""

    consensus: ConsensusRuntime
    database: Database
    identity: Identity
    access: Access
    actors: ActorSystem
    drivers: Drivers
    events: EventHub
    operations: Operations
    forwarder: Forwarder
    services: Services
    keeper: PoolKeeper
    gateway: Gateway
    journal: RoleJournal
    foundation: list[ChildSpec]
    upper_actors: list[ChildSpec]


@dataclass
class _Core:
    """What almost everything else needs."""

    settings: Settings
    lanes: Lanes
    consensus: ConsensusRuntime
    identity: Identity
    actors: ActorSystem
    drivers: Drivers
    networks: NetworkDriver
    events: EventHub
    operations: Operations
    routing: Routing
    forwarder: Forwarder
    heartbeats: HeartbeatTable
    cluster_files: ClusterFiles

    @property
    def database(self) -> Database:
        return self.consensus.database

    def member_id(self) -> int:
        return self.identity.member_id


def _build_core(settings: Settings) -> _Core:
    directory = settings.directory
    lanes = Lanes(directory)
    limits = Limits(min_free_kib=settings.min_free_mib << 10)
    consensus = ConsensusRuntime(settings.database_directory, lanes.lane_factory, limits=limits)
    database = consensus.database
    identity = Identity(database=lambda: database, member_id=lambda: consensus.member_id, hostname=socket.gethostname())
    events = EventHub(location=lambda: identity.location)
    routing = Routing(database=lambda: database, member_id=lambda: identity.member_id)
    server = certificates.load_or_create(directory, certificates.SERVER, socket.gethostname())
    cluster_files = ClusterFiles(directory)
    heartbeats = HeartbeatTable()
    network_helper = NetworkHelper()

    return _Core(
        settings=settings,
        lanes=lanes,
        consensus=consensus,
        identity=identity,
        actors=ActorSystem(member_id=lambda: identity.member_id),
        drivers=choose_drivers(
            directory,
            instance_driver="" if settings.instance_driver == "auto" else settings.instance_driver,
            helper=network_helper,
        ),
        networks=NetworkDriver(directory, network_helper),
        events=events,
        operations=Operations(events, member_id=lambda: identity.member_id, location=lambda: identity.location),
        routing=routing,
        forwarder=Forwarder(
            address_of=routing.address_of,
            context=lambda: client_context(server.certificate_path, server.key_path),
            accepted=cluster_files.accepted,
            offline=lambda member_id: why_offline(database, heartbeats, member_id, identity.member_id),
            detours=Detours(consensus, heartbeats),
        ),
        heartbeats=heartbeats,
        cluster_files=cluster_files,
    )


def _host(core: _Core) -> Host:
    return Host(
        directory=core.settings.directory,
        consensus=lambda: core.consensus,
        database=lambda: core.database,
        member_id=core.member_id,
        location=lambda: core.identity.location,
        driver=core.drivers.instances,
        storage=core.drivers.storage,
        images=core.drivers.images,
        lifecycle=core.events.lifecycle,
    )


def _cluster(core: _Core, hooks: DaemonHooks, config: ServerConfigService) -> ClusterUseCases:
    return build_cluster_use_cases(
        directory=core.settings.directory,
        hostname=socket.gethostname(),
        identity=core.identity,
        consensus=core.consensus,
        database=core.database,
        hooks=hooks,
        heartbeats=core.heartbeats,
        actors=core.actors,
        facts=ServerFacts(
            version=__version__,
            schema=SCHEMA_VERSION,
            api_extensions=len(API_EXTENSIONS),
            architecture=own_architecture(),
            storage_root=str(core.settings.directory / "storage-pools"),
        ),
        config=config.configured,
        files=core.cluster_files,
        lanes_address=lambda: core.lanes.address,
    )


def _services(
    core: _Core, host: Host, keeper: PoolKeeper, cluster: ClusterUseCases, config: ServerConfigService
) -> Services:
    consensus, database, identity = core.consensus, core.database, core.identity
    server = ServerInfoService(
        config=config,
        database=database,
        identity=identity,
        certificate=cluster.bootstrap.certificate,
        instance_driver=core.drivers.instances.info,
        storage_drivers={name: driver.info for name, driver in core.drivers.storage.items()},
        firewall="nftables" if core.networks.availability().available else "none",
    )
    instances, images = instance_use_cases.build(
        host, core.actors, cluster.members, clustered=lambda: identity.clustered, rng=random.SystemRandom()
    )
    networks, network_changes, network_leases = network_use_cases.build(
        consensus=consensus,
        database=database,
        identity=identity,
        actors=core.actors,
        online=cluster.members.online,
        rng=random.SystemRandom(),
    )
    followers = ProfileFollowers(database, identity, core.actors, cluster.members.online)
    return Services(
        config=config,
        profiles=ProfileService(consensus=consensus, database=database, followers=followers),
        projects=ProjectService(consensus=consensus, database=database),
        storage=StoragePoolService(
            consensus=consensus, database=database, identity=identity, keeper=keeper, online=cluster.members.online
        ),
        trust=TrustService(
            consensus=consensus,
            database=database,
            identity=identity,
            join_tokens=cluster.tokens,
            addresses=server.addresses,
            fingerprint=lambda: server.certificate().fingerprint,
            config=config.value,
            new_operation_id=lambda: new_operation_id(identity.member_id),
        ),
        warnings=WarningService(consensus=consensus, database=database),
        server=server,
        networks=networks,
        network_changes=network_changes,
        network_leases=network_leases,
        cluster=cluster,
        members=cluster.members,
        sql=SqlService(consensus=consensus, database=database, path=lambda: core.database.path, identity=identity),
        metrics=MetricsService(
            host,
            operations=lambda: len(core.operations.running()),
            warnings=lambda: len(warning_queries.warnings(database)),
            lanes=core.lanes.counters,
        ),
        instances=instances,
        images=images,
        volumes=volume_use_cases.build(
            host,
            core.actors,
            identity,
            MemberVolumes(core.forwarder),
            lambda: config.value("backups.compression_algorithm"),
        ),
    )


def _upper_actors(core: _Core, host: Host) -> list[ChildSpec]:
    """Every actor that may restart without the daemon: each is a permanent child of the root."""
    kept = KeptReader(core.database)
    core.consensus.subscribe_applied(lambda _index, _topics: kept.forget())
    others = Routing(database=lambda: kept, member_id=core.member_id).others
    relay = EventRelay(core.events, core.operations, system=core.actors, members=others)
    core.operations.elsewhere = relay.operations_elsewhere
    incarnation = secrets.randbits(62)

    def own_facts() -> OwnFacts:
        member_id, status = core.identity.member_id, core.consensus.status()
        mine = instance_counts(kept).get(member_id, 0)
        return OwnFacts(member_id, status.applied, mine, mine, status.leader)

    def heartbeat() -> HeartbeatActor:
        return HeartbeatActor(
            core.heartbeats,
            peers=others,
            own=own_facts,
            version=(__version__, SCHEMA_VERSION, len(API_EXTENSIONS)),
            incarnation=incarnation,
            threshold_s=lambda: float(offline_threshold_s(kept)),
        )

    warnings = WarningService(consensus=core.consensus, database=core.database)

    async def network_problems(problems: dict[str, str]) -> None:
        text = "; ".join(f"{name}: {problem}" for name, problem in sorted(problems.items()))
        await warnings.tell(WarningKind.NETWORK_UNAVAILABLE, text, member_id=core.identity.member_id)

    leader_tools = LeaderTools(consensus=core.consensus, database=kept, heartbeats=core.heartbeats)
    fetcher = MemberImages(core.forwarder)
    return [
        ChildSpec("events", lambda: EventRelayActor(relay)),
        ChildSpec(HEARTBEAT_PATH, heartbeat),
        ChildSpec(
            OFFLINE_PATH,
            lambda: OfflineWatchActor(consensus=core.consensus, database=kept, heartbeats=core.heartbeats),
        ),
        ChildSpec(LEADER_PATH, lambda: LeadershipActor(leader_tools)),
        ChildSpec(STORAGE_PATH, lambda: StorageActor(host)),
        ChildSpec(IMAGES_PATH, lambda: ImagesActor(host, fetcher)),
        ChildSpec(NETWORKS_PATH, lambda: NetworkActor(host, core.networks, network_problems)),
        ChildSpec(INSTANCES_PATH, lambda: InstancesSupervisor(host)),
        ChildSpec(STATES_PATH, lambda: InstanceStatesActor(host)),
    ]


def build_parts(
    settings: Settings,
    *,
    reload: Callable[[], Awaitable[None]],
    listen_also: Callable[[str], Awaitable[None]],
    shutdown: Callable[[bool], Awaitable[None]],
    end: Callable[[], None],
) -> Parts:
    """Build everything. `reload` re-reads identity and listeners, `listen_also` adds one for now, `shutdown(force)`
    stops all but the listeners, `end` ends the process. Blocks some 100 ms (keys, drivers). Raises MemberError,
    OSError."""
    core = _build_core(settings)
    host = _host(core)
    config = ServerConfigService(consensus=core.consensus, database=core.database, identity=core.identity)
    keeper = PoolKeeper(
        consensus=core.consensus,
        database=core.database,
        identity=core.identity,
        backend=StorageActorPools(core.actors.ref(STORAGE_PATH)),
        drivers=frozenset(core.drivers.storage),
        reasons={name: found.reason for name, found in core.drivers.reasons.items() if not found.available},
    )

    async def networks_ready() -> None:
        await core.actors.ref(NETWORKS_PATH).ask(Converge(), deadline_s=60)

    async def own_share_ready() -> None:
        await keeper.own_pools_ready()
        await networks_ready()

    hooks = DaemonHooks(
        directory=settings.directory,
        lanes=core.lanes,
        actors=core.actors,
        reload=reload,
        listen_also=listen_also,
        prepare_state=lambda: prepare_state(core.consensus, core.database),
        pools=own_share_ready,
        networks=networks_ready,
    )
    cluster = _cluster(core, hooks, config)
    core.operations.tokens = cluster.token_operations
    config.mover = cluster.address
    services = _services(core, host, keeper, cluster, config)
    access = Access(lambda: read_trusted_certificates(core.database))
    journal = RoleJournal()
    gateway = Gateway(
        settings=settings,
        identity=core.identity,
        access=access,
        operations=core.operations,
        events=core.events,
        forwarder=core.forwarder,
        routing=core.routing,
        consensus=core.consensus,
        database=core.database,
        services=services,
        shutdown=shutdown,
        exit=end,
        actor_tree=core.actors.tree,
        role_journal=journal.rows,
        lane_counters=core.lanes.counters,
    )
    return Parts(
        consensus=core.consensus,
        database=core.database,
        identity=core.identity,
        access=access,
        actors=core.actors,
        drivers=core.drivers,
        events=core.events,
        operations=core.operations,
        forwarder=core.forwarder,
        services=services,
        keeper=keeper,
        gateway=gateway,
        journal=journal,
        foundation=[
            raft_spec(core.consensus),
            transport_spec(
                core.lanes, core.consensus, lambda member: core.actors.ref(HEARTBEAT_PATH).tell(LinkUp(member))
            ),
        ],
        upper_actors=_upper_actors(core, host),
    )
