"""A command inside an instance, as streams: pipes or a terminal, signals, exit code.

Owns the daemon's ends of the pipes and the pty, and the helper that runs the command. Made by the instance
drivers' `exec`, used by the exec operation of the gateway; must never block the loop nor outlive `close`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import signal as signals
import socket
import struct
import termios
from collections.abc import Iterable, Sequence
from typing import IO, cast

from incus_actors.drivers.base import ExecError, ExecRequest
from incus_actors.drivers.child import Conversation, Field
from incus_actors.tasks import spawn

_READ_BYTES = 65_536
#: A terminal hands over its last bytes a moment after the writer is gone; then only strangers keep it open.
_PTY_GRACE_S = 0.05


class _Output(asyncio.ReadTransport):
    """Feeds a StreamReader from a descriptor, with backpressure; can be told to end when nothing is left.

    Needed because a background process of the command may keep the pipe open for ever: once the command has
    ended, what is in the pipe is read and then the stream ends.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._fd = descriptor
        self._paused = False
        self._dry_is_end = False
        self.reader = asyncio.StreamReader()
        self.reader.set_transport(self)
        os.set_blocking(descriptor, False)
        self._loop.add_reader(descriptor, self._ready)

    def pause_reading(self) -> None:
        if not self._paused and self._fd >= 0:
            self._paused = True
            self._loop.remove_reader(self._fd)

    def resume_reading(self) -> None:
        if self._paused and self._fd >= 0:
            self._paused = False
            self._loop.add_reader(self._fd, self._ready)
            if self._dry_is_end:
                self._loop.call_soon(self._ready)

    def is_reading(self) -> bool:
        return not self._paused and self._fd >= 0

    def is_closing(self) -> bool:
        return self._fd < 0

    def end_when_dry(self) -> None:
        """Treat an empty pipe as its end from now on."""
        self._dry_is_end = True
        if not self._paused:
            self._ready()

    def close(self) -> None:
        if self._fd >= 0:
            if not self._paused:
                self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            self.reader.feed_eof()

    def _ready(self) -> None:
        while self._fd >= 0 and not self._paused:
            try:
                data = os.read(self._fd, _READ_BYTES)
            except BlockingIOError:
                if self._dry_is_end:
                    self.close()
                return
            except OSError:  # EIO: the terminal's last user is gone
                data = b""
            if not data:
                self.close()
                return
            self.reader.feed_data(data)
            if not self._dry_is_end:
                return  # let others run; the loop calls again


async def _writer(descriptor: int) -> asyncio.StreamWriter:
    loop = asyncio.get_running_loop()
    pipe = cast("IO[bytes]", os.fdopen(descriptor, "wb", buffering=0))
    protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader())
    transport, _ = await loop.connect_write_pipe(lambda: protocol, pipe)
    return asyncio.StreamWriter(transport, protocol, None, loop)


