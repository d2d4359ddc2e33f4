"""Everything about storage volumes that the gateways reach as `services.volumes`.

Owns the bundle and its construction; called by the composition root. Must never hold logic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from incus_actors.actors.host import Host
from incus_actors.actors.system import ActorSystem
from incus_actors.identity import Identity
from incus_actors.services.volume_backups import VolumeBackupService
from incus_actors.services.volume_copies import VolumeCopyService
from incus_actors.services.volume_schedule import VolumeSchedule
from incus_actors.services.volume_snapshots import VolumeSnapshotService
from incus_actors.services.volume_streams import VolumeFetcher, VolumeSender
from incus_actors.services.volume_tools import VolumeTools
from incus_actors.services.volumes import VolumeService


@dataclass(frozen=True, slots=True)
class VolumeUseCases:
    """`life`: create, list, show, change, delete; `snapshots`, `copies` and `backups` of custom volumes; `sender`: their
    bytes; `schedule` is started and stopped by the daemon."""

    life: VolumeService
    snapshots: VolumeSnapshotService
    copies: VolumeCopyService
    backups: VolumeBackupService
    sender: VolumeSender
    schedule: VolumeSchedule


def build(
    host: Host, system: ActorSystem, identity: Identity, fetch: VolumeFetcher, algorithm: Callable[[], str]
) -> VolumeUseCases:
    """Return the services of volumes of one daemon; `fetch` opens those of other members, `algorithm` is the server's
    `backups.compression_algorithm`."""
    tools = VolumeTools(host, system, identity)
    life, sender, snapshots = VolumeService(tools), VolumeSender(tools), VolumeSnapshotService(tools)
    backups = VolumeBackupService(tools, life, algorithm)
    return VolumeUseCases(
        life=life,
        snapshots=snapshots,
        backups=backups,
        schedule=VolumeSchedule(tools, snapshots, backups),
        copies=VolumeCopyService(tools, life, sender, fetch),
        sender=sender,
    )
