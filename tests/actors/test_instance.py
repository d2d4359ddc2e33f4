"""InstanceActor: one thing at a time, phases, what a crash leaves behind."""

from __future__ import annotations

import asyncio
import os

import pytest
from instance_kit import machines, until

from incus_actors.actors import nics
from incus_actors.actors.host import INSTANCES_PATH
from incus_actors.actors.instance_messages import Delete, ProfilesChanged, Restart, Start, Stop
from incus_actors.actors.instances import ActorFor
from incus_actors.domain.instance_config import PHASE_KEY
from incus_actors.drivers.base import DriverError, RunStatus
from incus_actors.errors import ApiError, BadRequestError
from incus_actors.model.instances import InstancePatch
from incus_actors.tasks import spawn

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacks images with owners: run as root")


@pytest.fixture
async def machine(tmp_path):
    async with machines(tmp_path) as (one,):
        await one.add_image()
        yield one


async def actor(machine, name="c1"):
    instance_id = machine.database.scalar("SELECT id FROM instances WHERE name = ?", (name,))
    return await machine.server.actors.ref(INSTANCES_PATH).ask(ActorFor(instance_id), deadline_s=5)


async def test_create_and_start_leave_rows_files_and_events(machine):
    await machine.create(start=True)
    assert machine.driver.running == {"c1": RunStatus.RUNNING}
    assert (machine.volume("c1") / "rootfs/etc/content").read_bytes() == b"x"
    config = machine.config("c1")
    assert PHASE_KEY not in config
    assert config["volatile.last_state.power"] == "RUNNING"
    assert config["image.os"] == "Tiny"
    assert machine.actions[-2:] == ["instance-created", "instance-started"]
    assert machine.events[-2][2]["context"] == {"location": "none", "storage-pool": "local", "type": "container"}
    assert machine.database.scalar("SELECT name FROM storage_volumes") == "c1"


async def test_a_failed_create_leaves_nothing(machine):
    machine.driver.fail["prepare"] = DriverError("no room for ids")
    with pytest.raises(DriverError, match="no room for ids"):
        await machine.create()
    assert not machine.exists("c1")
    assert not machine.volume("c1").exists()
    assert machine.database.scalar("SELECT COUNT(*) FROM storage_volumes") == 0
    await machine.create()  # the name is free again


async def test_a_failed_start_keeps_the_instance(machine):
    machine.driver.fail["start"] = DriverError("no cgroup")
    with pytest.raises(DriverError, match="no cgroup"):
        await machine.create(start=True)
    assert machine.exists("c1")
    assert machine.instances.life.get("default", "c1").status == "Stopped"


async def test_killed_in_the_middle_of_a_create_it_is_removed_at_the_next_start(machine):
    machine.driver.hold["prepare"] = asyncio.Event()
    creating = spawn(machine.create(), name="test")
    await until(lambda: "prepare c1" in machine.driver.calls)
    assert machine.volume("c1").exists()
    machine.driver.hold.clear()
    await machine.restart()
    with pytest.raises(ApiError):
        await creating
    await until(lambda: not machine.exists("c1"))
    await until(lambda: not machine.volume("c1").exists())


async def test_killed_in_the_middle_of_a_delete_it_is_finished_at_the_next_start(machine):
    await machine.create()
    machine.driver.hold["delete"] = asyncio.Event()
    deleting = spawn(machine.instances.life.delete("default", "c1"), name="test")
    await until(lambda: "delete c1" in machine.driver.calls)
    assert machine.instances.life.get("default", "c1").status == "Error"
    machine.driver.hold.clear()
    await machine.restart()
    with pytest.raises(ApiError):
        await deleting
    await until(lambda: not machine.exists("c1"))


