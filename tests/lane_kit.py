"""Lanes to test with: a control lane and what it heard, strangers, and a peer in a process of its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import zmq
from zmq.utils import z85

from incus_actors.consensus import messages as m
from incus_actors.consensus.types import Member
from incus_actors.transport.address import PeerAddress, format_address, parse_address
from incus_actors.transport.control_lane import CONTROL_OPTIONS, ControlLane
from incus_actors.transport.keys import CurveKeys, generate_curve_keys
from incus_actors.transport.options import LaneOptions

HOST = "127.0.0.1"
DEADLINE_S = 20.0


def envelope(source: int, destination: int, message: m.Message | None = None) -> m.Envelope:
    return m.Envelope(1, b"cluster0", 0, source, destination, 99, 1, message or m.ReadIndex(7))


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.001)


class Ear:
    """Hears what a lane reports."""

    def __init__(self) -> None:
        self.messages: list[m.Envelope] = []
        self.events: list[tuple[str, int, str]] = []

    def on_message(self, received: m.Envelope) -> None:
        self.messages.append(received)

    def on_link_up(self, peer: int) -> None:
        self.events.append(("up", peer, ""))

    def on_link_down(self, peer: int, evidence: str) -> None:
        self.events.append(("down", peer, evidence))

    def downs(self) -> list[tuple[str, int, str]]:
        return [event for event in self.events if event[0] == "down"]


class Peer:
    """A member with a control lane."""

    def __init__(
        self,
        member_id: int,
        keys: CurveKeys | None = None,
        port: int = 0,
        options: LaneOptions = CONTROL_OPTIONS,
    ) -> None:
        self.id = member_id
        self.keys = keys or generate_curve_keys()
        self.lane = ControlLane(self.keys, HOST, port, options=options)
        self.ear = Ear()

    def member(self) -> Member:
        port = self.lane.bound_port
        return Member(self.id, format_address(PeerAddress(HOST, port, port, self.keys.public_hex)))

    def count(self, name: str) -> int:
        return self.lane.counters().get(name, 0)


@asynccontextmanager
async def peers(*ids: int) -> AsyncIterator[list[Peer]]:
    """Members that know each other, with every link up."""
    found = [Peer(i) for i in ids]
    try:
        for peer in found:
            await peer.lane.start(peer.ear)
        acquaint(found)
        await until(lambda: all(len(peer.lane.links()) == len(found) - 1 for peer in found))
        yield found
    finally:
        for peer in found:
            await peer.lane.close()


def acquaint(found: Iterable[Peer]) -> None:
    found = list(found)
    members = [peer.member() for peer in found]
    for peer in found:
        peer.lane.set_peers(members, peer.id)


class Stranger:
    """A bare DEALER that sends what it likes."""

    def __init__(self, to: Peer, keys: CurveKeys | None) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        if keys is not None:
            self.socket.curve_serverkey = z85.encode(to.keys.public)
            self.socket.curve_publickey = z85.encode(keys.public)
            self.socket.curve_secretkey = z85.encode(keys.secret)
        self.socket.connect(f"tcp://{HOST}:{to.lane.bound_port}")

    def send(self, *parts: bytes) -> None:
        self.socket.send_multipart(list(parts), zmq.DONTWAIT)

    def close(self) -> None:
        self.socket.close(0)
        self.context.term()


CHILD = """
import asyncio, sys
from incus_actors.consensus.types import Member
from incus_actors.transport.control_lane import CONTROL_OPTIONS, ControlLane
from incus_actors.transport.keys import CurveKeys

class Echo:
    def on_message(self, received):
        import dataclasses
        lane.send(dataclasses.replace(received, source=received.destination, destination=received.source))
    def on_link_up(self, peer): print("up", peer, flush=True)
    def on_link_down(self, peer, evidence): print("down", peer, evidence, flush=True)

async def main():
    global lane
    own, public, secret, port, other, address = sys.argv[1:]
    lane = ControlLane(CurveKeys(bytes.fromhex(public), bytes.fromhex(secret)), "127.0.0.1", int(port))
    await lane.start(Echo())
    lane.set_peers([Member(int(other), address)], int(own))
    print("port", lane.bound_port, flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


class ChildPeer:
    """A member in a process of its own, to be killed."""

    def __init__(self, member_id: int) -> None:
        self.id = member_id
        self.keys = generate_curve_keys()
        self.port = 0
        self.process: asyncio.subprocess.Process | None = None

    async def start(self, other: Peer) -> None:
        """Start the process (again, on the same port) and learn its port."""
        arguments = [str(self.id), self.keys.public.hex(), self.keys.secret.hex(), str(self.port)]
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            CHILD,
            *arguments,
            str(other.id),
            other.member().address,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), DEADLINE_S)
        self.port = int(line.split()[1])

    def member(self) -> Member:
        member = Member(self.id, format_address(PeerAddress(HOST, self.port, self.port, self.keys.public_hex)))
        assert parse_address(member.address).control_port == self.port
        return member

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
