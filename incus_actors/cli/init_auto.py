"""`admin init --auto` and `--minimal`: a usable server without a question.

Owns the checks of the flags and what is made when it is missing; admin_init.py applies it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from incus_actors.cli import init_checks
from incus_actors.cli.api_client import ApiClient, url
from incus_actors.cli.preseed import Preseed, entry
from incus_actors.cli.storage_questions import drivers
from incus_actors.services.addresses import join_host

if TYPE_CHECKING:
    from incus_actors.cli.admin_init import Automatic


def automatic_preseed(client: ApiClient, flags: Automatic) -> Preseed:
    """Return what is missing on this server. Raises ClickException for flags that can't be."""
    server = client.get("/1.0")
    backend = flags.storage_backend or "dir"
    _check(flags, backend, drivers(server, remote=None))
    preseed = Preseed()
    if flags.network_address:
        port = flags.network_port if flags.network_port != -1 else init_checks.DEFAULT_PORT
        preseed.config["core.https_address"] = join_host(flags.network_address.strip("[]"), port)
    pools = [str(path).rpartition("/")[2] for path in client.get(url("storage-pools"))]
    networks = client.get(url("networks", recursion="1"))
    profile = client.get(url("profiles", "default"))
    devices: dict[str, dict[str, str]] = {}
    pool = _pool(preseed, flags, backend, pools)
    if pool and not any(_root(device) for device in profile["devices"].values()):
        devices["root"] = {"type": "disk", "path": "/", "pool": pool}
    if not any(network["managed"] for network in networks) and not any(
        device.get("type") == "nic" for device in profile["devices"].values()
    ):
        name = _free_bridge_name(networks)
        preseed.networks.append(entry("networks", name=name, project="default"))
        devices["eth0"] = {"type": "nic", "name": "eth0", "network": name}
    if devices:
        preseed.profiles.append(entry("profiles", name="default", project="default", devices=devices))
    return preseed


def _check(flags: Automatic, backend: str, supported: list[str]) -> None:
    if flags.storage_backend and backend not in supported:
        raise click.ClickException(f"The requested backend '{backend}' isn't supported by init")
    if backend == "dir":
        if flags.create_device or flags.create_loop != -1 or flags.storage_pool:
            raise click.ClickException(
                "None of --storage-pool, --storage-create-device or --storage-create-loop may be used with the "
                "'dir' backend"
            )
    elif flags.create_device and flags.create_loop != -1:
        raise click.ClickException("Only one of --storage-create-device or --storage-create-loop can be specified")
    if flags.network_port != -1 and not flags.network_address:
        raise click.ClickException("--network-port can't be used without --network-address")
    if flags.network_port != -1 and not 1 <= flags.network_port <= 65535:
        raise click.ClickException(f"Invalid port {flags.network_port}")


def _pool(preseed: Preseed, flags: Automatic, backend: str, pools: list[str]) -> str:
    """Return the pool for the root disk, planning a new one where there is none."""
    if pools:
        return "default" if "default" in pools else pools[0] if len(pools) == 1 else ""
    config = {"source": flags.storage_pool or flags.create_device}
    if flags.create_loop > 0:
        config["size"] = f"{flags.create_loop}GiB"
    preseed.storage_pools.append(entry("storage_pools", name="default", driver=backend, config=config))
    return "default"


def _root(device: dict[str, Any]) -> bool:
    return device.get("type") == "disk" and device.get("path") == "/"


def _free_bridge_name(networks: list[dict[str, Any]]) -> str:
    taken = {network["name"] for network in networks}
    return next(name for name in (f"incusbr{number}" for number in range(100)) if name not in taken)
