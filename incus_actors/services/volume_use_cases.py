"""Everything about storage volumes that the gateways reach as `services.volumes`.

Owns the bundle and its construction; called by the composition root. Must never hold logic.
"""

from __future__ import annotations

from dataclasses import dataclass

from incus_actors.actors.host import Host
from incus_actors.actors.system import ActorSystem
from incus_actors.identity import Identity
from incus_actors.services.volume_copies import VolumeCopyService
from incus_actors.services.volume_snapshots import VolumeSnapshotService
from incus_actors.services.volume_streams import VolumeFetcher, VolumeSender
from incus_actors.services.volume_tools import VolumeTools
from incus_actors.services.volumes import VolumeService


@dataclass(frozen=True, slots=True)
class VolumeUseCases:
    """`life`: create, list, show, change, delete; `snapshots` and `copies` of custom volumes; `sender`: their bytes."""

    life: VolumeService
    snapshots: VolumeSnapshotService
    copies: VolumeCopyService
    sender: VolumeSender


def build(host: Host, system: ActorSystem, identity: Identity, fetch: VolumeFetcher) -> VolumeUseCases:
    """Return the services of volumes of one daemon; `fetch` opens those of other members."""
    tools = VolumeTools(host, system, identity)
    life, sender = VolumeService(tools), VolumeSender(tools)
    return VolumeUseCases(
        life=life,
        snapshots=VolumeSnapshotService(tools),
        copies=VolumeCopyService(tools, life, sender, fetch),
        sender=sender,
    )
