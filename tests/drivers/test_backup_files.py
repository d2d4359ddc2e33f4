"""Archives of backups: several tars become one, and uploaded ones are not believed."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from drivers_kit import stream

from incus_actors.drivers import backup_files
from incus_actors.drivers.backup_files import Archive, FileItem, TreeItem, bytes_of, without_end, write_archive
from incus_actors.drivers.base import DriverError
from incus_actors.drivers.path_storage import tar_of, untar
from incus_actors.drivers.raw_stream import write_disk
from incus_actors.errors import BadRequestError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "dir").mkdir(parents=True)
    (root / "one").write_text("one")
    (root / "zeros").write_bytes(bytes(5000))
    (root / ("n" * 180)).write_text("long")
    (root / "link").symlink_to("one")
    os.link(root / "one", root / "hard")
    os.setxattr(root / "one", "user.colour", b"blue")
    return root


@pytest.mark.parametrize("algorithm", ["none", "gzip", "zstd -3", "xz"])
async def test_an_archive_is_made_and_read(tmp_path, tree, algorithm):
    path = tmp_path / "backup"
    disk = b"x" * 1000 + bytes(300_000) + b"y"
    items = [
        FileItem(backup_files.INDEX, 5, bytes_of(b"a: b\n")),
        TreeItem(tar_of(tree, prefix="backup/volume-snapshots/s1")),
        TreeItem(tar_of(tree, prefix="backup/volume")),
        FileItem("backup/volume.img", len(disk), bytes_of(disk)),
    ]
    await write_archive(path, items, algorithm)
    assert [entry.name for entry in tmp_path.iterdir() if entry.name != "tree"] == ["backup"]
    listed = subprocess.run(["tar", "-tf", path], capture_output=True, text=True, check=True).stdout.splitlines()
    assert listed[0] == "backup/index.yaml"
    assert listed[-1] == "backup/volume.img"
    assert listed.count("backup/volume/hard") == listed.count("backup/volume-snapshots/s1/dir/") == 1
    archive = Archive(path)
    assert await archive.index() == b"a: b\n"
    target = tmp_path / "out"
    target.mkdir()
    await untar(archive.whole(), target, prefix="backup/volume")
    assert subprocess.run(["diff", "-r", tree, target], check=True).returncode == 0
    assert os.getxattr(target / "one", "user.colour") == b"blue"
    assert (target / "one").stat().st_nlink == 2
    await write_disk(tmp_path / "disk", archive.disk("backup/volume.img"))
    assert (tmp_path / "disk").read_bytes() == disk
    with pytest.raises(BadRequestError, match=r"has no backup/volume.bin"):
        await write_disk(tmp_path / "disk2", archive.disk("backup/volume.bin"))


async def test_go_and_python_read_it_to_the_end(tmp_path, tree):
    """Both stop at the first end mark, so there may be only one."""
    path = tmp_path / "backup"
    await write_archive(path, [TreeItem(tar_of(tree, prefix=p)) for p in ("a", "b")], "none")
    names = tarfile.open(path).getnames()
    assert sum(name.startswith("b/") for name in names) == sum(name.startswith("a/") for name in names) > 5


async def test_large_files_and_zeros_inside_do_not_confuse(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("ö" * 100)
        info.size = 3000
        archive.addfile(info, io.BytesIO(bytes(3000)))
        info = tarfile.TarInfo("b")
        info.size, info.pax_headers = 700, {"size": "700"}
        archive.addfile(info, io.BytesIO(bytes(700)))
        archive.addfile(tarfile.TarInfo("empty"))
    data = buffer.getvalue()
    for size in (1, 511, 512, 513, 100_000):
        found = b"".join([chunk async for chunk in without_end(stream(data, size))])
        assert data.startswith(found)
        assert not data[len(found) :].strip(b"\0")
        assert tarfile.open(fileobj=io.BytesIO(found + bytes(1024))).getnames() == ["ö" * 100, "b", "empty"]
    for cut in (0, 100, 600, 2000):
        with pytest.raises(DriverError, match="ended early"):
            async for _ in without_end(stream(data[:cut])):
                pass


async def test_a_disk_that_changes_its_size_is_no_backup(tmp_path):
    for size in (3, 5):
        with pytest.raises(DriverError, match="changed its size"):
            await write_archive(tmp_path / "backup", [FileItem("x", size, bytes_of(b"1234"))], "none")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("algorithm", ["nonsense", "gzip; rm -rf /", "gzip extra", "squashfs"])
def test_compressors_are_known_ones(algorithm):
    with pytest.raises(BadRequestError, match="isn't currently supported"):
        backup_files.compressor(algorithm)


async def test_uploads_that_are_no_backups(tmp_path):
    junk = tmp_path / "junk"
    junk.write_bytes(b"junk" * 1000)
    with pytest.raises(BadRequestError, match=r"^Unsupported compression$"):
        Archive(junk)
    with tarfile.open(tmp_path / "other", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("backup/other"))
    with pytest.raises(BadRequestError, match=r'^Backup is missing at "backup/index.yaml"$'):
        await Archive(tmp_path / "other").index()
    with tarfile.open(tmp_path / "huge", "w:gz") as archive:
        info = tarfile.TarInfo(backup_files.INDEX)
        info.size = 8 << 20
        archive.addfile(info, io.BytesIO(bytes(8 << 20)))
    with pytest.raises(BadRequestError, match="too large"):
        await Archive(tmp_path / "huge").index()


async def test_an_evil_archive_stays_inside(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    with tarfile.open(tmp_path / "evil", "w") as archive:
        link = tarfile.TarInfo("backup/volume/link")
        link.type, link.linkname = tarfile.SYMTYPE, str(outside)
        archive.addfile(link)
        for name in ("backup/volume/link/planted", "backup/volume/../../../planted", "/backup/volume/planted"):
            info = tarfile.TarInfo(name)
            info.size = 4
            archive.addfile(info, io.BytesIO(b"evil"))
    target = tmp_path / "target"
    target.mkdir()
    with contextlib.suppress(DriverError):  # tar complains of what it left out
        await untar(Archive(tmp_path / "evil").whole(), target, prefix="backup/volume")
    assert list(outside.iterdir()) == []
    assert not (tmp_path / "planted").exists()
