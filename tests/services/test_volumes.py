"""Custom volumes: the texts of a real Incus 6.0.4, nothing half-made left, and repairs after a crash."""

from __future__ import annotations

import asyncio
import os

import pytest
from instance_kit import machines, until

from incus_actors.actors import storage as storage_actor
from incus_actors.domain import transactions_volumes as transactions
from incus_actors.domain.transactions_storage import define_pool_on_member
from incus_actors.drivers.base import DriverError, PoolSpec, RunStatus, VolumeSpec
from incus_actors.errors import (
    ApiError,
    BadRequestError,
    ConflictError,
    ForbiddenError,
    MemberError,
    NotFoundError,
    PreconditionFailedError,
)
from incus_actors.model.volumes import BackupsPost, SnapshotsPost, VolumePost, VolumePut, VolumesPost
from incus_actors.services.volume_rules import check_new_name
from incus_actors.services.volume_tools import VolumeAddress
from incus_actors.services.volumes import editable
from incus_actors.state.database import Snapshot

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="volumes belong to root")


@pytest.fixture
async def machine(tmp_path):
    async with machines(tmp_path) as (one,):
        yield one


def at(name: str, **more) -> VolumeAddress:
    return VolumeAddress("local", "default", "custom", name, **more)


async def make(machine, name="v1", content="", **config) -> None:
    post = VolumesPost(name=name, content_type=content, config={k.replace("_", "."): v for k, v in config.items()})
    machine.volumes.life.check_new("local", "custom", post)
    await machine.volumes.life.create("local", "default", post)


def on_disk(machine) -> list[str]:
    root = machine.server.directory / "storage-pools/local"
    return sorted(str(p.relative_to(root)) for kind in ("custom", "custom-snapshots") for p in (root / kind).rglob("*"))


async def test_a_volume_as_incus_shows_it(machine):
    await make(machine, size="10MiB", user_a="b")
    shown = machine.volumes.life.get(at("v1"))
    assert shown.created_at
    shown.created_at = ""
    assert vars_of(shown) == {
        "config": {"size": "10MiB", "user.a": "b"},
        "description": "",
        "name": "v1",
        "type": "custom",
        "used_by": [],
        "location": "none",
        "content_type": "filesystem",
        "project": "default",
        "created_at": "",
    }
    assert on_disk(machine) == ["custom/default_v1"]
    usage = (await machine.volumes.life.state(at("v1"))).usage
    assert usage is not None
    assert usage.used > 0
    assert [v.name for v in machine.volumes.life.all_of("local", "default")] == ["v1"]
    assert machine.actions == ["storage-volume-created"]
    await machine.volumes.life.delete(at("v1"))
    assert on_disk(machine) == []
    with pytest.raises(NotFoundError, match=r"^Storage pool volume not found$"):
        machine.volumes.life.get(at("v1"))


def vars_of(struct) -> dict:
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


@pytest.mark.parametrize(
    ("post", "type_", "error", "text"),
    [
        (VolumesPost(), "custom", BadRequestError, "No name provided"),
        (VolumesPost(name="x"), "foo", BadRequestError, "Invalid storage volume type name"),
        (
            VolumesPost(name="x"),
            "container",
            BadRequestError,
            'Currently not allowed to create storage volumes of type "container"',
        ),
        (VolumesPost(name="a/b"), "custom", BadRequestError, "Storage volume names may not contain slashes"),
        (VolumesPost(name=".."), "custom", BadRequestError, "Invalid storage volume name '..'"),
        (VolumesPost(name="x\n"), "custom", BadRequestError, "Invalid storage volume name 'x\\n'"),
        (VolumesPost(name="x" * 129), "custom", BadRequestError, f"Invalid storage volume name '{'x' * 129}'"),
        (VolumesPost(name="x", content_type="y"), "custom", BadRequestError, "Invalid volume content type name"),
        (VolumesPost(name="x", content_type="iso"), "custom", MemberError, "Size cannot be zero"),
        (
            VolumesPost(name="x", config={"initial.mode": "99"}),
            "custom",
            MemberError,
            'strconv.ParseInt: parsing "99": invalid syntax',
        ),
        (
            VolumesPost(name="x", config={"foo": "1"}),
            "custom",
            MemberError,
            'Invalid option for volume "x" option "foo"',
        ),
        (
            VolumesPost(name="x", config={"size": "zz"}),
            "custom",
            MemberError,
            'Invalid value for volume "x" option "size": Invalid value: zz',
        ),
    ],
)
async def test_what_a_volume_cannot_be(machine, post, type_, error, text):
    async def attempt() -> None:
        machine.volumes.life.check_new("local", type_, post)
        await machine.volumes.life.create("local", "default", post)

    with pytest.raises(error) as caught:
        await attempt()
    assert str(caught.value) == text
    assert on_disk(machine) == []
    assert machine.volumes.life.all_of("local", "default") == []


