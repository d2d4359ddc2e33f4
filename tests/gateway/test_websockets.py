"""Pumps between streams and sockets, control messages, and the set of sockets of an operation."""

from __future__ import annotations

import asyncio
import os
from asyncio.subprocess import PIPE
from collections import deque
from typing import Any, cast

import pytest

from incus_actors.errors import MemberError
from incus_actors.gateway.websockets import (
    OperationSocket,
    Signal,
    SocketSet,
    WindowResize,
    follow_control,
    parse_control,
    pump_stream_to_ws,
    pump_ws_to_stream,
)


class ScriptedSocket:
    """Gives what a client would send; remembers what it would get. `leaves_after` sends, it is gone."""

    name = "0"

    def __init__(self, *incoming: bytes | str | None, leaves_after: int = 1 << 30) -> None:
        self.incoming = deque(incoming)
        self.sent: list[bytes] = []
        self.finished = False
        self.leaves_after = leaves_after

    async def receive(self) -> bytes | str | None:
        await asyncio.sleep(0)
        return self.incoming.popleft() if self.incoming else None

    async def send(self, data: bytes) -> None:
        await asyncio.sleep(0)
        if len(self.sent) >= self.leaves_after:
            raise ConnectionResetError
        self.sent.append(data)

    async def finish(self) -> None:
        self.finished = True


def socket(*incoming: bytes | str | None, **options: Any) -> Any:
    return cast(OperationSocket, ScriptedSocket(*incoming, **options))


async def test_a_pipe_goes_out_whole_and_ends() -> None:
    payload = os.urandom(1 << 20)
    process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(payload)
    process.stdin.close()
    found = socket()
    assert await pump_stream_to_ws(process.stdout, found) == len(payload)
    assert b"".join(found.sent) == payload
    assert found.finished
    await process.wait()


async def test_a_client_that_leaves_does_not_block_the_process() -> None:
    process = await asyncio.create_subprocess_exec("head", "-c", "3000000", "/dev/zero", stdout=PIPE)
    assert process.stdout is not None
    found = socket(leaves_after=1)
    assert await pump_stream_to_ws(process.stdout, found) == 3_000_000
    assert await process.wait() == 0
    assert len(found.sent) == 1


async def test_input_waits_for_a_slow_reader_and_stops_at_the_marker() -> None:
    payload = os.urandom(300_000)
    process = await asyncio.create_subprocess_exec("sh", "-c", "sleep 0.1; exec cat", stdin=PIPE, stdout=PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    pumped, got = await asyncio.gather(
        pump_ws_to_stream(socket(payload, "", b"too late"), process.stdin), process.stdout.read()
    )
    assert (pumped, got) == (True, payload)
    assert await process.wait() == 0


async def test_input_tells_whether_it_was_the_client_who_left() -> None:
    process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
    assert process.stdin is not None
    assert await pump_ws_to_stream(socket(b"x"), process.stdin, close=False) is False  # no marker
    process.kill()
    await process.wait()
    assert await pump_ws_to_stream(socket(*[b"nobody reads"] * 3), process.stdin) is True


async def test_streams_of_a_process_that_ends_before_its_input() -> None:
    process = await asyncio.create_subprocess_exec("true", stdin=-1, stdout=-1)
    assert process.stdin is not None
    assert process.stdout is not None
    await process.wait()
    assert await pump_ws_to_stream(socket(*[b"x" * 65536] * 20), process.stdin) is True
    found = socket()
    assert await pump_stream_to_ws(process.stdout, found) == 0
    assert found.finished


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"command":"window-resize","args":{"width":"100","height":"40"},"signal":0}', WindowResize(100, 40)),
        ('{"command":"signal","args":null,"signal":15}', Signal(15)),
        ('{"command":"signal","signal":0}', None),
        ('{"command":"signal","signal":99}', None),
        ('{"command":"window-resize","args":{"width":"wide","height":"40"}}', None),
        ('{"command":"window-resize","args":{"width":"-1","height":"40"}}', None),
        ('{"command":"window-resize","args":{"width":"1"}}', None),
        ('{"command":"window-resize","args":{"width":1,"height":2}}', None),
        ('{"command":"dance"}', None),
        ("not json", None),
        ("", None),
    ],
)
def test_control_messages(text: str, expected: object) -> None:
    assert parse_control(text) == expected


async def test_control_goes_on_after_nonsense_and_after_a_process_that_is_gone() -> None:
    seen: list[object] = []

    def act(message: object) -> None:
        seen.append(message)
        raise ProcessLookupError

    await follow_control(socket("?", '{"command":"signal","signal":2}', b'{"command":"signal","signal":9}'), act)
    assert seen == [Signal(2), Signal(9)]


async def test_secrets_differ_and_missing_sockets_are_named() -> None:
    sockets = SocketSet(("0", "1", "control"), required=("0", "1"), timeout_s=0.01)
    found = sockets.fds()
    assert list(found) == ["0", "1", "control"]
    assert all(len(secret) == 64 for secret in found.values())
    assert len(set(found.values())) == 3
    with pytest.raises(MemberError, match="Timed out waiting for websockets to connect: 0, 1"):
        await sockets.wait_required()
    assert sockets.get("0") is None
    sockets.close()
