"""Holds copies of another process's open descriptors until its input ends: what a child does that inherited them.

Run as `python -m incus_actors.lab.descriptor_holder PID all|sockets`; needs root. Prints how many it has, once it has them.
Must never read from, write to or shut what it holds.
"""

from __future__ import annotations

import ctypes
import os
import stat
import sys
from pathlib import Path

SYS_PIDFD_GETFD = 438  #: the same on every architecture


def take(pid: int, *, only_sockets: bool = False) -> list[int]:
    """Return copies of that process's descriptors, in this process. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(pid)
    try:
        taken = []
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            if only_sockets and not stat.S_ISSOCK(entry.stat().st_mode):
                continue
            copy = libc.syscall(SYS_PIDFD_GETFD, pidfd, int(entry.name), 0)
            if copy < 0:
                number = ctypes.get_errno()
                raise OSError(number, f"descriptor {entry.name} of process {pid}: {os.strerror(number)}")
            taken.append(copy)
    finally:
        os.close(pidfd)
    return taken


def main() -> None:
    """Take, say so, wait."""
    print(len(take(int(sys.argv[1]), only_sockets=sys.argv[2] == "sockets")), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