class HelperExecSession:
    """The ExecSession of all drivers whose helper speaks the exec protocol of lxc_helper.supervise."""

    def __init__(self, talk: Conversation, pid: int, stdin: asyncio.StreamWriter, descriptors: Sequence[int]) -> None:
        self._talk = talk
        self.pid = pid
        self.stdin = stdin
        self._outputs = [_Output(descriptor) for descriptor in descriptors]
        self.stdout = self._outputs[0].reader
        self.stderr = self._outputs[1].reader if len(descriptors) > 1 else None
        self.interactive = False
        self._terminal = -1
        self._exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        spawn(self.follow(), name=f"exec {pid}")

    @classmethod
    async def begin(cls, argv: Sequence[str], fields: Iterable[Field], request: ExecRequest) -> HelperExecSession:
        """Start the helper, return once the command runs. Raises ExecError."""
        wanted = [*fields, *request_fields(request)]
        if request.interactive:
            return await cls._with_terminal(argv, wanted, request)
        pipes = [os.pipe() for _ in range(3)]
        theirs = [pipes[0][0], pipes[1][1], pipes[2][1]]
        ours = [pipes[0][1], pipes[1][0], pipes[2][0]]
        try:
            try:
                talk = await Conversation.begin(argv, stdin=theirs[0], stdout=theirs[1], stderr=theirs[2])
            finally:
                _close_all(theirs)
            pid = await _started(talk, wanted, request)
        except BaseException:
            _close_all(ours)
            raise
        return cls(talk, pid, await _writer(ours[0]), ours[1:])

    @classmethod
    async def _with_terminal(cls, argv: Sequence[str], fields: list[Field], request: ExecRequest) -> HelperExecSession:
        """Use a terminal of the instance, so that it has a name there; one of ours if it has no devpts."""
        master, slave = pty.openpty()
        mailbox, theirs = socket.socketpair()
        try:
            _set_size(master, request.width or 80, request.height or 24)
            fields = [*fields, ("terminal", str(theirs.fileno()))]
            try:
                talk = await Conversation.begin(
                    argv, stdin=slave, stdout=slave, stderr=slave, pass_fds=(theirs.fileno(),)
                )
            finally:
                os.close(slave)
                theirs.close()
            pid = await _started(talk, fields, request)
            mailbox.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                _, received, _, _ = socket.recv_fds(mailbox, 1, 1)
                if received:
                    os.close(master)
                    master = received[0]
        except BaseException:
            os.close(master)
            raise
        finally:
            mailbox.close()
        os.set_blocking(master, False)
        session = cls(talk, pid, await _writer(os.dup(master)), [os.dup(master)])
        session.interactive, session._terminal = True, master
        return session

    async def follow(self) -> None:
        """Wait for the end of the command, then end the streams. Run by `begin`."""
        answer = dict(await self._talk.receive() or [])
        if self.interactive:
            await asyncio.sleep(_PTY_GRACE_S if any(o.is_reading() for o in self._outputs) else 0)
        for output in self._outputs:
            output.end_when_dry()
        if not self._exit.done():
            self._exit.set_result(int(answer.get("exit", 128 + signals.SIGKILL)))
        await self._talk.finish()

    def resize(self, width: int, height: int) -> None:
        """Set the pty's size (characters); nothing without one. Sizes no terminal has are cut to 0–65535."""
        if self._terminal >= 0:
            with contextlib.suppress(OSError):  # what the instance gave us is no terminal (any more)
                _set_size(self._terminal, width, height)

    def signal(self, number: int) -> None:
        """Send a signal to the process inside; nothing if it is gone. Raises ValueError if no signal."""
        if not 0 < number < signals.NSIG:
            raise ValueError(f"no signal {number}")
        if not self._exit.done():
            self._talk.send([("signal", str(number))])

    async def wait(self) -> int:
        """Return the exit code: 0–255, 128+n if killed by signal n. All output is still to be read then."""
        return await asyncio.shield(self._exit)

    async def close(self) -> None:
        """Kill the process if it still runs (the helper does, at our end of file) and free everything."""
        await self._talk.finish()
        self.stdin.close()
        with contextlib.suppress(OSError):
            await self.stdin.wait_closed()
        for output in self._outputs:
            output.close()
        if self._terminal >= 0:
            os.close(self._terminal)
            self._terminal = -1


async def _started(talk: Conversation, fields: list[Field], request: ExecRequest) -> int:
    """Send the request; return the pid once the command runs, or end the helper and raise ExecError."""
    try:
        if request.ready is not None:
            await request.ready()  # the helper's interpreter starts meanwhile
        talk.send(fields)
        answer = dict(await talk.receive() or [("error", "The exec helper ended without an answer")])
        if "failure" in answer:
            raise ExecError(answer["failure"], int(answer["code"]), log_excerpt=answer.get("errno", ""))
        if "error" in answer:
            raise ExecError(answer["error"], 255)
        return int(answer["pid"])
    except BaseException:
        await talk.finish()
        raise


def _close_all(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def request_fields(request: ExecRequest) -> list[Field]:
    """Return the request as the helper reads it."""
    return [
        *(("argv", word) for word in request.argv),
        *(("env", f"{key}={value}") for key, value in request.environment.items()),
        ("uid", str(request.uid)),
        ("gid", str(request.gid)),
        ("cwd", request.cwd or "/"),
        ("interactive", "1" if request.interactive else "0"),
        ("width", str(min(max(request.width, 0), 65_535) or 80)),
        ("height", str(min(max(request.height, 0), 65_535) or 24)),
    ]


def _set_size(terminal: int, width: int, height: int) -> None:
    rows, columns = (min(max(size, 0), 65_535) for size in (height, width))
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
