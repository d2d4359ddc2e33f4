"""System containers through liblxc.

Owns, per running instance, two pidfds (init and its liblxc monitor) and a netlink socket. Called by
InstanceActor. Forks happen in `helpers/lxc_helper.py` only (DESIGN D14); a stop needs no helper at all: a
signal to init, then the end of the monitor, which frees everything. Must never trust a pid without its start
time, nor believe its own memory after a restart: the control group tells what runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

from incus_actors.drivers import cgroups, idmap, liblxc, lxc_devices, lxc_disks, lxc_nics, processes
from incus_actors.drivers.base import (
    STOP_TIMEOUT_DEFAULT_S,
    STOPPED,
    Availability,
    DriverError,
    DriverInfo,
    ExecRequest,
    ExecSession,
    ExitNotice,
    InstanceBusyError,
    InstanceSpec,
    OnExit,
    RunState,
    RunStatus,
    StopTimeoutError,
)
from incus_actors.drivers.child import helper_argv, run_helper
from incus_actors.drivers.exec_session import HelperExecSession
from incus_actors.drivers.limits import changed_files, limit_files
from incus_actors.drivers.lxc_config import SECCOMP_POLICY, container_group, lxc_config, validate
from incus_actors.drivers.lxc_host import LxcHost, find_init, require_parents
from incus_actors.drivers.lxc_running import RunningContainer
from incus_actors.drivers.network_helper import NetworkHelper
from incus_actors.drivers.templates import apply_pending, mark
from incus_actors.errors import ApiError, BadRequestError
from incus_actors.tasks import spawn

log = logging.getLogger(__name__)

_SYSTEMD_HALT = signal.SIGRTMIN + 3
_INIT_READY_S = 1.0


class LxcDriver:
    """The InstanceDriver of real containers. `directory` is the daemon's own (`$INCUS_DIR`)."""

    def __init__(self, directory: Path, helper: NetworkHelper | None = None) -> None:
        self._host = LxcHost(directory)
        self._helper = NetworkHelper() if helper is None else helper
        self._running: dict[Path, RunningContainer] = {}
        self._rebooting: dict[Path, tuple[RunningContainer, asyncio.Task[None]]] = {}
        self._extension = liblxc.extension_directory()
        self.info = DriverInfo("lxc", "")

    # --- what is possible here ---

    def availability(self) -> Availability:
        """Return whether containers can run here; starts one helper for some 10 ms, the first time."""
        if os.geteuid() != 0:
            return Availability(False, "system containers need root")
        if self._extension is None:
            return Availability(False, "the Python binding of liblxc is not installed (pip install incus-actors[lxc])")
        if not self._host.layout.roots():
            return Availability(False, "no control groups are mounted under /sys/fs/cgroup")
        if not Path("/proc/self/ns/user").exists():
            return Availability(False, "this kernel has no user namespaces")
        try:
            idmap.default_idmap()
            version = self.info.version or liblxc.version(self._extension)
        except DriverError as error:
            return Availability(False, str(error))
        features = {"cgroup2": self._host.layout.v2 is not None, "pidfd": True, "seccomp_notify": False}
        self.info = DriverInfo("lxc", version, features)
        return Availability(True)

    def validate(self, spec: InstanceSpec) -> None:
        """Raise BadRequestError for config or devices that this driver cannot honour. Pure."""
        validate(spec)
        limit_files(spec.config, self._host.machine(), spec.disk_name)

    # --- life ---

    async def prepare(self, spec: InstanceSpec) -> None:
        """Make the volume fit to start: owners for the id map (unless the mount maps them), directories."""
        for directory in (spec.instance_dir, spec.log_dir):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not spec.rootfs.is_dir():
            raise DriverError(f"The root file system of {spec.name} is missing: {spec.rootfs}")
        base = (0, 0)
        if not spec.privileged and not await self._host.owners.idmapped_mounts(spec.volume_dir):
            base = idmap.host_base(spec.idmap or idmap.default_idmap())
        await self._host.owners.ensure(spec.volume_dir, base)

    async def start(self, spec: InstanceSpec) -> RunState:
        """Start, return once init runs. Raises InstanceBusyError, BadRequestError, DriverError."""
        await self._settled(spec)
        if self._find(spec) is not None:
            raise InstanceBusyError("The instance is already running")
        await self._start(spec)
        return await self.state(spec)

    async def _start(self, spec: InstanceSpec) -> RunningContainer:
        await self.prepare(spec)
        require_parents(spec)
        for line in await asyncio.to_thread(apply_pending, spec, self._host.owners.on_disk(spec.volume_dir)):
            log.warning("%s: %s", spec.name, line)
        facts = await self._host.facts(spec)
        items = lxc_config(spec, facts)
        given = lxc_devices.with_nodes(spec)
        if disk_hook := lxc_disks.start_command(given):
            items.append(("lxc.hook.start-host", disk_hook))
        facts.seccomp_file.write_text(SECCOMP_POLICY)
        facts.post_stop_hook.write_text(liblxc.POST_STOP_HOOK)
        (spec.instance_dir / liblxc.REBOOT_MARKER).unlink(missing_ok=True)
        with self._host.starting():
            running = await self._start_container(spec, items)
            lxc_disks.note_started(given)
            try:
                await lxc_devices.begun(spec, running.init.pid)
            except DriverError:
                await self.stop(spec, force=True)
                raise
            return running

    async def _start_container(self, spec: InstanceSpec, items: list[tuple[str, str]]) -> RunningContainer:
        await self._host.remove_groups(spec)
        with contextlib.suppress(FileNotFoundError):
            spec.log_file.rename(spec.log_file.with_suffix(".log.old"))
        await self._with_nics(spec)
        fields = [("name", spec.disk_name), ("path", str(self._host.lxc_path))]
        fields += [("config", f"{key}={value}") for key, value in items]
        try:
            answer = await run_helper("lxc_helper", ["start", str(self._extension)], fields)
        except DriverError as error:
            await self._host.remove_groups(spec, kill=True)
            await lxc_devices.ended(self._helper, spec)
            excerpt = liblxc.log_excerpt(spec.log_file)
            cause = excerpt.splitlines()[0] if excerpt else str(error)  # the first is the cause
            reason = lxc_disks.start_error(spec) or cause
            raise DriverError(f'Failed to start instance "{spec.name}": {reason}', log_excerpt=excerpt) from error
        running = self._adopt(spec, int(answer["pid"]))
        if running is None:
            excerpt = liblxc.log_excerpt(spec.log_file)
            raise DriverError(f'Instance "{spec.name}" ended right after its start', log_excerpt=excerpt)
        return running

    async def _with_nics(self, spec: InstanceSpec) -> None:
        try:
            await lxc_nics.prepare(self._helper, spec)
        except DriverError:
            await lxc_devices.ended(self._helper, spec)
            raise

    async def stop(self, spec: InstanceSpec, *, timeout_s: float = -1, force: bool = False) -> None:
        """Stop and wait until every trace is gone. Raises InstanceBusyError, StopTimeoutError."""
        await self._settled(spec)
        running = self._find(spec)
        if running is None:
            raise InstanceBusyError("The instance is already stopped")
        running.stops += 1
        try:
            await lxc_nics.release(self._helper, running.spec, running.init.pid)
            if cgroups.is_frozen(self._host.layout, running.group):
                await self._host.set_frozen(running, False)
            if force:
                running.signal_init(signal.SIGKILL)
                await self._wait_ended(running, 30)
            else:
                limit_s = STOP_TIMEOUT_DEFAULT_S if timeout_s < 0 else timeout_s
                await self._halt(running)
                await self._wait_ended(running, limit_s)
        finally:
            running.stops -= 1

    async def _halt(self, running: RunningContainer) -> None:
        """Send the signal that init takes as shutdown, once it can hear it."""
        pid = running.init.pid
        deadline = asyncio.get_running_loop().time() + _INIT_READY_S
        while running.init.alive() and asyncio.get_running_loop().time() < deadline:
            if processes.blocks_signal(pid, _SYSTEMD_HALT) or processes.catches_signal(pid, _SYSTEMD_HALT):
                running.signal_init(_SYSTEMD_HALT)
                return
            if processes.blocks_signal(pid, signal.SIGPWR) or processes.catches_signal(pid, signal.SIGPWR):
                break
            await asyncio.sleep(0.01)
        running.signal_init(signal.SIGPWR)

    async def _wait_ended(self, running: RunningContainer, timeout_s: float) -> None:
        try:
            await asyncio.wait_for(asyncio.shield(running.ended), timeout_s)
        except TimeoutError:
            running.refresh(self._host.layout)
            raise StopTimeoutError(
                'Failed shutting down instance, status is "Running": context deadline exceeded',
                remedy="use --force",
            ) from None
        await self._host.remove_groups(running.spec, kill=True)
        await lxc_devices.ended(self._helper, running.spec)

    async def freeze(self, spec: InstanceSpec) -> None:
        """Suspend every process inside. Raises InstanceBusyError if it doesn't run."""
        await self._host.set_frozen(self._require(spec), True)

    async def unfreeze(self, spec: InstanceSpec) -> None:
        """Let them go on."""
        await self._host.set_frozen(self._require(spec), False)

    async def apply_limits(self, spec: InstanceSpec) -> None:
        """Make changed `limits.*` true for a running instance; nothing for a stopped one."""
        running = self._find(spec)
        if running is not None:
            files = changed_files(running.spec.config, spec.config, self._host.machine(), spec.disk_name)
            try:
                cgroups.write_limits(self._host.layout, running.group, files)
            except OSError as error:
                log.warning("%s: %s can't be written: %s", spec.name, error.filename, error.strerror)
                raise DriverError("setting cgroup item for the container failed") from error
            running.spec = spec

    async def update_devices(self, spec: InstanceSpec) -> None:
        """Plug devices in and out of a running container. Raises DriverError."""
        running = self._find(spec)
        if running is not None:
            await self._host.permit(running, spec, self._extension)
            await lxc_devices.plug(self._helper, spec, running.init.pid)
            running.spec = spec

    # --- looking ---

    def status(self, spec: InstanceSpec) -> RunStatus:
        """Return only the status, at once: one or two small reads."""
        if spec.instance_dir in self._rebooting:
            return RunStatus.RUNNING
        running = self._find(spec)
        if running is None:
            return RunStatus.STOPPED
        return RunStatus.FROZEN if cgroups.is_frozen(self._host.layout, running.group) else RunStatus.RUNNING

    async def state(self, spec: InstanceSpec) -> RunState:
        """Return what is true now; starts no process, reads some ten small files."""
        await self._settled(spec)
        running = self._find(spec)
        if running is None:
            return STOPPED
        return self._host.state_of(running)

    async def exec(self, spec: InstanceSpec, request: ExecRequest) -> ExecSession:
        """Run a command inside; returns once it runs. Raises BadRequestError, ExecError (127, 126)."""
        await self._settled(spec)
        running = self._find(spec)
        if running is None:
            raise BadRequestError("Instance is not running")
        if cgroups.is_frozen(self._host.layout, running.group):
            raise BadRequestError("Instance is frozen")
        fields = [("name", spec.disk_name), ("path", str(self._host.lxc_path))]
        return await HelperExecSession.begin(helper_argv("lxc_helper", "exec", str(self._extension)), fields, request)

    def watch(self, spec: InstanceSpec, on_exit: OnExit) -> None:
        """Call `on_exit` once when the running instance ends without `stop`. Replaces an earlier watch."""
        running = self._watched(spec) or self._find(spec)
        if running is not None:
            running.on_exit = on_exit
        else:
            on_exit(ExitNotice(spec.name, spec.project, 0))

    def unwatch(self, spec: InstanceSpec) -> None:
        """Forget the watch."""
        running = self._watched(spec)
        if running is not None:
            running.on_exit = None

    def _watched(self, spec: InstanceSpec) -> RunningContainer | None:
        rebooting = self._rebooting.get(spec.instance_dir)
        return rebooting[0] if rebooting is not None else self._running.get(spec.instance_dir)

    # --- across restarts and names ---

    async def recover(self, specs: Sequence[InstanceSpec]) -> list[InstanceSpec]:
        """After a daemon restart: return those that still run. Found through their control group."""
        alive = []
        for spec in specs:
            if running := self._find(spec):
                alive.append(spec)
                await lxc_devices.found(spec, running.init.pid)
            elif (spec.instance_dir / liblxc.REBOOT_MARKER).exists():  # it rebooted while nobody was here
                await self._start(spec)
                alive.append(spec)
            else:
                await self._host.remove_groups(spec, kill=True)
                await lxc_devices.ended(self._helper, spec)
            await asyncio.sleep(0)
        return alive

    async def rename(self, spec: InstanceSpec, new: InstanceSpec) -> None:
        """A stopped instance gets a new name or project. Raises InstanceBusyError, DriverError."""
        await self._settled(spec)
        if self._find(spec) is not None:
            raise InstanceBusyError("Renaming of running instance not allowed")
        volume = new.volume_dir if new.volume_dir.is_dir() else spec.volume_dir
        mark(volume, "rename")
        for old, target in ((spec.instance_dir, new.instance_dir), (spec.log_dir, new.log_dir)):
            if old.exists() and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                old.rename(target)

    async def delete(self, spec: InstanceSpec) -> None:
        """Remove all that the driver keeps for a stopped instance (not its volume). Idempotent."""
        await self._settled(spec)
        if self._find(spec) is not None:
            raise InstanceBusyError("The instance is running")
        await self._host.remove_groups(spec, kill=True)
        for directory in (spec.instance_dir, spec.log_dir):
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
        self._host.remove_empty()

    async def close(self) -> None:
        """Free watches; instances go on."""
        for _, task in list(self._rebooting.values()):
            await asyncio.wait([task])
        for running in list(self._running.values()):
            running.release()
        self._running.clear()
        await self._helper.close()

    # --- inside ---

    def _find(self, spec: InstanceSpec) -> RunningContainer | None:
        """Return the living container of this spec, adopting one that runs without our knowing."""
        running = self._running.get(spec.instance_dir)
        if running is not None:
            if running.refresh(self._host.layout):
                return running
            if not running.ended.done():
                return running  # init is gone, the monitor still tidies up (or reboots it)
            self._running.pop(spec.instance_dir, None)
        pid = find_init(self._host.layout, container_group(self._host.parent, spec))
        return self._adopt(spec, pid) if pid else None

    def _adopt(self, spec: InstanceSpec, pid: int) -> RunningContainer | None:
        running = RunningContainer.adopt(spec, container_group(self._host.parent, spec), pid, self._container_ended)
        if running is not None:
            self._running[spec.instance_dir] = running
        return running

    def _container_ended(self, running: RunningContainer) -> None:
        """Called in the loop when the monitor is gone: a reboot from inside, a death, or a stop of ours."""
        path = running.spec.instance_dir
        if self._running.get(path) is running:
            del self._running[path]
        if running.stops:
            return
        if (path / liblxc.REBOOT_MARKER).exists():
            task = spawn(self._reboot(running), name=f"reboot {running.spec.name}")
            self._rebooting[path] = running, task
        else:
            spawn(self._tidy(running), name=f"after {running.spec.name}")

    async def _tidy(self, running: RunningContainer) -> None:
        """It ended without our doing: remove what its nics leave on the host, then tell."""
        await lxc_devices.ended(self._helper, running.spec)
        if running.on_exit is not None:
            running.on_exit(ExitNotice(running.spec.name, running.spec.project, running.init.pid))

    async def _reboot(self, running: RunningContainer) -> None:
        spec = running.spec
        try:
            again = await self._start(spec)
            again.on_exit = running.on_exit
        except ApiError as error:
            log.warning("%s wanted to reboot but can't be started: %s", spec.name, error)
            if running.on_exit is not None:
                running.on_exit(ExitNotice(spec.name, spec.project, running.init.pid))
        finally:
            del self._rebooting[spec.instance_dir]

    async def _settled(self, spec: InstanceSpec) -> None:
        """Wait for a reboot that is under way."""
        rebooting = self._rebooting.get(spec.instance_dir)
        if rebooting is not None and rebooting[1] is not asyncio.current_task():
            await asyncio.wait([rebooting[1]])

    def _require(self, spec: InstanceSpec) -> RunningContainer:
        running = self._find(spec)
        if running is None:
            raise InstanceBusyError("The instance is not running")
        return running
