"""Reads image archives from beginning to end and refuses what must not be unpacked as root.

Owns the rules for entries (names, links, devices, sizes) and for metadata.yaml. Executed by
drivers/image_archive.py with low priority; must never write anything, nor keep an entry's bytes in memory other
than metadata.yaml.
"""

# ruff: noqa: PTH116, PTH123
# names of archives, not paths of ours

import contextlib
import os
import posixpath
import socket
import subprocess
import sys
import tarfile
from typing import IO, Any

Fields = list[tuple[str, str]]

ARCHITECTURES = {
    "i686": ("i386", "i486", "i586"),
    "x86_64": ("amd64",),
    "armv7l": ("armhf", "armel", "arm"),
    "aarch64": ("arm64",),
    "ppc": ("powerpc",),
    "ppc64": ("powerpc64",),
    "ppc64le": ("ppc64el",),
    "s390x": (),
    "mips": (),
    "mips64": (),
    "riscv32": (),
    "riscv64": (),
    "loongarch64": (),
    "armv6l": (),
    "armv8l": (),
}
BLOCK = 512


class InvalidImageError(Exception):
    """What the user reads."""


class Tail:
    """A stream that remembers its last block and counts: a good tar ends in zeros, a bomb never ends."""

    def __init__(self, source: IO[bytes], check: Any) -> None:
        self.source = source
        self.last = b""
        self.total = 0
        self.check = check

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes."""
        data = self.source.read(size)
        if data:
            self.last = (self.last + data)[-BLOCK:] if len(data) < BLOCK else data[-BLOCK:]
            self.total += len(data)
            self.check(self.total)
        return data


class Archive:
    """One tarball. `inside` is the prefix below which files of the instance are ("rootfs/" or "")."""

    def __init__(self, path: str, decompress: list[str], limits: dict[str, int], inside: str) -> None:
        self.path = path
        self.decompress = decompress
        self.limits = limits
        self.inside = inside
        self.size = os.stat(path).st_size
        self.links: set[str] = set()
        self.names: set[str] = set()
        self.metadata: bytes | None = None
        self.has_inside = False
        self.files_inside = False

    def check_size(self, total: int) -> None:
        """Raise for a bomb."""
        if total > self.limits["unpacked_bytes_max"]:
            raise InvalidImageError(
                f"Invalid image: it unpacks to more than {self.limits['unpacked_bytes_max'] >> 20} MiB"
            )
        if total > self.limits["ratio_from_bytes"] and total > self.size * self.limits["ratio_max"]:
            raise InvalidImageError(f"Invalid image: it unpacks to more than {self.limits['ratio_max']} times its size")

    def read(self) -> None:
        """Read to the end. Raises InvalidImageError."""
        with open(self.path, "rb") as file:
            if not self.decompress:
                self.read_tar(file)
                return
            try:
                process = subprocess.Popen(
                    self.decompress, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
                )
            except FileNotFoundError:
                raise InvalidImageError(f"{self.decompress[0]} is not installed on this server") from None
            assert process.stdout is not None
            try:
                self.read_tar(process.stdout)
                if process.wait() != 0:
                    raise InvalidImageError("Invalid image: the archive is broken or truncated")
            finally:
                process.kill()
                process.wait()

    def read_tar(self, stream: IO[bytes]) -> None:
        """Check every entry, and that the archive has a proper end."""
        tail = Tail(stream, self.check_size)
        try:
            with tarfile.open(fileobj=tail, mode="r|", encoding="utf-8", errors="surrogateescape") as archive:  # type: ignore[call-overload]
                for entry in archive:
                    self.check(entry)
                    if len(self.names) > self.limits["entries_max"]:
                        raise InvalidImageError("Invalid image: it has too many entries")
                    if entry.name.removeprefix("./") == "metadata.yaml" and self.metadata is None:
                        self.keep_metadata(archive, entry)
                    archive.members.clear()
        except (tarfile.TarError, EOFError, ValueError, OverflowError):
            raise InvalidImageError("Invalid image: the archive is broken or truncated") from None
        while tail.read(1 << 16):
            pass
        if not self.names or tail.last.strip(b"\0"):
            raise InvalidImageError("Invalid image: the archive is broken or truncated")

    def keep_metadata(self, archive: tarfile.TarFile, entry: tarfile.TarInfo) -> None:
        """Read metadata.yaml."""
        if not entry.isreg() or entry.size > self.limits["metadata_bytes_max"]:
            raise InvalidImageError("Invalid image: metadata.yaml is no small file")
        content = archive.extractfile(entry)
        self.metadata = content.read() if content is not None else b""

    def check(self, entry: tarfile.TarInfo) -> None:
        """Raise InvalidImageError if this entry must not be unpacked."""
        shown = entry.name.encode("utf-8", "replace").decode()
        if entry.name.startswith("/"):
            raise InvalidImageError(f'Invalid image: entry "{shown}" has an absolute name')
        if ".." in entry.name.split("/") or "\0" in entry.name:
            raise InvalidImageError(f'Invalid image: entry "{shown}" leaves the archive')
        name = posixpath.normpath(entry.name)
        parent = name
        while parent := posixpath.dirname(parent):
            if parent in self.links:
                raise InvalidImageError(f'Invalid image: entry "{shown}" passes through a symbolic link')
        inside = self.is_inside(name)
        self.has_inside |= inside
        self.check_type(entry, name, shown, inside)
        if entry.issym() or (entry.islnk() and posixpath.normpath(entry.linkname) in self.links):
            self.links.add(name)  # a hard link to a symbolic link is a second link of the same text
        elif not entry.isdir():  # whether a directory takes the place of a link is up to the unpacker
            self.links.discard(name)
        self.names.add(name)
        if inside and name != self.inside.rstrip("/"):
            self.files_inside = True

    def is_inside(self, name: str) -> bool:
        """Return whether a normal name is a file of the instance."""
        return not self.inside or name == self.inside.rstrip("/") or name.startswith(self.inside)

    def check_type(self, entry: tarfile.TarInfo, name: str, shown: str, inside: bool) -> None:
        """Raise for links that escape, device nodes and unknown types. What is not the instance's (metadata.yaml,
        templates) is read and written by the daemon on the host: plain files, nothing that blocks or points away."""
        if entry.ischr() or entry.isblk():
            if inside and entry.ischr() and (entry.devmajor, entry.devminor) == (0, 0):
                return  # the whiteout of an overlay: opens nothing
            raise InvalidImageError(f'Invalid image: entry "{shown}" is a device node')
        if entry.issym():
            if name == self.inside.rstrip("/") or not inside:
                raise InvalidImageError(f'Invalid image: entry "{shown}" is a symbolic link')
            if not entry.linkname.startswith("/"):  # an absolute one means the instance's own root
                target = posixpath.normpath(posixpath.join(posixpath.dirname(name), entry.linkname))
                root = self.inside.rstrip("/")
                if target.startswith("..") or (root and target != root and not target.startswith(self.inside)):
                    raise InvalidImageError(f'Invalid image: symbolic link "{shown}" leaves the root file system')
        elif not inside and not (entry.isreg() or entry.isdir()):
            raise InvalidImageError(f'Invalid image: entry "{shown}" is no file or directory')
        elif entry.islnk():
            target = posixpath.normpath(entry.linkname)
            if entry.linkname.startswith("/") or ".." in entry.linkname.split("/") or target not in self.names:
                raise InvalidImageError(f'Invalid image: hard link "{shown}" leaves the archive')
            if not self.is_inside(target) or name == self.inside.rstrip("/"):
                raise InvalidImageError(f'Invalid image: hard link "{shown}" leaves the root file system')
        elif not (entry.isreg() or entry.isdir() or entry.isfifo()):
            raise InvalidImageError(f'Invalid image: entry "{shown}" has an unknown type')


def check_squashfs(path: str) -> None:
    """Refuse device nodes; unsquashfs itself keeps names inside. Raises InvalidImageError."""
    with open(path, "rb") as file:
        superblock = file.read(96)
    if len(superblock) < 96 or int.from_bytes(superblock[40:48], "little") > os.stat(path).st_size:
        raise InvalidImageError("Invalid image: the squashfs is broken or truncated")
    try:
        with subprocess.Popen(
            ["unsquashfs", "-lln", path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace"
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line[:1] in {"c", "b"} and line[1:2] in {"r", "-"} and " 0, 0 " not in " ".join(line.split()):
                    process.kill()
                    name = line.rstrip("\n").partition("squashfs-root/")[2]
                    raise InvalidImageError(f'Invalid image: entry "{name}" is a device node')
        if process.returncode != 0:
            raise InvalidImageError("Invalid image: the squashfs is broken or truncated")
    except FileNotFoundError:
        raise InvalidImageError("unsquashfs is not installed on this server") from None


def parse_metadata(content: bytes | None, directory: str) -> Fields:
    """Return metadata.yaml as fields. Raises InvalidImageError."""
    if content is None:
        raise InvalidImageError("Metadata tarball is missing metadata.yaml")
    sys.path.append(directory)
    import yaml

    try:
        loaded = yaml.load(content, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - a safe loader
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InvalidImageError("Invalid image: metadata.yaml can't be parsed") from None
    if not isinstance(loaded, dict):
        raise InvalidImageError("Invalid image: metadata.yaml is no mapping")
    fields = [
        ("architecture", architecture(loaded.get("architecture"))),
        ("created_at", str(whole(loaded.get("creation_date"), "creation_date", required=True))),
        ("expires_at", str(whole(loaded.get("expiry_date"), "expiry_date", required=False))),
    ]
    properties = mapping(loaded.get("properties"), "properties")
    fields += [(f"property:{name}", scalar(value, name)) for name, value in properties.items()]
    for path, template in mapping(loaded.get("templates"), "templates").items():
        fields += template_fields(path, mapping(template, path))
    return fields


def template_fields(path: str, template: dict[str, Any]) -> Fields:
    """Return one template."""
    source, when = template.get("template"), template.get("when", [])
    if not isinstance(source, str) or "/" in source or source in {"", ".", ".."} or not isinstance(when, list):
        raise InvalidImageError(f'Invalid image: template of "{path}" in metadata.yaml')
    create_only = "1" if template.get("create_only") is True else "0"
    fields = [(f"template:{path}", "\n".join([source, create_only, *(scalar(word, path) for word in when)]))]
    for name, value in mapping(template.get("properties"), path).items():
        fields.append((f"template_property:{path}:{name}", scalar(value, name)))
    return fields


def mapping(value: Any, name: str) -> dict[str, Any]:
    """Return a mapping with text keys; none is an empty one."""
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) and "\0" not in key for key in value):
        raise InvalidImageError(f'Invalid image: "{name}" in metadata.yaml')
    return value


def scalar(value: Any, name: str) -> str:
    """Return text for a plain value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None or isinstance(value, (dict, list, set)) or "\0" in str(value):
        raise InvalidImageError(f'Invalid image: "{name}" in metadata.yaml is no text')
    return str(value)


