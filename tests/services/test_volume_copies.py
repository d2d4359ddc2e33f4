"""Copies and moves of custom volumes: between pools, members and projects, whole or not at all."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager

import pytest
from instance_kit import ignore, machines, until

from incus_actors.drivers.base import PoolSpec, RunStatus
from incus_actors.errors import (
    BadRequestError,
    ConflictError,
    MemberError,
    NotFoundError,
    NotImplementedHereError,
)
from incus_actors.model.volumes import SnapshotsPost, VolumePost, VolumeSource, VolumesPost
from incus_actors.services.volume_streams import choose_form, slowed
from incus_actors.services.volume_tools import VolumeAddress

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="volumes belong to root")


async def second_pool(machine, name="other") -> None:
    config = await machine.storage.create_pool(PoolSpec(name))
    if not machine.database.scalar("SELECT COUNT(*) FROM storage_pools WHERE name = ?", (name,)):
        await machine.execute("INSERT INTO storage_pools (name, driver, state) VALUES (?, 'dir', 1)", name)
    found = machine.database.scalar("SELECT id FROM storage_pools WHERE name = ?", (name,))
    own = machine.server.consensus.member_id
    await machine.execute(
        "INSERT INTO storage_pools_nodes (storage_pool_id, node_id, state) VALUES (?, ?, 1)", found, own
    )
    await machine.execute(
        "INSERT INTO storage_pools_config (storage_pool_id, node_id, key, value) VALUES (?, ?, 'source', ?)",
        found,
        own,
        config["source"],
    )


@pytest.fixture
async def machine(tmp_path):
    async with machines(tmp_path) as (one,):
        await second_pool(one)
        await make(one)
        yield one


def at(name: str, pool="local", project="default") -> VolumeAddress:
    return VolumeAddress(pool, project, "custom", name)


async def make(machine, name="v1", content="", **config) -> None:
    """A volume with two snapshots, each with more in it than the one before."""
    post = VolumesPost(name=name, content_type=content, config={"user.a": "b", **config}, description="d")
    await machine.volumes.life.create("local", "default", post)
    for number in (1, 2):
        (machine.server.directory / f"storage-pools/local/custom/default_{name}/f{number}").write_text(str(number))
        await machine.volumes.snapshots.create(at(name), SnapshotsPost(name=f"s{number}", description=f"d{number}"))
    (machine.server.directory / f"storage-pools/local/custom/default_{name}/f3").write_text("3")


async def copy(machine, name="v2", pool="other", project="default", report=ignore, config=None, **source) -> None:
    given = {"name": "v1", "type": "copy", "pool": "local", **source}
    post = VolumesPost(name=name, config=config or {}, source=VolumeSource(**given))
    machine.volumes.copies.check(post.source)
    await machine.volumes.copies.copy(pool, project, post, report)


def files(machine, where: str) -> list[str]:
    return sorted(path.name for path in (machine.server.directory / "storage-pools" / where).iterdir())


@pytest.mark.parametrize("pool", ["local", "other"])
async def test_a_copy_has_everything(machine, pool):
    told = []
    await copy(machine, pool=pool, report=lambda *args: told.append(args), config={"user.c": "d"})
    shown = machine.volumes.life.get(at("v2", pool))
    assert (shown.config, shown.description) == ({"user.a": "b", "user.c": "d"}, "d")
    assert files(machine, f"{pool}/custom/default_v2") == ["f1", "f2", "f3"]
    assert files(machine, f"{pool}/custom-snapshots/default_v2/s1") == ["f1"]
    assert files(machine, f"{pool}/custom-snapshots/default_v2/s2") == ["f1", "f2"]
    copied = machine.volumes.snapshots.all_of(at("v2", pool))
    assert [(s.name, s.description) for s in copied] == [("v2/s1", "d1"), ("v2/s2", "d2")]
    assert [s.created_at for s in copied] == [s.created_at for s in machine.volumes.snapshots.all_of(at("v1"))]
    assert told[0][0] == "fs"
    assert "v2: " in told[-1][3]
    with pytest.raises(ConflictError, match=r"^Volume by that name already exists$"):
        await copy(machine, pool=pool)
    assert files(machine, f"{pool}/custom/default_v2") == ["f1", "f2", "f3"]


async def test_only_the_volume_or_one_snapshot(machine):
    await copy(machine, volume_only=True)
    assert machine.volumes.snapshots.all_of(at("v2", "other")) == []
    assert files(machine, "other/custom/default_v2") == ["f1", "f2", "f3"]
    await copy_snapshot(machine)
    assert files(machine, "other/custom/default_v3") == ["f1"]
    assert machine.volumes.snapshots.all_of(at("v3", "other")) == []


async def copy_snapshot(machine) -> None:
    post = VolumesPost(name="v3", source=VolumeSource(name="v1/s1", type="copy", pool="local"))
    await machine.volumes.copies.copy("other", "default", post, ignore)


async def test_disks_are_copied_without_their_holes(machine):
    await machine.volumes.life.create("local", "default", VolumesPost(name="disk", content_type="block"))
    disk = machine.server.directory / "storage-pools/local/custom/default_disk/root.img"
    with disk.open("r+b") as file:
        file.seek(5 << 30)
        file.write(b"data")
    post = VolumesPost(name="disk2", source=VolumeSource(name="disk", type="copy", pool="local"))
    await machine.volumes.copies.copy("other", "default", post, ignore)
    copied = machine.server.directory / "storage-pools/other/custom/default_disk2/root.img"
    assert (copied.stat().st_size, copied.stat().st_blocks < 1000) == (10 << 30, True)
    with copied.open("rb") as file:
        file.seek(5 << 30)
        assert file.read(4) == b"data"
    assert machine.volumes.life.get(at("disk2", "other")).content_type == "block"


@pytest.mark.parametrize(
    ("source", "error", "text"),
    [
        ({"type": "foo"}, BadRequestError, 'Unknown source type "foo"'),
        ({"type": "migration"}, NotImplementedHereError, "Copying volumes from other servers is not supported yet"),
        ({"name": ""}, BadRequestError, "No source volume name provided"),
        (
            {"name": "nope"},
            NotFoundError,
            (
                'Failed generating volume copy config: Storage volume "nope" in project "default" of type "custom" does'
                ' not exist on pool "local": Storage volume not found'
            ),
        ),
        ({"pool": "nope"}, NotFoundError, "Storage pool not found"),
        (
            {"name": "v1/nope"},
            NotFoundError,
            'Failed generating volume copy config: Storage volume snapshot "nope" not found',
        ),
    ],
)
async def test_what_cannot_be_copied(machine, source, error, text):
    given = {"name": "v1", "type": "copy", "pool": "local", **source}

    async def attempt() -> None:
        post = VolumesPost(name="v2", source=VolumeSource(**given))
        machine.volumes.copies.check(post.source)
        await machine.volumes.copies.copy("other", "default", post, ignore)

    with pytest.raises(error) as caught:
        await attempt()
    assert str(caught.value) == text
    assert files(machine, "other/custom") == []


async def test_a_copy_that_breaks_off_leaves_nothing(machine, monkeypatch):
    real = machine.storage.send

    async def broken(volume, snapshot, form, *, parent=""):
        async for chunk in real(volume, snapshot, form, parent=parent):
            yield chunk[: len(chunk) // 2]
            if snapshot == "s2":
                raise MemberError("the disk broke")

    monkeypatch.setattr(machine.storage, "send", broken)
    with pytest.raises(MemberError):
        await copy(machine)
    assert files(machine, "other/custom") == files(machine, "other/custom-snapshots") == []
    assert machine.volumes.life.all_of("other", "default") == []


async def test_a_move_takes_the_disks_along(machine):
    await machine.add_image()
    disk = {"type": "disk", "pool": "local", "source": "v1", "path": "/mnt"}
    await machine.create("c1", devices={"data": disk})
    machine.driver.running["c1"] = RunStatus.RUNNING
    post = VolumePost(name="v9", pool="other")
    with pytest.raises(MemberError, match="still in use by running instances"):
        await machine.volumes.copies.move(at("v1"), post, ignore)
    del machine.driver.running["c1"]
    await machine.volumes.copies.move(at("v1"), post, ignore)
    assert files(machine, "local/custom") == files(machine, "local/custom-snapshots") == []
    assert files(machine, "other/custom/default_v9") == ["f1", "f2", "f3"]
    device = machine.instances.life.get("default", "c1").devices["data"]
    assert (device["pool"], device["source"]) == ("other", "v9")
    assert machine.volumes.life.get(at("v9", "other")).used_by == ["/1.0/instances/c1"]


async def test_between_projects(machine):
    await machine.execute("INSERT INTO projects (id, name) VALUES (7, 'p7')")
    await machine.execute(
        "INSERT INTO projects_config (project_id, key, value) VALUES (7, 'features.storage.volumes', 'true')"
    )
    await machine.volumes.copies.move(at("v1"), VolumePost(name="v1", project="p7"), ignore)
    assert machine.volumes.life.get(at("v1", project="p7")).project == "p7"
    assert files(machine, "local/custom") == ["p7_v1"]
    with pytest.raises(NotFoundError):
        machine.volumes.life.get(at("v1"))


async def test_from_another_member(tmp_path):
    async with machines(tmp_path, 2, clustered=True) as (one, two):
        await make(one)
        await until(lambda: two.volumes.life.all_of("local", "default"))
        source = VolumeSource(name="v1", type="copy", pool="local", location="node1")
        assert two.volumes.copies.member_for("default", source) == one.server.consensus.member_id
        assert two.volumes.copies.member_for("default", VolumeSource(name="nope", type="copy", pool="local")) is None
        await copy(two, "v1", "local", location="node1")
        assert files(two, "local/custom/default_v1") == ["f1", "f2", "f3"]
        assert files(two, "local/custom-snapshots/default_v1/s1") == ["f1"]
        assert (
            two.volumes.life.get(
                VolumeAddress("local", "default", "custom", "v1", two.server.consensus.member_id)
            ).location
            == "node2"
        )

        @asynccontextmanager
        async def cut(member_id, request):
            async def half():
                async with one.volumes.sender.local(request) as chunks:
                    yield (await anext(chunks))[:20]

            yield half()

        two.volumes.copies._fetch = cut
        with pytest.raises(MemberError, match="ended early"):
            await copy(two, "v2", "local", location="node1")
        assert files(two, "local/custom") == ["default_v1"]


def test_formats():
    assert choose_form("filesystem", ("btrfs", "tar", "raw"), ("btrfs", "tar", "raw")) == "btrfs"
    assert choose_form("filesystem", ("btrfs", "tar", "raw"), ("zfs", "tar", "raw")) == "tar"
    assert choose_form("block", ("btrfs", "tar", "raw"), ("tar", "raw")) == "raw"
    with pytest.raises(BadRequestError, match="no format in common"):
        choose_form("block", ("tar",), ("raw",))


async def test_the_brake():
    async def fast():
        for _ in range(10):
            yield bytes(100_000)

    clock = asyncio.get_running_loop().time
    began = clock()
    assert sum([len(chunk) async for chunk in slowed(fast(), 2_000_000)]) == 1_000_000
    braked = clock() - began
    assert braked > 0.3
    began = clock()
    assert sum([len(chunk) async for chunk in slowed(fast(), 0)]) == 1_000_000
    assert clock() - began < braked
