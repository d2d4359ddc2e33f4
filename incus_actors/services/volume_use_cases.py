"""Everything about storage volumes that the gateways reach as `services.volumes`.

Owns the bundle and its construction; called by the composition root. Must never hold logic.
"""

from __future__ import annotations

from dataclasses import dataclass

from incus_actors.actors.host import Host
from incus_actors.actors.system import ActorSystem
from incus_actors.identity import Identity
from incus_actors.services.volume_snapshots import VolumeSnapshotService
from incus_actors.services.volume_tools import VolumeTools
from incus_actors.services.volumes import VolumeService


@dataclass(frozen=True, slots=True)
class VolumeUseCases:
    """`life`: create, list, show, change, delete; `snapshots` of custom volumes."""

    life: VolumeService
    snapshots: VolumeSnapshotService


def build(host: Host, system: ActorSystem, identity: Identity) -> VolumeUseCases:
    """Return the services of volumes of one daemon."""
    tools = VolumeTools(host, system, identity)
    return VolumeUseCases(life=VolumeService(tools), snapshots=VolumeSnapshotService(tools))
