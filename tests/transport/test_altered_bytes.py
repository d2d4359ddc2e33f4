"""Bytes that a broken network altered: CURVE sees what it covers, and the lengths between are found out by silence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

from lane_kit import HOST, Peer, envelope, until

from incus_actors.consensus.types import Member
from incus_actors.transport.address import PeerAddress, format_address
from incus_actors.transport.control_lane import CONTROL_OPTIONS

IMPATIENT = replace(CONTROL_OPTIONS, sign_ms=100, silent_ms=300)
MANY = 40


class Meddler:
    """A proxy before a member that alters the beginning of the next bytes to it, when told to."""

    def __init__(self, port: int) -> None:
        self.next_bytes = b""
        self.connections = 0
        self._port = port
        self._tasks: set[asyncio.Task[None]] = set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        there, back = await asyncio.open_connection(HOST, self._port)
        await asyncio.gather(self._copy(reader, back, meddle=True), self._copy(there, writer, meddle=False))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, meddle: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if meddle and self.next_bytes:
                    data = self.next_bytes + data[len(self.next_bytes) :]
                    self.next_bytes = b""
                writer.write(data)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def with_meddler() -> AsyncIterator[tuple[Peer, Peer, Meddler]]:
    """The first of two members dials the second through the proxy."""
    a, b = Peer(1, options=IMPATIENT), Peer(2, options=IMPATIENT)
    await a.lane.start(a.ear)
    await b.lane.start(b.ear)
    meddler = Meddler(b.lane.bound_port)
    server = await asyncio.start_server(meddler.accept, HOST, 0)
    port = server.sockets[0].getsockname()[1]
    try:
        behind = Member(2, format_address(PeerAddress(HOST, port, port, b.keys.public_hex)))
        a.lane.set_peers([a.member(), behind], 1)
        b.lane.set_peers([a.member(), b.member()], 2)
        await until(lambda: a.lane.links() == {2} and b.lane.links() == {1})
        yield a, b, meddler
    finally:
        server.close()
        await a.lane.close()
        await b.lane.close()


async def heard_again(a: Peer, b: Peer, before: int) -> None:
    while len(b.ear.messages) < before + MANY:
        a.lane.send(envelope(1, 2))
        await asyncio.sleep(0.01)


async def test_a_length_that_was_altered_swallows_no_more_than_a_moment_of_messages() -> None:
    async with with_meddler() as (a, b, meddler):
        a.lane.send(envelope(1, 2))
        await until(lambda: len(b.ear.messages) == 1)
        meddler.next_bytes = b"\x02" + (1 << 20).to_bytes(8, "big")  # "what follows is one message of a MiB"
        a.lane.send(envelope(1, 2))
        await asyncio.wait_for(heard_again(a, b, 1), 10)
        assert meddler.connections >= 2  # and a probe: does anybody listen there still?


async def test_an_altered_message_costs_the_connection_and_is_never_delivered() -> None:
    async with with_meddler() as (a, b, meddler):
        meddler.next_bytes = b"\x00\x30\x07MESSAGX"
        a.lane.send(envelope(1, 2))
        await until(lambda: meddler.connections >= 2)
        before = len(b.ear.messages)
        assert before == 0
        await asyncio.wait_for(heard_again(a, b, before), 10)
        assert all(message == envelope(1, 2) for message in b.ear.messages)


async def test_an_idle_connection_is_kept() -> None:
    async with with_meddler() as (a, b, meddler):
        await asyncio.sleep(3 * IMPATIENT.silent_ms / 1000)
        assert meddler.connections == 1
        assert (a.ear.downs(), b.ear.downs()) == ([], [])
