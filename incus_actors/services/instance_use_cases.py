"""Everything about instances that the gateways reach as `services.instances`.

Owns the bundle and its construction; called by the composition root. Must never hold logic.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from incus_actors.actors.host import Host
from incus_actors.actors.system import ActorSystem
from incus_actors.services.images import ImageService
from incus_actors.services.instance_create import InstanceCreator
from incus_actors.services.instance_exec import ExecService
from incus_actors.services.instance_placement import InstancePlacer
from incus_actors.services.instances import InstanceService, Members


@dataclass(frozen=True, slots=True)
class InstanceUseCases:
    """`life`: list, show, state, update, rename, delete; `placer`: where new ones go; `creator`: makes them; `commands`: exec."""

    life: InstanceService
    placer: InstancePlacer
    creator: InstanceCreator
    commands: ExecService


def build(
    host: Host,
    system: ActorSystem,
    members: Members,
    *,
    clustered: Callable[[], bool],
    rng: random.Random | None = None,
) -> tuple[InstanceUseCases, ImageService]:
    """Return the services of instances and images of one daemon."""
    images = ImageService(host, system, members)
    life = InstanceService(host, system, members)
    placer = InstancePlacer(host, system, members, clustered=clustered)
    creator = InstanceCreator(host, system, images, rng=rng if rng is not None else random.SystemRandom())
    return InstanceUseCases(life, placer, creator, ExecService(host, life)), images