async def test_other_things_that_are_not_there(machine):
    with pytest.raises(NotFoundError, match=r"^Storage pool not found$"):
        machine.volumes.life.check_new("nope", "custom", VolumesPost(name="x"))
    with pytest.raises(NotFoundError, match=r'^Failed to load project "nope": Project not found$'):
        machine.volumes.life.get(VolumeAddress("local", "nope", "custom", "v1"))
    await make(machine)
    for config in ({}, {"foo": "1"}):  # that comes before its keys
        with pytest.raises(ConflictError, match=r"^Volume by that name already exists$"):
            await make(machine, **config)
    with pytest.raises(NotFoundError, match=r"^Storage volume not found$"):
        machine.volumes.life.get(at("nope", member_id=machine.host.member_id()))
    assert machine.volumes.life.get(at("v1")).name == "v1"
    for work in (machine.volumes.life.delete, machine.volumes.life.state):
        with pytest.raises(NotFoundError, match=r"^Storage pool volume not found$"):
            await work(at("nope"))
    with pytest.raises(BadRequestError, match='type "container" cannot be deleted with the storage API'):
        await machine.volumes.life.delete(VolumeAddress("local", "default", "container", "c1"))


async def test_a_snapshot_is_shown_as_a_volume_too(machine):
    await make(machine, user_a="b")
    post = SnapshotsPost(name="s1", description="d")
    await machine.volumes.snapshots.create(at("v1"), post)
    shown = machine.volumes.life.get(at("v1/s1"))
    assert (shown.name, shown.type, shown.config, shown.description) == ("v1/s1", "custom", {"user.a": "b"}, "d")
    assert (await machine.volumes.life.state(at("v1/s1"))).usage is None
    assert machine.volumes.life.locate(at("v1/s1")) == machine.volumes.life.locate(at("v1"))
    for name in ("v1/s2", "v2/s1"):
        with pytest.raises(NotFoundError, match=r"^Storage pool volume not found$"):
            machine.volumes.life.get(at(name))


async def test_what_an_instances_volume_may_be_given(machine):
    await machine.add_image()
    await machine.create()
    root = VolumeAddress("local", "default", "container", "c1")
    await machine.volumes.life.update(root, VolumePut(config={"user.x": "1", "snapshots.expiry": "1d"}), patch=True)
    assert machine.volumes.life.get(root).config == {"snapshots.expiry": "1d", "user.x": "1"}
    for key, value, text in (
        ("size", "1GiB", 'Volume "size" property is not valid for volume type'),
        ("security.shifted", "true", 'Invalid option for volume "c1" option "security.shifted"'),
        ("foo", "", 'Invalid option for volume "c1" option "foo"'),
        (
            "snapshots.expiry",
            "x",
            'Invalid value for volume "c1" option "snapshots.expiry": Invalid expiry expression',
        ),
    ):
        with pytest.raises(MemberError) as refused:
            await machine.volumes.life.update(root, VolumePut(config={key: value}), patch=True)
        assert str(refused.value) == text


async def test_only_keys_that_exist_are_unset(machine):
    await make(machine, user_a="b")
    with pytest.raises(MemberError, match=r'^Invalid option for volume "default_v1" option "nokey"$'):
        await machine.volumes.life.update(at("v1"), VolumePut(config={"user.a": "b", "nokey": ""}))
    await machine.volumes.life.update(at("v1"), VolumePut(config={"user.a": "", "size": ""}), patch=True)
    assert machine.volumes.life.get(at("v1")).config == {}


async def in_project(machine, **config: str) -> None:
    given = {key.replace("__", "."): value for key, value in config.items()}
    await machine.execute("INSERT INTO projects (id, name, description) VALUES (9, 'p', '')")
    for key, value in {"features.storage.volumes": "true", **given}.items():
        await machine.execute("INSERT INTO projects_config (project_id, key, value) VALUES (9, ?, ?)", key, value)


