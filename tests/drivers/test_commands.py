"""Programs to their end, and as ends of streams."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from drivers_kit import processes_naming, stream

from incus_actors.drivers import commands
from incus_actors.drivers.base import DriverError
from incus_actors.drivers.commands import CommandError
from incus_actors.errors import MemberError


async def test_output_and_failures_in_the_words_of_the_program():
    assert await commands.run("echo", "hello") == "hello\n"
    with pytest.raises(CommandError) as caught:
        await commands.run("ls", "/no such")
    assert str(caught.value).startswith("Failed to run: ls /no such: exit status 2 (")
    assert "cannot access '/no such'" in str(caught.value)
    assert caught.value.code == 2
    with pytest.raises(DriverError, match=r'^Required tool "nope-nope" is missing$'):
        await commands.run("nope-nope")
    assert not await commands.run_quietly("false")
    assert commands.missing("sh", "nope-nope") == ["nope-nope"]
    with pytest.raises(DriverError, match="did not end within"):
        await commands.run("sleep", "31.4159", timeout_s=0.05)
    assert processes_naming("31.4159") == []


async def test_a_stream_out():
    data = b"".join([chunk async for chunk in commands.output_of("seq", "200000")])
    assert data.endswith(b"\n200000\n")
    with pytest.raises(CommandError, match="exit status 1"):
        async for _ in commands.output_of("false"):
            pass
    async with contextlib.aclosing(commands.output_of("yes", "31.41592")) as chunks:
        assert (await anext(chunks)).startswith(b"31.41592\n")
    assert processes_naming("31.41592") == []


async def test_a_stream_in(tmp_path):
    target = tmp_path / "out"
    await commands.feed(stream(b"x" * 3_000_000), "dd", f"of={target}", "status=none")
    assert target.stat().st_size == 3_000_000
    with pytest.raises(CommandError, match="exit status 1"):
        await commands.feed(stream(b"x" * 3_000_000), "false")
    await commands.feed(stream(b"x" * 3_000_000), "true")  # it needed no more

    async def broken():
        yield b"x"
        raise MemberError("the peer is gone")

    with pytest.raises(MemberError, match="gone"):
        await commands.feed(broken(), "sleep", "31.415926")
    assert processes_naming("31.415926") == []


async def test_cancelling_kills(tmp_path):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await commands.run("sleep", "31.4159265")
    assert processes_naming("31.4159265") == []
