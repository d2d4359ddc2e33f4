"""Volumes as one stream: whole or refused."""

from __future__ import annotations

import pytest
from drivers_kit import stream

from incus_actors.drivers.base import DriverError
from incus_actors.drivers.volume_frames import Head, Unpacking, pack
from incus_actors.errors import MemberError

CONTENT = {"s1": b"one" * 1000, "s2": b"", "": b"\xff\xff\xff\xffend." * 5}


async def packed(content=CONTENT) -> bytes:
    seen = []

    async def item(name: str, before: str):
        seen.append((name, before))
        async for chunk in stream(content[name], 700):
            yield chunk

    data = b"".join([chunk async for chunk in pack(Head("tar", tuple(content)), item)])
    assert seen == [("s1", ""), ("s2", "s1"), ("", "s2")]
    return data


@pytest.mark.parametrize("size", [1, 7, 1000, 1 << 20])
async def test_there_and_back(size):
    counted = []
    data = await packed()
    incoming = Unpacking(stream(data, size), counted.append)
    assert await incoming.head() == Head("tar", ("s1", "s2", ""))
    found = {name: b"".join([c async for c in chunks]) async for name, chunks in incoming.parts()}
    assert found == CONTENT
    assert sum(counted) == len(data)


async def test_items_that_are_not_read_to_their_end_are_skipped():
    incoming = Unpacking(stream(await packed(), 50))
    await incoming.head()
    names = []
    async for name, chunks in incoming.parts():
        names.append(name)
        if name == "s1":
            assert await anext(chunks)
    assert names == ["s1", "s2", ""]


@pytest.mark.parametrize("cut", [0, 5, 13, 40, 100, 3000, -1, -8, -9, -12])
async def test_a_stream_that_broke_off_is_refused(cut):
    data = (await packed())[:cut]

    async def take() -> None:
        incoming = Unpacking(stream(data, 64))
        await incoming.head()
        async for _, chunks in incoming.parts():
            async for _ in chunks:
                pass

    with pytest.raises(DriverError, match="stream of a volume ended early"):
        await take()


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense" * 10,
        b"IAvolume1\xff\xff\xff\xff",
        b"IAvolume1\x00\x00\x00\x02[]",
        b"IAvolume1\x00\x00\x00\x02{}",
        b"IAvolume1\x00\x00\x00\x01{",
    ],
)
async def test_something_else_is_refused(data):
    with pytest.raises(DriverError, match="damaged"):
        await Unpacking(stream(data)).head()


async def test_damage_in_the_middle():
    data = bytearray(await packed())
    at = data.index(b"one") - 4
    data[at : at + 4] = b"\xff\xff\xff\xff"
    incoming = Unpacking(stream(bytes(data)))
    await incoming.head()

    async def take() -> None:
        async for _, chunks in incoming.parts():
            async for _ in chunks:
                pass

    with pytest.raises(DriverError, match="damaged"):
        await take()


async def test_what_goes_wrong_with_an_item_goes_through():
    async def broken(_name: str, _before: str):
        yield b"x"
        raise MemberError("the disk broke")

    with pytest.raises(MemberError, match="disk broke"):
        async for _ in pack(Head("raw", ("",)), broken):
            pass
