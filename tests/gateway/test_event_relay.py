"""Events between members over a network that loses messages, restarts and deaths; operation lists of the cluster."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from incus_actors.actors.actor import ChildSpec
from incus_actors.actors.system import ActorSystem
from incus_actors.gateway import event_relay
from incus_actors.gateway.event_relay import EventRelay, EventRelayActor
from incus_actors.gateway.events import EventHub, Subscription
from incus_actors.gateway.operations import Operation, Operations, Scope
from incus_actors.transport.frames import ActorFrame, FrameKind


@dataclass
class Network:
    """Carries frames between actor systems on the next turn of the loop; loses what it is told to lose."""

    systems: dict[int, ActorSystem] = field(default_factory=dict)
    lose: float = 0.0
    down: set[int] = field(default_factory=set)
    dice: random.Random = field(default_factory=lambda: random.Random(5))

    def sender(self, source: int) -> Any:
        network = self

        class Sender:
            def send_frame(self, member: int, frame: ActorFrame) -> str:
                if member in network.down or source in network.down or member not in network.systems:
                    return "remote_down"
                if frame.kind is FrameKind.TELL and network.dice.random() < network.lose:
                    return ""
                system = network.systems[member]
                asyncio.get_running_loop().call_soon(system.remoting.receive, source, frame)
                return ""

        return Sender()

    def kill(self, member: int) -> None:
        self.down.add(member)
        for id_, system in self.systems.items():
            if id_ != member:
                system.remoting.member_down(member)


@dataclass
class Node:
    hub: EventHub
    operations: Operations
    relay: EventRelay
    system: ActorSystem


async def start(network: Network, id_: int, names: dict[int, str]) -> Node:
    system = ActorSystem(member_id=lambda: id_, remote=network.sender(id_))
    network.systems[id_] = system
    hub = EventHub(location=lambda: names[id_])
    operations = Operations(hub, member_id=lambda: id_, location=lambda: names[id_])
    relay = EventRelay(hub, operations, system=system, members=lambda: {i: n for i, n in names.items() if i != id_})
    operations.elsewhere = relay.operations_elsewhere
    await system.start([ChildSpec("events", lambda: EventRelayActor(relay))])
    return Node(hub, operations, relay, system)


@pytest.fixture
async def cluster(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Network, list[Node], dict[int, str]]]:
    monkeypatch.setattr(event_relay, "MARK_S", 0.03)
    monkeypatch.setattr(event_relay, "GRACE_S", 0.15)
    network = Network()
    names = {1: "node1", 2: "node2", 3: "node3"}
    nodes = [await start(network, id_, names) for id_ in names]
    yield network, nodes, names
    for system in list(network.systems.values()):
        with contextlib.suppress(Exception):
            await system.stop()


async def take(subscription: Subscription, count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(5):
        async for encoded in subscription:
            found.append(json.loads(encoded))
            if len(found) == count:
                break
    return found


def numbers(events: list[dict[str, Any]]) -> list[int]:
    return [event["metadata"]["context"]["n"] for event in events]


Cluster = tuple[Network, list[Node], dict[int, str]]


async def test_every_member_hears_every_event_once_with_its_origin(cluster: Cluster) -> None:
    _, nodes, _ = cluster
    subscriptions = [node.hub.subscribe() for node in nodes]
    for number in range(10):
        nodes[number % 3].hub.lifecycle("config-updated", "/1.0", context={"n": number})
    for subscription in subscriptions:
        found = await take(subscription, 10)
        assert sorted(numbers(found)) == list(range(10))
        assert {(e["metadata"]["context"]["n"] % 3 + 1, e["location"]) for e in found} == {
            (1, "node1"), (2, "node2"), (3, "node3"),
        }  # fmt: skip
    await asyncio.sleep(0.1)
    assert all(not subscription._queue for subscription in subscriptions)


async def test_lost_messages_are_fetched_again_in_order(cluster: Cluster) -> None:
    network, nodes, _ = cluster
    network.lose = 0.5
    subscription = nodes[1].hub.subscribe()

    async def publish() -> None:
        for number in range(200):
            nodes[0].hub.lifecycle("config-updated", "/1.0", context={"n": number})
            if number % 5 == 0:
                await asyncio.sleep(0.004)

    _, found = await asyncio.gather(publish(), take(subscription, 200))
    assert numbers(found) == list(range(200))


async def test_logging_stays_where_it_is(cluster: Cluster) -> None:
    _, nodes, _ = cluster
    here, there = nodes[0].hub.subscribe(), nodes[1].hub.subscribe()
    nodes[0].hub.publish("logging", {"message": "x", "level": "info", "context": {}})
    nodes[0].hub.lifecycle("config-updated", "/1.0", context={"n": 1})
    assert [e["type"] for e in await take(here, 2)] == ["logging", "lifecycle"]
    assert [e["type"] for e in await take(there, 1)] == ["lifecycle"]


async def never(_operation: Operation) -> None:
    await asyncio.sleep(3600)


async def test_operations_of_a_dead_member_fail_for_their_watchers(cluster: Cluster) -> None:
    network, nodes, _ = cluster
    subscription = nodes[0].hub.subscribe()
    operation = nodes[1].operations.create(kind="task", description="Working", project="default", run=never)
    assert [e["metadata"]["status"] for e in await take(subscription, 2)] == ["Pending", "Running"]
    await asyncio.sleep(0.1)
    network.kill(2)
    (final,) = await take(subscription, 1)
    assert final["metadata"]["id"] == operation.id
    assert (final["metadata"]["status"], final["metadata"]["status_code"]) == ("Failure", 400)
    assert final["metadata"]["err"] == 'Member "node2" can\'t be reached: the operation may have been interrupted'
    assert (final["type"], final["project"], final["location"]) == ("operation", "default", "node2")
    await nodes[1].operations.stop()


async def test_operations_of_a_restarted_member_fail_for_their_watchers(cluster: Cluster) -> None:
    network, nodes, names = cluster
    subscription = nodes[0].hub.subscribe()
    nodes[1].operations.create(kind="task", description="Working", project=None, run=never)
    await take(subscription, 2)
    old = network.systems.pop(2)
    await old.stop()
    fresh = await start(network, 2, names)
    (final,) = await take(subscription, 1)
    assert final["metadata"]["err"] == 'Member "node2" was restarted: the operation may have been interrupted'
    fresh.hub.lifecycle("config-updated", "/1.0", context={"n": 1})
    assert numbers(await take(subscription, 1)) == [1]
    await nodes[1].operations.stop()


async def test_a_short_silence_fails_nothing_and_loses_nothing(cluster: Cluster, monkeypatch: Any) -> None:
    monkeypatch.setattr(event_relay, "GRACE_S", 30)
    network, nodes, _ = cluster
    subscription = nodes[0].hub.subscribe()
    operation = nodes[1].operations.create(kind="task", description="Working", project=None, run=never)
    await take(subscription, 2)
    network.kill(2)
    await operation.abort("stopped")
    await asyncio.sleep(0.05)
    network.down.clear()
    found = await take(subscription, 1)
    assert (found[0]["metadata"]["status"], found[0]["metadata"]["err"]) == ("Cancelled", "stopped")


async def test_ends_that_fell_out_of_the_ring_are_looked_up(cluster: Cluster, monkeypatch: Any) -> None:
    monkeypatch.setattr(event_relay, "RING_EVENTS", 3)
    network, nodes, _ = cluster
    subscription = nodes[0].hub.subscribe(frozenset({"operation"}))
    operation = nodes[1].operations.create(kind="task", description="Working", project=None, run=never)
    await take(subscription, 2)
    network.lose = 1.0
    await operation.abort("stopped")
    for number in range(10):
        nodes[1].hub.lifecycle("config-updated", "/1.0", context={"n": number})
    await asyncio.sleep(0.05)
    network.lose = 0.0
    found = await take(subscription, 1)
    assert (found[0]["metadata"]["status"], found[0]["metadata"]["err"]) == ("Cancelled", "stopped")


async def test_a_member_that_starts_hears_nothing_of_the_past(cluster: Cluster) -> None:
    network, nodes, names = cluster
    for number in range(5):
        nodes[0].hub.lifecycle("config-updated", "/1.0", context={"n": number})
    await asyncio.sleep(0.01)
    names[4] = "node4"
    late = await start(network, 4, names)
    subscription = late.hub.subscribe()
    await asyncio.sleep(0.1)
    nodes[0].hub.lifecycle("config-updated", "/1.0", context={"n": 99})
    assert numbers(await take(subscription, 1)) == [99]


async def test_lists_merge_members_and_do_without_the_dead(cluster: Cluster) -> None:
    network, nodes, _ = cluster
    made = {
        node.operations.create(kind="task", description="Working", project=project, run=never).id: project
        for node, project in zip(nodes, ("blue", "default", None), strict=True)
    }
    found = await nodes[0].relay.operations_elsewhere(Scope())
    assert {o["id"]: o["location"] for o in found} == dict(zip(list(made)[1:], ("node2", "node3"), strict=True))
    only_blue = await nodes[1].relay.operations_elsewhere(Scope(frozenset({"blue"}), strict=True))
    assert [o["id"] for o in only_blue] == [next(iter(made))]
    network.kill(3)
    assert len(await nodes[0].relay.operations_elsewhere(Scope())) == 1
    for node in nodes:
        await node.operations.stop()
