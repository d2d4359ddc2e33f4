"""Actors of two members over the real bulk lane."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from actor_kit import DEADLINE_S, Diary, Probe, until

from incus_actors.actors.actor import Actor, ChildSpec
from incus_actors.actors.heartbeat import PATH as HEARTBEAT_PATH
from incus_actors.actors.heartbeat import HeartbeatActor, HeartbeatTable, LinkUp, OwnFacts
from incus_actors.actors.messages import Terminated, remote_message
from incus_actors.actors.ref import ActorDeadError, ActorRef, AskError, AskTimeoutError, MailboxFullError
from incus_actors.actors.system import ActorSystem
from incus_actors.actors.transport import transport_spec
from incus_actors.consensus.types import Configuration, Member
from incus_actors.errors import BadRequestError, ConflictError, MemberError, NotImplementedHereError
from incus_actors.transport.address import parse_address
from incus_actors.transport.bulk_lane import KIND_ACTOR
from incus_actors.transport.codec import BULK_MAX
from incus_actors.transport.frames import ActorFrame, FrameKind, encode_frame
from incus_actors.transport.lanes import Lanes


@remote_message("test.order")
class Order(msgspec.Struct, frozen=True, array_like=True):
    what: str
    size: int = 0


class Remote(Actor):
    """Answers orders from anywhere."""

    mailbox_limit = 4

    def __init__(self) -> None:
        self.gate = asyncio.Event()

    async def receive(self, message: object) -> object:
        match message:
            case Order("who"):
                return self.context.sender_member
            case Order("conflict"):
                raise ConflictError("Already exists", remedy="use another name")
            case Order("crash"):
                raise ValueError("told to")
            case Order("big", size):
                return b"x" * size
            case Order("odd"):
                return object()
            case Order("wait"):
                await self.gate.wait()
            case Order("stop"):
                self.context.stop()
            case Order():
                return message
            case {"plain": value}:
                return [value, None, "ok"]
            case _:
                return self.unhandled(message)
        return None


class Membership:
    """Stands for the part of Consensus that the transport follows: the active configuration."""

    def __init__(self, member_id: int) -> None:
        self.member_id = member_id
        self.configuration = Configuration(())
        self._callbacks: list[Callable[[Configuration], None]] = []

    def subscribe_configuration(self, callback: Callable[[Configuration], None]) -> Callable[[], None]:
        self._callbacks.append(callback)
        callback(self.configuration)
        return lambda: self._callbacks.remove(callback)

    def become(self, *members: Member) -> None:
        self.configuration = Configuration(members)
        for callback in tuple(self._callbacks):
            callback(self.configuration)


class Node:
    """One member's actors and bulk lane."""

    def __init__(self, member_id: int, directory: Path, host: str) -> None:
        self.id = member_id
        self.host = host
        directory.mkdir()
        self.lanes = Lanes(directory)
        self.membership = Membership(member_id)
        self.diary = Diary()
        self.linked: list[int] = []
        self.system = ActorSystem(member_id=lambda: member_id)

    async def start(self) -> None:
        specs = [
            transport_spec(self.lanes, self.membership, self.linked.append),  # type: ignore[arg-type]
            self.diary.spec("probe"),
            ChildSpec("remote", Remote, shutdown_s=0.05),
        ]
        await self.system.start(specs)
        control = self.lanes.lane_factory()
        await control.start(Silent())
        await self.lanes.open(self.host)
        self.control = control

    def member(self) -> Member:
        return Member(self.id, self.lanes.address)

    def links(self) -> frozenset[int]:
        assert self.lanes._bulk is not None
        return self.lanes._bulk.links()

    async def stop(self) -> None:
        await self.system.stop()
        await self.control.close()


class Silent:
    def on_message(self, envelope: object) -> None: ...

    def on_link_up(self, peer: int) -> None: ...

    def on_link_down(self, peer: int, evidence: str) -> None: ...


@asynccontextmanager
async def two(tmp_path: Path) -> AsyncIterator[tuple[Node, Node]]:
    nodes = (Node(1, tmp_path / "1", "127.0.0.1"), Node(2, tmp_path / "2", "127.0.0.2"))
    try:
        for node in nodes:
            await node.start()
        for node in nodes:
            node.membership.become(*(other.member() for other in nodes))
        async with asyncio.timeout(DEADLINE_S):
            while not (nodes[0].links() and nodes[1].links()):
                await asyncio.sleep(0.002)
        yield nodes
    finally:
        for node in nodes:
            await node.stop()


async def ask(ref: ActorRef, message: object, deadline_s: float = DEADLINE_S) -> object:
    return await ref.ask(message, deadline_s=deadline_s)


