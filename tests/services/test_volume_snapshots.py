"""Snapshots of custom volumes: names, expiry, restoring, and repairs after a crash."""

from __future__ import annotations

import os
from datetime import UTC, datetime

import pytest
from instance_kit import machines, until

from incus_actors.domain import transactions_volumes as transactions
from incus_actors.drivers.base import DriverError, PoolSpec, VolumeSpec
from incus_actors.errors import BadRequestError, ConflictError, MemberError, NotFoundError, PreconditionFailedError
from incus_actors.model.volumes import SnapshotPut, SnapshotsPost, VolumePut, VolumesPost
from incus_actors.services import volume_snapshots as rules
from incus_actors.services.volume_tools import VolumeAddress

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="volumes belong to root")

V1 = VolumeAddress("local", "default", "custom", "v1")
NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


@pytest.fixture
async def machine(tmp_path):
    async with machines(tmp_path) as (one,):
        await one.volumes.life.create("local", "default", VolumesPost(name="v1", config={"user.a": "b"}))
        yield one


async def snap(machine, name="", **more) -> str:
    post = SnapshotsPost(name=name, **more)
    machine.volumes.snapshots.check_new(V1, post)
    await machine.volumes.snapshots.create(V1, post)
    return post.name


def root(machine):
    return machine.server.directory / "storage-pools/local"


async def test_life_of_snapshots(machine):
    snapshots = machine.volumes.snapshots
    data = root(machine) / "custom/default_v1/data"
    data.write_text("one")
    assert [await snap(machine), await snap(machine), await snap(machine, "mine", description="d")] == [
        "snap0",
        "snap1",
        "mine",
    ]
    with pytest.raises(ConflictError, match=r'^Snapshot "mine" already in use$'):
        await snap(machine, "mine")
    assert [s.name for s in snapshots.all_of(V1)] == ["v1/snap0", "v1/snap1", "v1/mine"]
    one = snapshots.get(V1, "mine")
    assert (one.name, one.description, one.expires_at, one.config, one.content_type) == (
        "mine", "d", "0001-01-01T00:00:00Z", {"user.a": "b"}, "filesystem",
    )  # fmt: skip
    listed = [v.name for v in machine.volumes.life.all_of("local", "default")]
    assert listed == ["v1", "v1/mine", "v1/snap0", "v1/snap1"]
    data.write_text("two")
    await machine.volumes.life.update(V1, VolumePut(restore="mine"))
    assert data.read_text() == "one"
    with pytest.raises(MemberError, match=r"^Snapshot not found$"):
        await machine.volumes.life.update(V1, VolumePut(restore="nope"))
    with pytest.raises(NotFoundError) as missing:
        await snapshots.rename(V1, "nope", "x")
    assert str(missing.value) == (
        'Storage volume "v1/nope" in project "default" of type "custom" does not exist on pool "local": '
        "Storage volume not found"
    )
    for name, text in (("", "No name provided"), ("a/b", "Storage volume names may not contain slashes")):
        with pytest.raises(BadRequestError) as refused:
            snapshots.check_rename(name)
        assert str(refused.value) == text
    await snapshots.rename(V1, "mine", "yours")
    with pytest.raises(ConflictError, match=r'^Snapshot "snap0" already in use$'):
        await snapshots.rename(V1, "yours", "snap0")
    await snapshots.update(V1, "yours", SnapshotPut(expires_at="2030-01-01T01:00:00.123456789+01:00"), patch=True)
    assert (snapshots.get(V1, "yours").description, snapshots.get(V1, "yours").expires_at) == (
        "d",
        "2030-01-01T00:00:00.123456Z",
    )
    await snapshots.update(V1, "yours", SnapshotPut(description="e"))
    assert (snapshots.get(V1, "yours").description, snapshots.get(V1, "yours").expires_at) == (
        "e",
        "0001-01-01T00:00:00Z",
    )
    await snapshots.delete(V1, "yours")
    for work in (snapshots.check_delete, snapshots.get):
        with pytest.raises(NotFoundError, match=r"^Storage pool volume not found$"):
            work(V1, "yours")
    assert sorted(p.name for p in (root(machine) / "custom-snapshots/default_v1").iterdir()) == ["snap0", "snap1"]
    await machine.volumes.life.delete(V1)
    assert list((root(machine) / "custom-snapshots").iterdir()) == []
    assert machine.database.scalar("SELECT COUNT(*) FROM storage_volumes_snapshots") == 0
    assert machine.database.scalar("SELECT COUNT(*) FROM storage_volumes_snapshots_config") == 0
    told = {action: rest["context"] for action, _, rest in machine.events}
    assert told["storage-volume-created"] == told["storage-volume-snapshot-created"] == {"type": "custom"}
    assert told["storage-volume-snapshot-renamed"] == {"old_name": "mine"}
    assert told["storage-volume-restored"] == {"snapshot": "mine"}
    assert told["storage-volume-snapshot-deleted"] == {}
    assert machine.actions == [
        "storage-volume-created",
        "storage-volume-snapshot-created",
        "storage-volume-snapshot-created",
        "storage-volume-snapshot-created",
        "storage-volume-restored",
        "storage-volume-snapshot-renamed",
        "storage-volume-snapshot-updated",
        "storage-volume-snapshot-updated",
        "storage-volume-snapshot-deleted",
        "storage-volume-deleted",
    ]


