"""What an image archive is: its compression by magic bytes, and its validated contents.

Owns sniffing and the helper that reads a whole archive before anyone unpacks it. Called by the image store and
the storage drivers; must never unpack, and never read archives in the daemon's process.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from incus_actors.drivers.base import DriverError
from incus_actors.drivers.child import Field, run_helper
from incus_actors.drivers.images import ImageMetadata, ImageTemplate
from incus_actors.errors import BadRequestError

Kind = Literal["tar", "squashfs"]
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "gz"),
    (b"BZh", "bz2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zst"),
    (b"\x5d\x00\x00", "lzma"),
)
_TAR_MAGIC_AT = 257

#: How tar and the helper read each: program that decompresses stdin to stdout, tar's own option.
DECOMPRESSORS: dict[str, tuple[list[str], list[str]]] = {
    "": ([], []),
    "gz": (["gzip", "-dc"], ["--gzip"]),
    "bz2": (["bzip2", "-dc"], ["--bzip2"]),
    "xz": (["xz", "-dc"], ["--xz"]),
    "lzma": (["xz", "--format=lzma", "-dc"], ["--lzma"]),
    "zst": (["zstd", "-dcq"], ["--zstd"]),
}


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """Bounds against decompression bombs. `ratio_max` counts only beyond `ratio_from_bytes`."""

    unpacked_bytes_max: int = 64 << 30
    entries_max: int = 5_000_000
    metadata_bytes_max: int = 1 << 20
    ratio_max: int = 250
    ratio_from_bytes: int = 1 << 30


DEFAULT_LIMITS = ArchiveLimits()


def sniff(path: Path) -> tuple[Kind, str]:
    """Return (tar, compression) or (squashfs, ""). Raises BadRequestError "Unsupported compression"."""
    with path.open("rb") as file:
        head = file.read(_TAR_MAGIC_AT + 8)
    if head.startswith((b"hsqs", b"sqsh")):
        return "squashfs", ""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return "tar", name
    if head[_TAR_MAGIC_AT : _TAR_MAGIC_AT + 5] == b"ustar":
        return "tar", ""
    raise BadRequestError("Unsupported compression")


async def validate(
    metadata: Path, rootfs: Path | None, *, limits: ArchiveLimits = DEFAULT_LIMITS, timeout_s: float = 900.0
) -> ImageMetadata:
    """Read the archive(s) to the end in a helper; return what metadata.yaml says.

    Raises BadRequestError naming the entry and what is wrong with it.
    """
    kind, compression = sniff(metadata)
    if kind != "tar":
        raise BadRequestError("Invalid image: the metadata is no tarball")
    fields: list[Field] = [
        ("metadata", str(metadata)),
        *(("metadata_decompress", word) for word in DECOMPRESSORS[compression][0]),
        ("yaml", _yaml_directory()),
        *((name, str(getattr(limits, name))) for name in ArchiveLimits.__dataclass_fields__),
    ]
    if rootfs is not None:
        kind, compression = sniff(rootfs)
        fields += [("rootfs", str(rootfs)), ("rootfs_kind", kind)]
        fields += [("rootfs_decompress", word) for word in DECOMPRESSORS[compression][0]]
    try:
        answer = await run_helper("archive_helper", [], fields, timeout_s=timeout_s)
    except TimeoutError as error:
        raise BadRequestError("Invalid image: it takes too long to read") from error
    if "invalid" in answer:
        raise BadRequestError(answer["invalid"])
    return _metadata(answer)


def _metadata(answer: dict[str, str]) -> ImageMetadata:
    properties = {}
    templates = []
    for key, value in answer.items():
        word, _, name = key.partition(":")
        if word == "property":
            properties[name] = value
        elif word == "template":
            source, create_only, *when = value.split("\n")
            prefix = f"template_property:{name}:"
            options = {word.removeprefix(prefix): text for word, text in answer.items() if word.startswith(prefix)}
            templates.append(ImageTemplate(name, source, tuple(when), create_only == "1", options))
    return ImageMetadata(
        architecture=answer["architecture"],
        created_at=int(answer["created_at"]),
        expires_at=int(answer["expires_at"]),
        properties=properties,
        templates=tuple(templates),
    )


def _yaml_directory() -> str:
    found = importlib.util.find_spec("yaml")
    if found is None or found.origin is None:
        raise DriverError("PyYAML is not installed")
    return str(Path(found.origin).parent.parent)
