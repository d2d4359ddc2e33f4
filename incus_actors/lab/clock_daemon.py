"""Our daemon with a wall clock that a test can set: run as `python -m incus_actors.lab.clock_daemon`.

The machine's own clock belongs to everybody on it; here only what the daemon asks Python for jumps. The offset is eight bytes
in the file that $INCUS_ACTORS_CLOCK names, looked at with every question. Monotonic clocks are left alone, as the kernel does.
"""

from __future__ import annotations

import mmap
import os
import runpy
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

VARIABLE = "INCUS_ACTORS_CLOCK"
_OFFSET = struct.Struct("=d")
_SECOND_NS = 1_000_000_000

N = TypeVar("N", int, float)


def offset_file(directory: Path) -> Path:
    """Return where the offset of the daemon of that state directory is: beside it, for its disk may run full."""
    return directory.with_suffix(".clock")


def set_offset(path: Path, seconds: float) -> None:
    """Let the clock be so many seconds ahead of the machine's (behind it, if negative)."""
    path.touch(mode=0o600)
    with path.open("r+b") as file:
        file.write(_OFFSET.pack(seconds))


def install(path: Path) -> None:
    """From now on `time.time` and `time.time_ns` are off. To be called before anybody else has taken them."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    offset = mmap.mmap(descriptor, _OFFSET.size, access=mmap.ACCESS_READ)
    os.close(descriptor)
    time.time = _ahead(time.time, lambda: float(_OFFSET.unpack_from(offset)[0]))
    time.time_ns = _ahead(time.time_ns, lambda: int(_OFFSET.unpack_from(offset)[0] * _SECOND_NS))


def _ahead(clock: Callable[[], N], offset: Callable[[], N]) -> Callable[[], N]:
    return lambda: clock() + offset()


if __name__ == "__main__":
    install(Path(os.environ[VARIABLE]))
    runpy.run_module("incus_actors.cli.daemon", run_name="__main__", alter_sys=True)  # as `python -m` does
