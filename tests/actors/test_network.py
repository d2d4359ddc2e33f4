"""NetworkActor: follows the rows, catches up, warns; DnsmasqActor keeps dnsmasq running."""

from __future__ import annotations

import asyncio

import pytest
from actor_kit import until
from network_kit import network_actor
from service_kit import running_services

from incus_actors.actors import dnsmasq
from incus_actors.actors.network_messages import NETWORKS_PATH, ApplyNetwork, CollectLeases, Converge, NicsReady
from incus_actors.drivers.base import DriverError
from incus_actors.drivers.dnsmasq import Lease
from incus_actors.errors import MemberError
from incus_actors.state.queries import instances as instance_queries
from incus_actors.state.queries import networks as queries
from incus_actors.state.queries.instances import InstanceRecord


@pytest.fixture
async def kit(tmp_path):
    async with running_services(tmp_path) as found:
        yield found


async def add(kit, name="br0", state=1, number=1):
    """Write a network down as another member, or a life before, would have done."""
    await kit.sql(
        f"INSERT INTO networks (id, project_id, name, state, type) VALUES ({number}, 1, '{name}', {min(state, 1)}, 0)",
        f"INSERT INTO networks_nodes (network_id, node_id, state) VALUES ({number}, 1, {state})",
        f"INSERT INTO networks_config (network_id, key, value) VALUES ({number}, 'ipv4.address', '10.{number}.0.1/24')",
    )
    await converge(kit)


async def converge(kit):
    await kit.actors.ref(NETWORKS_PATH).ask(Converge(), deadline_s=5)


def row(kit):
    return queries.network(kit.database, "br0")


async def restart(kit):
    await kit.actors.stop_child(NETWORKS_PATH)
    await kit.actors.start_child(network_actor(kit.consensus, kit.machine, kit.services.warnings))


async def test_every_start_looks_at_what_shall_be(kit):
    await add(kit)
    assert (set(kit.machine.there), set(kit.machine.served)) == ({"br0"}, {"br0"})
    kit.machine.there.clear()  # the host has been started anew
    await restart(kit)
    await until(lambda: "br0" in kit.machine.there)


async def test_what_nobody_wants_is_removed_but_only_when_that_is_certain(kit):
    await add(kit)
    await kit.sql("DELETE FROM networks")
    await converge(kit)
    assert kit.machine.there == {}
    assert "remove br0" in kit.machine.calls


@pytest.mark.parametrize(("state", "left"), [(3, {1: 1}), (4, None), (5, {1: 0})])
async def test_work_that_a_crash_interrupted_is_finished(kit, state, left):
    await kit.actors.stop_child(NETWORKS_PATH)
    await kit.sql(
        "INSERT INTO networks (id, project_id, name, state, type) VALUES (1, 1, 'br0', 0, 0)",
        f"INSERT INTO networks_nodes (network_id, node_id, state) VALUES (1, 1, {state})",
    )
    await kit.actors.start_child(network_actor(kit.consensus, kit.machine, kit.services.warnings))
    await until(lambda: (found.members if (found := row(kit)) else None) == left)
    assert set(kit.machine.there) == ({"br0"} if state == 3 else set())


async def test_what_can_not_be_done_is_a_warning_until_it_can(kit):
    kit.machine.broken["br0"] = "no such luck"
    with pytest.raises(MemberError, match=r'^Network "br0": no such luck$'):
        await add(kit)
    await until(lambda: kit.services.warnings.list())
    warning = kit.services.warnings.list()[0]
    assert (warning.type, warning.last_message, warning.status) == ("Network unavailable", "br0: no such luck", "new")
    kit.machine.broken.clear()
    await converge(kit)
    await until(lambda: kit.services.warnings.list()[0].status == "resolved")


async def test_a_problem_that_ends_while_it_is_told_of_is_resolved(kit, monkeypatch):
    """A failed change is rolled back within milliseconds: the warning of it is being written meanwhile."""
    await add(kit)
    await until(lambda: "br0" in kit.machine.served)
    tell, telling, go_on = kit.services.warnings.tell, asyncio.Event(), asyncio.Event()

    async def slow(*args, **others):
        telling.set()
        await go_on.wait()
        await tell(*args, **others)

    monkeypatch.setattr(kit.services.warnings, "tell", slow)
    kit.machine.broken["br0"] = "bad option at line 1"
    await kit.sql("INSERT INTO networks_config (network_id, key, value) VALUES (1, 'raw.dnsmasq', 'nonsense')")
    await telling.wait()
    kit.machine.broken.clear()
    await kit.sql("DELETE FROM networks_config WHERE key = 'raw.dnsmasq'")
    await kit.actors.ref(NETWORKS_PATH).ask(ApplyNetwork("br0"), deadline_s=5)
    go_on.set()
    await until(lambda: [warning.status for warning in kit.services.warnings.list()] == ["resolved"])


