"""The questions of `admin init` about storage: which backend, which disk, how large.

Owns the branches of each backend; called by init_questions.py and by discovery. Offers only backends that this server
really has.
"""

from __future__ import annotations

import subprocess
from typing import Any

import click

from incus_actors.cli import init_checks
from incus_actors.cli.api_client import ApiClient, url
from incus_actors.cli.asking import InvalidAnswerError, ask_bool, ask_choice, ask_int, ask_text
from incus_actors.cli.preseed import Preseed, entry
from incus_actors.settings import incus_directory

REMOTE = frozenset({"ceph", "cephfs", "lvmcluster", "truenas"})

_THIN_WARNING = """
The LVM thin provisioning tools couldn't be found.
LVM can still be used without thin provisioning but this will disable over-provisioning,
increase the space requirements and creation time of images, instances and snapshots.

If you wish to use thin provisioning, abort now, install the tools from your Linux distribution
and make sure that your user can see and run the "thin_check" command before running "init" again.
"""


def ask_storage(client: ApiClient, server: dict[str, Any], preseed: Preseed) -> None:
    """Ask for a pool, or in a cluster for a local and a remote one; put them and the root disk into `preseed`."""
    if preseed.cluster is None:
        if ask_bool("Do you want to configure a new storage pool? (yes/no) [default=yes]: ", "yes"):
            _ask_pool(client, server, preseed, "")
        return
    if ask_bool("Do you want to configure a new local storage pool? (yes/no) [default=yes]: ", "yes"):
        _ask_pool(client, server, preseed, "local")
    if ask_bool("Do you want to configure a new remote storage pool? (yes/no) [default=no]: ", "no"):
        _ask_pool(client, server, preseed, "remote")


def drivers(server: dict[str, Any], *, remote: bool | None) -> list[str]:
    """Return the names of this server's backends: local ones, remote ones, or (None) all of them."""
    found = {d["Name"]: bool(d.get("Remote")) or d["Name"] in REMOTE for d in _supported(server)}
    return sorted(name for name, far in found.items() if remote is None or far == remote)


def _supported(server: dict[str, Any]) -> list[dict[str, Any]]:
    return list(server["environment"].get("storage_supported_drivers") or [])


def _ask_pool(client: ApiClient, server: dict[str, Any], preseed: Preseed, fixed_name: str) -> None:
    choices = drivers(server, remote=None if not fixed_name else fixed_name == "remote")
    if not choices:
        raise click.ClickException("No storage backends available")
    while True:
        name = fixed_name or ask_text("Name of the new storage pool [default=default]: ", "default", _check_name)
        if client.find(url("storage-pools", name)) is None:
            break
        if fixed_name:
            raise click.ClickException(f'The storage pool "{name}" already exists')
        click.echo(f'The requested storage pool "{name}" already exists. Please choose another name.')
    driver = choices[0]
    if len(choices) > 1:
        default = default_driver(choices)
        question = f"Name of the storage backend to use ({', '.join(choices)}) [default={default}]: "
        driver = ask_choice(question, choices, default)
    config = ask_config(name, driver)
    preseed.storage_pools.append(entry("storage_pools", name=name, driver=driver, config=config))
    devices = preseed.profiles[0].values["devices"]
    devices.setdefault("root", {"type": "disk", "path": "/", "pool": name})


def _check_name(text: str) -> None:
    if not text or "/" in text or text in (".", ".."):
        raise InvalidAnswerError("Storage pool names may not contain slashes")


def default_driver(choices: list[str]) -> str:
    """Return the backend that is offered first: btrfs where our directory is on it, else zfs, btrfs, dir."""
    wanted = ["btrfs"] if file_system() == "btrfs" else []
    wanted += ["zfs", "btrfs", "dir"]
    return next((each for each in wanted if each in choices), choices[0])


def file_system() -> str:
    """Return the type of the file system that holds our state directory."""
    command = ["stat", "--file-system", "--format=%T", str(incus_directory())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def ask_config(name: str, driver: str) -> dict[str, str]:
    """Ask what a pool of that driver needs and return its keys."""
    if driver == "dir":
        default = incus_directory() / "storage-pools" / name
        source = ask_text(
            f"Where should this storage pool store its data? [default={default}]: ", check=_check_directory
        )
        return {"source": source} if source else {}
    if driver in ("ceph", "cephfs", "lvmcluster"):
        return _ask_remote(driver)
    if driver == "btrfs" and file_system() == "btrfs":
        directory = incus_directory()
        question = f"Would you like to create a new btrfs subvolume under {directory}? (yes/no) [default=yes]: "
        if ask_bool(question, "yes"):
            return {"source": str(directory / "storage-pools" / name)}
    if driver == "zfs" and _has_rpool():
        question = "Would you like to create a new zfs dataset under rpool/incus? (yes/no) [default=yes]: "
        if ask_bool(question, "yes"):
            return {"source": "rpool/incus"}
    if driver == "lvm" and not _has_thin_tools():
        click.echo(_THIN_WARNING)
        if not ask_bool("Do you want to continue without thin provisioning? (yes/no) [default=yes]: ", "yes"):
            raise click.ClickException("The LVM thin provisioning tools couldn't be found on the system")
        return {**_ask_place(driver), "lvm.use_thinpool": "false"}
    return _ask_place(driver)


def _check_directory(text: str) -> None:
    if text and not text.startswith("/"):
        raise InvalidAnswerError("an absolute path is needed")


def _ask_place(driver: str) -> dict[str, str]:
    if not ask_bool(f"Create a new {driver.upper()} pool? (yes/no) [default=yes]: ", "yes"):
        return {"source": ask_text(f"Name of the existing {driver.upper()} pool or dataset: ")}
    question = (
        "Would you like to use an existing empty block device (e.g. a disk or partition)? (yes/no) [default=no]: "
    )
    if ask_bool(question, "no"):
        return {"source": ask_text("Path to the existing block device: ", check=init_checks.check_block_device)}
    default = init_checks.loop_default_gib(incus_directory())
    size = ask_text(
        f"Size in GiB of the new loop device (1GiB minimum) [default={default}GiB]: ",
        f"{default}GiB",
        init_checks.loop_size,
    )
    return {"size": f"{init_checks.loop_size(size)}GiB"}


def _ask_remote(driver: str) -> dict[str, str]:
    if driver == "lvmcluster":
        return {"source": ask_text("Name of the shared LVM volume group: ")}
    if driver == "cephfs":
        return {
            "cephfs.cluster_name": ask_text("Name of the existing CEPHfs cluster [default=ceph]: ", "ceph"),
            "source": ask_text("Name of the CEPHfs volume: "),
        }
    return {
        "ceph.cluster_name": ask_text("Name of the existing CEPH cluster [default=ceph]: ", "ceph"),
        "ceph.osd.pool_name": ask_text("Name of the OSD storage pool [default=incus]: ", "incus"),
        "ceph.osd.pg_num": str(ask_int("Number of placement groups [default=32]: ", 1, -1, "32")),
    }


def _has_rpool() -> bool:
    try:
        done = subprocess.run(["zfs", "list", "-H", "-o", "name", "rpool"], capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0


def _has_thin_tools() -> bool:
    import shutil

    return shutil.which("thin_check") is not None
