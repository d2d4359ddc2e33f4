"""Backups of volumes as files: the archives that Incus exports and imports.

Owns their layout (`backup/index.yaml`, `backup/volume`, `backup/volume-snapshots/s1`, `backup/volume.img`) and the way
from several tars to one. Called by services/volume_backups.py; must never hold an archive in memory, nor believe what
an uploaded one says of itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tarfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from incus_actors.drivers import commands
from incus_actors.drivers.base import DriverError
from incus_actors.drivers.image_archive import DECOMPRESSORS, sniff
from incus_actors.drivers.raw_stream import plain_to_raw
from incus_actors.errors import BadRequestError

INDEX = "backup/index.yaml"
INDEX_BYTES_MAX = 4 << 20
_BLOCK = 512
_PAX_BYTES_MAX = 1 << 20
#: Compressors by Incus' names; options may follow the name.
_COMPRESSORS = {
    "bzip2": ["bzip2"],
    "gzip": ["gzip"],
    "lzma": ["xz", "--format=lzma"],
    "pigz": ["pigz"],
    "xz": ["xz"],
    "zstd": ["zstd", "-q"],
}


# --- writing ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FileItem:
    """One file of an archive: `size` bytes out of `chunks`."""

    name: str
    size: int
    chunks: AsyncGenerator[bytes, None]


@dataclass(frozen=True, slots=True)
class TreeItem:
    """A tar whose names are right already; its end is left out."""

    chunks: AsyncGenerator[bytes, None]


def compressor(algorithm: str) -> list[str] | None:
    """Return the command for a `compression_algorithm` ("zstd -3"), None for "none". Raises BadRequestError."""
    words = algorithm.split()
    if not words or words[0] == "none":
        return None
    if words[0] not in _COMPRESSORS or any(not word.startswith("-") for word in words[1:]):
        raise BadRequestError(f'Compression algorithm "{algorithm}" isn\'t currently supported')
    return [*_COMPRESSORS[words[0]], *words[1:], "-c"]


async def write_archive(path: Path, items: Sequence[FileItem | TreeItem], algorithm: str) -> None:
    """Write an archive, complete or not at all. Raises DriverError."""
    command = compressor(algorithm)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.new")
    try:
        with temporary.open("xb") as file:
            os.fchmod(file.fileno(), 0o600)
            async with contextlib.aclosing(_joined(items)) as chunks:
                if command is not None:
                    await commands.feed(chunks, *command, stdout=file)
                else:
                    async for chunk in chunks:
                        await asyncio.to_thread(file.write, chunk)
        temporary.rename(path)
    except OSError as error:
        raise DriverError(f"Failed to write the backup: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


async def _joined(items: Sequence[FileItem | TreeItem]) -> AsyncGenerator[bytes, None]:
    for item in items:
        async with contextlib.aclosing(item.chunks) as chunks:
            if isinstance(item, TreeItem):
                async for chunk in without_end(chunks):
                    yield chunk
                continue
            yield _header(item.name, item.size)
            left = item.size
            async for chunk in chunks:
                left -= len(chunk)
                yield chunk
            if left:
                raise DriverError(f"{item.name} changed its size while it was read")
            yield bytes(-item.size % _BLOCK)
    yield bytes(2 * _BLOCK)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o600, int(time.time())
    info.uname = info.gname = "root"
    return info.tobuf(tarfile.GNU_FORMAT)


async def bytes_of(data: bytes) -> AsyncGenerator[bytes, None]:
    """Yield bytes that are there already."""
    yield data


async def plain_file(path: Path) -> AsyncGenerator[bytes, None]:
    """Yield a file. Raises OSError."""
    file = await asyncio.to_thread(path.open, "rb")
    try:
        while chunk := await asyncio.to_thread(file.read, commands.CHUNK_BYTES):
            yield chunk
    finally:
        file.close()


async def without_end(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield a tar up to its end mark: two blocks of zeros where a header would be. Raises DriverError."""
    buffer = bytearray()
    left = 0  #: bytes of the present entry that are still to come
    known: int | None = None  #: the size that a pax header gave for the next entry
    async for chunk in chunks:
        buffer += chunk
        while buffer:
            if left:
                taken = bytes(buffer[:left])
                del buffer[: len(taken)]
                left -= len(taken)
                yield taken
                continue
            if len(buffer) < _BLOCK:
                break
            header = bytes(buffer[:_BLOCK])
            if not header.strip(b"\0"):
                return
            size, kind = _size(header), header[156:157]
            if kind == b"x":
                padded = size + -size % _BLOCK
                if size > _PAX_BYTES_MAX:
                    raise DriverError("A tar header is too large")
                if len(buffer) < _BLOCK + padded:
                    break
                known = _pax_size(bytes(buffer[_BLOCK : _BLOCK + size]))
                yield bytes(buffer[: _BLOCK + padded])
                del buffer[: _BLOCK + padded]
                continue
            del buffer[:_BLOCK]
            yield header
            if kind not in b"123456":  # links, devices and directories have no bytes, whatever their size says
                size = size if known is None else known
                left = size + -size % _BLOCK
            if kind not in b"LKg":
                known = None
    raise DriverError("A tar ended early")


