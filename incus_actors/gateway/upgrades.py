"""Connections that stop being HTTP: take over a request's connection after a 101, and move bytes between two streams.

Owns the only place that reaches into aiohttp's connection (`protocol.set_parser`, as its own websockets do). Used to
tunnel websockets and SFTP to other members, and to serve SFTP here. It must never buffer without bound.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any, cast

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from incus_actors.tasks import spawn

STARTED = web.RequestKey("started", bool)  #: set once anything was written: no error envelope may follow it
BUFFER_BYTES = 64 << 10
GONE_CHECK_S = 2.0


class Hijacked(web.StreamResponse):
    """What a handler returns when it has already used up the connection: aiohttp writes nothing more."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Write nothing."""
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Write nothing."""


class _RawParser:
    """aiohttp's payload parser seam: every byte after the upgrade goes to a StreamReader."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self._reader.feed_data(bytes(data))
        return False, b""

    def feed_eof(self) -> None:
        self._reader.feed_eof()

    def set_exception(self, exception: BaseException, _cause: object = None) -> None:
        self._reader.feed_eof()


def hijack(request: web.Request, head: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Write `head` (a whole 101 answer) and return the raw connection. Raises ConnectionResetError if it is gone.

    The handler must close the writer and return `Hijacked()`.
    """
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client has gone")
    request[STARTED] = True
    protocol = request.protocol
    reader = asyncio.StreamReader(limit=BUFFER_BYTES)
    reader.set_transport(transport)  # pauses reading when nobody takes the bytes
    transport.write(head)
    protocol.keep_alive(False)
    protocol.set_parser(cast(Any, _RawParser(reader)))
    return reader, asyncio.StreamWriter(transport, protocol, None, asyncio.get_running_loop())


def switching_protocols(upgrade: str) -> bytes:
    """Return the head of a 101 answer, as Incus writes it."""
    return f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: {upgrade}\r\nConnection: Upgrade\r\n\r\n".encode()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Move bytes until the end or until either side is gone, then close the writer after it is flushed."""
    try:
        while data := await reader.read(BUFFER_BYTES):
            writer.write(data)
            await writer.drain()
    except (ConnectionError, TimeoutError):
        pass  # one side vanished: for a tunnel that is its end
    finally:
        with contextlib.suppress(ConnectionError, RuntimeError):
            writer.close()


async def tunnel(
    left: tuple[asyncio.StreamReader, asyncio.StreamWriter], right: tuple[asyncio.StreamReader, asyncio.StreamWriter]
) -> None:
    """Join two connections; return when both directions have ended.

    TLS can't be half-closed here, so the end of one direction closes the other connection once it is flushed.
    """
    tasks = [
        spawn(pump(left[0], right[1]), name="tunnel out"),
        spawn(pump(right[0], left[1]), name="tunnel in"),
    ]
    try:
        await asyncio.wait(tasks)
    finally:
        for task in tasks:
            task.cancel()


@contextlib.contextmanager
def cancelled_when_gone(request: web.Request) -> Iterator[None]:
    """Cancel the handler when its client has left: for handlers that wait long. aiohttp lets them run on otherwise."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    timer: asyncio.TimerHandle | None = None

    def check() -> None:
        nonlocal timer
        if task is not None and request.transport is None:
            task.cancel()
        else:
            timer = loop.call_later(GONE_CHECK_S, check)

    timer = loop.call_later(GONE_CHECK_S, check)
    try:
        yield
    finally:
        timer.cancel()