async def test_ask_and_tell_over_members(tmp_path: Path) -> None:
    async with two(tmp_path) as (a, b):
        there = a.system.ref("remote", 2)
        assert not there.local
        assert await ask(there, Order("echo", 7)) == Order("echo", 7)
        assert await ask(there, Order("who")) == 1
        assert await ask(there, {"plain": [1, b"2"]}) == [[1, b"2"], None, "ok"]
        a.system.ref("remote", 2).tell(Order("stop"))
        await until(lambda: any(i.path == "remote" and i.restarts == 1 for i in b.system.tree()))
        assert (a.linked, b.linked) == ([2], [1])


async def test_errors_travel_whole(tmp_path: Path) -> None:
    async with two(tmp_path) as (a, b):
        there = a.system.ref("remote", 2)
        with pytest.raises(ConflictError) as caught:
            await ask(there, Order("conflict"))
        assert (str(caught.value), caught.value.status, caught.value.remedy) == (
            "Already exists",
            409,
            "use another name",
        )
        with pytest.raises(ActorDeadError, match="crashed"):
            await ask(there, Order("crash"))
        with pytest.raises(ActorDeadError):
            await ask(a.system.ref("ghost", 2), Order("x"))
        with pytest.raises(NotImplementedHereError):
            await ask(there, 17)
        with pytest.raises(MemberError, match="can't travel"):
            await ask(there, Order("odd"))
        assert await ask(there, Order("echo")) == Order("echo")
        assert b.system.dead_letters.counts["no_actor"] == 1


async def test_sizes(tmp_path: Path) -> None:
    async with two(tmp_path) as (a, _):
        there = a.system.ref("remote", 2)
        assert await ask(there, Order("big", 4 << 20)) == b"x" * (4 << 20)
        with pytest.raises(MemberError, match="too large"):
            await ask(there, Order("big", BULK_MAX + 1))
        with pytest.raises(MailboxFullError, match="too_large"):
            await ask(there, b"x" * (BULK_MAX + 1))
        with pytest.raises(TypeError, match="can't leave"):
            there.tell(object())


async def test_deadlines_and_full_mailboxes_over_members(tmp_path: Path) -> None:
    async with two(tmp_path) as (a, b):
        there = a.system.ref("remote", 2)
        with pytest.raises(AskTimeoutError):
            await ask(there, Order("wait"), 0.05)
        for _ in range(Remote.mailbox_limit):
            there.tell(Order("echo"))
        with pytest.raises(MailboxFullError):
            await ask(there, Order("echo"))
        assert b.system.dead_letters.counts["mailbox_full"] >= 1


async def test_watch_over_members(tmp_path: Path) -> None:
    async with two(tmp_path) as (a, b):
        probe, there = a.system.ref("probe"), a.system.ref("remote", 2)
        await ask(probe, ("watch", there))
        await ask(there, Order("echo"))  # after the watch on the same connection
        there.tell(Order("crash"))
        await until(lambda: notices(a))
        assert notices(a) == [Terminated("remote", 2, "crashed: told to")]
        await ask(probe, ("watch", a.system.ref("ghost", 2)))
        await until(lambda: len(notices(a)) == 2)
        assert notices(a)[1] == Terminated("ghost", 2, "noproc")
        await ask(probe, ("watch", there))
        await ask(probe, ("unwatch", there))
        await ask(there, Order("echo"))
        there.tell(Order("crash"))
        await until(lambda: any(i.path == "remote" and i.restarts == 2 for i in b.system.tree()))
        assert len(notices(a)) == 2


async def test_a_member_that_goes_fails_asks_and_watches_at_once(tmp_path: Path) -> None:
    async with two(tmp_path) as (a, b):
        probe, there = a.system.ref("probe"), a.system.ref("remote", 2)
        await ask(probe, ("watch", there))
        waiting = asyncio.get_running_loop().create_task(ask(there, Order("wait"), 3600))
        await until(lambda: any(i.path == "remote" and i.busy_s > 0 for i in b.system.tree()))
        await b.system.stop()
        with pytest.raises(ActorDeadError):
            await waiting
        await until(lambda: notices(a))
        assert notices(a)[0].reason in ("unreachable", "shutdown")
        await until(lambda: not a.links())  # "shutdown" can be told before the link's end is seen
        with pytest.raises(ActorDeadError, match="remote_down"):
            await ask(there, Order("echo"))
        there.tell(Order("echo"))
        await ask(probe, ("watch", there))
        assert notices(a)[-1] == Terminated("remote", 2, "unreachable")
        assert a.system.dead_letters.counts["remote_down"] == 2


async def test_a_removed_member_can_ask_nothing(tmp_path: Path) -> None:
    async with two(tmp_path) as (a, b):
        a.membership.become(a.member())
        with pytest.raises(AskError):
            await ask(b.system.ref("remote", 1), Order("echo"), 0.2)
        a.membership.become(a.member(), b.member())
        await until_linked(a, 2)
        await until_linked(b, 1)
        assert await ask(b.system.ref("remote", 1), Order("who")) == 2


