"""Instances: showing, changing, renaming, deleting, with the texts of a real Incus 6.0.4."""

from __future__ import annotations

import os

import msgspec
import pytest
from instance_kit import machines, until

from incus_actors.drivers.base import DriverError
from incus_actors.errors import ApiError, BadRequestError, ConflictError, MemberError, NotFoundError
from incus_actors.model.instances import InstancePatch, InstancePut, InstanceStatePut

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacks images with owners: run as root")


@pytest.fixture
async def machine(tmp_path):
    async with machines(tmp_path) as (one,):
        await one.add_image()
        yield one


def put_of(machine, name="c1", **changes) -> InstancePut:
    return msgspec.convert({**machine.instances.life.editable("default", name), **changes}, InstancePut)


async def test_one_instance_as_incus_shows_it(machine):
    await machine.create(start=True, config={"user.x": "1"}, description="d")
    shown = msgspec.to_builtins(machine.instances.life.get("default", "c1"))
    assert list(shown) == [
        "architecture", "config", "devices", "ephemeral", "profiles", "stateful", "description", "created_at",
        "expanded_config", "expanded_devices", "name", "status", "status_code", "last_used_at", "location", "type",
        "project",
    ]  # fmt: skip
    assert shown["expanded_devices"] == {"root": {"path": "/", "pool": "local", "type": "disk"}}
    assert shown["devices"] == {}
    assert shown["config"]["user.x"] == "1"
    assert not any(key.startswith("volatile.actors") for key in shown["config"])
    assert (shown["status"], shown["status_code"], shown["location"]) == ("Running", 103, "none")
    full = msgspec.to_builtins(await machine.instances.life.get_full("default", "c1"))
    assert full["state"]["pid"] == 1000
    assert full["state"]["started_at"] == "1970-01-01T00:00:01.5Z"
    assert (full["snapshots"], full["backups"]) == (None, None)
    await machine.create("c2")
    stopped = msgspec.to_builtins(await machine.instances.life.get_full("default", "c2"))
    assert stopped["last_used_at"] == "1970-01-01T00:00:00Z"
    assert (stopped["state"]["network"], stopped["state"]["pid"], stopped["state"]["processes"]) == (None, 0, 0)


async def test_updates_replace_and_patches_merge(machine):
    life = machine.instances.life
    await machine.create(start=True)
    await life.update("default", "c1", put_of(machine, description="new", devices={"n": {"type": "none"}}))
    shown = life.get("default", "c1")
    assert (shown.description, shown.devices) == ("new", {"n": {"type": "none"}})
    await life.patch("default", "c1", InstancePatch(config={"user.y": "2"}, devices={"n": {"user.z": "1"}}))
    shown = life.get("default", "c1")
    assert shown.devices == {"n": {"type": "none", "user.z": "1"}}
    assert shown.config["user.y"] == "2"
    await life.patch("default", "c1", InstancePatch(config={"user.y": ""}))
    assert "user.y" not in life.get("default", "c1").config
    assert machine.actions[-1] == "instance-updated"
    await life.patch("default", "c1", InstancePatch(config={"limits.memory": "64MiB"}))
    assert "apply_limits c1" in machine.driver.calls


async def test_unset_options_of_devices_are_not_kept(machine):
    life = machine.instances.life
    await machine.create(devices={"n": {"type": "none", "foo": ""}})
    assert life.get("default", "c1").devices == {"n": {"type": "none"}}
    await life.update("default", "c1", put_of(machine, devices={"n": {"type": "none", "user.a": "1", "bar": ""}}))
    assert life.get("default", "c1").devices == {"n": {"type": "none", "user.a": "1"}}
    await life.patch("default", "c1", InstancePatch(devices={"n": {"user.a": ""}}))
    assert life.get("default", "c1").devices == {"n": {"type": "none"}}


