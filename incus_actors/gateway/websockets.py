"""Websockets of operations: the set of sockets that exec and console wait for, and pumps to streams (CONTRACT 9).

Owns secrets, the ping keepalive, Incus' end-of-stream convention (an empty text frame, no close frame) and
backpressure. Used by the operation routes (they attach requests) and by exec and console handlers (they pump).
It must never take a secret twice, nor buffer without bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass

import msgspec
from aiohttp import WSMsgType, hdrs, web

from incus_actors.errors import BadRequestError, ForbiddenError, MemberError
from incus_actors.tasks import spawn

_log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
KEEPALIVE_S = 10.0
KEEPALIVE = b"keepalive"
CONTROL = "control"
CHUNK_BYTES = 64 << 10
LINGER_S = 1.0  #: how long we wait for the peer to close first, so that nothing it hasn't read is reset
MESSAGE_BYTES_MAX = 16 << 20


async def accept_websocket(request: web.Request) -> web.WebSocketResponse:
    """Upgrade `request` as Incus does: no compression, no subprotocol, any message up to 16 MiB."""
    ws = web.WebSocketResponse(compress=False, max_msg_size=MESSAGE_BYTES_MAX, timeout=LINGER_S)
    await ws.prepare(request)
    return ws


@contextlib.asynccontextmanager
async def keepalive(ws: web.WebSocketResponse, *, interval_s: float = KEEPALIVE_S) -> AsyncIterator[None]:
    """Ping with the payload "keepalive" at once and then every `interval_s`, as long as the block runs."""

    async def ping() -> None:
        with contextlib.suppress(ConnectionError):
            while not ws.closed:
                await ws.ping(KEEPALIVE)
                await asyncio.sleep(interval_s)

    task = spawn(ping(), name="websocket keepalive")
    try:
        yield
    finally:
        task.cancel()


class OperationSocket:
    """One connected websocket of an operation, held open until `finish` or the peer leaves."""

    def __init__(self, name: str, ws: web.WebSocketResponse, request: web.Request) -> None:
        self.name = name
        self.ws = ws
        self._request = request
        self._released = asyncio.Event()
        self._reading = False
        self._marked = name == CONTROL  # the control socket has no end marker

    async def receive(self) -> bytes | str | None:
        """Return the next data frame: bytes (binary), str (text, "" is the end of the stream), None (gone)."""
        self._reading = True
        try:
            message = await self.ws.receive()
        finally:
            self._reading = False
        if message.type is WSMsgType.BINARY:
            return bytes(message.data)
        if message.type is WSMsgType.TEXT:
            return str(message.data)
        return None

    async def send(self, data: bytes) -> None:
        """Send one binary frame; waits while the peer is slow. Raises ConnectionError when it is gone."""
        await self.ws.send_bytes(data)

    async def finish(self, *, marker: bool = True) -> None:
        """End the stream: the empty text frame, then close without a close frame once the peer has read it all."""
        if self._released.is_set():
            return
        if marker:
            await self._mark()
        self._released.set()

    async def _mark(self) -> None:
        if not self._marked:
            self._marked = True
            with contextlib.suppress(ConnectionError):
                await self.ws.send_str("")

    async def hold(self) -> None:
        """Called by the route: return when the socket may be closed."""
        await self._released.wait()
        await self._mark()  # a client waits for the marker even when the operation has failed before any output
        transport = self._request.transport
        if transport is not None and transport.can_write_eof() and not transport.is_closing():
            transport.write_eof()  # the end comes at once; TLS can't say it without closing both ways
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(LINGER_S):
                while not self._reading and not self.ws.closed and await self.receive() is not None:
                    pass  # what still arrives belongs to nobody
        if transport is not None:
            transport.close()  # flushes what is queued; a close frame is not Incus' way

    def release(self) -> None:
        """Let the route end and close it: the operation is over."""
        self._released.set()


class SocketSet:
    """The websockets of one operation, found by secret. `required` must all connect before work begins.

    `fds()` goes into the operation's metadata; the control socket is optional and may come at any time.
    """

    def __init__(
        self, names: Iterable[str], *, required: Iterable[str] | None = None, timeout_s: float = CONNECT_TIMEOUT_S
    ) -> None:
        self._secrets = {name: secrets.token_hex(32) for name in names}
        self._required = frozenset(self._secrets if required is None else required)
        self._timeout_s = timeout_s
        loop = asyncio.get_running_loop()
        self._connected: dict[str, asyncio.Future[OperationSocket]] = {n: loop.create_future() for n in self._secrets}
        self._taken: set[str] = set()
        self._closed = False

    @classmethod
    def for_exec(cls, *, interactive: bool) -> SocketSet:
        """Return the set of exec: 0, 1, 2 (or only 0 with a terminal), and control, which nobody waits for."""
        data = ("0",) if interactive else ("0", "1", "2")
        return cls((*data, CONTROL), required=data)

    def fds(self) -> dict[str, str]:
        """Return name → secret (64 hex digits)."""
        return dict(self._secrets)

    def _find(self, secret: str) -> str:
        found = None
        for name, expected in self._secrets.items():  # always compare with all of them
            if hmac.compare_digest(expected.encode(), secret.encode()):
                found = name
        if found is None or found in self._taken or self._closed:
            raise ForbiddenError("not authorized")
        return found

    async def serve(self, request: web.Request, secret: str) -> web.WebSocketResponse:
        """Attach `request` and hold its connection until the operation has done with it.

        Raises ForbiddenError for a wrong or used secret, BadRequestError (which uses up nothing) for no upgrade.
        """
        name = self._find(secret)
        if request.headers.get(hdrs.UPGRADE, "").lower() != "websocket":
            raise BadRequestError("websocket: the client is not using the websocket protocol")
        self._taken.add(name)
        ws = await accept_websocket(request)
        socket = OperationSocket(name, ws, request)
        future = self._connected[name]
        if self._closed or future.done():
            socket.release()
        else:
            future.set_result(socket)
        async with keepalive(ws):
            await socket.hold()
        return ws

    async def wait_required(self) -> dict[str, OperationSocket]:
        """Return the required sockets by name. Raises MemberError when not all of them came in time."""
        waiting = {name: self._connected[name] for name in self._required}
        if waiting:
            await asyncio.wait(waiting.values(), timeout=self._timeout_s)
        missing = sorted(name for name, future in waiting.items() if not future.done() or future.cancelled())
        if missing:
            self.close()
            raise MemberError(f"Timed out waiting for websockets to connect: {', '.join(missing)}")
        return {name: future.result() for name, future in waiting.items()}

    async def wait_for(self, name: str) -> OperationSocket:
        """Return the socket `name` whenever it comes (cancel this to give up)."""
        return await asyncio.shield(self._connected[name])

    def get(self, name: str) -> OperationSocket | None:
        """Return the socket `name` if it is connected."""
        future = self._connected.get(name)
        return future.result() if future is not None and future.done() and not future.cancelled() else None

    def close(self) -> None:
        """Close every socket, refuse every later one. Idempotent; what is queued to peers still goes out."""
        self._closed = True
        for future in self._connected.values():
            if not future.done():
                future.cancel()
            elif not future.cancelled():
                future.result().release()


# -- pumps --------------------------------------------------------------------------------------------------------


async def pump_stream_to_ws(reader: asyncio.StreamReader, socket: OperationSocket) -> int:
    """Send everything from `reader`, then the end marker; return the number of bytes.

    A peer that left is no error: the rest is read and dropped, so that the process doesn't block on a full pipe.
    """
    total = 0
    gone = False
    while data := await reader.read(CHUNK_BYTES):
        total += len(data)
        if not gone:
            try:
                await socket.send(data)
            except ConnectionError:
                gone = True
    await socket.finish()
    return total


async def pump_ws_to_stream(socket: OperationSocket, writer: asyncio.StreamWriter, *, close: bool = True) -> bool:
    """Write binary frames to `writer` until the end marker (returns True) or until the peer left (False).

    Then closes the writer if `close`. A reader at the other end that is gone ends it too (True: not our peer's doing).
    """
    ended = True
    try:
        while (data := await socket.receive()) != "":
            if data is None:
                ended = False
                break
            writer.write(data.encode() if isinstance(data, str) else data)
            await writer.drain()
    except (ConnectionError, BrokenPipeError):
        _log.debug("the process closed its input (%s)", socket.name)
    finally:
        if close:
            with contextlib.suppress(ConnectionError, OSError):
                writer.close()
    return ended


# -- control messages ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WindowResize:
    """The user's terminal has another size, in characters."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Signal:
    """Send this signal to the process."""

    number: int


class _Control(msgspec.Struct):
    command: str
    args: dict[str, str] | None = None
    signal: int = 0


_CONTROL = msgspec.json.Decoder(_Control)


def parse_control(text: str | bytes) -> WindowResize | Signal | None:
    """Return what a control frame asks for; None (logged) for one that makes no sense, as a client can send anything."""
    try:
        message = _CONTROL.decode(text)
        if message.command == "window-resize":
            args = message.args or {}
            width, height = int(args["width"]), int(args["height"])
            if 0 < width < 65536 and 0 < height < 65536:
                return WindowResize(width, height)
        elif message.command == "signal" and 0 < message.signal < 65:
            return Signal(message.signal)
    except (msgspec.DecodeError, KeyError, ValueError) as error:
        _log.debug("control message ignored: %s", error)
        return None
    _log.debug("control message ignored: %s", message)
    return None


async def follow_control(socket: OperationSocket, act: Callable[[WindowResize | Signal], None]) -> None:
    """Call `act` for every control message until the peer leaves. `act` may raise OSError: logged (process gone)."""
    while (text := await socket.receive()) is not None:
        message = parse_control(text)
        if message is not None:
            try:
                act(message)
            except (OSError, ValueError) as error:
                _log.debug("%s not done: %s", message, error)
