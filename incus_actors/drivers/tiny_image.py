"""Builds a small bootable BusyBox image, unified or split, without root and without the network.

Owns nothing that lasts. Called by `quickstart demo`, the benchmarks and tests; needs a static busybox
(Debian: busybox-static). Must never unpack or run anything: only the archive is written. Blocking: call it in
an executor or a script.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import platform
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from incus_actors.drivers.base import DriverError

BUSYBOX = Path("/bin/busybox")

#: busybox init without any line would wait for terminals that do not exist.
_INITTAB = "::sysinit:/etc/rc\n::shutdown:/bin/true\n::ctrlaltdel:/sbin/poweroff\n::restart:/sbin/init\n"
_RC = "#!/bin/sh\n/bin/hostname -F /etc/hostname 2>/dev/null\nexit 0\n"
_FILES = {
    "etc/inittab": (_INITTAB, 0o644),
    "etc/rc": (_RC, 0o755),
    "etc/passwd": (
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
        0o644,
    ),
    "etc/group": ("root:x:0:\ntty:x:5:\nuser:x:1000:\nnogroup:x:65534:\n", 0o644),
    "etc/hostname": ("tiny\n", 0o644),
    "etc/hosts": ("127.0.0.1 localhost\n::1 localhost\n", 0o644),
    "etc/os-release": ('NAME="BusyBox"\nID=busybox\nPRETTY_NAME="BusyBox (incus_actors tiny image)"\n', 0o644),
}
_DIRECTORIES = (
    *("bin", "dev", "etc", "home", "home/user", "mnt", "proc", "root", "run", "sbin", "sys", "usr", "usr/bin"),
    *("usr/sbin", "var", "var/log"),
)
_TEMPLATES = {
    "hostname.tpl": "{{ container.name }}\n",
    "hosts.tpl": "127.0.0.1 localhost\n127.0.1.1 {{ container.name }}\n::1 localhost\n",
}


@dataclass(frozen=True, slots=True)
class TinyImage:
    """What to build. `variant` makes otherwise equal images differ (another fingerprint)."""

    architecture: str = platform.machine()
    created_at: int = 1_700_000_000  #: fixed, so that the same input gives the same fingerprint
    variant: str = ""
    busybox: Path = BUSYBOX

    def metadata_yaml(self) -> str:
        """Return metadata.yaml."""
        lines = [
            f"architecture: {self.architecture}",
            f"creation_date: {self.created_at}",
            "properties:",
            f"  architecture: {self.architecture}",
            f"  description: BusyBox {self.architecture}{' ' + self.variant if self.variant else ''}",
            f"  name: busybox-{self.architecture}",
            "  os: BusyBox",
            "templates:",
        ]
        for target in ("hostname", "hosts"):
            lines += [f"  /etc/{target}:", "    when: [create, copy, rename]", f"    template: {target}.tpl"]
        return "\n".join(lines) + "\n"

    def write_unified(self, path: Path, *, compression: str = "gz") -> Path:
        """Write one tarball ("gz", "xz", "bz2" or ""). Raises DriverError without busybox."""
        with _tar(path, compression) as archive:
            self._add_metadata(archive)
            _add_directory(archive, "rootfs", self.created_at)
            self._add_rootfs(archive, "rootfs/")
        return path

    def write_split(self, metadata: Path, rootfs: Path, *, compression: str = "gz") -> tuple[Path, Path]:
        """Write a metadata tarball and a root file system tarball. Raises DriverError without busybox."""
        with _tar(metadata, compression) as archive:
            self._add_metadata(archive)
        with _tar(rootfs, compression) as archive:
            _add_directory(archive, ".", self.created_at)
            self._add_rootfs(archive, "./")
        return metadata, rootfs

    def _add_metadata(self, archive: tarfile.TarFile) -> None:
        _add_file(archive, "metadata.yaml", self.metadata_yaml().encode(), 0o644, self.created_at)
        _add_directory(archive, "templates", self.created_at)
        for name, text in _TEMPLATES.items():
            _add_file(archive, f"templates/{name}", text.encode(), 0o644, self.created_at)

    def _add_rootfs(self, archive: tarfile.TarFile, prefix: str) -> None:
        if not self.busybox.is_file():
            raise DriverError(f"No {self.busybox} on this machine", remedy="apt-get install busybox-static")
        for directory in _DIRECTORIES:
            _add_directory(archive, prefix + directory, self.created_at)
        _add_directory(archive, prefix + "tmp", self.created_at, 0o1777)
        _add_file(archive, prefix + "bin/busybox", self.busybox.read_bytes(), 0o755, self.created_at)
        for link, target in applet_links(self.busybox):
            info = tarfile.TarInfo(prefix + link)
            info.type, info.linkname, info.mtime = tarfile.SYMTYPE, target, self.created_at
            archive.addfile(info)
        for name, (text, mode) in _FILES.items():
            _add_file(archive, prefix + name, text.encode(), mode, self.created_at)


def applet_links(busybox: Path) -> Iterator[tuple[str, str]]:
    """Yield (path, relative link target) of each applet, /sbin/init among them."""
    listing = subprocess.run([busybox, "--list-full"], capture_output=True, text=True, check=True).stdout.split()
    for applet in sorted({*listing, "sbin/init", "bin/sh"} - {"bin/busybox"}):
        depth = applet.count("/")
        yield applet, "busybox" if applet.startswith("bin/") else "../" * depth + "bin/busybox"


@contextlib.contextmanager
def _tar(path: Path, compression: str) -> Iterator[tarfile.TarFile]:
    with path.open("wb") as file:
        stream: IO[bytes] = file
        if compression == "gz":  # tarfile's own gzip writes the time of day, and so another fingerprint
            stream = gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0)  # type: ignore[assignment]
        elif compression:
            stream = {"xz": lzma.LZMAFile, "bz2": bz2.BZ2File}[compression](file, "wb")
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive:
            yield archive
        if stream is not file:
            stream.close()


def _add_file(archive: tarfile.TarFile, name: str, content: bytes, mode: int, mtime: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(content), mode, mtime
    archive.addfile(info, io.BytesIO(content))


def _add_directory(archive: tarfile.TarFile, name: str, mtime: int, mode: int = 0o755) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.mtime = tarfile.DIRTYPE, mode, mtime
    archive.addfile(info)