async def test_a_project_limits_its_volumes(machine):
    await in_project(machine, limits__disk="50MiB")
    life = machine.volumes.life

    async def create(name: str, **config: str) -> str:
        try:
            await life.create("local", "p", VolumesPost(name=name, config=config))
        except MemberError as error:
            return str(error)
        return ""

    full = 'Reached maximum aggregate value "50MiB" for "limits.disk" in project "p"'
    assert await create("a") == (
        "Failed checking if volume creation allowed: Failed getting usage of project entities: "
        'Custom volume "a" in project "p" has no "size" config set'
    )
    assert sorted(await asyncio.gather(*(create(f"v{number}", size="20MiB") for number in range(4)))) == [
        "",
        "",
        *([f"Failed checking if volume creation allowed: {full}"] * 2),
    ]
    assert [volume.config["size"] for volume in life.all_of("local", "p")] == ["20MiB", "20MiB"]
    made = VolumeAddress("local", "p", "custom", life.all_of("local", "p")[0].name)
    await life.update(made, VolumePut(config={"size": "30MiB"}))
    with pytest.raises(MemberError) as refused:
        await life.update(made, VolumePut(config={"size": "31MiB"}))
    assert str(refused.value) == f"Failed checking if volume update allowed: {full}"
    await make(machine)  # that of another project


async def test_a_restricted_project_has_neither_snapshots_nor_backups(machine):
    await in_project(machine, restricted="true")
    await machine.volumes.life.create("local", "p", VolumesPost(name="v1"))
    address = VolumeAddress("local", "p", "custom", "v1")
    with pytest.raises(ForbiddenError, match=r'^Project "p" doesn\'t allow for snapshot creation$'):
        machine.volumes.snapshots.check_new(address, SnapshotsPost(name="s"))
    with pytest.raises(ForbiddenError, match=r'^Project "p" doesn\'t allow for backup creation$'):
        machine.volumes.backups.check_new(address, BackupsPost(name="b"))


async def test_a_volume_is_shifted_or_not_mapped_at_all(machine):
    text = r"^security.unmapped and security.shifted are mutually exclusive$"
    with pytest.raises(MemberError, match=text):
        await make(machine, security_unmapped="true", security_shifted="true")
    await make(machine, security_unmapped="true")
    with pytest.raises(MemberError, match=text):
        await machine.volumes.life.update(at("v1"), VolumePut(config={"security.shifted": "true"}), patch=True)


async def test_an_iso_image_has_no_snapshots(machine):
    await make(machine, content="iso", size="1MiB")
    with pytest.raises(BadRequestError, match=r'^Volume of content type "iso" does not support snapshots$'):
        machine.volumes.snapshots.check_new(at("v1"), SnapshotsPost(name="s"))


async def test_a_pool_that_is_only_defined_has_no_volumes(machine):
    await machine.server.consensus.propose(define_pool_on_member("later", "dir", "", machine.host.member_id(), {}))
    with pytest.raises(MemberError, match=r"^Specified pool is not fully created$"):
        machine.volumes.life.check_new("later", "custom", VolumesPost(name="x"))


@pytest.mark.parametrize(
    ("type_", "post", "text"),
    [
        ("custom", VolumePost(), "No name provided"),
        ("custom", VolumePost(name="a/b"), "Storage volume names may not contain slashes"),
        ("container", VolumePost(name="x"), 'Renaming storage volumes of type "container" is not allowed'),
        ("custom", VolumePost(name="x", migration=True), "Moving volumes to other servers is not supported yet"),
    ],
)
def test_names_that_no_volume_gets(type_, post, text):
    with pytest.raises(ApiError) as refused:
        check_new_name(type_, post)
    assert str(refused.value) == text


async def test_a_volume_that_cannot_be_made_leaves_nothing(machine, monkeypatch):
    async def full(*_arguments, **_more):
        raise DriverError("Failed to create volume: No space left on device")

    monkeypatch.setattr(machine.storage, "create_volume", full)
    with pytest.raises(DriverError, match="No space left"):
        await make(machine)
    assert machine.volumes.life.all_of("local", "default") == []
    assert machine.actions == []


async def test_what_cannot_be_taken_back_at_once_is_taken_back_later(machine, monkeypatch):
    async def fails(*_arguments, **_more):
        raise DriverError("Input/output error")

    monkeypatch.setattr(storage_actor, "REPAIR_AGAIN_S", 0.01)
    with monkeypatch.context() as broken:
        broken.setattr(machine.storage, "limit", fails)
        broken.setattr(machine.storage, "delete_volume", fails)
        with pytest.raises(DriverError, match="Input/output error"):
            await make(machine)
        await asyncio.sleep(0.05)
        with pytest.raises(BadRequestError, match="is busy"):
            await machine.volumes.life.delete(at("v1"))
    await until(lambda: machine.volumes.life.all_of("local", "default") == [])
    await make(machine)