@pytest.mark.parametrize(
    ("post", "text"),
    [
        (SnapshotsPost(name="a/b"), 'Storage name cannot contain "/"'),
        (SnapshotsPost(name="a b"), "Storage name cannot contain white space"),
        (SnapshotsPost(name=".hidden"), "Invalid snapshot name '.hidden'"),
        (SnapshotsPost(name="x", expires_at="nonsense"), 'parsing time "nonsense" as '),
        (SnapshotsPost(name="x", expires_at="2026-13-01T00:00:00Z"), 'parsing time "2026-13-01T00:00:00Z": '),
    ],
)
async def test_what_a_snapshot_cannot_be(machine, post, text):
    with pytest.raises(BadRequestError) as caught:
        machine.volumes.snapshots.check_new(V1, post)
    assert str(caught.value).startswith(text)
    with pytest.raises(BadRequestError, match=r'^Invalid storage volume type "container"$'):
        machine.volumes.snapshots.check_new(VolumeAddress("local", "default", "container", "v1"), SnapshotsPost())


async def test_a_snapshot_that_cannot_be_made_leaves_nothing(machine, monkeypatch):
    async def full(*_arguments):
        raise DriverError("No space left on device")

    monkeypatch.setattr(machine.storage, "create_snapshot", full)
    with pytest.raises(DriverError, match="No space left"):
        await snap(machine, "s")
    assert machine.volumes.snapshots.all_of(V1) == []


async def test_snapshots_expire_as_the_volume_says(machine):
    await machine.volumes.life.update(V1, VolumePut(config={"snapshots.expiry": "1d", "snapshots.pattern": "p-%d-x"}))
    assert await snap(machine) == "p-0-x"
    assert await snap(machine) == "p-1-x"
    expires = machine.volumes.snapshots.get(V1, "p-0-x").expires_at
    made = machine.volumes.snapshots.get(V1, "p-0-x").created_at
    assert expires[:10] > made[:10]
    await snap(machine, "never", expires_at="0001-01-01T00:00:00Z")
    assert machine.volumes.snapshots.get(V1, "never").expires_at == "0001-01-01T00:00:00Z"
    assert [one.expires_at for one in machine.volumes.snapshots.all_of(V1) if one.name == "v1/never"] == [None]