def whole(value: Any, name: str, *, required: bool) -> int:
    """Return seconds since the epoch."""
    if value is None and not required:
        return 0
    if required and not value:
        raise InvalidImageError("Missing creation date")
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 40:
        raise InvalidImageError(f'Invalid image: "{name}" is wrong in metadata.yaml')
    return value


def architecture(value: Any) -> str:
    """Return the kernel's name of an architecture."""
    for name, aliases in ARCHITECTURES.items():
        if value == name or value in aliases:
            return name
    raise InvalidImageError(f"Architecture isn't supported: {'' if value is None else str(value)[:64]}")


def validate(fields: Fields) -> Fields:
    """Return the metadata's fields. Raises InvalidImageError."""
    one = dict(fields)
    limits = {key: int(value) for key, value in fields if key.endswith(("_max", "_bytes")) and value.isdigit()}
    split = "rootfs" in one

    def words(key: str) -> list[str]:
        return [value for name, value in fields if name == key]

    metadata = Archive(one["metadata"], words("metadata_decompress"), limits, "rootfs/")
    metadata.read()
    answer = parse_metadata(metadata.metadata, one["yaml"])
    if not split:
        if "rootfs.img" in metadata.names:
            raise InvalidImageError("Images of virtual machines are not supported by this server")
        if not metadata.has_inside:
            raise InvalidImageError("Invalid image: there is no rootfs in it")
    elif metadata.files_inside:  # the second archive would be unpacked through what the first has put there
        raise InvalidImageError("Invalid image: there is a rootfs in the metadata of a split image")
    elif one["rootfs_kind"] == "squashfs":
        check_squashfs(one["rootfs"])
    else:
        rootfs = Archive(one["rootfs"], words("rootfs_decompress"), limits, "")
        rootfs.read()
    return answer


def receive(control: socket.socket) -> Fields:
    """Return the request."""
    size = int.from_bytes(control.recv(4, socket.MSG_WAITALL), "big")
    parts = control.recv(size, socket.MSG_WAITALL).decode("utf-8", "surrogateescape").split("\0")
    return list(zip(parts[::2], parts[1::2], strict=True))


def main() -> None:
    """Run `<socket>`."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    os.nice(5)
    fields = receive(control)
    try:
        answer = validate(fields)
    except InvalidImageError as error:
        answer = [("invalid", str(error))]
    except OSError as error:
        answer = [("error", f"Failed to read the image: {error}")]
    body = "\0".join(part for item in answer for part in item).encode("utf-8", "surrogateescape")
    with contextlib.suppress(BrokenPipeError):
        control.sendall(len(body).to_bytes(4, "big") + body)


if __name__ == "__main__":
    main()
