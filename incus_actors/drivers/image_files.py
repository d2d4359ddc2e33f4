"""The image files of one member: `<fingerprint>` and, for split images, `<fingerprint>.rootfs`.

Owns the directory `<dir>/images`. Called by the image service; must never show an image that is not complete,
checked and on stable storage.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from incus_actors.drivers import image_archive
from incus_actors.drivers.base import DriverError, Progress, ProgressReport
from incus_actors.drivers.images import AddedImage, ImageFiles
from incus_actors.errors import BadRequestError

_INCOMING = "incoming-"
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_BATCH_BYTES = 1 << 20
_REPORT_EVERY_S = 0.5


class ImageFileStore:
    """The ImageStore of a member. `size_bytes_max` bounds one upload (both files together)."""

    def __init__(
        self,
        directory: Path,
        *,
        size_bytes_max: int = 64 << 30,
        limits: image_archive.ArchiveLimits = image_archive.DEFAULT_LIMITS,
    ) -> None:
        self._directory = directory
        self._size_bytes_max = size_bytes_max
        self._limits = limits

    async def add(
        self,
        metadata: AsyncIterator[bytes],
        rootfs: AsyncIterator[bytes] | None = None,
        *,
        expected_fingerprint: str | None = None,
        progress: Progress | None = None,
        accept: Callable[[str], Awaitable[None]] | None = None,
    ) -> AddedImage:
        """Write, hash, validate, accept; see ImageStore.add."""
        self._directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        incoming = self._directory / f"{_INCOMING}{uuid.uuid4().hex}"
        incoming_rootfs = incoming.with_suffix(".rootfs")
        try:
            receiver = _Receiver(self._size_bytes_max, progress)
            await receiver.write(metadata, incoming)
            if rootfs is not None:
                await receiver.write(rootfs, incoming_rootfs)
            fingerprint = receiver.fingerprint()
            if expected_fingerprint is not None and fingerprint != expected_fingerprint:
                raise BadRequestError(
                    f"Image fingerprint doesn't match. Got {fingerprint} expected {expected_fingerprint}"
                )
            if accept is not None:
                await accept(fingerprint)
            parsed = await image_archive.validate(
                incoming, incoming_rootfs if rootfs is not None else None, limits=self._limits
            )
            await asyncio.to_thread(self._publish, incoming, incoming_rootfs if rootfs else None, fingerprint)
        except OSError as error:
            raise DriverError(f"Failed to store the image: {error.strerror or error}") from error
        finally:
            for path in (incoming, incoming_rootfs):
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
        files = self.get(fingerprint)
        if files is None:
            raise DriverError(f"The image {fingerprint} vanished from {self._directory}")
        return AddedImage(files, parsed)

    def _publish(self, incoming: Path, incoming_rootfs: Path | None, fingerprint: str) -> None:
        target = self._directory / fingerprint
        if incoming_rootfs is not None:
            incoming_rootfs.replace(self._rootfs(fingerprint))
        incoming.replace(target)  # last: with it the image exists
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _rootfs(self, fingerprint: str) -> Path:
        return self._directory / f"{fingerprint}.rootfs"

    def get(self, fingerprint: str) -> ImageFiles | None:
        """Return the files if this member has them, complete. Raises ValueError for no fingerprint."""
        if not _FINGERPRINT.fullmatch(fingerprint):
            raise ValueError(f"{fingerprint!r} is no fingerprint")
        metadata = self._directory / fingerprint
        if not metadata.is_file():
            return None
        try:
            return self._read(fingerprint, metadata)
        except FileNotFoundError:  # deleted meanwhile
            return None

    def _read(self, fingerprint: str, metadata: Path) -> ImageFiles:
        rootfs: Path | None = self._rootfs(fingerprint)
        size = metadata.stat().st_size
        kind, compression = image_archive.sniff(metadata)
        if rootfs is not None and rootfs.is_file():
            size += rootfs.stat().st_size
            kind = image_archive.sniff(rootfs)[0]
        else:
            rootfs = None
        return ImageFiles(fingerprint, metadata, rootfs, size, kind, compression)

    async def delete(self, fingerprint: str) -> None:
        """Remove them. Idempotent."""
        if not _FINGERPRINT.fullmatch(fingerprint):
            raise ValueError(f"{fingerprint!r} is no fingerprint")
        for path in (self._directory / fingerprint, self._rootfs(fingerprint)):
            await asyncio.to_thread(path.unlink, missing_ok=True)

    async def reconcile(self, known: frozenset[str]) -> list[str]:
        """At start: remove leftovers of interrupted adds; return fingerprints on disk not in `known`."""
        return await asyncio.to_thread(self._reconcile, known)

    def _reconcile(self, known: frozenset[str]) -> list[str]:
        if not self._directory.is_dir():
            return []
        names = {entry.name for entry in self._directory.iterdir()}
        for name in names:
            stem = name.removesuffix(".rootfs")
            orphan = name.endswith(".rootfs") and stem not in names and _FINGERPRINT.fullmatch(stem)
            if name.startswith(_INCOMING) or orphan:
                (self._directory / name).unlink(missing_ok=True)
        return sorted(name for name in names if _FINGERPRINT.fullmatch(name) and name not in known)


class _Receiver:
    """Writes streams to files in a worker thread, a batch at a time, and hashes all of them together."""

    def __init__(self, size_bytes_max: int, progress: Progress | None) -> None:
        self._hash = hashlib.sha256()
        self._total = 0
        self._max = size_bytes_max
        self._progress = progress
        self._loop = asyncio.get_running_loop()
        self._began = self._reported = self._loop.time()

    def fingerprint(self) -> str:
        """Return the SHA-256 of all bytes so far."""
        return self._hash.hexdigest()

    async def write(self, source: AsyncIterator[bytes], path: Path) -> None:
        """Write to the end and sync. Raises BadRequestError when too large or empty, OSError."""
        begin = self._total
        with path.open("xb") as file:
            batch: list[bytes] = []
            size = 0
            async for chunk in source:
                batch.append(chunk)
                size += len(chunk)
                if size >= _BATCH_BYTES:
                    await asyncio.to_thread(self._store, file.write, b"".join(batch))
                    batch, size = [], 0
                    self._report()
            await asyncio.to_thread(self._store, file.write, b"".join(batch))
            await asyncio.to_thread(_sync, file.fileno(), file.flush)
        if self._total == begin:
            raise BadRequestError("Invalid image: it is empty")
        self._report(final=True)

    def _store(self, write: Callable[[bytes], object], data: bytes) -> None:
        self._total += len(data)
        if self._total > self._max:
            raise BadRequestError(f"Invalid image: it is larger than {self._max >> 20} MiB")
        self._hash.update(data)
        write(data)

    def _report(self, *, final: bool = False) -> None:
        now = self._loop.time()
        if self._progress is not None and (final or now - self._reported >= _REPORT_EVERY_S):
            self._reported = now
            speed = int(self._total / max(now - self._began, 1e-3))
            self._progress(ProgressReport(self._total, None, speed))


def _sync(descriptor: int, flush: Callable[[], None]) -> None:
    flush()
    os.fsync(descriptor)