async def test_limits_that_the_machine_refuses_are_not_recorded(machine):
    life = machine.instances.life
    await machine.create(start=True)
    machine.driver.fail["apply_limits"] = DriverError("Failed to set limits: Device or resource busy")
    with pytest.raises(MemberError, match="busy"):
        await life.patch("default", "c1", InstancePatch(config={"limits.memory": "1MiB"}))
    assert "limits.memory" not in life.get("default", "c1").config


async def test_running_instances_follow_their_profiles(machine):
    await machine.create(start=True)
    machine.driver.calls.clear()
    await machine.execute("INSERT INTO profiles_config (profile_id, key, value) VALUES (1, 'limits.processes', '9')")
    assert machine.instances.life.get("default", "c1").expanded_config["limits.processes"] == "9"
    await machine.execute("UPDATE profiles SET description = 'x'", topic="profiles")
    await until(lambda: "apply_limits c1" in machine.driver.calls)


async def test_types_of_devices_that_no_driver_has_are_refused_running_or_not(machine):
    life = machine.instances.life
    await machine.create(start=True)
    text = 'Invalid devices: Device validation failed for "g": Unsupported device type "gpu"'
    with pytest.raises(BadRequestError) as running:
        await life.update("default", "c1", put_of(machine, devices={"g": {"type": "gpu"}}))
    await life.change_state("default", "c1", InstanceStatePut(action="stop", force=True))
    with pytest.raises(BadRequestError) as stopped:
        await life.update("default", "c1", put_of(machine, devices={"g": {"type": "gpu"}}))
    assert str(running.value) == str(stopped.value) == text


async def test_what_the_root_disk_may_change_while_it_runs(machine):
    life = machine.instances.life
    await machine.create(start=True)
    root = {"type": "disk", "path": "/", "pool": "local"}
    for option, value in (("size", "1GiB"), ("boot.priority", "1"), ("size.state", "1GiB"), ("limits.read", "10MB")):
        await life.update("default", "c1", put_of(machine, devices={"root": {**root, option: value}}))
    with pytest.raises(BadRequestError, match='Device "root" can only be changed while the instance is stopped'):
        await life.update("default", "c1", put_of(machine, devices={"root": {**root, "shift": "true"}}))


async def test_a_new_disk_of_an_instance_has_no_initial_owner(machine):
    await machine.create()
    disk = {"type": "disk", "path": "/x", "source": "/tmp", "initial.uid": "5"}
    with pytest.raises(BadRequestError) as refused:
        await machine.instances.life.update("default", "c1", put_of(machine, devices={"d": disk}))
    assert str(refused.value) == "New device with initial configuration cannot be added once the instance is created"


async def test_bad_updates_change_nothing(machine):
    life = machine.instances.life
    await machine.create()
    before = life.editable("default", "c1")
    config = before["config"]
    root = {"type": "disk", "path": "/", "pool": "other"}
    cases = [
        ({"config": {**config, "foo.bar": "1"}}, "Invalid config: Unknown configuration key: foo.bar"),
        (
            {"config": {**config, "volatile.actors.phase": "1"}},
            "Invalid config: Unknown configuration key: volatile.actors.phase",
        ),
        ({"config": {**config, "limits.cpu": "x"}}, "Invalid config: Invalid CPU limit syntax"),
        ({"config": {**config, "volatile.uuid": "x"}}, "Invalid config: Invalid UUID"),
        ({"config": {}}, "Volatile idmap keys can't be deleted by the user"),
        ({"profiles": []}, "Invalid root disk device: No root device could be found"),
        (
            {"devices": {"d": {"type": "foo"}}},
            'Invalid devices: Device validation failed for "d": Failed loading device "d": Unsupported device type',
        ),
        ({"devices": {"root": root}}, 'Cannot update root disk device pool name to "other"'),
    ]
    for changes, text in cases:
        with pytest.raises(ApiError) as refused:
            await life.update("default", "c1", put_of(machine, **changes))
        assert str(refused.value) == text
    with pytest.raises(NotFoundError, match=r"^Profile not found$"):
        life.check_put("default", put_of(machine, profiles=["nope"]))
    with pytest.raises(MemberError, match=r"^Invalid config: Unknown configuration key: foo$"):
        await life.patch("default", "c1", InstancePatch(config={"foo": "1"}))
    with pytest.raises(BadRequestError, match=r"^Snapshots are not supported yet$"):
        life.check_put("default", InstancePut(restore="c1/s"))
    assert life.editable("default", "c1") == before