@pytest.mark.parametrize("phase", ["creating@dead", "deleting@dead", "renaming@dead:new"])
@pytest.mark.parametrize("files", [True, False])
async def test_unfinished_snapshots_are_repaired(machine, phase, files):
    new = transactions.NewSnapshot("s", "", "2026-01-01T00:00:00Z", "", {})
    volume_id = machine.database.scalar("SELECT id FROM storage_volumes")
    assert (
        await machine.server.consensus.propose(transactions.create_snapshot(volume_id, 1, new, phase=phase))
    ).applied
    pool = PoolSpec("local", config={"source": str(root(machine))})
    renamed = phase.startswith("renaming")
    if files or renamed:
        name = "new" if renamed and files else "s"
        await machine.storage.create_snapshot(VolumeSpec(pool, "v1", kind="custom"), name)
    await machine.restart()
    wanted = ["new"] if renamed else []
    await until(lambda: machine.volumes.snapshots.names(V1) == wanted)
    directory = root(machine) / "custom-snapshots/default_v1"
    await until(lambda: (os.listdir(directory) if directory.exists() else []) == wanted)
    assert await snap(machine, "again") == "again"


@pytest.mark.parametrize(
    ("pattern", "taken", "name"),
    [
        ("", [], "snap0"),
        ("", ["snap0", "snap7", "snapx", "other3"], "snap8"),
        ("%d", ["1"], "2"),
        ("fixed", [], "fixed"),
        ("fixed", ["fixed"], "fixed-0"),
        ("auto-{{ creation_date|date:'2006-01-02_15-04-05' }}", [], "auto-2026-03-04_05-06-07"),
        ("{{creation_date}}", [], "2026-03-04T05:06:07Z"),
    ],
)
def test_patterns(pattern, taken, name):
    assert rules.next_name(pattern, taken, NOW) == name


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("{{", "Col 23 near '{%'] Expected either a number, string, keyword or identifier."),
        ("{{ creation_date", "Col 37 near '{%'] '}}' expected"),
        ("{{ creation_date|nofilter }}", "Col 38 near 'nofilter'] Filter 'nofilter' does not exist."),
        ("{% foo %}", "Col 24 near 'foo'] Tag 'foo' not found (or beginning tag not provided)"),
    ],
)
def test_patterns_that_cannot_be_read(pattern, text):
    with pytest.raises(BadRequestError) as caught:
        rules.next_name(pattern, [], NOW)
    assert str(caught.value) == f"[Error (where: parser) in <string> | Line 1 {text}"


def test_expiry():
    assert rules.expiry("", NOW) == ""
    assert rules.expiry("1d 2H", NOW) == "2026-03-05T07:06:07.000000Z"


async def test_a_snapshot_that_others_changed_is_not_overwritten(machine):
    await snap(machine, "s1")
    snapshots, seen = machine.volumes.snapshots, []
    await snapshots.update(V1, "s1", SnapshotPut(description="one"), expect=seen.append)
    assert seen == [["s1", "", "0001-01-01T00:00:00Z"]]
    assert rules.editable(snapshots.get(V1, "s1")) == ["s1", "one", "0001-01-01T00:00:00Z"]

    def refuse(_current: object) -> None:
        raise PreconditionFailedError("ETag doesn't match")

    with pytest.raises(PreconditionFailedError):
        await snapshots.update(V1, "s1", SnapshotPut(description="two"), patch=True, expect=refuse)
    assert snapshots.get(V1, "s1").description == "one"


async def test_a_volume_is_restored_and_changed_at_once(machine):
    data = root(machine) / "custom/default_v1/data"
    data.write_text("one")
    await snap(machine, "s1")
    data.write_text("two")
    put = VolumePut(restore="s1", config={"user.x": "1"}, description="d")
    await machine.volumes.life.update(V1, put)
    shown = machine.volumes.life.get(V1)
    assert (data.read_text(), shown.config, shown.description) == ("one", {"user.x": "1"}, "d")
    assert machine.actions[-2:] == ["storage-volume-restored", "storage-volume-updated"]
