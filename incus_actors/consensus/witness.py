"""The tail witness: a small file that remembers how far the log was durable (CONSENSUS D8, 3.3).

SQLite silently drops everything behind the first damaged frame of its write-ahead log; the witness notices. Owns
`tail.wit`; used by the log store on the log thread. Must never lead: it is written after the batch it describes is
durable, and lowered, durably, before a truncation.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from incus_actors.consensus.types import GENESIS_CHAIN, HardState, Index

_SLOT = struct.Struct(">QQIQ8sQQ")  # index, term, vote (id mod 2^32), sequence, chain, wall_ms, reserved
_SIZE = 64
_CRC = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class Testimony:
    """A lower bound on what this member has promised."""

    index: Index = 0
    chain: bytes = GENESIS_CHAIN
    hard: HardState = field(default_factory=HardState)
    wall_ms: int = 0
    sequence: int = 0


def _pack(testimony: Testimony) -> bytes:
    fields = _SLOT.pack(
        testimony.index,
        testimony.hard.term,
        testimony.hard.vote & 0xFFFFFFFF,
        testimony.sequence,
        testimony.chain,
        testimony.wall_ms,
        0,
    )
    padded = fields.ljust(_SIZE - _CRC.size, b"\0")
    return padded + _CRC.pack(zlib.crc32(padded))


def _unpack(slot: bytes) -> Testimony | None:
    if len(slot) != _SIZE or zlib.crc32(slot[: -_CRC.size]) != _CRC.unpack(slot[-_CRC.size :])[0]:
        return None
    index, term, vote, sequence, chain, wall_ms, _ = _SLOT.unpack(slot[: _SLOT.size])
    return Testimony(index, chain, HardState(term, vote), wall_ms, sequence)


class Witness:
    """The open file. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        content = os.pread(self._descriptor, 2 * _SIZE, 0)
        slots = [_unpack(content[:_SIZE]), _unpack(content[_SIZE:])]
        found = [slot for slot in slots if slot is not None]
        self.last: Testimony | None = max(found, key=lambda slot: slot.sequence, default=None)
        self.synced_index = self.last.index if self.last is not None else 0  #: known after a power cut
        self._dirty = False

    def write(self, index: Index, chain: bytes, hard: HardState, wall_ms: int, *, sync: bool = False) -> None:
        """Testify in the older slot; survives the death of this process, and with `sync` a power cut."""
        sequence = 1 if self.last is None else self.last.sequence + 1
        testimony = Testimony(index, chain, hard, wall_ms, sequence)
        os.pwrite(self._descriptor, _pack(testimony), (sequence % 2) * _SIZE)
        self.last = testimony
        self._dirty = True
        if sync:
            self.sync()

    def sync(self) -> None:
        """Make the latest testimony survive a power cut; cheap when nothing is new."""
        if self._dirty:
            os.fsync(self._descriptor)
            self._dirty = False
            self.synced_index = self.last.index if self.last is not None else 0

    def close(self) -> None:
        """Sync and release the file."""
        if self._descriptor >= 0:
            self.sync()
            os.close(self._descriptor)
            self._descriptor = -1
