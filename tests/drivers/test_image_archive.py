"""Bad archives: each is refused with a reason, before anything is unpacked."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from incus_actors.drivers.image_archive import ArchiveLimits, sniff, validate
from incus_actors.drivers.tiny_image import TinyImage
from incus_actors.errors import BadRequestError

METADATA = b"architecture: x86_64\ncreation_date: 1700000000\nproperties:\n  os: Test\n"


class Builder:
    """A tarball, entry by entry."""

    def __init__(self, metadata: bytes | None = METADATA, *, rootfs: bool = True) -> None:
        self.buffer = io.BytesIO()
        self.archive = tarfile.open(fileobj=self.buffer, mode="w")
        if metadata is not None:
            self.file("metadata.yaml", metadata)
        if rootfs:
            self.entry("rootfs", tarfile.DIRTYPE)

    def file(self, name: str, content: bytes = b"x") -> Builder:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        self.archive.addfile(info, io.BytesIO(content))
        return self

    def entry(self, name: str, kind: bytes, link: str = "", numbers: tuple[int, int] = (0, 0)) -> Builder:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        info.devmajor, info.devminor = numbers
        self.archive.addfile(info)
        return self

    def data(self) -> bytes:
        self.archive.close()
        return self.buffer.getvalue()

    def write(self, path: Path) -> Path:
        path.write_bytes(self.data())
        return path


async def test_a_good_image(tarball: Path) -> None:
    metadata = await validate(tarball, None)
    assert metadata.architecture == TinyImage().architecture
    assert metadata.created_at == 1_700_000_000
    assert metadata.properties["os"] == "BusyBox"
    assert {template.path for template in metadata.templates} == {"/etc/hostname", "/etc/hosts"}
    assert metadata.templates[0].when == ("create", "copy", "rename")


@pytest.mark.parametrize("compression", ["", "gz", "xz", "bz2"])
async def test_every_compression_of_tar(tmp_path: Path, compression: str) -> None:
    path = TinyImage().write_unified(tmp_path / "image", compression=compression)
    assert sniff(path) == ("tar", compression)
    assert (await validate(path, None)).properties["os"] == "BusyBox"


@pytest.mark.parametrize(("program", "name"), [("zstd", "zst"), ("xz", "lzma")])
async def test_other_compressions(tmp_path: Path, program: str, name: str) -> None:
    plain = Builder().file("rootfs/x").data()
    words = {"zst": ["zstd", "-cq"], "lzma": ["xz", "--format=lzma", "-c"]}[name]
    path = tmp_path / "image"
    path.write_bytes(subprocess.run(words, input=plain, capture_output=True, check=True).stdout)
    assert sniff(path) == ("tar", name)
    assert (await validate(path, None)).properties == {"os": "Test"}


async def test_split_images(tmp_path: Path) -> None:
    metadata = Builder(rootfs=False).write(tmp_path / "metadata")
    rootfs = Builder(None, rootfs=False).entry("./bin", tarfile.DIRTYPE).file("./bin/x").write(tmp_path / "rootfs")
    assert (await validate(metadata, rootfs)).architecture == "x86_64"


async def test_a_split_image_with_two_root_file_systems(tmp_path: Path) -> None:
    metadata = Builder().entry("rootfs/etc", tarfile.SYMTYPE, "/etc").write(tmp_path / "metadata")
    rootfs = Builder(None, rootfs=False).file("etc/passwd").write(tmp_path / "rootfs")
    with pytest.raises(BadRequestError, match="there is a rootfs in the metadata"):
        await validate(metadata, rootfs)
    empty = Builder().write(tmp_path / "empty")
    assert (await validate(empty, rootfs)).architecture == "x86_64"


@pytest.mark.skipif(shutil.which("mksquashfs") is None, reason="needs squashfs-tools")
async def test_squashfs(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "bin").mkdir(parents=True)
    (tree / "bin/x").write_text("x")
    metadata = Builder(rootfs=False).write(tmp_path / "metadata")
    good, bad, cut = tmp_path / "good", tmp_path / "bad", tmp_path / "cut"
    command = ["mksquashfs", str(tree), str(good), "-quiet", "-no-progress"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert sniff(good) == ("squashfs", "")
    assert (await validate(metadata, good)).architecture == "x86_64"
    command = ["mksquashfs", str(tree), str(bad), "-quiet", "-no-progress", "-p", "bin/sda b 600 0 0 8 0"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with pytest.raises(BadRequestError, match=r'"bin/sda" is a device node'):
        await validate(metadata, bad)
    cut.write_bytes(good.read_bytes()[:200])
    with pytest.raises(BadRequestError, match="broken or truncated"):
        await validate(metadata, cut)


EVIL: dict[str, tuple[Callable[[], Builder], str]] = {
    "absolute name": (lambda: Builder().file("/etc/passwd"), "has an absolute name"),
    "dot dot": (lambda: Builder().file("rootfs/../../etc/passwd"), "leaves the archive"),
    "dot dot alone": (lambda: Builder().entry("..", tarfile.DIRTYPE), "leaves the archive"),
    "block device": (lambda: Builder().entry("rootfs/sda", tarfile.BLKTYPE, numbers=(8, 0)), "is a device node"),
    "character device": (lambda: Builder().entry("rootfs/mem", tarfile.CHRTYPE, numbers=(1, 1)), "is a device node"),
    "link as rootfs": (
        lambda: Builder(rootfs=False).entry("rootfs", tarfile.SYMTYPE, "/etc"),
        "is a symbolic link",
    ),
    "link as templates": (lambda: Builder().entry("templates", tarfile.SYMTYPE, "/etc"), "is a symbolic link"),
    "link as metadata": (
        lambda: Builder(None).entry("metadata.yaml", tarfile.SYMTYPE, "/etc/shadow"),
        "is a symbolic link",
    ),
    "escaping symlink": (
        lambda: Builder().entry("rootfs/x", tarfile.SYMTYPE, "../../../etc"),
        "leaves the root file system",
    ),
    "sideways symlink": (
        lambda: Builder().entry("rootfs/x", tarfile.SYMTYPE, "../templates"),
        "leaves the root file system",
    ),
    "through a symlink": (
        lambda: Builder().entry("rootfs/x", tarfile.SYMTYPE, "/etc").file("rootfs/x/passwd"),
        "passes through a symbolic link",
    ),
    "absolute hard link": (lambda: Builder().entry("rootfs/x", tarfile.LNKTYPE, "/etc/shadow"), "leaves the archive"),
    "escaping hard link": (
        lambda: Builder().entry("rootfs/x", tarfile.LNKTYPE, "rootfs/../../etc/shadow"),
        "leaves the archive",
    ),
    "hard link to nothing": (lambda: Builder().entry("rootfs/x", tarfile.LNKTYPE, "etc/shadow"), "leaves the archive"),
    "through a hard link to a symlink": (
        lambda: (
            Builder()
            .entry("rootfs/x", tarfile.SYMTYPE, "/etc")
            .entry("rootfs/y", tarfile.LNKTYPE, "rootfs/x")
            .file("rootfs/y/passwd")
        ),
        "passes through a symbolic link",
    ),
    "through a symlink that became a directory": (
        lambda: (
            Builder()
            .entry("rootfs/x", tarfile.SYMTYPE, "/etc")
            .entry("rootfs/x", tarfile.DIRTYPE)
            .file("rootfs/x/passwd")
        ),
        "passes through a symbolic link",
    ),
    "marker as a link": (
        lambda: (
            Builder()
            .entry("rootfs/x", tarfile.SYMTYPE, "/etc/passwd")
            .entry("apply-template", tarfile.LNKTYPE, "rootfs/x")
        ),
        '"apply-template" is no file or directory',
    ),
    "marker as a pipe": (lambda: Builder().entry("apply-template", tarfile.FIFOTYPE), "is no file or directory"),
    "metadata a second time as a pipe": (
        lambda: Builder().entry("metadata.yaml", tarfile.FIFOTYPE),
        "is no file or directory",
    ),
    "hard link to metadata": (
        lambda: Builder().entry("rootfs/x", tarfile.LNKTYPE, "metadata.yaml"),
        "leaves the root file system",
    ),
    "no metadata": (lambda: Builder(None), "Metadata tarball is missing metadata.yaml"),
    "no rootfs": (lambda: Builder(rootfs=False), "there is no rootfs"),
    "bad yaml": (lambda: Builder(b"architecture: [x86_64\n"), "can't be parsed"),
    "yaml tag": (lambda: Builder(b"!!python/object/apply:os.system ['true']\n"), "can't be parsed"),
    "yaml list": (lambda: Builder(b"- a\n- b\n"), "is no mapping"),
    "no architecture": (lambda: Builder(b"creation_date: 1700000000\n"), "Architecture isn't supported: "),
    "odd architecture": (
        lambda: Builder(b"architecture: z80\ncreation_date: 1\n"),
        "Architecture isn't supported: z80",
    ),
    "no date": (lambda: Builder(b"architecture: x86_64\n"), "Missing creation date"),
    "date is text": (
        lambda: Builder(b"architecture: x86_64\ncreation_date: soon\n"),
        '"creation_date" is wrong in metadata.yaml',
    ),
    "nested property": (lambda: Builder(METADATA + b"  a: {b: c}\n"), '"a" in metadata.yaml is no text'),
    "template elsewhere": (
        lambda: Builder(METADATA + b"templates:\n  /etc/x: {when: [create], template: ../../etc/shadow}\n"),
        "template of",
    ),
    "big metadata": (lambda: Builder(METADATA + b"#" * (1 << 20)), "no small file"),
    "virtual machine": (lambda: Builder(rootfs=False).file("rootfs.img"), "virtual machines are not supported"),
}


@pytest.mark.parametrize("case", EVIL)
async def test_evil_archives_are_refused(tmp_path: Path, case: str) -> None:
    build, reason = EVIL[case]
    path = build().write(tmp_path / "image")
    with pytest.raises(BadRequestError) as caught:
        await validate(path, None)
    assert reason in str(caught.value)
    assert caught.value.status == 400


async def test_harmless_oddities_are_accepted(tmp_path: Path) -> None:
    builder = (
        Builder()
        .entry("rootfs/etc", tarfile.DIRTYPE)
        .entry("rootfs/etc/mtab", tarfile.SYMTYPE, "/proc/mounts")
        .entry("rootfs/lib", tarfile.SYMTYPE, "usr/lib")
        .file("rootfs/a")
        .entry("rootfs/b", tarfile.LNKTYPE, "rootfs/a")
        .entry("rootfs/whiteout", tarfile.CHRTYPE, numbers=(0, 0))
        .entry("rootfs/pipe", tarfile.FIFOTYPE)
    )
    assert (await validate(builder.write(tmp_path / "image"), None)).architecture == "x86_64"


@pytest.mark.parametrize("compression", ["", "gz", "xz", "bz2"])
@pytest.mark.parametrize("part", [0.05, 0.5, 0.97])
async def test_truncated_archives(tmp_path: Path, tarball: Path, compression: str, part: float) -> None:
    whole = TinyImage().write_unified(tmp_path / "whole", compression=compression).read_bytes()
    cut = tmp_path / "cut"
    cut.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(BadRequestError, match=r"broken or truncated|Unsupported compression"):
        await validate(cut, None)


async def test_a_tar_cut_between_two_entries(tmp_path: Path) -> None:
    data = Builder().file("rootfs/a", b"a" * 512).file("rootfs/b", b"b" * 512).data()
    end = data.index(b"b" * 512)
    path = tmp_path / "cut"
    path.write_bytes(data[: end - 512])
    with pytest.raises(BadRequestError, match="broken or truncated"):
        await validate(path, None)


async def test_flipped_bytes(tmp_path: Path, tarball: Path) -> None:
    data = bytearray(tarball.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path = tmp_path / "flipped"
    path.write_bytes(bytes(data))
    with pytest.raises(BadRequestError, match="broken or truncated"):
        await validate(path, None)


@pytest.mark.parametrize("data", [b"", b"hello", b"\0" * 4096, b"PK\x03\x04" + b"x" * 600, b"#!/bin/sh\n" * 90])
async def test_junk_is_an_unsupported_compression(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "junk"
    path.write_bytes(data)
    with pytest.raises(BadRequestError, match=r"^Unsupported compression$"):
        await validate(path, None)


async def test_gzip_of_junk(tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "junk"
    path.write_bytes(gzip.compress(b"no tar at all " * 100))
    with pytest.raises(BadRequestError, match="broken or truncated"):
        await validate(path, None)


async def test_a_decompression_bomb(tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "bomb"
    path.write_bytes(gzip.compress(Builder().file("rootfs/zeros", bytes(8 << 20)).data()))
    small = ArchiveLimits(unpacked_bytes_max=1 << 20)
    with pytest.raises(BadRequestError, match="unpacks to more than 1 MiB"):
        await validate(path, None, limits=small)
    ratio = ArchiveLimits(ratio_max=100, ratio_from_bytes=1 << 20)
    with pytest.raises(BadRequestError, match="more than 100 times its size"):
        await validate(path, None, limits=ratio)
    entries = ArchiveLimits(entries_max=2)
    with pytest.raises(BadRequestError, match="too many entries"):
        await validate(path, None, limits=entries)


async def test_a_yaml_bomb_ends(tmp_path: Path) -> None:
    lines = [b"a0: &a0 [x, x]"] + [b"a%d: &a%d [*a%d, *a%d]" % (n, n, n - 1, n - 1) for n in range(1, 40)]
    path = Builder(METADATA + b"bomb:\n" + b"\n".join(b"  " + line for line in lines) + b"\n").write(tmp_path / "image")
    assert (await validate(path, None)).architecture == "x86_64"