def _size(header: bytes) -> int:
    field = header[124:136]
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.strip(b" \0")
    return int(text, 8) if text else 0


def _pax_size(records: bytes) -> int | None:
    at = 0
    while at < len(records):
        length, _, _ = records[at:].partition(b" ")
        if not length.isdigit() or int(length) <= len(length):
            return None
        key, _, value = records[at + len(length) + 1 : at + int(length) - 1].partition(b"=")
        if key == b"size" and value.isdigit():
            return int(value)
        at += int(length)
    return None


# --- reading ------------------------------------------------------------------------------------------------


class Archive:
    """An archive that was uploaded. `compression` as `sniff` found it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        kind, self._compression = sniff(path)
        if kind != "tar":
            raise BadRequestError("Unsupported compression")

    def _tar(self, *arguments: str) -> tuple[str, ...]:
        return ("tar", f"--file={self._path}", *DECOMPRESSORS[self._compression][1], *arguments)

    async def index(self) -> bytes:
        """Return backup/index.yaml. Raises BadRequestError."""
        data = b""
        command = self._tar("--extract", "--to-stdout", "--occurrence=1", "--no-wildcards", "--anchored", INDEX)
        try:
            async with contextlib.aclosing(commands.output_of(*command)) as chunks:
                async for chunk in chunks:
                    data += chunk
                    if len(data) > INDEX_BYTES_MAX:
                        raise BadRequestError("Backup index is too large")
        except commands.CommandError as error:
            raise BadRequestError(f'Backup is missing at "{INDEX}"') from error
        return data

    async def whole(self) -> AsyncGenerator[bytes, None]:
        """Yield the archive as a plain tar. Raises DriverError."""
        command = DECOMPRESSORS[self._compression][0]
        source = commands.output_of(*command, str(self._path)) if command else plain_file(self._path)
        async with contextlib.aclosing(source) as chunks:
            async for chunk in chunks:
                yield chunk

    async def member(self, name: str) -> AsyncGenerator[bytes, None]:
        """Yield one file of the archive. Raises CommandError if it isn't there."""
        command = self._tar("--extract", "--to-stdout", "--occurrence=1", "--no-wildcards", "--anchored", name)
        async with contextlib.aclosing(commands.output_of(*command)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def disk(self, name: str) -> AsyncGenerator[bytes, None]:
        """Yield one file of the archive as the stream of a disk. Raises BadRequestError if it isn't there."""
        listing = self._tar("--list", "--verbose", "--occurrence=1", "--no-wildcards", "--anchored", name)
        try:
            fields = (await commands.run(*listing, timeout_s=3600)).split()
        except commands.CommandError as error:
            raise BadRequestError(f"The backup has no {name}") from error
        if len(fields) < 3 or not fields[2].isdigit():
            raise BadRequestError(f"The backup has no {name}")
        async with contextlib.aclosing(self.member(name)) as chunks:
            async for chunk in plain_to_raw(chunks, int(fields[2])):
                yield chunk
