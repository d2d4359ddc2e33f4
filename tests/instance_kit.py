"""Members that can have instances: real consensus, database, actors, dir storage and image files; instances live in a
dictionary (MemoryDriver), so that tests decide when they start, hang, die or fail."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import random
import tarfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import msgspec
from cluster_kit import Server, servers, until

from incus_actors.actors.actor import ChildSpec
from incus_actors.actors.host import IMAGES_PATH, INSTANCES_PATH, STATES_PATH, STORAGE_PATH, Host
from incus_actors.actors.images import ImagesActor, IncomingImage
from incus_actors.actors.instance_states import InstanceStatesActor
from incus_actors.actors.instances import InstancesSupervisor
from incus_actors.actors.storage import StorageActor
from incus_actors.domain.placement import Candidate
from incus_actors.drivers.base import (
    Availability,
    DriverError,
    DriverInfo,
    ExecError,
    ExecRequest,
    ExitNotice,
    InstanceBusyError,
    InstanceSpec,
    OnExit,
    PoolSpec,
    RunState,
    RunStatus,
    StopTimeoutError,
    exit_code_of,
)
from incus_actors.drivers.image_files import ImageFileStore
from incus_actors.drivers.storage_dir import DirStorage
from incus_actors.gateway.access import Access
from incus_actors.gateway.events import EventHub
from incus_actors.gateway.operations import Operations
from incus_actors.gateway.routing import Routing
from incus_actors.model.images import ImageAliasPost
from incus_actors.model.instances import InstanceSource, InstancesPost
from incus_actors.model.transaction import Statement, Transaction
from incus_actors.rest import exec_routes, image_routes, instance_routes, operation_routes
from incus_actors.rest.app import build_app
from incus_actors.rest.context import Gateway
from incus_actors.rest.listeners import Listeners
from incus_actors.services import instance_use_cases, volume_use_cases
from incus_actors.services.images import Upload
from incus_actors.services.volume_streams import StreamRequest

METADATA = b"architecture: x86_64\ncreation_date: 1795221957\nproperties:\n  description: Tiny\n  os: Tiny\n"


class LocalSession:
    """drivers.base.ExecSession of a process of this very machine."""

    interactive = False

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process = process
        self.stdin, self.stdout, self.stderr = process.stdin, process.stdout, process.stderr
        self.resized: list[tuple[int, int]] = []

    def resize(self, width: int, height: int) -> None:
        self.resized.append((width, height))

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    async def wait(self) -> int:
        return exit_code_of(await self.process.wait())

    async def close(self) -> None:
        self.signal(9)
        await self.process.wait()


@dataclass
class MemoryDriver:
    """drivers.base.InstanceDriver whose instances are entries of `running`. `fail[method]` is raised once."""

    info: DriverInfo = field(default_factory=lambda: DriverInfo("memory", "1"))
    running: dict[str, RunStatus] = field(default_factory=dict)
    fail: dict[str, Exception] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    watches: dict[str, OnExit] = field(default_factory=dict)
    devices: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)  #: last given to a running one
    obeys: bool = True  #: whether instances end when they are asked to
    hold: dict[str, asyncio.Event] = field(default_factory=dict)  #: method → it waits for this

    def availability(self) -> Availability:
        return Availability(True)

    async def _call(self, method: str, spec: InstanceSpec) -> None:
        self.calls.append(f"{method} {spec.disk_name}")
        if method in self.hold:
            await self.hold[method].wait()
        if method in self.fail:
            raise self.fail.pop(method)

    def validate(self, spec: InstanceSpec) -> None:
        if "validate" in self.fail:
            raise self.fail.pop("validate")

    async def prepare(self, spec: InstanceSpec) -> None:
        await self._call("prepare", spec)

    async def start(self, spec: InstanceSpec) -> RunState:
        await self._call("start", spec)
        if spec.disk_name in self.running:
            raise InstanceBusyError("The instance is already running")
        self.running[spec.disk_name] = RunStatus.RUNNING
        return RunState(RunStatus.RUNNING, init_pid=1000)

    async def stop(self, spec: InstanceSpec, *, timeout_s: float = -1, force: bool = False) -> None:
        await self._call("kill" if force else "stop", spec)
        if spec.disk_name not in self.running:
            raise InstanceBusyError("The instance is already stopped")
        if not force and not self.obeys:
            if timeout_s < 0:
                await asyncio.Event().wait()
            raise StopTimeoutError('Failed shutting down instance, status is "Running": context deadline exceeded')
        del self.running[spec.disk_name]

    async def freeze(self, spec: InstanceSpec) -> None:
        await self._call("freeze", spec)
        self.running[spec.disk_name] = RunStatus.FROZEN

    async def unfreeze(self, spec: InstanceSpec) -> None:
        await self._call("unfreeze", spec)
        self.running[spec.disk_name] = RunStatus.RUNNING

    async def state(self, spec: InstanceSpec) -> RunState:
        if "state" in self.fail:
            raise self.fail.pop("state")
        return RunState(self.status(spec), init_pid=1000, started_at=1.5, memory_usage_bytes=4096, processes=3)

    def status(self, spec: InstanceSpec) -> RunStatus:
        return self.running.get(spec.disk_name, RunStatus.STOPPED)

    async def exec(self, spec: InstanceSpec, request: ExecRequest) -> LocalSession:
        if request.ready is not None:
            await request.ready()
        await self._call("exec", spec)
        try:
            process = await asyncio.create_subprocess_exec(
                *request.argv, env=dict(request.environment), stdin=-1, stdout=-1, stderr=-1
            )
        except FileNotFoundError:
            raise ExecError("Command not found", 127) from None
        return LocalSession(process)

    def watch(self, spec: InstanceSpec, on_exit: OnExit) -> None:
        self.watches[spec.disk_name] = on_exit

    def unwatch(self, spec: InstanceSpec) -> None:
        self.watches.pop(spec.disk_name, None)

    async def recover(self, specs: Any) -> list[InstanceSpec]:
        return [spec for spec in specs if spec.disk_name in self.running]

    async def apply_limits(self, spec: InstanceSpec) -> None:
        await self._call("apply_limits", spec)

    async def update_devices(self, spec: InstanceSpec) -> None:
        await self._call("update_devices", spec)
        self.devices[spec.disk_name] = {name: dict(device) for name, device in spec.devices.items()}

    async def rename(self, spec: InstanceSpec, new: InstanceSpec) -> None:
        await self._call("rename", spec)

    async def delete(self, spec: InstanceSpec) -> None:
        await self._call("delete", spec)

    async def close(self) -> None:
        self.watches.clear()

    def die(self, name: str) -> None:
        """The instance ends by itself."""
        del self.running[name]
        watch = self.watches.pop(name, None)
        if watch is not None:
            watch(ExitNotice(name, "default", 1000))


class KnownMembers:
    """services.instances.Members: as the database has them; `offline` ids are not online."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.offline: set[int] = set()

    def online(self, member_id: int) -> bool:
        return member_id not in self.offline

    def candidates(self) -> list[Candidate]:
        rows = self.machine.database.query(
            "SELECT n.id, n.name, n.state, (SELECT COUNT(*) FROM instances i WHERE i.node_id = n.id) AS instances"
            " FROM nodes n WHERE n.state <> 1 ORDER BY n.id"
        )
        return [
            Candidate(
                member_id=row["id"],
                name=row["name"],
                instances=row["instances"],
                online=self.online(row["id"]),
                state=row["state"],
                architectures=frozenset({"x86_64"}),
            )
            for row in rows
        ]


