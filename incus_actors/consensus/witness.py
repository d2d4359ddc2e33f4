"""The tail witness: a small file that remembers how far the log was durable (CONSENSUS D8, 3.3).

SQLite silently drops everything behind the first damaged frame of its write-ahead log; the witness notices. Owns
`tail.wit`; used by the log store on the log thread. Must never lead: it is written after the batch it describes is
durable, and lowered, durably, before a truncation.
"""

from __future__ import annotations

import errno
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


def read_testimony(path: Path) -> Testimony | None:
    """Return the latest testimony without opening the file for writing; None if there is none. Raises OSError."""
    if not path.exists():
        return None
    return _latest(path.read_bytes())


def _latest(content: bytes) -> Testimony | None:
    slots = [_unpack(content[:_SIZE]), _unpack(content[_SIZE : 2 * _SIZE])]
    return max((slot for slot in slots if slot is not None), key=lambda slot: slot.sequence, default=None)


def is_no_space(error: OSError) -> bool:
    """Whether this failed for want of space: also writing over what is there can, where that takes new blocks."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


class Witness:
    """The open file. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.last: Testimony | None = _latest(os.pread(self._descriptor, 2 * _SIZE, 0))
        self.synced_index = self.last.index if self.last is not None else 0  #: known after a power cut
        self._dirty = False
        self._unsure = False  #: whether the last sync failed
        self.behind = False  #: whether the latest testimony could not be written, or not be made to last
        self.lagged = 0  #: how often

    def write(self, index: Index, chain: bytes, hard: HardState, wall_ms: int, *, sync: bool = False) -> None:
        """Testify in the older slot; survives the death of this process, and with `sync` a power cut. Raises
        OSError; the latest testimony is then still the one before."""
        sequence = 1 if self.last is None else self.last.sequence + 1
        testimony = Testimony(index, chain, hard, wall_ms, sequence)
        self._put(testimony)
        self._dirty = True
        if sync:
            self._sync()
            self.synced_index = index
        self.last = testimony

    def testify(self, index: Index, chain: bytes, hard: HardState, wall_ms: int) -> None:
        """Write what is durable in the log. Without space the witness lags, as it may, until the next time. Raises
        OSError for anything else."""
        try:
            self.write(index, chain, hard, wall_ms)
        except OSError as exc:
            self._lag(exc)
        else:
            self.behind = False

    def sync(self) -> None:
        """Make the latest testimony survive a power cut; cheap when nothing is new. Raises OSError as `testify`."""
        try:
            self._sync()
        except OSError as exc:
            self._lag(exc)
        else:
            self.synced_index = self.last.index if self.last is not None else 0

    def _put(self, testimony: Testimony) -> None:
        os.pwrite(self._descriptor, _pack(testimony), (testimony.sequence % 2) * _SIZE)

    def _sync(self) -> None:
        if not self._dirty:
            return
        if self._unsure and self.last is not None:
            self._put(self.last)  # after a sync that failed the system takes the page for clean
        self._unsure = True
        os.fsync(self._descriptor)
        self._dirty = self._unsure = False

    def _lag(self, error: OSError) -> None:
        if not is_no_space(error):
            raise error
        self.behind = True
        self.lagged += 1

    def close(self) -> None:
        """Sync and release the file. Raises OSError as `testify`."""
        if self._descriptor >= 0:
            try:
                self.sync()
            finally:
                os.close(self._descriptor)
                self._descriptor = -1