async def test_an_update_that_read_an_older_state_is_refused(machine):
    life = machine.instances.life
    await machine.create()
    machine.driver.hold = {}
    original = machine.host.commit

    async def late(transaction, **rest):
        machine.host.commit = original
        await machine.execute("UPDATE instances SET description = 'somebody was faster'")
        return await original(transaction, **rest)

    machine.host.commit = late
    with pytest.raises(ConflictError):
        await life.update("default", "c1", put_of(machine, description="mine"))
    assert life.get("default", "c1").description == "somebody was faster"


async def test_renaming(machine):
    life = machine.instances.life
    await machine.create(start=True)
    await machine.create("c2")
    for name, error, text in [
        ("a_b", BadRequestError, "Invalid instance name: Name can only contain alphanumeric and hyphen characters"),
        ("", BadRequestError, "Invalid instance name: Name must be 1-63 characters long"),
        ("c2", ConflictError, 'Name "c2" already in use'),
    ]:
        with pytest.raises(error) as refused:
            life.check_rename("default", "c1", name)
        assert str(refused.value) == text
    with pytest.raises(BadRequestError, match=r"^Renaming of running instance not allowed$"):
        await life.rename("default", "c1", "c3")
    await life.rename("default", "c2", "c3")
    assert machine.volume("c3").exists()
    assert not machine.volume("c2").exists()
    assert machine.events[-1][:2] == ("instance-renamed", "/1.0/instances/c3")
    with pytest.raises(NotFoundError):
        life.get("default", "c2")
    await life.change_state("default", "c3", InstanceStatePut(action="start"))
    assert "c3" in machine.driver.running


async def test_states_and_texts(machine):
    life = machine.instances.life
    await machine.create()
    with pytest.raises(BadRequestError, match=r"^Unknown action: 'foo'$"):
        life.check_action(InstanceStatePut(action="foo"))
    with pytest.raises(BadRequestError, match=r"^The instance isn't running$"):
        await life.change_state("default", "c1", InstanceStatePut(action="freeze"))
    await life.change_state("default", "c1", InstanceStatePut(action="start"))
    with pytest.raises(BadRequestError, match=r"^The container is already running$"):
        await life.change_state("default", "c1", InstanceStatePut(action="unfreeze"))
    await life.change_state("default", "c1", InstanceStatePut(action="freeze"))
    assert life.get("default", "c1").status == "Frozen"
    await life.change_state("default", "c1", InstanceStatePut(action="start"))
    assert life.get("default", "c1").status == "Running"
    with pytest.raises(BadRequestError, match=r"Stateful stop requires the instance to have migration.stateful"):
        await life.change_state("default", "c1", InstanceStatePut(action="stop", stateful=True))
    with pytest.raises(BadRequestError, match=r"^Instance is running$"):
        life.check_delete("default", "c1")
    await life.change_state("default", "c1", InstanceStatePut(action="stop", force=True))
    life.check_delete("default", "c1")
    await life.delete("default", "c1")
    assert not machine.exists("c1")
    assert not machine.volume("c1").exists()
    with pytest.raises(NotFoundError, match=r"^Instance not found$"):
        life.place("default", "c1")


async def test_projects_keep_their_instances_apart(machine):
    await machine.create()
    await machine.execute("INSERT INTO projects (name) VALUES ('p')")
    life = machine.instances.life
    assert life.urls(None) == [("default", "c1")]
    assert await life.list_instances({"p"}, full=False) == []
    with pytest.raises(NotFoundError):
        life.get("p", "c1")
