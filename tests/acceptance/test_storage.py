"""Pools and volumes of a cluster with the stock client: `incus storage …` and `incus storage volume …`."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time

import pytest

from incus_actors.lab.cluster import LabCluster

MEMBERS = ("m1", "m2", "m3")


@pytest.fixture(scope="module")
def btrfs(cluster, incus_on):
    """The name of a btrfs pool on every member, in loop files."""
    if shutil.which("mkfs.btrfs", path="/usr/sbin:/sbin:/usr/bin:/bin") is None:
        pytest.skip("needs btrfs-progs")
    incus = incus_on(cluster.members[0])
    for member, size in zip(MEMBERS, ("300MiB", "320MiB", "340MiB"), strict=True):
        incus("storage", "create", "fast", "btrfs", f"size={size}", "--target", member)
    assert "PENDING" in incus("storage", "list")
    incus("storage", "create", "fast", "btrfs", "user.x=y")
    yield "fast"
    for volume in json.loads(incus("storage", "volume", "list", "fast", "-f", "json")):
        if volume["type"] == "custom" and "/" not in volume["name"]:
            incus("storage", "volume", "delete", "fast", volume["name"], "--target", volume["location"])
    incus("storage", "delete", "fast")
    for member in cluster.members:
        assert not (member.directory / "storage-pools/fast").exists()
        assert list((member.directory / "disks").iterdir()) == []
    mounts = subprocess.run(["cat", "/proc/mounts"], capture_output=True, text=True, check=True).stdout
    assert not re.search(rf"{re.escape(str(cluster.directory))}/\S+/storage-pools/fast", mounts)


@pytest.fixture
def incus(cluster, incus_on, btrfs, image):
    """The stock client at the second member; instances and volumes of the test are removed."""
    client = incus_on(cluster.members[1])
    yield client
    names = client("list", "-f", "csv", "-c", "n").split()
    if names:
        client("delete", "-f", *names)
    for volume in json.loads(client("storage", "volume", "list", btrfs, "-f", "json")):
        if volume["type"] == "custom" and "/" not in volume["name"]:
            client("storage", "volume", "delete", btrfs, volume["name"], "--target", volume["location"])


def volumes(client, pool="fast") -> list[tuple[str, str]]:
    found = json.loads(client("storage", "volume", "list", pool, "-f", "json"))
    return sorted((v["name"], v["location"]) for v in found if v["type"] == "custom")


def test_a_pool_has_its_own_size_on_each_member(incus, cluster, incus_on, btrfs) -> None:
    shown = incus("storage", "show", btrfs)
    assert "user.x" in shown
    assert "size" not in shown
    assert "status: Created" in shown
    assert incus("storage", "get", btrfs, "size", "--target", "m3").strip() == "340MiB"
    assert f"{cluster.members[0].directory}/disks/fast.img" in incus("storage", "show", btrfs, "--target", "m1")
    assert "driver: btrfs" in incus("storage", "info", btrfs, "--target", "m1")
    incus("storage", "set", btrfs, "size=400MiB", "--target", "m3")
    assert "400" in incus("storage", "info", btrfs, "--target", "m3")
    assert incus.fails("storage", "set", btrfs, "size=200MiB", "--target", "m3") == "Error: Pool cannot be shrunk"
    assert incus("storage", "get", btrfs, "size", "--target", "m3").strip() == "400MiB"
    assert incus.fails("storage", "set", btrfs, "size=1GiB") == 'Error: Config key "size" is cluster member specific'
    assert "already created" in incus.fails("storage", "create", btrfs, "btrfs")


def test_bad_pools(incus) -> None:
    for words, text in (
        (["bad", "nope"], "Unknown driver"),
        (["bad", "btrfs", "zfs.pool_name=x", "--target", "m1"], 'Invalid option "zfs.pool_name"'),
        (["bad", "btrfs", "size=zz", "--target", "m1"], 'Invalid value for option "size": Invalid value: zz'),
        (["a/b", "dir", "--target", "m1"], "Storage pool names may not contain slashes"),
        (["bad", "btrfs", "user.x=1", "--target", "m1"], 'Config key "user.x" may not be used as member-specific key'),
        (["bad", "dir", "--target", "m9"], "Cluster member not found"),
    ):
        assert incus.fails("storage", "create", *words) == f"Error: {text}"
    assert "bad" not in incus("storage", "list", "-f", "csv")


def test_the_second_launch_on_a_member_is_a_clone(incus, cluster) -> None:
    incus("launch", "tiny", "f1", "-s", "fast", "--target", "m3")
    began = time.perf_counter()
    incus("launch", "tiny", "f2", "-s", "fast", "--target", "m3")
    assert time.perf_counter() - began < 3  # 0.25 s where nobody else works
    for name in ("f1", "f2"):
        assert incus("exec", name, "--", "sh", "-c", "touch /made && stat -c %u /made").strip() == "0"
    rows = json.loads(incus("storage", "volume", "list", "fast", "-f", "json"))
    assert {(v["type"], v["location"]) for v in rows} >= {("image", "m3"), ("container", "m3")}
    assert incus.fails("storage", "delete", "fast").startswith("Error: The storage pool is currently in use")
    incus("delete", "-f", "f1", "f2")


def test_volumes_of_every_member_through_any(incus, cluster, incus_on) -> None:
    other = incus_on(cluster.members[2])
    for member in ("m1", "m3"):
        incus("storage", "volume", "create", "fast", "v1", "size=20MiB", "--target", member)
    incus("storage", "volume", "create", "fast", "here")
    assert volumes(other) == [("here", "m2"), ("v1", "m1"), ("v1", "m3")]
    used = json.loads(incus("query", "/1.0/storage-pools/fast"))["used_by"]
    for member in ("m1", "m3"):
        assert f"/1.0/storage-pools/fast/volumes/custom/v1?target={member}" in used
    assert "LOCATION" in other("storage", "volume", "list", "fast")
    assert other.fails("storage", "volume", "show", "fast", "v1") == (
        'Error: More than one cluster member has a volume named "v1". Please target a specific member'
    )
    assert "location: m1" in incus("storage", "volume", "show", "fast", "v1", "--target", "m1")
    other("storage", "volume", "set", "fast", "here", "user.colour=blue", "size=30MiB")
    assert incus("storage", "volume", "get", "fast", "here", "user.colour").strip() == "blue"
    assert "Total: 30.00MiB" in other("storage", "volume", "info", "fast", "here")
    edited = other("storage", "volume", "show", "fast", "here").replace("colour: blue", "colour: red")
    incus("storage", "volume", "edit", "fast", "here", input=edited)
    assert "red" in other("storage", "volume", "show", "fast", "here")
    other("storage", "volume", "rename", "fast", "here", "there")
    assert ("there", "m2") in volumes(incus)
    assert "already exists" in other.fails("storage", "volume", "rename", "fast", "v1", "v1", "--target", "m1")
    for words, text in (
        (["create", "fast", "there"], "Volume by that name already exists"),
        (["create", "fast", "bad", "foo=bar"], 'Invalid option for volume "bad" option "foo"'),
        (["create", "fast", "bad", "size=zz"], 'Invalid value for volume "bad" option "size": Invalid value: zz'),
        (["create", "nope", "bad"], "Storage pool not found"),
        (["create", "fast", "bad", "--target", "m9"], "Cluster member not found"),
        (["delete", "fast", "nope"], "Storage pool volume not found"),
        (["delete", "fast", "v1", "--target", "m2"], "Storage volume not found"),
    ):
        assert incus.fails("storage", "volume", *words) == f"Error: {text}"


def test_snapshots(incus, cluster, incus_on) -> None:
    other = incus_on(cluster.members[0])
    incus("storage", "volume", "create", "fast", "s", "--target", "m3")
    path = cluster.members[2].directory / "storage-pools/fast/custom/default_s"
    (path / "file").write_text("one")
    other("storage", "volume", "snapshot", "create", "fast", "s")
    other("storage", "volume", "snapshot", "create", "fast", "s", "mine")
    (path / "file").write_text("two")
    assert [
        row.split(",")[0] for row in incus("storage", "volume", "snapshot", "list", "fast", "s", "-f", "csv").split()
    ][:1] == ["snap0"]
    other("storage", "volume", "snapshot", "restore", "fast", "s", "mine")
    assert (path / "file").read_text() == "one"
    other("storage", "volume", "snapshot", "rename", "fast", "s", "mine", "yours")
    assert "yours" in incus("storage", "volume", "snapshot", "show", "fast", "s/yours")
    assert "already in use" in incus.fails("storage", "volume", "snapshot", "create", "fast", "s", "yours")
    other("storage", "volume", "snapshot", "delete", "fast", "s", "yours")
    assert "yours" not in incus("storage", "volume", "info", "fast", "s")


def raw(incus, method: str, path: str, body: object = None) -> dict[str, object]:
    given = [] if body is None else ["-d", json.dumps(body)]
    answer: dict[str, object] = json.loads(incus("query", "--raw", "-X", method, *given, path))
    return answer


def test_the_shape_of_answers(incus, btrfs) -> None:
    of_pool = f"/1.0/storage-pools/{btrfs}/volumes"
    custom = f"{of_pool}/custom"
    for member in ("m1", "m3"):
        incus("storage", "volume", "create", btrfs, "v1", "--target", member)
        incus("storage", "volume", "snapshot", "create", btrfs, "v1", "s1", "--target", member)
    listed = raw(incus, "GET", of_pool)["metadata"]
    for member in ("m1", "m3"):
        assert f"{custom}/v1?target={member}" in listed
        assert f"{custom}/v1/snapshots/s1?target={member}" in listed
    shown = raw(incus, "GET", f"{custom}/v1%2Fs1?target=m3")["metadata"]
    assert (shown["name"], shown["location"]) == ("v1/s1", "m3")
    for method, code, text in (
        ("PUT", 500, "Volume name cannot be a snapshot"),
        ("PATCH", 400, "Invalid volume name"),
        ("POST", 400, "Invalid volume name"),
        ("DELETE", 400, 'Invalid storage volume "v1/s1"'),
    ):
        answer = raw(incus, method, f"{custom}/v1%2Fs1?target=m3", {})
        assert (answer["error_code"], answer["error"]) == (code, text)
    missing = raw(incus, "GET", f"{custom}/v1?target=m2")
    assert (missing["error_code"], missing["error"]) == (404, "Storage volume not found")
    nameless = raw(incus, "POST", f"{custom}/nosuch", {"name": "a/b"})
    assert nameless["error"] == "Storage volume names may not contain slashes"
    copied = raw(
        incus,
        "POST",
        f"{custom}?target=m3",
        {"name": "v1", "source": {"type": "copy", "pool": btrfs, "name": "v1", "location": "m1"}},
    )
    assert (copied["error_code"], copied["error"]) == (409, "Volume by that name already exists")
    filtered = raw(incus, "GET", f"{custom}?filter=name")
    assert (filtered["error_code"], filtered["error"]) == (500, "Invalid filter: clause has no operator")
    snapshot = raw(incus, "POST", f"{custom}/v1/snapshots?target=m1", {"name": "s2"})["metadata"]
    assert snapshot["resources"] == {
        "storage_volume_snapshots": [f"{custom}/v1/snapshots/s2"],
        "storage_volumes": [f"{custom}/v1"],
    }
    incus("query", "--wait", f"/1.0/operations/{snapshot['id']}/wait")


def test_attached_while_it_runs(incus, cluster, incus_on) -> None:
    incus("launch", "tiny", "a1", "-s", "fast", "--target", "m1")
    incus("storage", "volume", "create", "fast", "data", "--target", "m1")
    incus("storage", "volume", "create", "fast", "elsewhere", "--target", "m3")
    incus("storage", "volume", "create", "fast", "disk", "--type=block", "size=1MiB", "--target", "m1")
    incus("storage", "volume", "attach", "fast", "data", "a1", "/srv/data")
    assert (
        incus("exec", "a1", "--", "sh", "-c", "echo kept > /srv/data/f && stat -c %u:%g /srv/data/f").strip() == "0:0"
    )
    assert incus.fails("storage", "volume", "delete", "fast", "data") == "Error: The storage volume is still in use"
    assert "used_by:\n- /1.0/instances/a1" in incus("storage", "volume", "show", "fast", "data")
    for source, text in (
        ("nope", "Failed loading custom volume: Storage volume not found"),
        ("elsewhere", "Failed loading custom volume: Storage volume not found"),
        ("disk", "Custom block volumes cannot be used on containers"),
    ):
        said = incus.fails("config", "device", "add", "a1", "x", "disk", "pool=fast", f"source={source}", "path=/srv/x")
        assert said == f'Error: Failed add validation for device "x": {text}'
    incus("restart", "-f", "a1")
    assert incus("exec", "a1", "--", "cat", "/srv/data/f").strip() == "kept"
    incus("storage", "volume", "detach", "fast", "data", "a1")
    assert "/srv/data" not in incus("exec", "a1", "--", "cat", "/proc/mounts")
    incus("config", "device", "add", "a1", "etc", "disk", "source=/etc", "path=/srv/etc", "readonly=true")
    assert incus("exec", "a1", "--", "sh", "-c", "touch /srv/etc/x 2>/dev/null || echo no").strip() == "no"
    incus("delete", "-f", "a1")
    incus("storage", "volume", "delete", "fast", "data")


def test_copies_and_moves(incus, cluster, incus_on) -> None:
    incus("storage", "volume", "create", "fast", "c", "user.a=b", "--target", "m1")
    path = cluster.members[0].directory / "storage-pools/fast/custom/default_c"
    (path / "file").write_bytes(b"x" * (5 << 20))
    incus("storage", "volume", "snapshot", "create", "fast", "c", "s1")
    (path / "file2").touch()
    incus("storage", "volume", "copy", "fast/c", "fast/c2")  # where it is
    incus("storage", "volume", "copy", "fast/c", "fast/c3", "--target", "m1", "--destination-target", "m3")
    incus("storage", "volume", "copy", "fast/c", "default/c4", "--target", "m1", "--destination-target", "m2")
    incus("storage", "volume", "copy", "default/c4", "fast/c5", "--target", "m2", "--destination-target", "m3")
    assert volumes(incus) == [
        ("c", "m1"), ("c/s1", "m1"), ("c2", "m1"), ("c2/s1", "m1"), ("c3", "m3"), ("c3/s1", "m3"), ("c5", "m3"), ("c5/s1", "m3"),
    ]  # fmt: skip
    for name in ("c3", "c5"):
        copied = cluster.members[2].directory / f"storage-pools/fast/custom/default_{name}"
        assert sorted(p.name for p in copied.iterdir()) == ["file", "file2"]
        assert (copied / "file").stat().st_size == 5 << 20
        snapshot = cluster.members[2].directory / f"storage-pools/fast/custom-snapshots/default_{name}/s1"
        assert [p.name for p in snapshot.iterdir()] == ["file"]
    assert incus("storage", "volume", "get", "fast", "c5", "user.a").strip() == "b"
    incus("storage", "volume", "move", "fast/c3", "fast/c6", "--target", "m3", "--destination-target", "m2")
    assert ("c6", "m2") in volumes(incus)
    assert ("c3", "m3") not in volumes(incus)
    assert "already exists" in incus.fails(
        "storage", "volume", "copy", "fast/c", "fast/c2", "--destination-target", "m1"
    )
    assert "not found" in incus.fails("storage", "volume", "copy", "fast/nope", "fast/x")
    incus("storage", "volume", "delete", "default", "c4")


def test_pools_are_back_after_a_restart_of_the_daemon(incus, cluster, incus_on) -> None:
    incus("storage", "volume", "create", "fast", "stays", "--target", "m3")
    member = cluster.members[2]
    member.kill()
    subprocess.run(["umount", str(member.directory / "storage-pools/fast")], check=True)  # as a reboot would
    member.start()
    member.wait_until_ready()
    cluster.wait_until_healthy()
    assert "stays" in incus("storage", "volume", "list", "fast")
    assert (member.directory / "storage-pools/fast/custom/default_stays").is_dir()
    incus("storage", "volume", "delete", "fast", "stays")


def test_one_command_makes_a_pool_on_every_member(incus, cluster) -> None:
    began = time.perf_counter()
    incus("storage", "create", "plain", "dir")
    assert time.perf_counter() - began < 5  # 0.1 s where nobody else works
    assert json.loads(incus("query", "/1.0/storage-pools/plain"))["locations"] == list(MEMBERS)
    incus("storage", "delete", "plain")
    assert incus.fails("storage", "create", "plain", "dir", "source=/x") == (
        'Error: Config key "source" is cluster member specific'
    )


def test_what_one_member_cannot_make_nobody_keeps(incus, cluster, tmp_path) -> None:
    incus("storage", "create", "part", "dir", "--target", "m1")
    assert incus.fails("storage", "create", "part", "dir") == "Error: Pool not defined on nodes: m2, m3"
    incus("storage", "create", "part", "dir", f"source={tmp_path}/missing", "--target", "m2")
    incus("storage", "create", "part", "dir", "--target", "m3")
    assert "doesn't exist" in incus.fails("storage", "create", "part", "dir")
    shown = incus("storage", "show", "part")
    assert "status: Pending" in shown
    assert not (cluster.members[0].directory / "storage-pools/part").exists()
    (tmp_path / "missing").mkdir()
    incus("storage", "create", "part", "dir")
    assert "status: Created" in incus("storage", "show", "part")
    incus("storage", "delete", "part")


HIDE = 'mount --bind /dev/null "$0"; exec "$@"'  #: no program any more for the daemon that is started so


@pytest.fixture
def uneven(incus_on):
    """A cluster of which only the first member has btrfs, and nobody LVM."""
    tools = [shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin") for name in ("mkfs.btrfs", "lvm")]
    if None in tools:
        pytest.skip("needs btrfs-progs and lvm2")
    lab = LabCluster.in_namespaces(3, prefix="asu")
    try:
        for member in lab.members:
            for tool in tools if member.name != "m1" else tools[1:]:
                member.enter += ["unshare", "-m", "sh", "-c", HIDE, str(tool)]
        lab.form()
        lab.wait_until_healthy()
        yield lab
    finally:
        lab.destroy()


def test_a_driver_that_a_member_lacks_leaves_nothing_behind(uneven, incus_on) -> None:
    incus, other = incus_on(uneven.members[0]), incus_on(uneven.members[1])
    before = incus("storage", "list", "-f", "csv"), incus("admin", "init", "--dump")
    for client, driver in ((incus, "lvm"), (other, "btrfs")):
        assert "is missing" in (said := client.fails("storage", "create", "p", driver)) or "not found" in said
        assert said == client.fails("storage", "create", "p", driver, "--target", "m1")
    for _ in range(2):
        said = incus.fails("storage", "create", "p", "btrfs")
        peers = [f"Error: failed to notify peer {uneven.members[number].https_address}: " for number in (1, 2)]
        assert said in [f'{peer}Failed loading storage driver "btrfs": Unknown storage driver' for peer in peers]
        assert (incus("storage", "list", "-f", "csv"), incus("admin", "init", "--dump")) == before
        assert json.loads(incus("query", "/1.0"))["environment"]["storage"] == "dir"
    for member in MEMBERS:
        incus("storage", "create", "p", "btrfs", "--target", member)
    assert incus.fails("storage", "create", "p", "dir") == (
        'Error: Requested storage pool driver "dir" doesn\'t match driver in existing database record "btrfs"'
    )
    assert "failed to notify peer" in incus.fails("storage", "create", "p", "btrfs")
    assert "status: Pending" in incus("storage", "show", "p")
    other("storage", "delete", "p")
    assert (incus("storage", "list", "-f", "csv"), incus("admin", "init", "--dump")) == before
    assert list((uneven.members[0].directory / "disks").iterdir()) == []


def test_backups_and_images(incus, cluster, tmp_path) -> None:
    incus("storage", "volume", "create", "fast", "b", "--target", "m3")
    path = cluster.members[2].directory / "storage-pools/fast/custom/default_b"
    (path / "file").write_text("kept")
    incus("storage", "volume", "snapshot", "create", "fast", "b", "s1")
    archive, image = tmp_path / "b.tar.gz", tmp_path / "x.iso"
    incus("storage", "volume", "export", "fast", "b", str(archive))
    incus("storage", "volume", "import", "fast", str(archive), "b2", "--target", "m1")
    restored = cluster.members[0].directory / "storage-pools/fast/custom/default_b2"
    assert (restored / "file").read_text() == "kept"
    assert ("b2/s1", "m1") in volumes(incus)
    image.write_bytes(b"iso" * 1000)
    incus("storage", "volume", "import", "fast", str(image), "cd", "--type=iso")
    assert "content_type: iso" in incus("storage", "volume", "show", "fast", "cd")
    assert "Unsupported compression" in incus.fails(
        "storage", "volume", "import", "fast", str(image), "x", "--type=backup"
    )
    for member in cluster.members:
        assert not list((member.directory / "backups/custom").glob("*/*"))
