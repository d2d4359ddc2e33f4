"""Where a member listens, kept over restarts."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from lane_kit import DEADLINE_S, Ear, envelope, until

from incus_actors.consensus import messages as m
from incus_actors.consensus.types import Member
from incus_actors.transport.address import AddressError, parse_address
from incus_actors.transport.frames import ActorFrame
from incus_actors.transport.lanes import PORTS, Lanes


class Deaf:
    def on_actor_frame(self, member: int, frame: ActorFrame) -> None: ...

    def on_link_up(self, member: int) -> None: ...

    def on_link_down(self, member: int, evidence: str) -> None: ...


class Daemon:
    """A member's lanes as a daemon runs them: the control lane on a thread and loop of its own."""

    def __init__(self, directory: Path) -> None:
        self.lanes = Lanes(directory)
        self.ear = Ear()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)

    async def start(self) -> None:
        self.thread.start()
        self.control = self.lanes.lane_factory()
        await self.there(self.control.start(self.ear))
        self.bulk = self.lanes.bulk_lane()
        await self.bulk.start(Deaf())

    async def there(self, coro: object) -> None:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coro, self.loop))  # type: ignore[arg-type]

    async def set_peers(self, members: list[Member], own: int) -> None:
        await self.control.on_own_loop(lambda: self.control.set_peers(members, own))
        self.bulk.set_peers(members, own)

    async def stop(self) -> None:
        await self.there(self.control.close())
        await self.bulk.close()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


async def refused(host: str, port: int) -> None:
    """libzmq closes a listener in its own time."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                (await asyncio.open_connection(host, port))[1].close()
            except ConnectionRefusedError:
                return
            except ConnectionResetError:
                continue  # it was closed between our packets
            await asyncio.sleep(0.005)


async def test_open_close_and_remember(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    await daemon.start()
    try:
        assert daemon.lanes.address == ""
        assert (daemon.control.bound_port, daemon.bulk.bound_port) == (0, 0)
        address = await daemon.lanes.open("127.0.0.1")
        assert await daemon.lanes.open("127.0.0.1") == address == daemon.lanes.address
        parts = parse_address(address)
        assert {parts.control_port, parts.bulk_port} <= set(PORTS)
        for port in (parts.control_port, parts.bulk_port):
            (await asyncio.open_connection("127.0.0.1", port))[1].close()
        moved = await daemon.lanes.open("127.0.0.3")
        assert parse_address(moved).host == "127.0.0.3"
        with pytest.raises(OSError, match="can't listen"):
            await daemon.lanes.open("192.0.2.1")
        assert daemon.lanes.address == moved
        with pytest.raises(AddressError):
            await daemon.lanes.open("no host")
    finally:
        await daemon.stop()
    again = Daemon(tmp_path)
    assert again.lanes.address == moved
    await again.start()
    try:
        assert again.control.bound_port == parse_address(moved).control_port
        await again.lanes.close()
        assert again.lanes.address == ""
        assert Lanes(tmp_path).address == ""
        await refused("127.0.0.3", parse_address(moved).control_port)
    finally:
        await again.stop()


async def test_a_damaged_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "transport.json").write_text('{"host": "127.0.0.1"}')
    with pytest.raises(AddressError, match="damaged"):
        Lanes(tmp_path)


async def test_not_started(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        await Lanes(tmp_path).open("127.0.0.1")


async def test_bulk_raft_messages_cross_threads_and_members(tmp_path: Path) -> None:
    daemons = [Daemon(tmp_path / name) for name in "ab" if not (tmp_path / name).mkdir()]
    try:
        for daemon, host in zip(daemons, ("127.0.0.1", "127.0.0.2"), strict=True):
            await daemon.start()
            await daemon.lanes.open(host)
        a, b = daemons
        members = [Member(1, a.lanes.address), Member(2, b.lanes.address)]
        await a.set_peers(members, 1)
        await b.set_peers(members, 2)
        await until(lambda: a.control.links() and b.control.links() and a.bulk.links() and b.bulk.links())
        chunk = envelope(1, 2, m.SnapshotChunk("s", 0, b"x" * (2 << 20), 1))
        a.loop.call_soon_threadsafe(lambda: a.control.send(chunk, bulk=True))
        await until(lambda: b.ear.messages == [chunk])
        liar = envelope(7, 2, m.SnapshotChunk("s", 0, b"x", 1))
        a.loop.call_soon_threadsafe(lambda: a.control.send(liar, bulk=True))
        await until(lambda: b.lanes.counters()["bulk"].get("wrong_source") == 1)
        assert b.ear.messages == [chunk]
    finally:
        for daemon in daemons:
            await daemon.stop()


async def test_moving_keeps_the_old_place_until_it_is_released(tmp_path: Path) -> None:
    daemons = [Daemon(tmp_path / name) for name in "ab" if not (tmp_path / name).mkdir()]
    try:
        for daemon, host in zip(daemons, ("127.0.0.1", "127.0.0.2"), strict=True):
            await daemon.start()
            await daemon.lanes.open(host)
        a, b = daemons
        before = a.lanes.address
        members = [Member(1, before), Member(2, b.lanes.address)]
        await a.set_peers(members, 1)
        await b.set_peers(members, 2)
        await until(lambda: a.control.links() and b.control.links() and a.bulk.links() and b.bulk.links())
        moved = await a.lanes.open("127.0.0.3", keep=True)
        ports = [parse_address(x).control_port for x in (before, moved)]
        for host, port in zip(("127.0.0.1", "127.0.0.3"), ports, strict=True):
            (await asyncio.open_connection(host, port))[1].close()
        await asyncio.sleep(0.1)
        assert b.control.links() == b.bulk.links() == {1}
        assert not [event for event in b.ear.events if event[0] == "down"]
        await b.set_peers([Member(1, moved), members[1]], 2)
        await until(lambda: b.control.links() and b.bulk.links())
        await a.lanes.release()
        await refused("127.0.0.1", ports[0])
        await until(lambda: a.control.links() == a.bulk.links() == {2})
        assert b.control.links() == b.bulk.links() == {1}
    finally:
        for daemon in daemons:
            await daemon.stop()


async def test_a_move_that_came_to_nothing_is_undone(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    await daemon.start()
    try:
        before = await daemon.lanes.open("127.0.0.1")
        moved = await daemon.lanes.open("127.0.0.3", keep=True)
        await daemon.lanes.go_back(before)
        assert daemon.lanes.address == before == Lanes(tmp_path).address
        (await asyncio.open_connection("127.0.0.1", parse_address(before).control_port))[1].close()
        await refused("127.0.0.3", parse_address(moved).control_port)
    finally:
        await daemon.stop()