async def test_what_it_is_already_is_refused_with_incus_texts(machine):
    await machine.create(start=True)
    ref = await actor(machine)
    with pytest.raises(BadRequestError, match=r"^The instance is already running$"):
        await ref.ask(Start(), deadline_s=5)
    await ref.ask(Stop(), deadline_s=5)
    assert machine.actions[-1] == "instance-shutdown"
    assert machine.config("c1")["volatile.last_state.power"] == "STOPPED"
    for message in (Stop(), Stop(force=True), Restart()):
        with pytest.raises(BadRequestError, match=r"^The instance is already stopped$"):
            await ref.ask(message, deadline_s=5)


async def test_a_forced_stop_overtakes_a_clean_one_that_hangs(machine):
    await machine.create(start=True)
    ref = await actor(machine)
    machine.driver.obeys = False
    clean = spawn(ref.ask(Stop(), deadline_s=10), name="test")
    await until(lambda: "stop c1" in machine.driver.calls)
    with pytest.raises(BadRequestError, match=r'^Instance is busy running a "stop" operation$'):
        await ref.ask(Start(), deadline_s=5)
    await ref.ask(Stop(force=True), deadline_s=5)
    await clean
    assert machine.driver.running == {}


async def test_a_clean_stop_that_times_out_leaves_it_running_and_watched(machine):
    await machine.create(start=True)
    ref = await actor(machine)
    machine.driver.obeys = False
    with pytest.raises(ApiError, match="context deadline exceeded"):
        await ref.ask(Stop(timeout_s=0.01), deadline_s=5)
    assert "c1" in machine.driver.watches
    await ref.ask(Restart(force=True), deadline_s=5)
    assert machine.actions[-1] == "instance-restarted"
    assert machine.driver.running == {"c1": RunStatus.RUNNING}


async def test_one_that_ends_by_itself_is_recorded(machine):
    await machine.create(start=True)
    machine.driver.die("c1")
    await until(lambda: machine.config("c1").get("volatile.last_state.power") == "STOPPED")
    await until(lambda: machine.actions[-1] == "instance-shutdown")


async def test_autorestart_gives_up_after_ten_times(machine):
    await machine.create(start=True, config={"boot.autorestart": "true"})
    for number in range(10):
        starts = machine.driver.calls.count("start c1")
        machine.driver.die("c1")
        await until(lambda starts=starts: machine.driver.calls.count("start c1") == starts + 1)
        await until(lambda: "c1" in machine.driver.watches), number
    machine.driver.die("c1")
    await until(lambda: machine.config("c1").get("volatile.last_state.power") == "STOPPED")
    assert machine.driver.running == {}


async def test_an_ephemeral_one_goes_away_when_it_stops(machine):
    await machine.create(start=True, ephemeral=True)
    ref = await actor(machine)
    await ref.ask(Stop(), deadline_s=5)
    assert not machine.exists("c1")
    assert not machine.volume("c1").exists()
    assert machine.actions[-2:] == ["instance-shutdown", "instance-deleted"]


async def test_protected_and_running_ones_are_not_deleted(machine):
    await machine.create(start=True, config={"security.protection.delete": "true"})
    ref = await actor(machine)
    with pytest.raises(BadRequestError, match=r"^Instance is protected$"):
        await ref.ask(Delete(), deadline_s=5)
    await machine.create("c2", start=True)
    with pytest.raises(BadRequestError, match=r"^Instance is running$"):
        await (await actor(machine, "c2")).ask(Delete(), deadline_s=5)


async def test_nothing_is_done_to_an_instance_that_moved_away(machine):
    await machine.create()
    ref = await actor(machine)
    await machine.execute("INSERT INTO nodes (name, address, schema, api_extensions) VALUES ('n2', 'a:1', 1, 1)")
    await machine.execute("UPDATE instances SET node_id = (SELECT id FROM nodes WHERE name = 'n2')")
    for message in (Start(), Delete()):
        with pytest.raises(ApiError, match="Instance not found"):
            await ref.ask(message, deadline_s=5)
    assert machine.volume("c1").exists()