async def test_what_a_peer_may_get_wrong(tmp_path: Path) -> None:
    async with two(tmp_path) as (a, b):
        lane = a.lanes._bulk
        assert lane is not None
        for frame in (
            ActorFrame(FrameKind.TELL, "", "remote", 0, 0, "test.unknown", b"\x90"),
            ActorFrame(FrameKind.TELL, "", "remote", 0, 0, "test.order", b"\x90"),
            ActorFrame(FrameKind.REPLY, "", "", 999, 0, "", b"\xc0"),
            ActorFrame(FrameKind.ERROR, "", "", 999, 0, "", b"junk"),
            ActorFrame(FrameKind.TERMINATED, "remote", "probe", 0, 0, "", b"because I say so"),
            ActorFrame(FrameKind.UNWATCH, "x", "nobody", 0, 0, "", b""),
        ):
            assert lane.send_frame(2, frame) == ""
        lane._mesh.send(2, KIND_ACTOR, b"junk")
        lane._mesh.send(2, KIND_ACTOR, encode_frame(ActorFrame(FrameKind.ASK, "", "x", 0, 0, "", b""))[:-1])
        lane._mesh.send(2, 77, b"")
        assert await ask(a.system.ref("remote", 2), Order("echo")) == Order("echo")
        assert dict(b.system.dead_letters.counts) == {"unknown_tag": 1, "malformed": 1}
        assert notices(b) == []
        counters = b.lanes.counters()["bulk"]
        assert (counters["malformed"], counters["unknown_kind"]) == (2, 1)
        number = next(a.system.remoting._numbers)
        reply: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        a.system.remoting._asks[number] = (2, reply)
        lane.send_frame(2, ActorFrame(FrameKind.ASK, "", "remote", number, 1000, "test.unknown", b"\x90"))
        with pytest.raises(BadRequestError, match="unknown message tag"):
            await asyncio.wait_for(reply, DEADLINE_S)


async def test_only_the_asked_member_may_answer(tmp_path: Path) -> None:
    async with two(tmp_path) as (a, b):
        reply: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        a.system.remoting._asks[5] = (3, reply)
        lane = b.lanes._bulk
        assert lane is not None
        lane.send_frame(1, ActorFrame(FrameKind.REPLY, "", "", 5, 0, "", b"\xc0"))
        assert await ask(b.system.ref("remote", 1), Order("echo")) == Order("echo")
        assert not reply.done()
        del a.system.remoting._asks[5]


async def test_the_transport_actor_restarts_on_its_ports(tmp_path: Path) -> None:
    async with two(tmp_path) as (a, b):
        address = parse_address(a.lanes.address)
        a.system.ref("transport").tell(object())  # unhandled: no crash
        cell = a.system.find("transport")
        assert cell is not None
        cell.fail(OSError("the lane broke"))
        await until(lambda: any(i.path == "transport" and i.restarts == 1 for i in a.system.tree()))
        await until_linked(a, 2)
        await until_linked(b, 1)
        assert parse_address(a.lanes.address) == address
        assert await ask(b.system.ref("remote", 1), Order("echo")) == Order("echo")


async def until_linked(node: Node, member: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while member not in node.links():
            await asyncio.sleep(0.002)


def notices(node: Node) -> list[Terminated]:
    cell = node.system.find("probe")
    assert cell is not None
    assert isinstance(cell.actor, Probe)
    return cell.actor.notices


async def test_a_member_hears_of_us_as_soon_as_there_is_a_way(tmp_path: Path) -> None:
    tables = {1: HeartbeatTable(), 2: HeartbeatTable()}

    def heartbeat(node: Node) -> ChildSpec:
        return ChildSpec(
            HEARTBEAT_PATH,
            lambda: HeartbeatActor(
                tables[node.id],
                peers=lambda: (1, 2),
                own=lambda: OwnFacts(node.id, 0, 0, 0, leader=2),
                version=("1", 1, 1),
                incarnation=1,
                interval_s=3600,
            ),
        )

    async with two(tmp_path) as (a, b):
        for node in (a, b):  # b, the last, tells a when it starts
            await node.system.start_child(heartbeat(node))
        of_b = tables[1].view()[2]
        await until(lambda: of_b.beat is not None)
        assert of_b.beat is not None
        assert of_b.beat.leader == 2, "who is cut off from the leader alone must know who is not"
        beats = len(of_b.intervals_s)
        b.system.ref(HEARTBEAT_PATH).tell(LinkUp(1))
        await until(lambda: len(of_b.intervals_s) == beats + 1)
