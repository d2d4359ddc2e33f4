"""kill -9 of a daemon between any two steps of making and removing pools, networks and volumes: running the command
again ends it, and nothing is left over. And rounds of volumes and snapshots leak nothing (200 of them: tests/drivers/test_storage_btrfs.py)."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from incus_actors.lab.cluster import LabCluster, wait_for
from incus_actors.lab.processes import LabMember

#: making takes 0.1 to 0.4 s here; the last moments are behind the end on a fast machine
MOMENTS_MS = (5, 40, 60, 80, 100, 130, 160, 250)


@pytest.fixture(scope="module")
def lab(incus_on: Any) -> Iterator[LabCluster]:
    cluster = LabCluster.in_namespaces(3, prefix="ask")
    try:
        cluster.form()
        cluster.wait_until_healthy()
        incus_on(cluster.members[0])("config", "set", "cluster.offline_threshold", "2")
        yield cluster
    finally:
        cluster.destroy()


def things_of(member: LabMember) -> dict[str, list[str]]:
    """What pools, volumes and networks leave on a machine."""
    directory = str(member.directory)
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if directory in line]
    loops = [path.read_text().strip() for path in Path("/sys/block").glob("loop*/loop/backing_file")]
    links = subprocess.run(
        [*member.enter, "ip", "-o", "link"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    tables = subprocess.run(
        [*member.enter, "nft", "list", "tables"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    processes = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    pools = member.directory / "storage-pools"
    return {
        "mounts": mounts,
        "loops": [loop for loop in loops if directory in loop],
        "disks": sorted(p.name for p in (member.directory / "disks").glob("*")),
        "pools": sorted(p.name for p in pools.glob("*") if p.name != "default"),
        "volumes": sorted(str(p.relative_to(pools)) for p in pools.glob("*/custom*/*")),
        "links": sorted(line.split(": ")[1].partition("@")[0] for line in links),
        "tables": sorted(tables),
        "dnsmasq": [line for line in processes if line.startswith("dnsmasq") and directory in line],
    }


class Kind:
    """How one kind of thing is made, found and removed."""

    def __init__(self, make: list[str], remove: list[str], listed: str, name: str) -> None:
        self.make, self.remove, self._listed, self._name = make, remove, listed, name

    def there(self, member: LabMember) -> str:
        """ "" if there is none, else its status."""
        for row in member.client.get(f"{self._listed}?recursion=1"):
            if row["name"] == self._name:
                return str(row.get("status", "Created"))
        return ""


KINDS = {
    "a btrfs pool": Kind(
        ["storage", "create", "fast", "btrfs"],
        ["storage", "delete", "fast"],
        "/1.0/storage-pools",
        "fast",
    ),
    "a network": Kind(
        ["network", "create", "br7", "ipv4.address=10.77.7.1/24", "ipv4.nat=true", "ipv6.address=none"],
        ["network", "delete", "br7"],
        "/1.0/networks",
        "br7",
    ),
    "a volume": Kind(
        ["storage", "volume", "create", "base", "v1", "size=20MiB", "--target", "m2"],
        ["storage", "volume", "delete", "base", "v1"],
        "/1.0/storage-pools/base/volumes/custom",
        "v1",
    ),
}


def interrupted(client: Any, command: list[str], victim: LabMember, moment_ms: int) -> None:
    """Run a command and kill a daemon meanwhile; what the command says doesn't count."""
    running = threading.Thread(target=lambda: client.run(*command, timeout=90))
    running.start()
    time.sleep(moment_ms / 1000)
    victim.kill()
    running.join(100)
    assert not running.is_alive(), f"{command} still hangs"
    victim.start()
    victim.wait_until_ready(60)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("what", list(KINDS))
def test_killed_and_run_again(lab: LabCluster, incus_on: Callable[..., Any], what: str) -> None:
    kind, victim = KINDS[what], lab.members[1]
    client = incus_on(lab.members[0])
    if what == "a volume":
        client("storage", "create", "base", "btrfs")
    before = [things_of(member) for member in lab.members]
    for number, moment_ms in enumerate(MOMENTS_MS):
        where = f"{what}, {moment_ms} ms"
        making = number % 2 == 0  # by turns: killed while it is made, killed while it is removed
        if not making:
            client(*kind.make)
        interrupted(client, kind.make if making else kind.remove, victim, moment_ms)
        lab.wait_until_healthy()
        if making:
            _again(client, kind, kind.make, lambda: kind.there(lab.members[0]) == "Created", where)
            client(*kind.remove)
        else:
            _again(client, kind, kind.remove, lambda: not kind.there(lab.members[0]), where)
        for member, expected in zip(lab.members, before, strict=True):
            wait_for(
                lambda m=member, e=expected: things_of(m) == e,
                f"{member.name} is as before ({where}): {json.dumps(things_of(member))} instead of {json.dumps(expected)}",
                timeout_s=15,
            )
    if what == "a volume":
        client("storage", "delete", "base")


def _again(client: Any, kind: Kind, command: list[str], done: Callable[[], bool], where: str) -> None:
    """Run the command until it has done its work; a member may still be coming back."""
    for _ in range(20):
        if done():
            return
        said = client.run(*command)
        if said.returncode == 0:
            break
        time.sleep(0.5)
    wait_for(done, f"{where}: {' '.join(command)} ({said.stderr.strip()})", timeout_s=15)


@pytest.mark.timeout(400)
def test_forty_rounds_through_the_api_leak_nothing(lab: LabCluster, incus_on: Callable[..., Any]) -> None:
    incus = incus_on(lab.members[1])
    member = lab.members[1]
    incus("storage", "create", "loop", "btrfs")
    root = member.directory / "storage-pools/loop"

    def subvolumes() -> str:
        done = subprocess.run(
            ["btrfs", "subvolume", "list", "-o", str(root)], capture_output=True, text=True, check=True
        )
        return "\n".join(line.split(" path ")[1] for line in done.stdout.splitlines())

    post = member.client
    volumes = "/1.0/storage-pools/loop/volumes/custom"
    before, files = (things_of(member), subvolumes()), sorted(str(p) for p in root.rglob("*"))
    for number in range(42):
        if number == 30:  # the kernel removes subvolumes later (asked to write, now); only then their groups can go
            for what in ("filesystem", "subvolume"):
                subprocess.run(["btrfs", what, "sync", str(root)], check=True, capture_output=True)
        name = f"v{number % 7}"
        post.run(
            "POST", f"{volumes}?target=m2", {"name": name, "config": {"size": "10MiB"}, "content_type": "filesystem"}
        )
        post.run("POST", f"{volumes}/{name}/snapshots?target=m2", {"name": "s1"})
        post.run("POST", f"{volumes}/{name}/snapshots?target=m2", {"name": "s2"})
        post.run("DELETE", f"{volumes}/{name}/snapshots/s1?target=m2")
        post.run("DELETE", f"{volumes}/{name}?target=m2")
    assert (things_of(member), subvolumes()) == before
    assert sorted(str(p) for p in root.rglob("*")) == files
    groups = subprocess.run(["btrfs", "qgroup", "show", str(root)], capture_output=True, text=True, check=False).stdout
    assert len(groups.splitlines()) < 70  # of 126 subvolumes that have come and gone
    incus("storage", "delete", "loop")
    assert things_of(member)["loops"] == []
