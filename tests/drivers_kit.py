"""What the driver tests share: a small image, a pool and instances that are always cleaned up."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from incus_actors.drivers.base import ExecRequest, InstanceDriver, InstanceSpec, PoolSpec, RunStatus, VolumeSpec
from incus_actors.drivers.image_files import ImageFileStore
from incus_actors.drivers.images import ImageFiles
from incus_actors.drivers.storage_dir import DirStorage

PATH = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


async def stream(data: bytes, size: int = 1 << 16) -> AsyncIterator[bytes]:
    """Yield `data` in pieces."""
    for at in range(0, len(data), size):
        yield data[at : at + size]


@dataclass
class Machine:
    """One daemon's worth of drivers under a temporary directory."""

    directory: Path
    driver: InstanceDriver
    image: ImageFiles
    store: ImageFileStore
    storage: DirStorage
    pool: PoolSpec = field(default_factory=lambda: PoolSpec("local"))
    specs: list[InstanceSpec] = field(default_factory=list)

    async def create(self, name: str, **config: str) -> InstanceSpec:
        """Return a stopped instance made from the image; `limits_memory` stands for `limits.memory`."""
        volume = await self.storage.create_volume(VolumeSpec(self.pool, name), self.image)
        spec = InstanceSpec(
            name,
            "default",
            self.directory / "instances" / name,
            volume,
            self.directory / "logs" / name,
            {key.replace("_", "."): value for key, value in config.items()},
        )
        self.specs.append(spec)
        return spec

    async def run(
        self, spec: InstanceSpec, *argv: str, stdin: bytes = b"", **options: object
    ) -> tuple[int, bytes, bytes]:
        """Run to the end; return exit code, stdout, stderr."""
        request = replace(ExecRequest(argv, PATH), **options)  # type: ignore[arg-type]
        session = await self.driver.exec(spec, request)
        try:
            session.stdin.write(stdin)
            await session.stdin.drain()
            if not request.interactive:
                session.stdin.close()
            output = await session.stdout.read()
            errors = await session.stderr.read() if session.stderr is not None else b""
            return await session.wait(), output, errors
        finally:
            await session.close()

    async def clean_up(self) -> None:
        """End and remove everything."""
        for spec in self.specs:
            if self.driver.status(spec) is not RunStatus.STOPPED:
                await self.driver.stop(spec, force=True)
            await self.driver.delete(spec)
            await self.storage.delete_volume(VolumeSpec(self.pool, spec.name))
        await self.driver.close()


def processes_naming(text: str) -> list[str]:
    """Return the command lines of living processes that hold `text`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if text in line:
                found.append(line)
    return found


def mounts_naming(text: str) -> list[str]:
    """Return the host's mounts that hold `text`."""
    return [line for line in Path("/proc/self/mounts").read_text().splitlines() if text in line]


def groups_naming(name: str) -> list[Path]:
    """Return control groups called `name` in any hierarchy."""
    done = subprocess.run(
        ["find", "/sys/fs/cgroup", "-type", "d", "-name", name], capture_output=True, text=True, check=False
    )
    return [Path(line) for line in done.stdout.splitlines()]


def first(items: Iterable[str], default: str = "") -> str:
    """Return the first of some."""
    return next(iter(items), default)
