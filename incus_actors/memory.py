"""How glibc gives memory of this process back to the machine.

Owns three settings of malloc, made before the first thread starts; called by the daemon's command line. By default glibc
keeps a pool for every thread and returns hardly anything: a daemon with ten threads then holds megabytes that it freed.
"""

from __future__ import annotations

import ctypes
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_THRESHOLD_BYTES: Final = 64 << 10


def keep_small() -> bool:
    """Use one pool, and return what is free above 64 KiB. Returns False where malloc can't be told (no glibc)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_M_ARENA_MAX, 1), (_M_TRIM_THRESHOLD, _THRESHOLD_BYTES), (_M_MMAP_THRESHOLD, _THRESHOLD_BYTES))
    accepted = [mallopt(name, value) == 1 for name, value in settings]  # every one is tried
    return all(accepted)
