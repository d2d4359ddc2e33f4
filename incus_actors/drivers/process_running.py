"""One running instance of the process driver, and what /proc says of it.

Owns a pidfd of the instance's monitor. Made by drivers/process.py; must never signal a pid that may have become
another process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from incus_actors.drivers.base import (
    ExecSession,
    ExitNotice,
    InstanceSpec,
    NetworkAddress,
    NetworkInterface,
    OnExit,
)
from incus_actors.drivers.processes import ProcessIdentity


class RunningProcess:
    """One running instance; `ended` is done when its monitor is gone."""

    def __init__(self, spec: InstanceSpec, monitor: ProcessIdentity, init: ProcessIdentity, mode: str) -> None:
        self.spec, self.monitor, self.init, self.mode = spec, monitor, init, mode
        self.on_exit: OnExit | None = None
        self.stopping = False
        self.frozen = False
        self.sessions: list[ExecSession] = []
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._pidfd = os.pidfd_open(monitor.pid)
        self._loop.add_reader(self._pidfd, self._monitor_ended)

    def release(self) -> None:
        """Stop watching; the instance goes on."""
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _monitor_ended(self) -> None:
        self.release()
        if not self.ended.done():
            self.ended.set_result(None)
        if self.on_exit is not None and not self.stopping:
            self.on_exit(ExitNotice(self.spec.name, self.spec.project, self.init.pid))

    def refresh(self) -> bool:
        """Return whether it runs."""
        return not self.ended.done() and self.monitor.alive()

    def pids(self) -> Iterator[int]:
        """Yield every process of the instance (of its pid namespace, or init alone without one)."""
        if self.mode != "namespaces":
            yield self.init.pid
            return
        try:
            wanted = os.readlink(f"/proc/{self.init.pid}/ns/pid")  # noqa: PTH115
        except OSError:
            return
        for entry in os.listdir("/proc"):  # noqa: PTH208 - thousands of names, twice as fast
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{entry}/ns/pid") == wanted:  # noqa: PTH115
                        yield int(entry)


def signal_process(identity: ProcessIdentity, number: int) -> None:
    """Send a signal to this very process; nothing if it is gone."""
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(identity.pid)
        try:
            if identity.alive():  # checked with the pidfd open: it cannot become another one now
                signal.pidfd_send_signal(pidfd, number)
        finally:
            os.close(pidfd)


def interfaces_of(pid: int) -> dict[str, NetworkInterface]:
    """Return what /proc tells about the interfaces of a process: names and counters, loopback addresses."""
    found = {}
    try:
        lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
    except OSError:
        return {}
    for line in lines:
        name, _, rest = line.partition(":")
        values = [int(word) for word in rest.split()]
        loopback = name.strip() == "lo"
        counters = {
            "bytes_received": values[0],
            "packets_received": values[1],
            "errors_received": values[2],
            "packets_dropped_inbound": values[3],
            "bytes_sent": values[8],
            "packets_sent": values[9],
            "errors_sent": values[10],
            "packets_dropped_outbound": values[11],
        }
        addresses = (NetworkAddress("inet", "127.0.0.1", "8", "local"),) if loopback else ()
        kind = "loopback" if loopback else "broadcast"
        found[name.strip()] = NetworkInterface(name.strip(), addresses, counters, mtu=65536, type=kind)
    return found
