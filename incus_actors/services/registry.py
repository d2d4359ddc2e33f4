"""All services of one daemon, by name.

Owns the list; built by the composition root and handed to the gateways. Must never hold logic or state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from incus_actors.services.cluster_use_cases import ClusterUseCases
    from incus_actors.services.members import MembersService
    from incus_actors.services.metrics import MetricsService
    from incus_actors.services.network_changes import NetworkChanges
    from incus_actors.services.network_leases import NetworkLeases
    from incus_actors.services.networks import NetworkService
    from incus_actors.services.profiles import ProfileService
    from incus_actors.services.projects import ProjectService
    from incus_actors.services.server_config import ServerConfigService
    from incus_actors.services.server_info import ServerInfoService
    from incus_actors.services.sql import SqlService
    from incus_actors.services.storage_pools import StoragePoolService
    from incus_actors.services.trust import TrustService
    from incus_actors.services.warnings import WarningService


@dataclass
class Services:
    """Use cases, grouped by noun. `cluster` and `members` are part F2's, `instances` and `images` part G2's."""

    config: ServerConfigService
    profiles: ProfileService
    projects: ProjectService
    storage: StoragePoolService
    trust: TrustService
    warnings: WarningService
    server: ServerInfoService
    networks: NetworkService
    network_changes: NetworkChanges
    network_leases: NetworkLeases
    cluster: ClusterUseCases
    members: MembersService
    sql: SqlService
    metrics: MetricsService
    instances: Any
    images: Any
    volumes: Any = None  #: volume_use_cases.VolumeUseCases
