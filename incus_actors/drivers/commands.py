"""Programs of the machine (mkfs, mount, btrfs, zfs, lvm …): run to their end, or as one end of a stream of bytes.

Owns how they are found, started and reported. Called by the storage drivers; must never use a shell, nor hide what a
program said when it failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from typing import BinaryIO

from incus_actors.drivers.base import DriverError
from incus_actors.drivers.child import Child

_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"  #: not in everybody's PATH, and half of what we need is there
_TEXT_BYTES_MAX = 4096
CHUNK_BYTES = 256 << 10
DEADLINE_S = 120.0


class CommandError(DriverError):
    """A program failed; `stderr` is what it said, `code` how it ended."""

    def __init__(self, argv: Sequence[str], code: int, stderr: str) -> None:
        said = " ".join(line.strip() for line in stderr.splitlines() if line.strip())
        super().__init__(f"Failed to run: {' '.join(argv)}: exit status {code} ({said})")
        self.stderr = stderr
        self.code = code


def which(name: str) -> str | None:
    """Return the path of a program, None if it isn't installed."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_SBIN}")


def missing(*names: str) -> list[str]:
    """Return those of the programs that aren't installed."""
    return [name for name in names if which(name) is None]


def _found(argv: Sequence[str]) -> list[str]:
    path = which(argv[0])
    if path is None:
        raise DriverError(f'Required tool "{argv[0]}" is missing')
    return [path, *argv[1:]]


def _memory_file() -> BinaryIO:
    return os.fdopen(os.memfd_create("output", os.MFD_CLOEXEC), "w+b")


def _text(file: BinaryIO, limit: int) -> str:
    file.seek(0)
    return file.read(limit).decode(errors="replace")


async def run(*argv: str, timeout_s: float = DEADLINE_S) -> str:
    """Run a program; return what it wrote to its stdout. Cancelling kills it.

    Raises CommandError when it fails, DriverError when it isn't there or takes longer than `timeout_s`.
    """
    with _memory_file() as output, _memory_file() as errors:
        child = Child(_found(argv), stdout=output, stderr=errors)
        try:
            code = await asyncio.wait_for(child.wait(), timeout_s)
        except BaseException as error:
            child.kill()
            await child.wait()
            if isinstance(error, TimeoutError):
                raise DriverError(f"{argv[0]} did not end within {timeout_s:.0f} s") from error
            raise
        if code != 0:
            raise CommandError(argv, code, _text(errors, _TEXT_BYTES_MAX))
        return _text(output, 64 << 20)


async def run_quietly(*argv: str) -> bool:
    """Run a program whose failure doesn't matter; return whether it succeeded."""
    try:
        await run(*argv)
    except DriverError:
        return False
    return True


async def _reap(child: Child) -> None:
    child.kill()
    await child.wait()


async def output_of(*argv: str, accepted: Collection[int] = (0,)) -> AsyncGenerator[bytes, None]:
    """Yield what a program writes; close the iterator to stop it. Raises CommandError at the end if it failed: its exit
    code is none of `accepted`."""
    command = _found(argv)
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", 0) as ours, _memory_file() as errors:
        with os.fdopen(writing, "wb", 0) as theirs:
            child = Child(command, stdout=theirs, stderr=errors)
        try:
            reader = asyncio.StreamReader(limit=CHUNK_BYTES)
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), ours
            )
            with contextlib.closing(transport):
                while chunk := await reader.read(CHUNK_BYTES):
                    yield chunk
            code = await child.wait()
        except BaseException:
            await _reap(child)
            raise
        if code not in accepted:
            raise CommandError(argv, code, _text(errors, _TEXT_BYTES_MAX))


async def feed(chunks: AsyncIterator[bytes], *argv: str, stdout: BinaryIO | None = None) -> None:
    """Give a program its standard input, at its own pace; what it writes goes to `stdout`, or nowhere.

    Raises CommandError, and whatever `chunks` raises.
    """
    command = _found(argv)
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb", 0) as ours, _memory_file() as errors:
        with os.fdopen(reading, "rb", 0) as theirs:
            child = Child(command, stdin=theirs, stdout=stdout or subprocess.DEVNULL, stderr=errors)
        try:
            await _pour(chunks, ours)
            code = await child.wait()
        except BaseException:
            await _reap(child)
            raise
        if code != 0:
            raise CommandError(argv, code, _text(errors, _TEXT_BYTES_MAX))


async def _pour(chunks: AsyncIterator[bytes], pipe: BinaryIO) -> None:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, pipe)
    writer = asyncio.StreamWriter(transport, protocol, None, loop)
    try:
        async for chunk in chunks:
            try:
                writer.write(chunk)
                await writer.drain()
            except (ConnectionError, BrokenPipeError):
                return  # it ended early: its exit code says why
    finally:
        transport.close()
        with contextlib.suppress(ConnectionError, BrokenPipeError):
            await _flushed(transport)


async def _flushed(transport: asyncio.WriteTransport) -> None:
    """Wait until the pipe has taken everything: a closing transport still holds what it could not write."""
    while transport.get_write_buffer_size() > 0:  # noqa: ASYNC110  # a closing transport tells no one
        await asyncio.sleep(0.001)