async def test_the_pool_gives_defaults(machine):
    for key, value in (
        ("volume.size", "20MiB"),
        ("volume.snapshots.expiry", "1d"),
        ("volume.security.shifted", "true"),
    ):
        await machine.execute(
            "INSERT INTO storage_pools_config (storage_pool_id, node_id, key, value) VALUES (1, NULL, ?, ?)", key, value
        )
    await make(machine)
    assert machine.volumes.life.get(at("v1")).config == {
        "security.shifted": "true",
        "size": "20MiB",
        "snapshots.expiry": "1d",
    }
    await make(machine, "disk", content="block", size="1MiB")
    assert machine.volumes.life.get(at("disk")).config == {"size": "1MiB", "snapshots.expiry": "1d"}
    root = machine.server.directory / "storage-pools/local"
    assert (root / "custom/default_disk/root.img").stat().st_size == 1 << 20


async def test_changes(machine):
    life = machine.volumes.life
    await make(machine, size="10MiB")
    await life.update(at("v1"), VolumePut(config={"user.a": "b"}, description="d"))
    assert (life.get(at("v1")).config, life.get(at("v1")).description) == ({"user.a": "b"}, "d")
    await life.update(at("v1"), VolumePut(config={"user.c": "d", "user.a": ""}), patch=True)
    assert (life.get(at("v1")).config, life.get(at("v1")).description) == ({"user.c": "d"}, "d")
    with pytest.raises(MemberError, match=r'^Invalid option for volume "default_v1" option "nope"$'):
        await life.update(at("v1"), VolumePut(config={"nope": "1"}))
    seen = editable(life.get(at("v1")))

    def expect(current):
        if current != seen:
            raise PreconditionFailedError("ETag doesn't match")

    await life.update(at("v1"), VolumePut(config={}), expect=expect)
    with pytest.raises(PreconditionFailedError):
        await life.update(at("v1"), VolumePut(config={}), expect=expect)
    await make(machine, "disk", content="block", size="2MiB")
    with pytest.raises(MemberError, match=r"^Block volumes cannot be shrunk: Cannot be shrunk$"):
        await life.update(at("disk"), VolumePut(config={"size": "1MiB"}))
    await life.update(at("disk"), VolumePut(config={"size": "4MiB"}))
    await make(machine, "image", content="iso", size="1MiB")
    with pytest.raises(MemberError, match=r"^Custom ISO volume config cannot be changed$"):
        await life.update(at("image"), VolumePut(config={"size": "2MiB"}))
    await life.update(at("image"), VolumePut(config={"size": "1MiB"}, description="ok"))


async def test_a_renamed_volume_takes_its_disks_along(machine):
    await machine.add_image()
    await make(machine)
    await make(machine, "taken")
    await machine.volumes.snapshots.create(at("v1"), SnapshotsPost(name="s1"))
    disk = {"type": "disk", "pool": "local", "source": "v1", "path": "/mnt"}
    await machine.execute("INSERT INTO profiles (id, name, project_id) VALUES (9, 'p9', 1)")
    await machine.execute("INSERT INTO profiles_devices (id, profile_id, name, type) VALUES (90, 9, 'd', 2)")
    for key in ("pool", "source", "path"):
        await machine.execute(
            "INSERT INTO profiles_devices_config (profile_device_id, key, value) VALUES (90, ?, ?)", key, disk[key]
        )
    await machine.create("c1", devices={"data": disk})
    life = machine.volumes.life
    assert life.get(at("v1")).used_by == ["/1.0/instances/c1", "/1.0/profiles/p9"]
    with pytest.raises(BadRequestError, match=r"^The storage volume is still in use$"):
        await life.delete(at("v1"))
    machine.driver.running["c1"] = RunStatus.RUNNING
    with pytest.raises(MemberError, match=r"^Volume is still in use by running instances$"):
        await life.rename(at("v1"), VolumePost(name="v2"))
    with pytest.raises(MemberError, match=r"^Cannot restore custom volume used by running instances$"):
        await life.update(at("v1"), VolumePut(restore="s1"))
    del machine.driver.running["c1"]
    for name, error, text in (
        ("", BadRequestError, "No name provided"),
        ("a/b", BadRequestError, "Storage volume names may not contain slashes"),
        ("taken", ConflictError, "Volume by that name already exists"),
    ):
        with pytest.raises(error, match=f"^{text}$"):
            await life.rename(at("v1"), VolumePost(name=name))
    await life.rename(at("v1"), VolumePost(name="v2"))
    assert on_disk(machine) == [
        "custom-snapshots/default_v2",
        "custom-snapshots/default_v2/s1",
        "custom/default_taken",
        "custom/default_v2",
    ]
    assert life.get(at("v2")).used_by == ["/1.0/instances/c1", "/1.0/profiles/p9"]
    assert machine.instances.life.get("default", "c1").devices["data"]["source"] == "v2"


