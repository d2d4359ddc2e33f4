"""What the lxc driver knows of and does to this machine: control groups, ids, devices, the shared directories.

Owns the parent control group of one daemon and liblxc's path under /run. Called by drivers/lxc.py only; must
never touch a group of another daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

from incus_actors.drivers import cgroups, idmap, lxc_nodes, processes
from incus_actors.drivers.base import DriverError, InstanceSpec, NetworkInterface, RunState, RunStatus
from incus_actors.drivers.child import run_helper
from incus_actors.drivers.limits import Machine
from incus_actors.drivers.links import links
from incus_actors.drivers.lxc_config import LxcMachine, container_group, monitor_group, nic_parent
from incus_actors.drivers.lxc_running import RunningContainer
from incus_actors.drivers.rootfs import RootfsOwners

_CONTROLLERS = ("cpu", "cpuset", "memory", "devices", "pids")
_FREEZE_S = 10.0
_LOCKS = Path("/run/lxc/lock")
_RUN = Path("/run/incus-actors")


class LxcHost:
    """One per driver. `parent`: the control group above all of ours; `lxc_path`: liblxc's name space."""

    def __init__(self, directory: Path) -> None:
        digest = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:10]
        self.parent = f"incus-actors-{digest}"  # several daemons on one machine must not meet
        # liblxc wants its path to be passable for root of the instance; ours need not be, and /run always is.
        self.lxc_path = _RUN / digest
        self.layout = cgroups.detect()
        self.owners = RootfsOwners()
        self._starts = 0

    def state_of(self, running: RunningContainer) -> RunState:
        """Return what the control groups, /proc and the network namespace say."""
        used = cgroups.counters(self.layout, running.group)
        count = used.processes
        if count < 0:
            count = sum(1 for _ in cgroups.processes(self.layout, running.group))
        network: dict[str, NetworkInterface] | None = None
        with contextlib.suppress(OSError):  # it is ending under our eyes
            network = running.network().interfaces()
        return RunState(
            status=RunStatus.FROZEN if cgroups.is_frozen(self.layout, running.group) else RunStatus.RUNNING,
            init_pid=running.init.pid,
            started_at=running.init.started_at,
            processes=count,
            memory_usage_bytes=used.memory_usage_bytes,
            memory_peak_bytes=used.memory_peak_bytes,
            memory_total_bytes=used.memory_limit_bytes or processes.memory_total_bytes(),
            swap_usage_bytes=used.swap_usage_bytes,
            swap_peak_bytes=used.swap_peak_bytes,
            cpu_ns=used.cpu_ns,
            network=network,
        )

    async def set_frozen(self, running: RunningContainer, frozen: bool) -> None:
        """Freeze or thaw and wait until it is so. Raises DriverError (then it is thawed again)."""
        try:
            cgroups.set_frozen(self.layout, running.group, frozen)
            async with asyncio.timeout(_FREEZE_S):
                while not cgroups.is_settled(self.layout, running.group, frozen):  # noqa: ASYNC110
                    await asyncio.sleep(0.005)  # sysfs tells no one
        except (OSError, TimeoutError) as error:
            if frozen:
                with contextlib.suppress(OSError):
                    cgroups.set_frozen(self.layout, running.group, False)
            word = "freeze" if frozen else "unfreeze"
            raise DriverError(f"Failed to {word} the instance: {error or 'timed out'}") from error

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """Make what instances share, and keep it while one of them starts: the end of another must not remove it."""
        self._starts += 1
        try:
            self.lxc_path.mkdir(mode=0o711, parents=True, exist_ok=True)
            self.lxc_path.chmod(0o711)  # as liblxc makes it, root of an unprivileged instance could not pass
            yield
        finally:
            self._starts -= 1

    def remove_empty(self) -> None:
        """Remove what the last instance leaves: the parent group and liblxc's directories, if empty."""
        if self._starts:
            return
        for group in (f"{self.parent}/pivot", self.parent):
            cgroups.remove_if_empty(self.layout, group)
        for empty in (_LOCKS / str(self.lxc_path).lstrip("/"), self.lxc_path):
            with contextlib.suppress(OSError):
                empty.rmdir()

    def machine(self) -> Machine:
        """Return what limits are measured against."""
        layout = self.layout
        versions = {name: 1 if name in layout.v1 else 2 for name in _CONTROLLERS if layout.has(name)}
        if not layout.v1 and layout.v2 is not None:
            versions["devices"] = 2  # by BPF, no controller file
        return Machine(processes.memory_total_bytes(), processes.online_cpus(), versions)

    async def facts(self, spec: InstanceSpec) -> LxcMachine:
        """Return what the configuration of this instance depends on."""
        return LxcMachine(
            machine=self.machine(),
            idmap=() if spec.privileged else idmap.default_idmap(),
            idmapped_mounts=not spec.privileged and await self.owners.idmapped_mounts(spec.volume_dir),
            cgroup_parent=self.parent,
            seccomp_file=spec.instance_dir / "seccomp",
            post_stop_hook=spec.instance_dir / "post-stop",
            device_rules=tuple(lxc_nodes.rules(spec)),
        )

    async def permit(self, running: RunningContainer, spec: InstanceSpec, extension: Path | None) -> None:
        """Let a running container's group use the device nodes of `spec`, and no others of before. Raises DriverError."""
        old, new = set(lxc_nodes.rules(running.spec)), set(lxc_nodes.rules(spec))
        for name, changed in (("devices.deny", sorted(old - new)), ("devices.allow", sorted(new - old))):
            for rule in changed:
                directory = self.layout.directory("devices", running.group)
                if directory is None:  # the unified hierarchy: liblxc exchanges its BPF program
                    fields = [("name", spec.disk_name), ("path", str(self.lxc_path)), ("item", f"{name}={rule}")]
                    await run_helper("lxc_helper", ["permit", str(extension)], fields)
                    continue
                try:
                    (directory / name).write_text(rule)
                except OSError as error:
                    raise DriverError(f"Failed to change {name} of {spec.name}: {error.strerror}") from error

    async def remove_groups(self, spec: InstanceSpec, *, kill: bool = False) -> None:
        """Remove the groups of an instance that does not run. Raises DriverError if the kernel will not."""
        groups = (container_group(self.parent, spec), monitor_group(self.parent, spec))
        if not any((root / group).exists() for root in self.layout.roots() for group in groups):
            return
        for group in groups:
            left = await asyncio.to_thread(cgroups.remove, self.layout, group, kill=kill)
            if left:
                raise DriverError(f"Control groups of {spec.name} could not be removed: {', '.join(left)}")


def find_init(layout: cgroups.CgroupLayout, group: str) -> int:
    """Return the host pid of the group's init (pid 1 exactly one namespace below us), 0 if there is none."""
    for pid in cgroups.processes(layout, group):
        if processes.pid_inside(pid)[1:] == (1,) and processes.identity_of(pid) is not None:
            return pid
    return 0


def require_parents(spec: InstanceSpec) -> None:
    """Raise DriverError if a nic's parent interface is missing; asks the kernel, since /sys may show another network
    namespace."""
    there = {link.name for link in links()} if any(d.get("type") == "nic" for d in spec.devices.values()) else set()
    for name, device in sorted(spec.devices.items()):
        parent = nic_parent(device) if device.get("type") == "nic" else ""
        if parent and parent not in there:
            mark = '"' if device.get("nictype") == "bridged" else "'"  # as Incus has it
            raise DriverError(f'Failed to start device "{name}": Parent device {mark}{parent}{mark} doesn\'t exist')
