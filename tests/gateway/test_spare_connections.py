"""Connections made ahead: used once, not kept, and their failures are told to who needs them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from incus_actors.errors import MemberError
from incus_actors.gateway.spare_connections import MOST, SpareConnections


class Writer:
    def __init__(self, number: int) -> None:
        self.number = number
        self.closed = False

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


class Peer:
    """Counts who dials it; `broken` refuses."""

    def __init__(self) -> None:
        self.made: list[tuple[asyncio.StreamReader, Writer]] = []
        self.broken = False

    async def dial(self, address: str) -> Any:
        await asyncio.sleep(0)
        if self.broken:
            raise MemberError(f"{address} is not there")
        self.made.append((asyncio.StreamReader(), Writer(len(self.made))))
        return self.made[-1]

    def open(self) -> list[int]:
        return [writer.number for _, writer in self.made if not writer.closed]


async def taken(spares: SpareConnections) -> int:
    _, writer = await spares.take("a:1")
    return writer.number  # type: ignore[attr-defined,no-any-return]


async def test_made_ahead_and_given_out_once() -> None:
    peer = Peer()
    spares = SpareConnections(peer.dial)
    spares.expect("a:1", 2)
    await asyncio.sleep(0.01)
    assert len(peer.made) == 2
    assert [await taken(spares) for _ in range(3)] == [0, 1, 2]
    assert len(peer.made) == 3


async def test_who_comes_early_gets_the_one_that_is_being_made() -> None:
    peer = Peer()
    spares = SpareConnections(peer.dial)
    spares.expect("a:1", 1)
    assert await taken(spares) == 0
    assert len(peer.made) == 1


async def test_what_nobody_takes_is_closed() -> None:
    peer = Peer()
    spares = SpareConnections(peer.dial, unused_s=0.02)
    spares.expect("a:1", 3)
    assert await taken(spares) == 0
    await asyncio.sleep(0.05)
    assert peer.open() == [0]
    spares.expect("a:1", 2)
    await asyncio.sleep(0)
    spares.close()
    await asyncio.sleep(0.01)
    assert peer.open() == [0]


async def test_a_connection_that_has_ended_is_passed_over() -> None:
    peer = Peer()
    spares = SpareConnections(peer.dial)
    spares.expect("a:1", 2)
    await asyncio.sleep(0.01)
    peer.made[0][0].feed_eof()
    assert await taken(spares) == 1


async def test_a_failure_is_told_to_who_needs_a_connection(caplog: pytest.LogCaptureFixture) -> None:
    peer = Peer()
    peer.broken = True
    spares = SpareConnections(peer.dial)
    spares.expect("a:1", 2)
    with pytest.raises(MemberError, match="a:1 is not there"):
        await taken(spares)
    peer.broken = False
    assert await taken(spares) == 0
    assert caplog.text == ""


async def test_no_more_than_so_many_at_a_time() -> None:
    peer = Peer()
    spares = SpareConnections(peer.dial)
    for _ in range(5):
        spares.expect("a:1", 4)
    await asyncio.sleep(0.01)
    assert len(peer.made) == MOST
    spares.close()
    await asyncio.sleep(0.01)
    assert peer.open() == []
