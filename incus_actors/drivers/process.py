"""Instances without root and without liblxc: a supervised process, in namespaces of its own where allowed.

Owns the record `process.json` of each instance and two pidfds per running one. The fallback of
drivers/registry.py; it says what it is by its name, "process". Must never pretend to limits it cannot set.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

from incus_actors.drivers import processes
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
from incus_actors.drivers.child import Conversation, helper_argv, run_helper
from incus_actors.drivers.exec_session import HelperExecSession
from incus_actors.drivers.process_running import RunningProcess, interfaces_of, signal_process
from incus_actors.drivers.processes import ProcessIdentity
from incus_actors.drivers.templates import apply_pending, mark
from incus_actors.errors import BadRequestError

log = logging.getLogger(__name__)

_RECORD = "process.json"
_START_TIMEOUT_S = 15.0
_INIT_READY_S = 1.0
_FREEZE_S = 5.0


class ProcessDriver:
    """The InstanceDriver of last resort. Limits are not enforced; networks do not exist."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running: dict[Path, RunningProcess] = {}
        self._mode = ""
        self.info = DriverInfo("process", "1", {"limits": False, "namespaces": False})

    # --- what is possible here ---

    def availability(self) -> Availability:
        """Return always available; the reason says how much isolation there is (known after `prepare`)."""
        if self._mode == "plain":
            return Availability(True, "instances are plain processes: this machine refuses user namespaces")
        return Availability(True, "instances are processes in user namespaces, without limits and networks")

    def validate(self, spec: InstanceSpec) -> None:
        """Raise BadRequestError for devices that cannot exist here."""
        for name, device in spec.devices.items():
            if device.get("type") not in {"none", "nic"} and device.get("path") != "/":
                raise BadRequestError(f'Device "{name}": the process driver supports only the root disk')
        if spec.privileged:
            raise BadRequestError("The process driver runs no privileged instances")

    async def _probe(self) -> str:
        if not self._mode:
            answer = await run_helper("process_helper", ["probe"], [("probe", "")])
            self._mode = "plain" if answer["reason"] else "namespaces"
            self.info = DriverInfo("process", "1", {"limits": False, "namespaces": self._mode == "namespaces"})
        return self._mode

    # --- life ---

    async def prepare(self, spec: InstanceSpec) -> None:
        """Make directories; find out what isolation there is."""
        for directory in (spec.instance_dir, spec.log_dir):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not spec.rootfs.is_dir():
            raise DriverError(f"The root file system of {spec.name} is missing: {spec.rootfs}")
        await self._probe()

    async def start(self, spec: InstanceSpec) -> RunState:
        """Start, return once init runs. Raises InstanceBusyError, DriverError."""
        if self._find(spec) is not None:
            raise InstanceBusyError("The instance is already running")
        self.validate(spec)
        await self.prepare(spec)
        owner = (os.geteuid(), os.getegid())
        for line in await asyncio.to_thread(apply_pending, spec, owner):
            log.warning("%s: %s", spec.name, line)
        fields = [
            ("name", spec.name),
            ("rootfs", str(spec.rootfs)),
            ("mode", self._mode),
            ("console", str(spec.log_dir / "console.log")),
        ]
        prefix = "environment."
        fields += [("env", f"{k.removeprefix(prefix)}={v}") for k, v in spec.config.items() if k.startswith(prefix)]
        # The helper becomes the monitor: it is not ended when the conversation is.
        talk = await Conversation.begin(helper_argv("process_helper", "start"))
        talk.send(fields)
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                answer = dict(await talk.receive() or [("error", "the helper ended without an answer")])
        except BaseException:
            talk.child.kill()
            raise
        finally:
            talk.hang_up()
        if "error" in answer:
            raise DriverError(f'Failed to start instance "{spec.name}": {answer["error"]}')
        self._adopt(spec, talk.child.pid, int(answer["pid"]))
        return await self.state(spec)

    def _adopt(self, spec: InstanceSpec, monitor_pid: int, init_pid: int) -> None:
        monitor, init = processes.identity_of(monitor_pid), processes.identity_of(init_pid)
        if monitor is None or init is None:
            raise DriverError(f'Instance "{spec.name}" ended right after its start')
        record = {
            "boot_id": processes.boot_id(),
            "mode": self._mode,
            "monitor": [monitor.pid, monitor.start_ticks],
            "init": [init.pid, init.start_ticks],
        }
        temporary = spec.instance_dir / f"{_RECORD}.new"
        temporary.write_text(json.dumps(record))
        temporary.replace(spec.instance_dir / _RECORD)
        self._running[spec.instance_dir] = RunningProcess(spec, monitor, init, self._mode)

    async def stop(self, spec: InstanceSpec, *, timeout_s: float = -1, force: bool = False) -> None:
        """Stop and wait until it is gone. Raises InstanceBusyError, StopTimeoutError."""
        running = self._find(spec)
        if running is None:
            raise InstanceBusyError("The instance is already stopped")
        running.stopping = True
        try:
            await self._thaw(running)
            if force:
                signal_process(running.init, signal.SIGKILL)
                limit_s = 30.0
            else:
                limit_s = STOP_TIMEOUT_DEFAULT_S if timeout_s < 0 else timeout_s
                await self._halt(running)
            try:
                await asyncio.wait_for(asyncio.shield(running.ended), limit_s)
            except TimeoutError:
                raise StopTimeoutError(
                    'Failed shutting down instance, status is "Running": context deadline exceeded',
                    remedy="use --force",
                ) from None
        finally:
            running.stopping = False
        for session in running.sessions:
            await session.close()
        self._forget(spec)

    async def _halt(self, running: RunningProcess) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _INIT_READY_S
        while loop.time() < deadline and running.init.alive():
            pid = running.init.pid
            if processes.catches_signal(pid, signal.SIGPWR) or processes.blocks_signal(pid, signal.SIGPWR):
                break
            await asyncio.sleep(0.01)
        signal_process(running.init, signal.SIGPWR)

    async def freeze(self, spec: InstanceSpec) -> None:
        """Stop every process inside with SIGSTOP, those born meanwhile too. Raises DriverError."""
        running = self._require(spec)
        running.frozen = True
        deadline = asyncio.get_running_loop().time() + _FREEZE_S
        while moving := await asyncio.to_thread(_stop_all, running):
            if asyncio.get_running_loop().time() > deadline:
                await self._thaw(running)
                raise DriverError(f"Failed to freeze the instance: process {moving[0]} goes on")
            await asyncio.sleep(0.002)

    async def unfreeze(self, spec: InstanceSpec) -> None:
        """Let them go on."""
        await self._thaw(self._require(spec), always=True)

    async def _thaw(self, running: RunningProcess, *, always: bool = False) -> None:
        if running.frozen or always:
            for pid in await asyncio.to_thread(lambda: list(running.pids())):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            running.frozen = False

    async def apply_limits(self, spec: InstanceSpec) -> None:
        """Do nothing: `info.features` says that there are no limits."""

    async def update_devices(self, spec: InstanceSpec) -> None:
        """There are no devices that could come and go."""

    # --- looking ---

    def status(self, spec: InstanceSpec) -> RunStatus:
        """Return only the status, at once."""
        running = self._find(spec)
        if running is None:
            return RunStatus.STOPPED
        stat = processes.stat_of(running.init.pid)
        stopped = stat is not None and stat.state == "T"  # frozen before this daemon began
        return RunStatus.FROZEN if running.frozen or stopped else RunStatus.RUNNING

    async def state(self, spec: InstanceSpec) -> RunState:
        """Return what is true now: sums over the living processes, from /proc."""
        running = self._find(spec)
        if running is None:
            return STOPPED
        stats = await asyncio.to_thread(lambda: [processes.stat_of(pid) for pid in running.pids()])
        living = [stat for stat in stats if stat is not None]
        return RunState(
            status=self.status(spec),
            init_pid=running.init.pid,
            started_at=running.init.started_at,
            processes=len(living),
            memory_usage_bytes=sum(stat.rss_bytes for stat in living),
            memory_peak_bytes=-1,
            memory_total_bytes=processes.memory_total_bytes(),
            cpu_ns=sum(stat.cpu_ns for stat in living),
            network=interfaces_of(running.init.pid) if running.mode == "namespaces" else None,
        )

    async def exec(self, spec: InstanceSpec, request: ExecRequest) -> ExecSession:
        """Run a command inside; returns once it runs. Raises BadRequestError, ExecError."""
        if self.status(spec) is RunStatus.FROZEN:
            raise BadRequestError("Instance is frozen")
        running = self._find(spec)
        if running is None:
            raise BadRequestError("Instance is not running")
        fields = [("mode", running.mode), ("init", str(running.init.pid)), ("rootfs", str(spec.rootfs))]
        session = await HelperExecSession.begin(helper_argv("process_helper", "exec"), fields, request)
        if running.mode != "namespaces":
            running.sessions.append(session)
        return session

    def watch(self, spec: InstanceSpec, on_exit: OnExit) -> None:
        """Call `on_exit` once when the running instance ends without `stop`."""
        running = self._find(spec)
        if running is not None:
            running.on_exit = on_exit
        else:
            on_exit(ExitNotice(spec.name, spec.project, 0))

    def unwatch(self, spec: InstanceSpec) -> None:
        """Forget the watch."""
        running = self._running.get(spec.instance_dir)
        if running is not None:
            running.on_exit = None

    # --- across restarts and names ---

    async def recover(self, specs: Sequence[InstanceSpec]) -> list[InstanceSpec]:
        """After a daemon restart: return those that still run, by their records."""
        await self._probe()
        alive = []
        for spec in specs:
            if self._find(spec) is not None:
                alive.append(spec)
            else:
                self._forget(spec)
            await asyncio.sleep(0)
        return alive

    async def rename(self, spec: InstanceSpec, new: InstanceSpec) -> None:
        """A stopped instance gets a new name or project."""
        if self._find(spec) is not None:
            raise InstanceBusyError("Renaming of running instance not allowed")
        mark(new.volume_dir if new.volume_dir.is_dir() else spec.volume_dir, "rename")
        for old, target in ((spec.instance_dir, new.instance_dir), (spec.log_dir, new.log_dir)):
            if old.exists() and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                old.rename(target)

    async def delete(self, spec: InstanceSpec) -> None:
        """Remove all that the driver keeps for a stopped instance. Idempotent."""
        if self._find(spec) is not None:
            raise InstanceBusyError("The instance is running")
        for directory in (spec.instance_dir, spec.log_dir):
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    async def close(self) -> None:
        """Free watches; instances go on."""
        for running in self._running.values():
            running.release()
        self._running.clear()

    # --- inside ---

    def _find(self, spec: InstanceSpec) -> RunningProcess | None:
        running = self._running.get(spec.instance_dir)
        if running is None:
            running = self._from_record(spec)
            if running is not None:
                self._running[spec.instance_dir] = running
        if running is not None and not running.refresh():
            running.release()
            self._running.pop(spec.instance_dir, None)
            return None
        return running

    def _from_record(self, spec: InstanceSpec) -> RunningProcess | None:
        try:
            record = json.loads((spec.instance_dir / _RECORD).read_text())
            monitor, init = ProcessIdentity(*record["monitor"]), ProcessIdentity(*record["init"])
            same_boot = record["boot_id"] == processes.boot_id()
            mode = str(record["mode"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if not same_boot or not monitor.alive():
            return None
        try:
            return RunningProcess(spec, monitor, init, mode)
        except ProcessLookupError:
            return None

    def _forget(self, spec: InstanceSpec) -> None:
        self._running.pop(spec.instance_dir, None)
        (spec.instance_dir / _RECORD).unlink(missing_ok=True)

    def _require(self, spec: InstanceSpec) -> RunningProcess:
        running = self._find(spec)
        if running is None:
            raise InstanceBusyError("The instance is not running")
        return running


def _stop_all(running: RunningProcess) -> list[int]:
    """Send SIGSTOP to all, return those not stopped yet. One in D waits for a stopped child (vfork)."""
    moving = []
    for pid in running.pids():
        stat = processes.stat_of(pid)
        if stat is not None and stat.state not in "TtDZX":
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
            moving.append(pid)
    return moving