@pytest.fixture
async def nics_machine(machine, monkeypatch):
    async def ready(*_):
        return None

    async def leases(*_):
        return [("10.0.0.3", "10:66:6a:ff:ff:ff", "stranger")]

    monkeypatch.setattr(nics, "networks_ready", ready)
    monkeypatch.setattr(nics, "leases_here", leases)
    await machine.execute(
        "INSERT INTO networks (project_id, name, description, state, type) VALUES (1, 'b1', '', 1, 0)", topic="networks"
    )
    await machine.execute(
        "INSERT INTO networks_config (network_id, key, value) VALUES (1, 'ipv4.address', '10.0.0.1/24')"
    )
    return machine


async def test_one_whose_address_another_instance_has_does_not_start(nics_machine):
    machine = nics_machine
    nic = {"type": "nic", "network": "b1", "ipv4.address": "10.0.0.9"}
    await machine.create("c1", start=True, devices={"eth0": nic})
    await machine.create("c2", devices={"eth0": nic})
    with pytest.raises(BadRequestError) as refused:
        await (await actor(machine, "c2")).ask(Start(), deadline_s=5)
    assert str(refused.value) == (
        'Failed start validation for device "eth0": IP address "10.0.0.9" already defined on another NIC'
    )
    assert "c2" not in machine.driver.running
    life = machine.instances.life
    await life.patch("default", "c2", InstancePatch(devices={"eth0": {**nic, "ipv4.address": "10.0.0.8"}}))
    await (await actor(machine, "c2")).ask(Start(), deadline_s=5)
    with pytest.raises(ApiError, match=r'^Failed update validation for device "eth0": IP address "10.0.0.9" already'):
        await life.patch("default", "c2", InstancePatch(devices={"eth0": nic}))
    assert life.get("default", "c2").devices["eth0"]["ipv4.address"] == "10.0.0.8"


async def test_filtered_nics_get_addresses_of_their_own(nics_machine):
    machine = nics_machine
    nic = {"type": "nic", "network": "b1", "security.ipv4_filtering": "true"}
    await machine.create("c1", devices={"eth0": {**nic, "ipv4.address": "10.0.0.2"}})
    await machine.create("c2", start=True, devices={"eth0": nic})
    await machine.create("c3", start=True)
    await machine.instances.life.patch("default", "c3", InstancePatch(devices={"eth0": nic}))
    for name, address in (("c2", "10.0.0.4"), ("c3", "10.0.0.5")):
        assert machine.config(name)["volatile.eth0.last_state.ip_addresses"] == address
        instance_id = machine.database.scalar("SELECT id FROM instances WHERE name = ?", (name,))
        given = machine.host.spec(machine.host.record(instance_id)).devices["eth0"]
        assert given["ipv4.address"] == address
    await machine.instances.life.patch(
        "default", "c3", InstancePatch(devices={"eth0": {**nic, "security.ipv4_filtering": "false"}})
    )
    assert "volatile.eth0.last_state.ip_addresses" not in machine.config("c3")


async def test_a_nic_whose_network_has_changed_since_is_told_of_at_the_start(nics_machine):
    machine = nics_machine
    await machine.create("c1", devices={"eth0": {"type": "nic", "network": "b1", "ipv4.address": "10.0.0.9"}})
    await machine.execute(
        "UPDATE networks_config SET value = '10.7.0.1/24' WHERE key = 'ipv4.address'", topic="networks"
    )
    with pytest.raises(BadRequestError) as refused:
        await (await actor(machine, "c1")).ask(Start(), deadline_s=5)
    assert str(refused.value) == (
        'Failed start validation for device "eth0": Device IP address "10.0.0.9" not within network "b1" subnet'
    )


async def test_what_an_instance_of_another_member_has_is_in_nobodys_way(nics_machine):
    machine = nics_machine
    nic = {"type": "nic", "network": "b1", "ipv4.address": "10.0.0.9", "hwaddr": "00:16:3e:00:00:01"}
    await machine.create("c1", devices={"eth0": nic})
    await machine.execute(
        "INSERT INTO nodes (name, address, schema, api_extensions, arch, heartbeat)"
        " VALUES ('node2', '10.0.0.2:8443', 1, 1, 1, '2026-01-01T00:00:00Z')"
    )
    await machine.execute("UPDATE instances SET node_id = 2 WHERE name = 'c1'", topic="instances")
    await machine.create("c2", start=True, devices={"eth0": nic})
    assert "c2" in machine.driver.running


