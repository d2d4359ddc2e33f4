"""Helper processes: freshly executed, watched through a pidfd, talked to over one socket pair.

Owns the way drivers start programs (DESIGN D14): never a fork without exec, no inherited descriptors but the
ones given, no shell. Called by every driver of this package; must never be used for the instances' own
processes, which belong to the helpers' offspring.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from incus_actors.drivers.base import DriverError, exit_code_of

_HELPERS = Path(__file__).parent / "helpers"
_ENVIRONMENT_KEPT = ("PATH", "INCUS_ACTORS_TEST_DELAY")
MESSAGE_LIMIT_BYTES = 8 << 20

Field = tuple[str, str]


def encode_fields(fields: Iterable[Field]) -> bytes:
    """Return one message: key NUL value NUL … newline is allowed in values, NUL is not (ValueError)."""
    parts: list[str] = []
    for key, value in fields:
        if "\0" in key or "\0" in value:
            raise ValueError("NUL in a helper message")
        parts += (key, value)
    body = "\0".join(parts).encode("utf-8", "surrogateescape")
    return len(body).to_bytes(4, "big") + body


def decode_fields(body: bytes) -> list[Field]:
    """Return what encode_fields was given, without the length prefix."""
    if not body:
        return []
    parts = body.decode("utf-8", "surrogateescape").split("\0")
    return list(zip(parts[::2], parts[1::2], strict=True))


def helper_argv(name: str, *arguments: str) -> list[str]:
    """Return the command of a helper: isolated, without site-packages (9 ms instead of 20)."""
    return [sys.executable, "-I", "-S", "-B", str(_HELPERS / f"{name}.py"), *arguments]


class Child:
    """A started program. `exit_code` is -1 while it runs; `wait` may be called by many."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] = subprocess.DEVNULL,
        stderr: int | IO[bytes] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        environment = {key: os.environ[key] for key in _ENVIRONMENT_KEPT if key in os.environ}
        self._process = subprocess.Popen(  # vfork + exec: about a millisecond
            list(argv),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=tuple(pass_fds),
            start_new_session=True,
            cwd="/",
            env={"LC_ALL": "C.UTF-8", **environment},
        )
        self.pid = self._process.pid
        self.stdin = self._process.stdin
        self.stdout = self._process.stdout
        self._pidfd = os.pidfd_open(self.pid)
        self._loop = asyncio.get_running_loop()
        self._exit: asyncio.Future[int] = self._loop.create_future()
        self._loop.add_reader(self._pidfd, self._exited)

    def _exited(self) -> None:
        status = self._process.poll()
        if status is None:
            return
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        if not self._exit.done():
            self._exit.set_result(exit_code_of(status))

    @property
    def exit_code(self) -> int:
        """Return 0–255, or -1 while it runs."""
        return self._exit.result() if self._exit.done() and not self._exit.cancelled() else -1

    async def wait(self) -> int:
        """Return 0–255 (128+n for signal n)."""
        return await asyncio.shield(self._exit)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; nothing if it is gone."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)


class Conversation:
    """A helper with its socket: fields out, fields in. Use as `async with`; leaving it ends the helper."""

    def __init__(self, child: Child, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.child = child
        self._reader = reader
        self._writer = writer

    @classmethod
    async def begin(
        cls,
        argv: Sequence[str],
        *,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] = subprocess.DEVNULL,
        stderr: int | IO[bytes] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> Conversation:
        """Start the helper; the number of its end of the socket is appended to `argv`."""
        ours, theirs = socket.socketpair()
        try:
            ours.setblocking(False)
            with theirs:
                child = Child(
                    [*argv, str(theirs.fileno())],
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                    pass_fds=(theirs.fileno(), *pass_fds),
                )
            reader, writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()
            raise
        return cls(child, reader, writer)

    def send(self, fields: Iterable[Field]) -> None:
        """Queue a message. A helper that is gone is noticed at the next receive."""
        if not self._writer.is_closing():
            self._writer.write(encode_fields(fields))

    async def receive(self) -> list[Field] | None:
        """Return the next message, None when the helper closed. Raises DriverError if it is nonsense."""
        try:
            size = int.from_bytes(await self._reader.readexactly(4), "big")
            if size > MESSAGE_LIMIT_BYTES:
                raise DriverError(f"A helper sent a message of {size} bytes")
            return decode_fields(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def hang_up(self) -> None:
        """Close our end and let the helper go on: it has become something that lasts."""
        self._writer.close()

    async def finish(self) -> int:
        """Close, give the helper a moment to end, then kill it. Returns its exit code."""
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
        try:
            return await asyncio.wait_for(self.child.wait(), 5)
        except TimeoutError:
            self.child.kill()
            return await self.child.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.child.kill()
        await self.finish()


async def run_helper(
    name: str,
    arguments: Sequence[str],
    fields: Iterable[Field],
    *,
    on_message: Callable[[dict[str, str]], None | Awaitable[None]] | None = None,
    timeout_s: float = 60.0,
) -> dict[str, str]:
    """Run a helper of ours to its end; return its last message as a mapping.

    A message with the key "error" raises DriverError with that text (and "log" as excerpt); a message with
    "progress" goes to `on_message`. Cancelling kills the helper.
    """
    async with asyncio.timeout(timeout_s), await Conversation.begin(helper_argv(name, *arguments)) as talk:
        talk.send(fields)
        while (message := await talk.receive()) is not None:
            answer = dict(message)
            if "error" in answer:
                raise DriverError(answer["error"], log_excerpt=answer.get("log", ""))
            if "progress" not in answer:
                return answer
            if on_message is not None and (result := on_message(answer)) is not None:
                await result
        code = await talk.finish()
    raise DriverError(f"The helper {name} {' '.join(arguments)} ended without an answer (exit code {code})")
