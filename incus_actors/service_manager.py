"""systemd's conventions without its library: readiness, status, watchdog, passed sockets.

Called by the composition root. Must never fail when there is no service manager.
"""

from __future__ import annotations

import os
import socket

LISTEN_FDS_START = 3


def notify(*assignments: str) -> bool:
    """Send assignments such as "READY=1" to $NOTIFY_SOCKET; return whether there was somebody to tell."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.sendto("\n".join(assignments).encode(), address)
        except OSError:
            return False
    return True


def watchdog_interval_s() -> float | None:
    """Return half of $WATCHDOG_USEC in seconds, or None if no watchdog waits for this process."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 2e6 if microseconds.isdigit() and int(microseconds) else None


def passed_sockets() -> dict[str, socket.socket]:
    """Return the sockets of systemd socket activation by name ("unix" by default) and forget the variables.

    The descriptors become close-on-exec, so that no helper process inherits a listener.
    """
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdigit():
        return {}
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    found: dict[str, socket.socket] = {}
    for offset in range(int(count)):
        descriptor = LISTEN_FDS_START + offset
        os.set_inheritable(descriptor, False)
        name = names[offset] if offset < len(names) and names[offset] else "unix"
        found[name] = socket.socket(fileno=descriptor)
    for variable in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(variable, None)
    return found
