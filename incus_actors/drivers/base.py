"""The vocabulary between those who decide (actors, services) and those who touch the machine (drivers).

Owns the protocol InstanceDriver (StorageDriver: storage.py, ImageStore: images.py) and the frozen data all drivers share.
Called by InstanceActor and StorageActor. A driver must never touch the database, the network API or
another member; its errors are DriverError (ours) or a ClientError (theirs), with the text the user reads.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from incus_actors.errors import MemberError
from incus_actors.model.config_values import is_true

Config = Mapping[str, str]
Devices = Mapping[str, Mapping[str, str]]


class DriverError(MemberError):
    """The machine refused. `log_excerpt` holds the last lines of the driver's own log, for ours."""

    def __init__(self, message: str, *, log_excerpt: str = "", remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.log_excerpt = log_excerpt


class InstanceBusyError(DriverError):
    """It runs although it should not, or does not although it should ("The instance is already running")."""


class StopTimeoutError(DriverError):
    """A clean stop did not end in time; the instance still runs."""


# --- who may do what here ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a driver works on this machine, and if not why (one sentence for the user)."""

    available: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class DriverInfo:
    """What GET /1.0 tells: name, version and feature flags, as found on this machine."""

    name: str
    version: str
    features: Mapping[str, bool] = field(default_factory=dict)


# --- instances --------------------------------------------------------------------------------------------


class RunStatus(StrEnum):
    """Words of Incus; `code` is the number that goes with it."""

    RUNNING = "Running"
    STOPPED = "Stopped"
    FROZEN = "Frozen"
    STARTING = "Starting"
    STOPPING = "Stopping"
    ERROR = "Error"

    @property
    def code(self) -> int:
        """Return Incus' status code (CONTRACT 2.2)."""
        return _STATUS_CODES[self]


_STATUS_CODES = {
    RunStatus.RUNNING: 103,
    RunStatus.STOPPED: 102,
    RunStatus.FROZEN: 110,
    RunStatus.STARTING: 106,
    RunStatus.STOPPING: 107,
    RunStatus.ERROR: 112,
}


@dataclass(frozen=True, slots=True)
class IdMapEntry:
    """`size` ids from `container` on are `host`, `host`+1 ... outside."""

    kind: Literal["uid", "gid", "both"]
    container: int
    host: int
    size: int


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    """Everything a driver needs to know of one instance; made afresh for each call from the database.

    `instance_dir` (`<dir>/instances/<project>_<name>`) belongs to the driver and outlives a daemon, not the
    instance; `volume_dir` is the storage volume: `rootfs/`, `metadata.yaml`, `templates/`. `config` and
    `devices` are the expanded ones. `idmap` empty means: the driver's default map.
    """

    name: str
    project: str
    instance_dir: Path
    volume_dir: Path
    log_dir: Path
    config: Config = field(default_factory=dict)
    devices: Devices = field(default_factory=dict)
    architecture: str = "x86_64"
    ephemeral: bool = False
    idmap: tuple[IdMapEntry, ...] = ()

    @property
    def rootfs(self) -> Path:
        """Return the directory that the instance sees as /."""
        return self.volume_dir / "rootfs"

    @property
    def log_file(self) -> Path:
        """Return the driver's log of this instance (`GET …/logs/lxc.log`)."""
        return self.log_dir / "lxc.log"

    @property
    def privileged(self) -> bool:
        """Return whether root inside is root outside (security.privileged)."""
        return is_true(self.config.get("security.privileged"))

    @property
    def disk_name(self) -> str:
        """Return the name on disk: `name`, or `project_name` outside the default project."""
        return disk_name(self.project, self.name)


def disk_name(project: str, name: str) -> str:
    """Return the file name of an instance. Raises ValueError for names that could leave their directory."""
    for part in (project, name):
        if not part or part in {".", ".."} or "/" in part or "\0" in part or len(part) > 200:
            raise ValueError(f"unsafe name {part!r}")
    return name if project == "default" else f"{project}_{name}"


@dataclass(frozen=True, slots=True)
class NetworkAddress:
    """`netmask` is the prefix length in decimal; scope: global, link or local."""

    family: Literal["inet", "inet6"]
    address: str
    netmask: str
    scope: str


@dataclass(frozen=True, slots=True)
class NetworkInterface:
    """One interface as seen inside the instance; `counters` has the keys of Incus (bytes_received ...)."""

    name: str
    addresses: tuple[NetworkAddress, ...]
    counters: Mapping[str, int]
    hwaddr: str = ""
    host_name: str = ""
    mtu: int = 0
    state: str = "up"
    type: str = "broadcast"


@dataclass(frozen=True, slots=True)
class RunState:
    """One look at an instance. `-1` means not known (no such cgroup controller here)."""

    status: RunStatus
    init_pid: int = 0
    started_at: float = 0.0  #: seconds since the epoch; 0 if not running
    processes: int = 0
    memory_usage_bytes: int = 0
    memory_peak_bytes: int = 0
    memory_total_bytes: int = 0
    swap_usage_bytes: int = 0
    swap_peak_bytes: int = 0
    cpu_ns: int = 0
    cpu_allocated_ns: int = 0
    network: Mapping[str, NetworkInterface] | None = None
    disk_usage_bytes: Mapping[str, int] = field(default_factory=dict)


STOPPED = RunState(RunStatus.STOPPED)


@dataclass(frozen=True, slots=True)
class ExecRequest:
    """What to run inside. `environment` is complete (the driver adds nothing); width/height in characters.

    `ready`: awaited before the command begins, while what will run it is started already.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    uid: int = 0
    gid: int = 0
    cwd: str = "/"
    interactive: bool = False
    width: int = 80
    height: int = 24
    ready: Callable[[], Awaitable[object]] | None = None


class ExecError(DriverError):
    """The command could not be run: `exit_code` 127 "Command not found", 126 "Command not executable"."""

    def __init__(self, message: str, exit_code: int, *, log_excerpt: str = "") -> None:
        super().__init__(message, log_excerpt=log_excerpt)
        self.exit_code = exit_code


class ExecSession(Protocol):
    """A process running inside. With a pty `stdin` and `stdout` are the pty and `stderr` is None.

    Backpressure: write to `stdin` and `await stdin.drain()`; reading pauses by itself. `stdin.close()` is end
    of file (on a pty: nothing is sent, the terminal just is not written to any more).
    """

    interactive: bool
    stdin: asyncio.StreamWriter
    stdout: asyncio.StreamReader
    stderr: asyncio.StreamReader | None

    def resize(self, width: int, height: int) -> None:
        """Set the pty's size; nothing without one. Sizes no terminal has are cut to 0–65535."""

    def signal(self, number: int) -> None:
        """Send a signal to the process inside; nothing if it is gone. Raises ValueError if no signal."""

    async def wait(self) -> int:
        """Return the exit code: 0–255, 128+n if killed by signal n. All output is still to be read then."""

    async def close(self) -> None:
        """Kill the process if it still runs and free everything. Idempotent."""


@dataclass(frozen=True, slots=True)
class ExitNotice:
    """An instance ended by itself or by someone else than `stop` of this driver."""

    name: str
    project: str
    init_pid: int


OnExit = Callable[[ExitNotice], None]


@runtime_checkable
class InstanceDriver(Protocol):
    """Runs instances. One call at a time per instance (InstanceActor sees to it); `state` and `exec` any time."""

    info: DriverInfo

    def availability(self) -> Availability:
        """Return whether instances can be run here; looks, changes nothing."""

    def validate(self, spec: InstanceSpec) -> None:
        """Raise BadRequestError for config or devices that this driver cannot honour. Pure."""

    async def prepare(self, spec: InstanceSpec) -> None:
        """Make the volume fit to start (ownership of the root file system, directories). Idempotent."""

    async def start(self, spec: InstanceSpec) -> RunState:
        """Start, return once init runs. Raises InstanceBusyError "The instance is already running"."""

    async def stop(self, spec: InstanceSpec, *, timeout_s: float = -1, force: bool = False) -> None:
        """Stop and wait until every trace is gone. Raises InstanceBusyError "The instance is already stopped",
        StopTimeoutError. `timeout_s` -1 waits for 600 s at most (a clean stop only)."""

    async def freeze(self, spec: InstanceSpec) -> None:
        """Suspend every process inside."""

    async def unfreeze(self, spec: InstanceSpec) -> None:
        """Let them go on."""

    async def state(self, spec: InstanceSpec) -> RunState:
        """Return what is true now; STOPPED if it doesn't run. Cheap: starts no process."""

    def status(self, spec: InstanceSpec) -> RunStatus:
        """Return only the status, at once (for lists)."""

    async def exec(self, spec: InstanceSpec, request: ExecRequest) -> ExecSession:
        """Run a command inside once `request.ready` says so; returns when it runs. Raises BadRequestError "Instance is
        not running" / "Instance is frozen", ExecError with exit code 127 or 126 (the operation's text and `return`)."""

    def watch(self, spec: InstanceSpec, on_exit: OnExit) -> None:
        """Call `on_exit` once when the running instance ends without `stop`. Replaces an earlier watch."""

    def unwatch(self, spec: InstanceSpec) -> None:
        """Forget the watch."""

    async def recover(self, specs: Sequence[InstanceSpec]) -> list[InstanceSpec]:
        """After a daemon restart: return those that still run (verified: pid and start time)."""

    async def apply_limits(self, spec: InstanceSpec) -> None:
        """Make changed `limits.*` true for a running instance; nothing for a stopped one."""

    async def update_devices(self, spec: InstanceSpec) -> None:
        """Give a running instance the devices of `spec`, as far as they can come and go while it runs; nothing for a
        stopped one. Raises DriverError; what was done until then stays, so that the old spec leads back."""

    async def rename(self, spec: InstanceSpec, new: InstanceSpec) -> None:
        """A stopped instance gets a new name or project: move what the driver keeps for it."""

    async def delete(self, spec: InstanceSpec) -> None:
        """Remove all that the driver keeps for a stopped instance (not its volume). Idempotent."""

    async def close(self) -> None:
        """Free watches and helpers; instances go on."""


# --- transfers -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProgressReport:
    """Where a long transfer is. `percent` None: total not known."""

    processed_bytes: int
    percent: int | None
    speed_bytes: int  #: per second


Progress = Callable[[ProgressReport], None]


# --- storage ----------------------------------------------------------------------------------------------


ContentType = Literal["filesystem", "block", "iso"]


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """A pool on this member; `config["source"]` may name a directory."""

    name: str
    driver: str = "dir"
    config: Config = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VolumeSpec:
    """`kind`: container, virtual-machine, custom, image. On disk `<pool>/<kind>s/<disk_name>`."""

    pool: PoolSpec
    name: str
    project: str = "default"
    kind: str = "container"
    config: Config = field(default_factory=dict)
    content: ContentType = "filesystem"

    @property
    def disk_name(self) -> str:
        """Return the directory name. Names of custom volumes may hold "_", so theirs always begin with the project.

        Raises ValueError for names that could leave their directory.
        """
        if self.kind != "custom":
            return disk_name(self.project, self.name)
        found = f"{self.project}_{self.name}"
        if not self.name or not self.project or set("/\0\n") & set(found) or len(found.encode()) > 200:
            raise ValueError(f"unsafe name {self.name!r}")
        return found

    @property
    def label(self) -> str:
        """Return how messages name it."""
        return f'"{self.name}" in storage pool "{self.pool.name}"'


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes and inodes; total 0 means unknown."""

    used_bytes: int
    total_bytes: int
    used_inodes: int = 0
    total_inodes: int = 0


def exit_code_of(status: int) -> int:
    """Return 0–255 for a `subprocess` return code (negative = signal → 128+n)."""
    return 128 - status if status < 0 else status & 0xFF


STOP_TIMEOUT_DEFAULT_S = 600.0
HALT_SIGNAL_DEFAULT = signal.SIGPWR
