"""Backups of volumes, and volumes out of backups and ISO images."""

from __future__ import annotations

import os

import pytest
from drivers_kit import stream
from instance_kit import machines, until

from incus_actors.errors import ApiError, BadRequestError, ConflictError, MemberError, NotFoundError
from incus_actors.model.volumes import BackupsPost, SnapshotsPost, VolumesPost
from incus_actors.services.volume_backup_index import load_index
from incus_actors.services.volume_tools import VolumeAddress

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="volumes belong to root")


@pytest.fixture
async def machine(tmp_path):
    async with machines(tmp_path) as (one,):
        post = VolumesPost(name="v1", config={"user.a": "b", "size": "10MiB"}, description="d")
        await one.volumes.life.create("local", "default", post)
        place(one, "v1").joinpath("f1").write_text("1")
        await one.volumes.snapshots.create(at("v1"), SnapshotsPost(name="s1", description="first"))
        place(one, "v1").joinpath("f2").write_text("2")
        yield one


def at(name: str) -> VolumeAddress:
    return VolumeAddress("local", "default", "custom", name)


def place(machine, name: str):
    return machine.server.directory / f"storage-pools/local/custom/default_{name}"


async def backup(machine, volume="v1", name="", **more) -> str:
    post = BackupsPost(name=name, **more)
    machine.volumes.backups.check_new(at(volume), post)
    await machine.volumes.backups.create(at(volume), post)
    return post.name


async def take_in(machine, data: bytes, name: str = "v2") -> None:
    upload = await machine.volumes.backups.save_upload(stream(data))
    try:
        await machine.volumes.backups.import_backup("local", "default", name, upload)
    finally:
        upload.unlink()


@pytest.mark.parametrize("algorithm", ["", "none", "zstd"])
async def test_there_and_back(machine, algorithm):
    backups = machine.volumes.backups
    assert await backup(machine, compression_algorithm=algorithm) == "backup0"
    assert await backup(machine, volume_only=True, expires_at="2030-01-01T00:00:00Z") == "backup1"
    shown = backups.all_of(at("v1"))
    assert [(b.name, b.volume_only, b.expires_at[:4]) for b in shown] == [
        ("backup0", False, "0001"),
        ("backup1", True, "2030"),
    ]
    data = backups.file(at("v1"), "backup0").read_bytes()
    await take_in(machine, data)
    copied = machine.volumes.life.get(at("v2"))
    assert (copied.config, copied.description) == ({"size": "10MiB", "user.a": "b"}, "d")
    assert sorted(p.name for p in place(machine, "v2").iterdir()) == ["f1", "f2"]
    snapshot = machine.volumes.snapshots.get(at("v2"), "s1")
    assert (snapshot.description, snapshot.created_at) == (
        "first",
        machine.volumes.snapshots.get(at("v1"), "s1").created_at,
    )
    await take_in(machine, backups.file(at("v1"), "backup1").read_bytes(), "v3")
    assert machine.volumes.snapshots.all_of(at("v3")) == []
    with pytest.raises(
        ConflictError, match=r'^Create custom volume from backup: Volume "v1" already exists in pool "l'
    ):
        await take_in(machine, data, "")
    await backups.rename(at("v1"), "backup0", "mine")
    assert backups.get(at("v1"), "mine").name == "mine"
    await backups.delete(at("v1"), "mine")
    await backups.delete(at("v1"), "backup1")
    assert list((machine.server.directory / "backups/custom").iterdir()) == []
    for work in (backups.get, backups.file):
        with pytest.raises(NotFoundError, match=r"^Storage volume backup not found$"):
            work(at("v1"), "mine")


async def test_disks_and_images(machine):
    await machine.volumes.life.create(
        "local", "default", VolumesPost(name="disk", content_type="block", config={"size": "3MiB"})
    )
    with (place(machine, "disk") / "root.img").open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"data")
    name = await backup(machine, "disk")
    await take_in(machine, machine.volumes.backups.file(at("disk"), name).read_bytes())
    assert machine.volumes.life.get(at("v2")).content_type == "block"
    assert (place(machine, "v2") / "root.img").read_bytes() == (place(machine, "disk") / "root.img").read_bytes()

    upload = await machine.volumes.backups.save_upload(stream(b"iso" * 1000))
    await machine.volumes.backups.import_iso("local", "default", "image", upload)
    upload.unlink()
    shown = machine.volumes.life.get(at("image"))
    assert (shown.content_type, shown.config) == ("iso", {"size": "3000"})
    assert (place(machine, "image") / "root.img").read_bytes() == b"iso" * 1000
    with pytest.raises(MemberError, match='Volume of content type "iso" cannot be backed up'):
        await backup(machine, "image")
    upload = await machine.volumes.backups.save_upload(stream(b""))
    with pytest.raises(MemberError, match=r"^Size cannot be zero$"):
        await machine.volumes.backups.import_iso("local", "default", "empty", upload)


