"""Disks as streams without their holes."""

from __future__ import annotations

import os

import pytest
from drivers_kit import stream

from incus_actors.drivers.base import DriverError
from incus_actors.drivers.raw_stream import read_disk, write_disk

MIB = 1 << 20


async def whole(chunks) -> bytes:
    return b"".join([chunk async for chunk in chunks])


def disk(path, size, pieces):
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in pieces:
            file.seek(offset)
            file.write(data)


async def test_holes_travel_as_nothing(tmp_path):
    source, target = tmp_path / "a", tmp_path / "b"
    noise = os.urandom(700_000)
    disk(source, 512 * MIB, [(0, b"boot"), (100 * MIB, noise), (200 * MIB, bytes(5 * MIB)), (512 * MIB - 3, b"end")])
    data = await whole(read_disk(source))
    assert len(noise) < len(data) < 3 * MIB
    for size in (1, 7, 1 << 16) if len(data) < MIB else (1 << 16,):
        assert await write_disk(target, stream(data, size)) == 512 * MIB
    assert target.stat().st_size == 512 * MIB
    assert target.stat().st_blocks * 512 < 4 * MIB
    with target.open("rb") as file:
        assert file.read(6) == b"boot\0\0"
        assert os.pread(file.fileno(), len(noise), 100 * MIB) == noise
        assert os.pread(file.fileno(), 3, 512 * MIB - 3) == b"end"
    assert await whole(read_disk(target)) == data


async def test_an_empty_disk(tmp_path):
    disk(tmp_path / "a", 0, [])
    assert await write_disk(tmp_path / "b", stream(await whole(read_disk(tmp_path / "a")))) == 0


async def test_into_a_device(tmp_path):
    disk(tmp_path / "a", MIB, [(1000, b"x")])
    data = await whole(read_disk(tmp_path / "a"))
    disk(tmp_path / "device", 2 * MIB, [])
    await write_disk(tmp_path / "device", stream(data), device=True)
    assert (tmp_path / "device").read_bytes()[1000:1001] == b"x"
    disk(tmp_path / "small", 100, [])
    with pytest.raises(DriverError, match="too small"):
        await write_disk(tmp_path / "small", stream(data), device=True)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda d: d[:-5], "ended early"),
        (lambda d: d[:4], "ended early"),
        (lambda d: b"", "ended early"),
        (lambda d: b"x" + d[1:], "no stream"),
        (lambda d: d[:16] + b"\xfe" + b"\xff" * 11 + d[28:], "damaged"),
    ],
)
async def test_a_damaged_stream_is_refused(tmp_path, damage, reason):
    disk(tmp_path / "a", MIB, [(0, b"data")])
    data = await whole(read_disk(tmp_path / "a"))
    with pytest.raises(DriverError, match=reason):
        await write_disk(tmp_path / "b", stream(damage(data)))


async def test_a_missing_disk(tmp_path):
    with pytest.raises(DriverError, match="No such file"):
        await whole(read_disk(tmp_path / "none"))
