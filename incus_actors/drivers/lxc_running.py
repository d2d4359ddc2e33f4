"""One running container: its init, its liblxc monitor, and what ends when they end.

Owns two pidfds and a netlink socket. Made by drivers/lxc.py; must never signal a pid: only pidfds, which
cannot mean another process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable

from incus_actors.drivers import cgroups, processes
from incus_actors.drivers.base import InstanceSpec, OnExit
from incus_actors.drivers.netlink import NamespaceNetwork
from incus_actors.drivers.processes import ProcessIdentity


class RunningContainer:
    """`ended` is done once the monitor is gone: then liblxc has freed mounts, interfaces and groups."""

    def __init__(
        self,
        spec: InstanceSpec,
        group: str,
        init: ProcessIdentity,
        monitor: ProcessIdentity,
        on_end: Callable[[RunningContainer], None],
    ) -> None:
        self.spec = spec
        self.group = group
        self.init = init
        self.monitor = monitor
        self.on_exit: OnExit | None = None
        self.stops = 0  #: calls of `stop` under way: an end is no surprise then
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._init_pidfd = os.pidfd_open(init.pid)
        self._monitor_pidfd = os.pidfd_open(monitor.pid)
        self._network: NamespaceNetwork | None = None
        self._loop.add_reader(self._monitor_pidfd, self._monitor_ended)

    @classmethod
    def adopt(
        cls, spec: InstanceSpec, group: str, pid: int, on_end: Callable[[RunningContainer], None]
    ) -> RunningContainer | None:
        """Take over a container by the host pid of its init; None if it is gone meanwhile."""
        init = processes.identity_of(pid)
        found = processes.stat_of(pid)
        if init is None or found is None:
            return None
        monitor = processes.identity_of(found.parent)
        if monitor is None or monitor.pid <= 1:
            # The monitor was killed: init gets its death signal any moment. Watch init alone.
            monitor = init
        try:
            return cls(spec, group, init, monitor, on_end)
        except ProcessLookupError:
            return None

    def refresh(self, layout: cgroups.CgroupLayout) -> bool:
        """Return whether init lives; if it is another process now, it is found by its group."""
        if self.ended.done():
            return False
        if self.init.alive():
            return True
        for pid in cgroups.processes(layout, self.group):
            identity = processes.identity_of(pid)
            if identity is not None and processes.pid_inside(pid)[1:] == (1,):
                self._close_network()
                os.close(self._init_pidfd)
                self._init_pidfd = os.pidfd_open(pid)
                self.init = identity
                return True
        return False

    def signal_init(self, number: int) -> None:
        """Send a signal to init; nothing if it is gone."""
        if self._init_pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._init_pidfd, number)

    def network(self) -> NamespaceNetwork:
        """Return the view into its network namespace, opened at the first look. Raises OSError."""
        if self._network is None:
            self._network = NamespaceNetwork(self.init.pid)
        return self._network

    def release(self) -> None:
        """Close everything of ours; the container goes on."""
        self._close_network()
        if self._monitor_pidfd >= 0:
            self._loop.remove_reader(self._monitor_pidfd)
            os.close(self._monitor_pidfd)
            os.close(self._init_pidfd)
            self._monitor_pidfd = self._init_pidfd = -1

    def _close_network(self) -> None:
        if self._network is not None:
            self._network.close()
            self._network = None

    def _monitor_ended(self) -> None:
        self.release()
        if not self.ended.done():
            self.ended.set_result(None)
        self._on_end(self)