async def test_the_warning_about_a_network_that_is_deleted_is_resolved(kit):
    kit.machine.broken["br0"] = "no such luck"
    with pytest.raises(MemberError):
        await add(kit)
    await until(lambda: kit.services.warnings.list())
    await kit.sql("DELETE FROM networks")
    await until(lambda: kit.services.warnings.list()[0].status == "resolved")


async def test_small_problems_are_warned_of_too(kit):
    kit.machine.lacking["br0"] = ['External interface "x" of network "br0" not found']
    with pytest.raises(MemberError):
        await add(kit)
    assert "br0" in kit.machine.there
    await until(lambda: kit.services.warnings.list())


async def test_unchanged_networks_are_left_alone(kit):
    await add(kit)
    calls = len(kit.machine.calls)
    await kit.sql("INSERT INTO projects (name) VALUES ('p')")
    await converge(kit)
    assert len(kit.machine.calls) == calls


async def instance(kit, address="10.1.0.7"):
    await kit.add_instance("c1")
    await kit.sql(
        "INSERT INTO instances_config (instance_id, key, value)"
        " VALUES (1, 'volatile.eth0.hwaddr', '10:66:6A:00:00:01')",
        "INSERT INTO instances_devices (id, instance_id, name, type) VALUES (1, 1, 'eth0', 1)",
        "INSERT INTO instances_devices_config (instance_device_id, key, value)"
        f" VALUES (1, 'network', 'br0'), (1, 'ipv4.address', '{address}')",
    )


def record(kit) -> InstanceRecord:
    found = instance_queries.by_id(kit.database, 1)
    assert found is not None
    return found


async def test_dhcp_knows_an_instance_before_it_starts(kit):
    await add(kit)
    await instance(kit)
    ensured = kit.machine.calls.count("ensure br0")
    await kit.actors.ref(NETWORKS_PATH).ask(NicsReady(record(kit)), deadline_s=5)
    assert kit.machine.served["br0"].hosts == {"default_c1.eth0": "10:66:6a:00:00:01,10.1.0.7,c1"}
    assert kit.machine.calls.count("ensure br0") == ensured  # the bridge has nothing to do with it


async def test_an_instance_waits_for_its_network(kit):
    await instance(kit)
    ref = kit.actors.ref(NETWORKS_PATH)
    await add(kit, state=2)
    with pytest.raises(DriverError, match=r'^Network "br0" unavailable on this server$'):
        await ref.ask(NicsReady(record(kit)), deadline_s=5)


async def test_leases_are_told(kit):
    kit.machine.given["br0"] = [Lease("10.1.0.9", "00:11:22:33:44:55", "x")]
    answer = await kit.actors.ref(NETWORKS_PATH).ask(CollectLeases("br0"), deadline_s=5)
    assert answer == [["10.1.0.9", "00:11:22:33:44:55", "x"]]


async def test_dnsmasq_that_ends_is_started_again(kit, monkeypatch):
    monkeypatch.setattr(dnsmasq, "AGAIN_S", 0.01)
    await add(kit)
    process = kit.machine.processes["br0"]
    for _ in range(3):
        before = process.pid
        process.die()
        await until(lambda before=before: process.pid not in (0, before))
    kit.machine.mute["br0"] = "the port is taken"
    process.die()
    await until(lambda: kit.services.warnings.list())
    assert "the port is taken" in kit.services.warnings.list()[0].last_message
    kit.machine.mute.clear()
    await until(lambda: process.running)


async def test_a_new_life_of_the_actor_takes_the_process_over(kit):
    await add(kit)
    pid = kit.machine.processes["br0"].pid
    await restart(kit)
    await converge(kit)
    assert kit.machine.processes["br0"].pid == pid


async def test_questions_are_answered_while_work_goes_on(kit):
    hold = asyncio.Event()

    async def slow(spec):
        await hold.wait()
        return []

    kit.machine.ensure = slow
    await kit.sql(
        "INSERT INTO networks (id, project_id, name, state, type) VALUES (1, 1, 'br0', 0, 0)",
        "INSERT INTO networks_nodes (network_id, node_id, state) VALUES (1, 1, 3)",
    )
    assert await kit.actors.ref(NETWORKS_PATH).ask(CollectLeases("br0"), deadline_s=1) == []
    hold.set()
    await until(lambda: row(kit).members == {1: 1})