@pytest.mark.parametrize(
    ("post", "error", "text"),
    [
        (BackupsPost(name="a/b"), BadRequestError, "Backup names may not contain slashes"),
        (BackupsPost(name="taken"), ConflictError, 'Backup "taken" already exists'),
        (
            BackupsPost(compression_algorithm="foo"),
            BadRequestError,
            'Compression algorithm "foo" isn\'t currently supp',
        ),
        (BackupsPost(expires_at="nonsense"), BadRequestError, 'parsing time "nonsense"'),
    ],
)
async def test_what_a_backup_cannot_be(machine, post, error, text):
    await backup(machine, name="taken")
    with pytest.raises(error) as caught:
        machine.volumes.backups.check_new(at("v1"), post)
    assert str(caught.value).startswith(text)


async def test_a_backup_that_fails_leaves_nothing(machine, monkeypatch):
    async def full(*_arguments, **_more):
        raise MemberError("No space left on device")

    monkeypatch.setattr("incus_actors.drivers.backup_files.write_archive", full)
    with pytest.raises(MemberError, match="No space"):
        await backup(machine)
    assert machine.volumes.backups.all_of(at("v1")) == []


async def test_a_damaged_upload_leaves_nothing(machine):
    name = await backup(machine, compression_algorithm="none")
    data = machine.volumes.backups.file(at("v1"), name).read_bytes()
    index_at = data.index(b"backend: dir")
    for damaged in (
        data[: len(data) // 2],
        data[:512],
        b"junk" * 1000,
        data[:index_at] + b"{{{{{{{{{{{{" + data[index_at + 12 :],
    ):
        with pytest.raises(ApiError):
            await take_in(machine, damaged)
    assert [v.name for v in machine.volumes.life.all_of("local", "default")] == ["v1", "v1/s1"]
    root = machine.server.directory / "storage-pools/local"
    assert [p.name for p in (root / "custom").iterdir()] == ["default_v1"]
    assert [p.name for p in (root / "custom-snapshots").iterdir()] == ["default_v1"]


async def test_after_a_crash_files_and_rows_find_each_other(machine):
    lost, kept = await backup(machine), await backup(machine)
    base = machine.server.directory / "backups/custom"
    machine.volumes.backups.file(at("v1"), lost).unlink()
    (base / "upload-1").touch()
    own = machine.volumes.backups.file(at("v1"), kept).parent
    (own / "backup9.new").touch()
    (base / "777").mkdir()
    (base / "777/backup0").touch()
    await machine.volumes.backups.reconcile()
    assert [b.name for b in machine.volumes.backups.all_of(at("v1"))] == [kept]
    assert [str(p.relative_to(base)) for p in sorted(base.rglob("*"))] == [own.name, f"{own.name}/{kept}"]
    machine.volumes.schedule.start()
    await until(lambda: machine.volumes.schedule._task is not None)
    machine.volumes.schedule.stop()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "config: []",
        "name: 5",
        "type: container",
        "config: {volume: {content_type: iso}}",
        "config: {volume_snapshots: 3}",
        "config: {volume_snapshots: [{name: 'v/.x'}]}",
        "a: &x [1, 2]\nb: *x",
        "name: !!python/object/apply:os.system [true]",
        "{{{{",
        "[" * 5000,
    ],
)
def test_what_an_index_cannot_be(text):
    if text == "":
        assert load_index(b"").snapshots == ()
        return
    with pytest.raises(BadRequestError):
        load_index(text.encode())


def test_only_the_listed_snapshots_count():
    index = load_index(
        b"name: v\nbackend: btrfs\nsnapshots: [s1]\nconfig:\n  volume: {config: {size: 5}, created_at: 2026-11-21T03:45:25Z}\n"
        b"  volume_snapshots:\n  - {name: v/s1, expires_at: 0001-01-01T00:00:00Z, created_at: 2026-11-21T03:45:25.4Z}\n"
        b"  - {name: s2}\n"
    )
    assert (index.name, index.backend, index.content, index.config) == ("v", "btrfs", "filesystem", {"size": "5"})
    assert [(s.name, s.expires_at, s.created_at) for s in index.snapshots] == [("s1", "", "2026-11-21T03:45:25.4Z")]
