"""Disks (block and ISO volumes) as streams that leave their holes out.

Owns the format: a magic number, the size, then pieces of (offset, length, bytes), and an end record. Called by the
storage drivers; must never take a stream that ended early for a whole one.
"""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

from incus_actors.drivers.base import DriverError

_MAGIC = b"IAraw\0\0\1"
_HEAD = struct.Struct("<8sQ")
_PIECE = struct.Struct("<QI")
_PIECE_BYTES = 256 << 10
_END = (1 << 64) - 1


async def read_disk(path: Path) -> AsyncGenerator[bytes, None]:
    """Yield a file or device. Raises DriverError."""
    try:
        descriptor = await asyncio.to_thread(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DriverError(f"Failed to read {path}: {error.strerror}") from error
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        yield _HEAD.pack(_MAGIC, size)
        at = 0
        while (found := await asyncio.to_thread(_next_piece, descriptor, at, size)) is not None:
            offset, data = found
            yield _PIECE.pack(offset, len(data)) + data
            at = offset + len(data)
        yield _PIECE.pack(_END, 0)
    except OSError as error:
        raise DriverError(f"Failed to read {path}: {error.strerror}") from error
    finally:
        os.close(descriptor)


def _next_piece(descriptor: int, at: int, size: int) -> tuple[int, bytes] | None:
    """Return the next data from `at` on, None at the end; what is no hole but only zeros is left out too."""
    while at < size:
        try:
            at = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            if error.errno != errno.EINVAL:  # a device doesn't know its holes
                raise
        data = os.pread(descriptor, min(_PIECE_BYTES, size - at), at)
        if not data:
            raise DriverError("The disk became shorter while it was read")
        if data.strip(b"\0"):
            return at, data
        at += len(data)
    return None


async def plain_to_raw(chunks: AsyncIterator[bytes], size: int) -> AsyncGenerator[bytes, None]:
    """Yield the stream of a disk whose bytes come in order. Raises DriverError when they are not `size`."""
    yield _HEAD.pack(_MAGIC, size)
    at = 0
    async for chunk in chunks:
        for begin in range(0, len(chunk), _PIECE_BYTES):
            piece = chunk[begin : begin + _PIECE_BYTES]
            if piece.strip(b"\0"):
                yield _PIECE.pack(at, len(piece)) + piece
            at += len(piece)
    if at != size:
        raise DriverError("The disk has not the size that was told")
    yield _PIECE.pack(_END, 0)


async def write_disk(path: Path, chunks: AsyncIterator[bytes], *, device: bool = False) -> int:
    """Write a stream into a new file, or (`device`) into a device that holds zeros; return the size of the disk.

    Raises DriverError for a stream that is none or ends early, or when the disk is full.
    """
    flags = os.O_WRONLY | os.O_CLOEXEC | (0 if device else os.O_CREAT | os.O_EXCL)
    try:
        descriptor = await asyncio.to_thread(os.open, path, flags, 0o600)
    except OSError as error:
        raise DriverError(f"Failed to write {path}: {error.strerror}") from error
    try:
        reader = _Reader(chunks)
        magic, size = _HEAD.unpack(await reader.take(_HEAD.size))
        if magic != _MAGIC:
            raise DriverError("This is no stream of a disk")
        if not device:
            os.ftruncate(descriptor, size)
        elif os.lseek(descriptor, 0, os.SEEK_END) < size:
            raise DriverError(f"{path} is too small for a disk of {size} bytes")
        while True:
            offset, length = _PIECE.unpack(await reader.take(_PIECE.size))
            if offset == _END:
                return int(size)
            if length > _PIECE_BYTES or offset + length > size:
                raise DriverError("The stream of a disk is damaged")
            await asyncio.to_thread(_write_all, descriptor, await reader.take(length), offset)
    except OSError as error:
        raise DriverError(f"Failed to write {path}: {error.strerror}") from error
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        offset += written
        view = view[written:]


class _Reader:
    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._buffer = bytearray()

    async def take(self, size: int) -> bytes:
        """Return exactly `size` bytes. Raises DriverError at an early end."""
        while len(self._buffer) < size:
            try:
                self._buffer += await anext(self._chunks)
            except StopAsyncIteration:
                raise DriverError("The stream of a disk ended early") from None
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken
