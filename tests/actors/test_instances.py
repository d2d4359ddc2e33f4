"""InstancesSupervisor: what is found, repaired, started and stopped with the daemon."""

from __future__ import annotations

import asyncio
import os

import pytest
from instance_kit import machines, until

from incus_actors.actors.host import INSTANCES_PATH, STATES_PATH
from incus_actors.actors.instance_states import CollectStates
from incus_actors.actors.instances import ActorFor, StopAll
from incus_actors.drivers.base import DriverError, RunStatus
from incus_actors.errors import NotFoundError
from incus_actors.model.instances import InstancePatch, InstanceStatePut

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacks images with owners: run as root")


@pytest.fixture
async def machine(tmp_path):
    async with machines(tmp_path) as (one,):
        await one.add_image()
        yield one


async def test_instances_outlive_the_daemon_and_are_watched_again(machine):
    await machine.create(start=True)
    machine.driver.watches.clear()
    await machine.restart()
    assert machine.driver.running == {"c1": RunStatus.RUNNING}
    assert "c1" in machine.driver.watches
    assert machine.driver.calls.count("start c1") == 1


async def test_what_profiles_became_meanwhile_is_taken_over(machine):
    await machine.create(start=True)
    await machine.stop()
    await machine.execute("INSERT INTO profiles_devices (profile_id, name, type) VALUES (1, 'nu', 3)", topic="profiles")
    for key in ("source", "path"):
        await machine.execute(
            "INSERT INTO profiles_devices_config (profile_device_id, key, value) VALUES (2, ?, '/dev/null')", key
        )
    await machine.start()
    await until(lambda: "nu" in machine.driver.devices.get("c1", {}))


async def test_after_a_reboot_what_ran_runs_again_by_priority(machine):
    await machine.create("a", start=True)
    await machine.create("b", start=True, config={"boot.autostart.priority": "5"})
    await machine.create("never", start=True, config={"boot.autostart": "false"})
    await machine.create("always", config={"boot.autostart": "true"})
    await machine.create("off")
    machine.driver.calls.clear()
    await machine.restart(machine.driver.running.clear)
    await until(lambda: set(machine.driver.running) == {"a", "b", "always"})
    starts = [call for call in machine.driver.calls if call.startswith("start")]
    assert starts[0] == "start b"
    await until(lambda: machine.config("never")["volatile.last_state.power"] == "STOPPED")


async def test_on_an_evacuated_member_nothing_is_started(machine):
    await machine.create(start=True)
    await machine.execute("UPDATE nodes SET state = 2")
    await machine.restart(machine.driver.running.clear)
    await asyncio.sleep(0.1)
    assert machine.driver.running == {}
    await machine.execute("UPDATE nodes SET state = 0")


async def test_one_that_cannot_start_does_not_keep_the_others(machine):
    await machine.create("a", start=True)
    await machine.create("b", start=True)
    machine.driver.fail["start"] = DriverError("broken")
    await machine.restart(machine.driver.running.clear)
    await until(lambda: set(machine.driver.running) == {"b"})


async def test_stop_all_remembers_what_ran(machine):
    await machine.create("a", start=True)
    await machine.create("b", start=True, config={"boot.stop.priority": "1"})
    await machine.create("stubborn", start=True, config={"boot.host_shutdown_timeout": "0"})
    machine.driver.obeys = False
    machine.driver.calls.clear()
    for name in ("a", "b"):
        await machine.instances.life.patch("default", name, _patch({"boot.host_shutdown_action": "force-stop"}))
    await machine.server.actors.ref(INSTANCES_PATH).ask(StopAll(), deadline_s=10)
    assert machine.driver.running == {}
    stops = [call for call in machine.driver.calls if call.startswith(("kill", "stop "))]
    assert stops[0] == "kill b"
    assert stops.index("stop stubborn") < stops.index("kill stubborn")
    await machine.restart()
    await until(lambda: set(machine.driver.running) == {"a", "b", "stubborn"})


def _patch(config):
    return InstancePatch(config=config)


async def test_states_are_told_short_and_full(machine):
    await machine.create("a", start=True)
    await machine.create("b")
    ref = machine.server.actors.ref(STATES_PATH)
    ids = {row[0]: row[1] for row in machine.database.query("SELECT name, id FROM instances")}
    short = await ref.ask(CollectStates([*ids.values(), 999]), deadline_s=5)
    assert short == {str(ids["a"]): [103], str(ids["b"]): [102]}
    full = await ref.ask(CollectStates(list(ids.values()), True), deadline_s=5)
    assert full[str(ids["a"])][1]["memory"]["usage"] == 4096
    assert full[str(ids["b"])][1]["network"] is None
    machine.driver.fail["state"] = DriverError("gone")
    broken = await ref.ask(CollectStates([ids["a"]], True), deadline_s=5)
    assert broken[str(ids["a"])][0] == 112


async def test_there_is_no_actor_for_what_is_not_here(machine):
    with pytest.raises(NotFoundError):
        await machine.server.actors.ref(INSTANCES_PATH).ask(ActorFor(999), deadline_s=5)


async def test_all_at_once_touches_only_those_for_which_it_makes_sense(machine):
    await machine.create("a", start=True)
    await machine.create("b")
    life = machine.instances.life
    await life.change_everywhere({"default"}, InstanceStatePut(action="start"))
    assert set(machine.driver.running) == {"a", "b"}
    await life.change_everywhere({"other"}, InstanceStatePut(action="stop", force=True))
    assert set(machine.driver.running) == {"a", "b"}
    await life.change_everywhere({"default"}, InstanceStatePut(action="stop", force=True))
    assert machine.driver.running == {}
