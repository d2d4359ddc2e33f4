"""Volumes with their snapshots as one stream of bytes, between pools and between members.

Owns the frames: a head (JSON), then for each item its bytes in pieces and an empty piece, and an end mark, so that a
stream that broke off is never taken for a whole one. Used by the services and the gateway; knows no driver's format.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from incus_actors.drivers.base import DriverError

_MAGIC = b"IAvolume1"
_END = b"\xff\xff\xff\xffend."
_PIECE_BYTES_MAX = 8 << 20
_HEAD_BYTES_MAX = 8 << 20
HELD = "The stream of a volume"


@dataclass(frozen=True, slots=True)
class Head:
    """What a stream holds: the format of its items, and their names, the volume itself ("") last."""

    form: str
    items: tuple[str, ...]


Open = Callable[[str, str], AsyncGenerator[bytes, None]]  #: (item, the item before it) → its bytes


async def pack(head: Head, open_item: Open) -> AsyncGenerator[bytes, None]:
    """Yield a stream. Raises what the items raise; the stream is then without its end."""
    data = json.dumps({"form": head.form, "items": head.items}).encode()
    yield _MAGIC + len(data).to_bytes(4, "big") + data
    before = ""
    for item in head.items:
        async with aclosing(open_item(item, before)) as chunks:
            async for chunk in chunks:
                for at in range(0, len(chunk), _PIECE_BYTES_MAX):
                    piece = chunk[at : at + _PIECE_BYTES_MAX]
                    yield len(piece).to_bytes(4, "big") + piece
        yield bytes(4)
        before = item
    yield _END


class Unpacking:
    """A stream that comes in: `await head()`, then `parts()` to the end."""

    def __init__(self, chunks: AsyncIterator[bytes], counted: Callable[[int], None] | None = None) -> None:
        self._chunks = chunks
        self._counted = counted
        self._buffer = bytearray()
        self._open = False

    async def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            try:
                chunk = await anext(self._chunks)
            except StopAsyncIteration:
                raise DriverError(f"{HELD} ended early") from None
            self._buffer += chunk
            if self._counted is not None:
                self._counted(len(chunk))
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    async def head(self) -> Head:
        """Return what the stream holds. Raises DriverError when it is none."""
        if await self._take(len(_MAGIC)) != _MAGIC:
            raise DriverError(f"{HELD} is damaged")
        size = int.from_bytes(await self._take(4), "big")
        if size > _HEAD_BYTES_MAX:
            raise DriverError(f"{HELD} is damaged")
        try:
            found = json.loads(await self._take(size))
            head = Head(str(found["form"]), tuple(str(item) for item in found["items"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DriverError(f"{HELD} is damaged") from error
        self._left: Sequence[str] = head.items
        return head

    async def parts(self) -> AsyncIterator[tuple[str, AsyncIterator[bytes]]]:
        """Yield each item with its bytes, which must be read before the next. Raises DriverError at an early end."""
        for item in self._left:
            self._open = True
            yield item, self._pieces()
            async for _ in self._rest():
                pass  # a format that ends before its bytes do
        if await self._take(len(_END)) != _END:
            raise DriverError(f"{HELD} is damaged")

    async def _pieces(self) -> AsyncIterator[bytes]:
        async for piece in self._rest():
            yield piece

    async def _rest(self) -> AsyncIterator[bytes]:
        while self._open:
            size = int.from_bytes(await self._take(4), "big")
            if size > _PIECE_BYTES_MAX:
                raise DriverError(f"{HELD} is damaged")
            if not size:
                self._open = False
                return
            yield await self._take(size)
