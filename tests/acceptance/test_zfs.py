"""Containers and volumes on ZFS (Debian's zfs-fuse) with the stock client, one pool per member."""

from __future__ import annotations

import json

import pytest
from zfs_kit import answering

from incus_actors.lab.cluster import LabCluster

pytestmark = pytest.mark.may_skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Three members that found ZFS when they started."""
    with answering(tmp_path_factory.mktemp("zfs-fuse")):
        found = LabCluster.in_namespaces(3, prefix="azf")
        try:
            found.form()
            found.wait_until_healthy()
            yield found
        finally:
            found.destroy()


def test_containers_and_volumes_on_zfs(lab, incus_on, unified) -> None:
    incus = incus_on(lab.members[0])
    drivers = json.loads(incus("query", "/1.0"))["environment"]["storage_supported_drivers"]
    assert "zfs" in [driver["Name"] for driver in drivers]
    assert lab.network is not None
    for member in lab.members:  # on one machine, so the pools need names of their own
        name = f"zfs.pool_name={lab.network.prefix}{member.name}"
        incus("storage", "create", "z", "zfs", "--target", member.name, "size=300MiB", name)
    incus("storage", "create", "z", "zfs")
    incus("image", "import", str(unified), "--alias", "tiny")
    for number, member in enumerate(("m1", "m2", "m2"), 1):
        incus("launch", "tiny", f"z{number}", "-s", "z", "--target", member)
    assert incus("exec", "z3", "--", "id", "-u").strip() == "0"
    incus("exec", "z3", "--", "touch", "/root/mine")
    assert "mine" not in incus("exec", "z2", "--", "ls", "/root")  # a clone of the same image
    incus("storage", "volume", "create", "z", "v", "--target", "m1", "size=20MiB")
    incus("storage", "volume", "snapshot", "create", "z", "v", "s")
    incus("storage", "volume", "copy", "z/v", "z/w", "--target", "m1", "--destination-target", "m2")
    rows = json.loads(incus("storage", "volume", "list", "z", "-f", "json"))
    found = sorted((row["name"], row["location"]) for row in rows if row["type"] == "custom")
    assert found == [("v", "m1"), ("v/s", "m1"), ("w", "m2"), ("w/s", "m2")]
    assert "currently in use" in incus.fails("storage", "delete", "z")
    incus("delete", "-f", "z1", "z2", "z3")
    for volume in "vw":
        incus("storage", "volume", "delete", "z", volume)
    incus("image", "delete", "tiny")
    incus("storage", "delete", "z")
