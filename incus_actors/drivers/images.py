"""What a store of images can do, and what an image is once it is there.

Owns the protocol ImageStore. Implemented by image_files, called by ImagesActor and, for reading, by the drivers that unpack
images. A store must never touch the database or another member.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from incus_actors.drivers.base import Progress


@dataclass(frozen=True, slots=True)
class ImageTemplate:
    """One entry of `templates` in metadata.yaml; `path` is its key."""

    path: str
    template: str
    when: tuple[str, ...]
    create_only: bool = False
    properties: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImageMetadata:
    """metadata.yaml, validated. Times in seconds since the epoch, 0 = none."""

    architecture: str
    created_at: int
    expires_at: int = 0
    properties: Mapping[str, str] = field(default_factory=dict)
    templates: tuple[ImageTemplate, ...] = ()


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """An image in the store: unified (`rootfs` None) or split."""

    fingerprint: str
    metadata_file: Path
    rootfs_file: Path | None
    size_bytes: int
    rootfs_format: Literal["tar", "squashfs"]
    compression: str  #: "", gz, xz, bz2, zst, lzma of the unified or metadata file


@dataclass(frozen=True, slots=True)
class AddedImage:
    """The answer of ImageStore.add."""

    files: ImageFiles
    metadata: ImageMetadata


class ImageStore(Protocol):
    """Image files of this member, under `<dir>/images`. `fingerprint` is always the full one."""

    async def add(
        self,
        metadata: AsyncIterator[bytes],
        rootfs: AsyncIterator[bytes] | None = None,
        *,
        expected_fingerprint: str | None = None,
        progress: Progress | None = None,
        accept: Callable[[str], Awaitable[None]] | None = None,
    ) -> AddedImage:
        """Write, hash, validate, accept; nothing is left behind on failure. Raises BadRequestError with the
        reason. `accept(fingerprint)` is asked after hashing and may raise (already exists). `metadata` is
        read to its end before `rootfs` is begun. Adding what is there already is no error."""

    def get(self, fingerprint: str) -> ImageFiles | None:
        """Return the files if this member has them, complete."""

    async def delete(self, fingerprint: str) -> None:
        """Remove them. Idempotent."""

    async def reconcile(self, known: frozenset[str]) -> list[str]:
        """At start: remove leftovers of interrupted adds; return fingerprints on disk not in `known`."""