async def test_of_two_that_are_given_one_address_at_the_same_moment_only_one_gets_it(nics_machine):
    machine = nics_machine
    nic = {"type": "nic", "network": "b1", "ipv4.address": "10.0.0.9"}
    life = machine.instances.life
    for name in ("c1", "c2"):
        await machine.create(name, start=True)
    hold = machine.driver.hold["update_devices"] = asyncio.Event()
    work = [
        spawn(life.patch("default", name, InstancePatch(devices={"eth0": nic})), name="test") for name in ("c1", "c2")
    ]
    await until(lambda: {"update_devices c1", "update_devices c2"} <= set(machine.driver.calls))
    hold.set()  # both have been looked at, neither is written down
    said = [str(error) for error in await asyncio.gather(*work, return_exceptions=True) if error is not None]
    assert said == ['Failed add validation for device "eth0": IP address "10.0.0.9" already defined on another NIC']
    given = [name for name in ("c1", "c2") if "eth0" in life.get("default", name).devices]
    assert len(given) == 1
    assert [name for name in ("c1", "c2") if "eth0" in machine.driver.devices[name]] == given


async def test_the_address_of_a_profile_counts_for_every_instance_that_has_it(nics_machine):
    machine = nics_machine
    await machine.execute("INSERT INTO profiles_devices (profile_id, name, type) VALUES (1, 'eth0', 1)")
    for key, value in (("network", "b1"), ("ipv4.address", "10.0.0.9")):
        await machine.execute(
            "INSERT INTO profiles_devices_config (profile_device_id, key, value) VALUES (2, ?, ?)", key, value
        )
    await machine.create("c1", start=True)
    await machine.create("c2")
    with pytest.raises(BadRequestError, match="already defined on another NIC"):
        await (await actor(machine, "c2")).ask(Start(), deadline_s=5)


async def test_volatile_keys_go_with_the_nic_of_a_profile(nics_machine):
    machine = nics_machine
    await machine.execute("INSERT INTO profiles_devices (profile_id, name, type) VALUES (1, 'eth0', 1)")
    await machine.execute(
        "INSERT INTO profiles_devices_config (profile_device_id, key, value) VALUES (2, 'network', 'b1')"
    )
    await machine.create("c1", start=True)
    await machine.create("c2", start=True)
    await (await actor(machine, "c2")).ask(Stop(force=True), deadline_s=5)
    for name in ("c1", "c2"):
        assert {"volatile.eth0.hwaddr", "volatile.eth0.name"} <= machine.config(name).keys()
    await machine.execute("DELETE FROM profiles_devices WHERE name = 'eth0'", topic="profiles")
    for name in ("c1", "c2"):
        assert await (await actor(machine, name)).ask(ProfilesChanged(["eth0"]), deadline_s=5) == ""
        assert not any(key.startswith("volatile.eth0") for key in machine.config(name))


async def test_a_second_nic_on_a_network_is_refused_when_it_is_added_or_at_the_start(nics_machine):
    machine = nics_machine
    nic = {"type": "nic", "network": "b1"}
    await machine.create("c1", devices={"eth1": nic})
    life = machine.instances.life
    with pytest.raises(ApiError) as refused:
        await life.patch("default", "c1", InstancePatch(devices={"eth9": nic}))
    assert str(refused.value) == (
        'Failed add validation for device "eth9": Instance DNS name "c1" conflict between "eth9" and "eth1" because'
        " both are connected to same network"
    )
    assert list(life.get("default", "c1").devices) == ["eth1"]
    await machine.create("c2", devices={"eth0": nic, "eth1": nic})  # as a real Incus
    with pytest.raises(BadRequestError, match=r'^Failed start validation for device "eth0": Instance DNS name "c2"'):
        await (await actor(machine, "c2")).ask(Start(), deadline_s=5)