async def test_the_same_name_on_several_members(tmp_path):
    async with machines(tmp_path, 2, clustered=True) as (one, two):
        for machine in (one, two):
            await make(machine)
        await until(lambda: len(one.volumes.life.all_of("local", "default")) == 2)
        assert [v.location for v in one.volumes.life.all_of("local", "default")] == ["node1", "node2"]
        with pytest.raises(MemberError) as caught:
            one.volumes.life.get(at("v1"))
        assert str(caught.value) == (
            'More than one cluster member has a volume named "v1". Please target a specific member'
        )
        own = two.server.consensus.member_id
        assert one.volumes.life.get(at("v1", member_id=own)).location == "node2"
        assert one.volumes.life.locate(at("v1", member_id=own)) == own
        await two.volumes.life.delete(at("v1"))
        await until(lambda: len(one.volumes.life.all_of("local", "default")) == 1)
        assert one.volumes.life.get(at("v1")).location == "node1"
        assert on_disk(one) == ["custom/default_v1"]
        assert on_disk(two) == []


# --- after a crash ------------------------------------------------------------------------------------------


async def left_by_a_dead_daemon(machine, name: str, phase: str) -> None:
    """The row of unfinished work, as a daemon killed in the middle leaves it."""
    new = transactions.NewVolume(name, 1, machine.host.member_id(), 1, 2, 0, "", "2026-01-01T00:00:00Z", {})
    outcome = await machine.server.consensus.propose(transactions.create(new, phase=phase))
    assert outcome.applied, outcome


@pytest.mark.parametrize("files", [True, False])
@pytest.mark.parametrize("phase", ["creating@dead", "deleting@dead"])
async def test_what_was_being_made_or_removed_is_gone_after_a_restart(machine, phase, files):
    await left_by_a_dead_daemon(machine, "v1", phase)
    await left_by_a_dead_daemon(machine, "busy", f"creating@{machine.host.incarnation}")
    if files:
        await machine.storage.create_volume(VolumeSpec(machine_pool(machine), "v1", kind="custom"))
    with pytest.raises(BadRequestError, match="is busy"):  # not of v1: a slow start may be repairing that by now
        await machine.volumes.life.update(at("busy"), VolumePut())
    await machine.restart()
    await until(lambda: [v.name for v in machine.volumes.life.all_of("local", "default")] == ["busy"])
    assert on_disk(machine) == []
    await make(machine)


def machine_pool(machine) -> PoolSpec:
    return PoolSpec("local", config={"source": str(machine.server.directory / "storage-pools/local")})


@pytest.mark.parametrize("moved", [True, False])
async def test_a_renaming_is_finished_after_a_restart(machine, moved):
    await left_by_a_dead_daemon(machine, "v1", "renaming@dead:v2")
    await machine.storage.create_volume(VolumeSpec(machine_pool(machine), "v2" if moved else "v1", kind="custom"))
    await machine.restart()
    await until(lambda: [v.name for v in machine.volumes.life.all_of("local", "default")] == ["v2"])
    assert on_disk(machine) == ["custom/default_v2"]
    await machine.volumes.life.delete(at("v2"))


async def test_five_hundred_volumes_are_listed_at_once(machine, monkeypatch):
    for number in range(500):
        new = transactions.NewVolume(
            f"v{number}", 1, 1, 1, 2, 0, "", "2026-01-01T00:00:00Z", {"size": "1MiB", "user.x": "y"}
        )
        await machine.server.consensus.propose(transactions.create(new, phase=""))
    asked = []
    for name in ("query", "one"):
        real = getattr(Snapshot, name)
        monkeypatch.setattr(
            Snapshot, name, lambda self, *a, _real=real, **k: (asked.append(a), _real(self, *a, **k))[1]
        )
    assert len(machine.volumes.life.all_of("local", "default")) == 500
    assert 0 < len(asked) < 20, "so many queries however many volumes there are"
