"""What is noticed of a peer that dies, stalls or flaps, and on which evidence (CONSENSUS 3.7)."""

from __future__ import annotations

import asyncio
import os
import signal
import socket

from lane_kit import DEADLINE_S, HOST, ChildPeer, Peer, acquaint, envelope, peers, until

from incus_actors.transport.evidence import Link, probe

LIVES = 4


async def test_a_killed_process_is_noticed_as_refused_and_comes_back() -> None:
    async with peers(1) as (a,):
        child = ChildPeer(2)
        try:
            await child.start(a)
            a.lane.set_peers([a.member(), child.member()], 1)
            await until(lambda: a.lane.links() == {2})
            for life in range(LIVES):
                a.lane.send(envelope(1, 2))
                await until(lambda life=life: len(a.ear.messages) == life + 1)
                await child.kill()
                await until(lambda life=life: len(a.ear.downs()) == life + 1)
                assert a.lane.links() == frozenset()
                await child.start(a)
                await until(lambda: a.lane.links() == {2})
            assert [kind for kind, _, _ in a.ear.events] == ["up", "down"] * LIVES + ["up"]
            # On a crowded machine the kernel may be interrupted after it closed the connections and before it closed
            # the listener; then nothing refuses, and E1 is the truth. Not always, though.
            assert ("down", 2, "E2") in a.ear.downs()
        finally:
            await child.kill()


async def test_a_stopped_process_gives_no_link_event() -> None:
    async with peers(1) as (a,):
        child = ChildPeer(2)
        try:
            await child.start(a)
            a.lane.set_peers([a.member(), child.member()], 1)
            await until(lambda: a.lane.links() == {2})
            child.signal(signal.SIGSTOP)
            await asyncio.sleep(0.3)
            assert a.ear.downs() == []
            child.signal(signal.SIGCONT)
            a.lane.send(envelope(1, 2))
            await until(lambda: len(a.ear.messages) == 1)
            assert a.ear.downs() == []
        finally:
            await child.kill()


async def test_a_lane_that_closes_is_noticed_by_all() -> None:
    async with peers(1, 2, 3) as (a, b, c):
        await c.lane.close()
        await until(lambda: [peer for _, peer, _ in a.ear.downs() + b.ear.downs()] == [3, 3])
        assert a.lane.links() == {2}


async def test_broken_connections_to_a_living_peer_are_remade_without_a_down() -> None:
    async with peers(1, 2) as (a, b):
        for _ in range(5):
            ups = [len(peer.ear.events) for peer in (a, b)]
            break_all(a, b)
            await until(lambda ups=ups: [len(peer.ear.events) for peer in (a, b)] > ups)
            await until(lambda: a.lane.links() == {2} and b.lane.links() == {1})
            await reaches(a, b)
        assert {event[0] for event in a.ear.events if event[2] != "E1"} == {"up"}


async def test_a_storm_of_resets_leaks_nothing_and_ends_well() -> None:
    async with peers(1, 2) as (a, b):
        before = descriptors()
        for _ in range(100):
            break_all(a, b)
            await asyncio.sleep(0.002)
        await until(lambda: a.lane.links() == {2} and b.lane.links() == {1})
        await reaches(a, b)
        await until(lambda: descriptors() <= before + 20)
        assert a.count("dials") < 150, "a flapping link is dialled with a back-off"


async def test_silence_is_e1() -> None:
    ups: list[str] = []
    downs: list[str] = []
    with socket.create_server((HOST, 0)) as server:  # accepts in the kernel, never greets
        target = (HOST, server.getsockname()[1])
        link = Link(target, on_up=lambda: ups.append("up"), on_down=downs.append, drain=lambda: None, name="test")
        link.changed(out_up=True)
        link.changed(in_up=True)
        assert ups == ["up"]
        link.changed(out_up=False)
        await asyncio.sleep(0.04)
        assert downs == [], "one direction stands"
        link.changed(in_up=False)
        await until(lambda: downs == ["E1"])
        link.changed(out_up=True, in_up=True)
        assert ups == ["up", "up"]
        link.changed(out_up=False, in_up=False)
        link.changed(out_up=True, in_up=True)
        await asyncio.sleep(0.05)
        assert (ups, downs) == (["up"] * 3, ["E1"]), "it was remade within the grace"
        link.changed(out_up=False, in_up=False)
        link.close()
        await asyncio.sleep(0.05)
        assert downs == ["E1"]


async def test_an_old_probe_proves_nothing_later() -> None:
    downs: list[str] = []
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
    link = Link((HOST, port), on_up=lambda: None, on_down=downs.append, drain=lambda: None, name="test")
    link.changed(out_up=True, in_up=True)
    link.changed(out_up=False)  # refused, but the other direction stands
    await asyncio.sleep(0.05)
    assert downs == []
    with socket.create_server((HOST, port)):
        link.changed(in_up=False)
        await until(lambda: downs == ["E1"])


async def test_a_handshake_that_waits_to_be_read_beats_the_verdict() -> None:
    """Drain before deciding: this process may have been late itself."""
    told: list[str] = []
    link = Link(
        (HOST, 1),  # refused
        on_up=lambda: told.append("up"),
        on_down=told.append,
        drain=lambda: link.changed(out_up=True, in_up=True),
        name="test",
    )
    link.changed(out_up=True, in_up=True)
    link.changed(out_up=False, in_up=False)
    await asyncio.sleep(0.1)
    assert told == ["up", "up"]


async def test_probe() -> None:
    async with peers(1) as (a,):
        port = a.lane.bound_port
        assert await probe(HOST, port, timeout_s=5) == "alive"
    assert await probe(HOST, port, timeout_s=5) == "refused"
    with socket.create_server((HOST, 0)) as server:
        assert await probe(HOST, server.getsockname()[1], timeout_s=0.02) == "silent"


async def test_a_peer_that_was_never_there_is_not_reported_and_found_when_it_comes() -> None:
    async with peers(1) as (a,):
        ghost = Peer(2)
        await ghost.lane.start(ghost.ear)
        member = ghost.member()
        await ghost.lane.close()
        a.lane.set_peers([a.member(), member], 1)
        await asyncio.sleep(0.1)
        assert a.ear.events == []
        again = Peer(2, ghost.keys, int(member.address.split(":")[1]))
        await again.lane.start(again.ear)
        try:
            acquaint([a, again])
            await until(lambda: a.lane.links() == {2} and again.lane.links() == {1})
        finally:
            await again.lane.close()


async def reaches(sender: Peer, receiver: Peer) -> None:
    """Messages arrive again. One alone may be lost: a connection that just broke may not look so yet."""
    before = len(receiver.ear.messages)
    async with asyncio.timeout(DEADLINE_S):
        while len(receiver.ear.messages) == before:
            sender.lane.send(envelope(sender.id, receiver.id))
            await asyncio.sleep(0.01)


def break_all(*found: Peer) -> None:
    """Shut every accepted connection down, as a firewall that resets them would."""
    for peer in found:
        inbound = peer.lane._mesh._inbound
        assert inbound is not None
        for fd in tuple(inbound._connections):
            try:
                with socket.socket(fileno=os.dup(fd)) as twin:
                    twin.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
