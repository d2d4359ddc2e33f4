"""Asks the kernel to run the threads of consensus before others (CONSENSUS 3.8).

Owns the scheduling calls; each consensus thread calls `raise_priority` first. Must never fail: without the right
it only answers what it got, and it never lets a child process inherit the privilege.
"""

from __future__ import annotations

import os
import threading

_RESET = getattr(os, "SCHED_RESET_ON_FORK", 0x40000000)
_NICE = -10


def raise_priority(*, realtime: bool = True) -> str:
    """Raise the calling thread: SCHED_RR 1, else nice -10, else nothing. Return which: "rr", "nice" or "normal"."""
    try:
        if realtime:
            os.sched_setscheduler(0, os.SCHED_RR | _RESET, os.sched_param(1))
            return "rr"
    except OSError:
        realtime = False
    try:
        os.sched_setscheduler(0, os.SCHED_OTHER | _RESET, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
    except OSError:
        return "normal"
    return "nice"