class Machine:
    """One member with drivers, actors and services."""

    def __init__(self, server: Server, everybody: list[Machine]) -> None:
        self.server = server
        self.everybody = everybody
        self.driver = MemoryDriver()
        self.storage = DirStorage(server.directory)
        self.images = ImageFileStore(server.directory / "images")
        self.events: list[tuple[str, str, dict[str, Any]]] = []
        self.fetches: list[int] = []
        self.members = KnownMembers(self)
        self.host = Host(
            directory=server.directory,
            consensus=lambda: server.consensus,
            database=lambda: server.database,
            member_id=lambda: server.consensus.member_id,
            location=lambda: server.identity.location,
            driver=self.driver,
            storage={"dir": self.storage},
            images=self.images,
            lifecycle=self._lifecycle,
        )
        self.instances, self.image_service = instance_use_cases.build(
            self.host,
            server.actors,
            self.members,
            clustered=lambda: server.identity.clustered,
            rng=random.Random(7),
        )
        self.volumes = volume_use_cases.build(
            self.host, server.actors, server.identity, self.fetch_volume, lambda: "gzip"
        )
        everybody.append(self)

    @property
    def database(self) -> Any:
        return self.server.database

    def _lifecycle(self, action: str, source: str, **rest: Any) -> None:
        self.events.append((action, source, rest))

    @property
    def actions(self) -> list[str]:
        """What lifecycle events said, in order."""
        return [action for action, _, _ in self.events]

    @asynccontextmanager
    async def fetch(self, member_id: int, fingerprint: str) -> AsyncIterator[IncomingImage]:
        """actors.images.ImageFetcher out of another machine's store."""
        self.fetches.append(member_id)
        other = next(m for m in self.everybody if m.server.consensus.member_id == member_id)
        files = other.images.get(fingerprint)
        if files is None:
            raise DriverError("it isn't there")
        rootfs = None if files.rootfs_file is None else chunks(files.rootfs_file.read_bytes())
        yield IncomingImage(chunks(files.metadata_file.read_bytes()), rootfs)

    @asynccontextmanager
    async def fetch_volume(self, member_id: int, request: StreamRequest) -> AsyncIterator[AsyncIterator[bytes]]:
        """services.volume_streams.VolumeFetcher out of another machine."""
        other = next(m for m in self.everybody if m.server.consensus.member_id == member_id)
        async with other.volumes.sender.local(request) as chunks:
            yield chunks

    async def start(self) -> None:
        """Start the actors, as the daemon does."""
        for spec in (
            ChildSpec(STORAGE_PATH, lambda: StorageActor(self.host)),
            ChildSpec(IMAGES_PATH, lambda: ImagesActor(self.host, self.fetch)),
            ChildSpec(INSTANCES_PATH, lambda: InstancesSupervisor(self.host)),
            ChildSpec(STATES_PATH, lambda: InstanceStatesActor(self.host)),
        ):
            await self.server.actors.start_child(spec)

    async def stop(self) -> None:
        """Stop them, as a killed daemon would."""
        for path in (STATES_PATH, INSTANCES_PATH, IMAGES_PATH, STORAGE_PATH):
            await self.server.actors.stop_child(path)

    async def restart(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """The daemon dies and comes again."""
        await self.stop()
        meanwhile()
        await self.start()

    async def execute(self, sql: str, *params: Any, topic: str = "instances") -> None:
        """Change the state behind everybody's back."""
        outcome = await self.server.consensus.propose(Transaction((Statement(sql, params),), (), (topic,)))
        assert outcome.applied, outcome

    async def add_pool(self, name: str = "local") -> None:
        """A dir pool on this member, in the default profile."""
        config = await self.storage.create_pool(PoolSpec(name))
        own = self.server.consensus.member_id
        if not self.database.scalar("SELECT COUNT(*) FROM storage_pools WHERE name = ?", (name,)):
            await self.execute("INSERT INTO storage_pools (name, driver, state) VALUES (?, 'dir', 1)", name)
            await self.execute("INSERT INTO profiles_devices (profile_id, name, type) VALUES (1, 'root', 2)")
            for key, value in (("path", "/"), ("pool", name)):
                await self.execute(
                    "INSERT INTO profiles_devices_config (profile_device_id, key, value) VALUES (1, ?, ?)", key, value
                )
        await self.execute(
            "INSERT INTO storage_pools_nodes (storage_pool_id, node_id, state) VALUES"
            " ((SELECT id FROM storage_pools WHERE name = ?), ?, 1)",
            name,
            own,
        )
        for key, value in config.items():
            await self.execute(
                "INSERT INTO storage_pools_config (storage_pool_id, node_id, key, value) VALUES"
                " ((SELECT id FROM storage_pools WHERE name = ?), ?, ?, ?)",
                name,
                own,
                key,
                value,
            )

    async def add_image(self, alias: str = "tiny", *, content: bytes = b"x") -> str:
        """Import a small unified image; return its fingerprint."""
        upload = Upload("default", chunks(unified(content)), None, found=lambda _f, _s: None, filename="tiny.tar.gz")
        fingerprint = await self.image_service.add(upload)
        if alias:
            await self.image_service.create_alias("default", ImageAliasPost(name=alias, target=fingerprint))
        return fingerprint

    async def create(self, name: str = "c1", **fields: Any) -> None:
        """Create an instance as the REST handler does."""
        post = InstancesPost(**{"source": InstanceSource(type="image", alias="tiny"), "name": name, **fields})
        self.instances.creator.check("default", post)
        await self.instances.creator.create("default", post, ignore)

    def volume(self, name: str) -> Path:
        """Where the root volume of an instance is."""
        return self.server.directory / "storage-pools" / "local" / "containers" / name

    def config(self, name: str) -> dict[str, str]:
        """The config rows of an instance, hidden ones too."""
        rows = self.database.query(
            "SELECT key, value FROM instances_config c JOIN instances i ON i.id = c.instance_id WHERE i.name = ?",
            (name,),
        )
        return {row[0]: row[1] for row in rows}

    def exists(self, name: str) -> bool:
        """Whether there is a row."""
        return bool(self.database.scalar("SELECT COUNT(*) FROM instances WHERE name = ?", (name,)))


class Api:
    """The REST API of a machine on a unix socket, with little helpers."""

    def __init__(self, session: aiohttp.ClientSession, gateway: Gateway) -> None:
        self.session = session
        self.gateway = gateway

    async def __call__(self, method: str, path: str, body: Any = None, **rest: Any) -> tuple[int, Any]:
        """Return status and metadata, or status and error text; an operation is waited for: its end instead."""
        if body is not None:
            given = isinstance(body, (bytes, aiohttp.FormData))
            rest["data"] = body if given else msgspec.json.encode(body)
            if not given:
                rest["headers"] = {"Content-Type": "application/json", **rest.get("headers", {})}
        async with self.session.request(method, path, **rest) as response:
            answer = await response.json(content_type=None)
        if answer["type"] == "async":
            return await self.end_of(answer["metadata"]["id"])
        return response.status, answer["error"] if answer["type"] == "error" else answer["metadata"]

    async def end_of(self, operation_id: str) -> tuple[int, Any]:
        """Return status code and object of a finished operation."""
        operation = self.gateway.operations.get(operation_id)
        assert operation is not None
        await operation.wait(20)
        return operation.status_code, operation.render()


@asynccontextmanager
async def served(machine: Machine) -> AsyncIterator[Api]:
    """Serve the instance, exec, image and operation routes of a machine."""
    server = machine.server
    location = lambda: server.identity.location  # noqa: E731
    events = EventHub(location=location)
    operations = Operations(events, member_id=lambda: server.consensus.member_id, location=location)
    nothing: Any = None
    services = SimpleNamespace(instances=machine.instances, images=machine.image_service)
    gateway = Gateway(
        settings=nothing,
        identity=server.identity,
        access=Access(list),
        operations=operations,
        events=events,
        forwarder=SimpleNamespace(stand_in=lambda: 0),  # type: ignore[arg-type]
        routing=Routing(database=lambda: server.database, member_id=lambda: server.consensus.member_id),
        consensus=server.consensus,
        database=server.database,
        services=services,  # type: ignore[arg-type]
        shutdown=nothing,
        exit=nothing,
        phase="ready",
    )
    modules = (instance_routes, exec_routes, image_routes, operation_routes)
    listeners = Listeners(build_app(gateway, [route for module in modules for route in module.routes()]))
    await listeners.start()
    socket = server.directory / "unix.socket"
    await listeners.open_unix(socket)
    connector = aiohttp.UnixConnector(str(socket), force_close=True)
    try:
        async with aiohttp.ClientSession("http://unix.socket", connector=connector) as session:
            yield Api(session, gateway)
    finally:
        await operations.stop(timeout_s=1)
        events.close()
        await listeners.close()


def ignore(_stage: str, _percent: int | None, _speed: int | None, _text: str) -> None:
    """A Report that nobody reads."""


async def chunks(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    """A body in pieces."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


def unified(content: bytes = b"x", metadata: bytes = METADATA) -> bytes:
    """The bytes of a small unified image: the same every time."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        _add(archive, "metadata.yaml", metadata)
        for directory in ("rootfs", "rootfs/etc"):
            info = tarfile.TarInfo(directory)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(info)
        _add(archive, "rootfs/etc/content", content)
    return gzip.compress(buffer.getvalue(), mtime=0)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    archive.addfile(info, io.BytesIO(content))


@asynccontextmanager
async def machines(directory: Path, count: int = 1, *, clustered: bool = False) -> AsyncIterator[list[Machine]]:
    """Members with a pool each and everything started."""
    async with servers(directory, count, clustered=clustered) as found:
        everybody: list[Machine] = []
        for server in found:
            machine = Machine(server, everybody)
            await machine.add_pool()
            await machine.start()
        yield everybody


__all__ = ["Machine", "MemoryDriver", "chunks", "ignore", "machines", "served", "unified", "until"]
