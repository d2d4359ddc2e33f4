"""Malloc does what it is told, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import ctypes, threading
from incus_actors.memory import keep_small
assert keep_small()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
heap = [line.split()[0].split("-") for line in open("/proc/self/maps") if line.rstrip().endswith("[heap]")][0]
found = []
thread = threading.Thread(target=lambda: found.append(libc.malloc(4096)))
thread.start()
thread.join()
heap = [line.split()[0].split("-") for line in open("/proc/self/maps") if line.rstrip().endswith("[heap]")][0]
print(int(heap[0], 16) <= found[0] < int(heap[1], 16))
"""


def test_threads_share_one_pool() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "True\n"
