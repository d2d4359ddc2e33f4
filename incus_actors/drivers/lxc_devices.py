"""All devices of running containers together: disks, device nodes, nics, proxies, in the order that they need.

Owns no state: each kind keeps its own file beside the instance. Called by drivers/lxc.py.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from incus_actors.drivers import idmap, lxc_disks, lxc_nat, lxc_nics, lxc_nodes, lxc_proxies
from incus_actors.drivers.base import DriverError, InstanceSpec
from incus_actors.drivers.network_helper import NetworkHelper

log = logging.getLogger(__name__)


def with_nodes(spec: InstanceSpec) -> InstanceSpec:
    """Return an instance whose device nodes are made, and mounted like disks. Raises DriverError."""
    nodes = lxc_nodes.nodes_of(spec)
    if not nodes:
        return spec
    base = (0, 0) if spec.privileged else idmap.host_base(spec.idmap or idmap.default_idmap())
    disks = {name: {"type": "disk", **disk} for name, disk in lxc_nodes.as_disks(spec, base).items()}
    kept = {name: device for name, device in spec.devices.items() if name not in nodes}
    return replace(spec, devices={**kept, **disks})


async def begun(spec: InstanceSpec, pid: int) -> None:
    """Add what can only come after init has begun. Raises DriverError."""
    await lxc_nat.plug(spec)
    await lxc_proxies.plug(spec, pid)


async def plug(helper: NetworkHelper, spec: InstanceSpec, pid: int) -> None:
    """Give a running container (by its init's pid) exactly the devices of `spec`. Raises DriverError."""
    await lxc_disks.plug(with_nodes(spec), pid)
    await lxc_nics.plug(helper, spec, pid)
    await lxc_nat.plug(spec)
    await lxc_proxies.plug(spec, pid)


async def found(spec: InstanceSpec, pid: int) -> None:
    """After a restart of the daemon: what must be there beside a container is there again, and nothing else."""
    for plugged in (lxc_nat.plug(spec), lxc_proxies.plug(spec, pid)):
        try:
            await plugged
        except DriverError as error:
            log.warning("%s: %s", spec.name, error)


async def ended(helper: NetworkHelper, spec: InstanceSpec) -> None:
    """Remove what the devices of a container that has ended leave on the host."""
    lxc_proxies.ended(spec)
    await lxc_nat.ended(spec)
    await lxc_nics.ended(helper, spec)
