"""Changing owners where mounts cannot map them."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from incus_actors.drivers.rootfs import RootfsOwners

pytestmark = pytest.mark.real

BASE = (1_000_000, 1_000_000)
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    rootfs = tmp_path / "rootfs"
    (rootfs / "bin").mkdir(parents=True)
    (rootfs / "bin/su").write_text("x")
    (rootfs / "bin/su").chmod(0o4755)
    (rootfs / "home").mkdir()
    os.chown(rootfs / "home", 1000, 100)
    (rootfs / "link").symlink_to("/etc/passwd")
    os.setxattr(rootfs / "bin/su", "security.capability", CAPABILITY)
    return tmp_path


def owners(volume: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in [volume / "rootfs", *(volume / "rootfs").rglob("*")]:
        status = path.lstat()
        found[str(path.relative_to(volume))] = status.st_uid, status.st_gid
    return found


async def test_there_and_back(volume: Path) -> None:
    owner_of_passwd = Path("/etc/passwd").stat().st_uid
    before = owners(volume)
    helper = RootfsOwners()
    assert helper.on_disk(volume) == (0, 0)
    await helper.ensure(volume, BASE)
    assert helper.on_disk(volume) == BASE
    shifted = owners(volume)
    assert shifted["rootfs/home"] == (1_001_000, 1_000_100)
    assert shifted["rootfs/link"] == shifted["rootfs"] == BASE
    assert Path("/etc/passwd").stat().st_uid == owner_of_passwd
    su = volume / "rootfs/bin/su"
    assert su.stat().st_mode & 0o7777 == 0o4755
    assert struct.unpack("<6I", os.getxattr(su, "security.capability"))[5] == BASE[0]
    await helper.ensure(volume, (0, 0))
    assert owners(volume) == before
    assert os.getxattr(su, "security.capability")[:4] == CAPABILITY[:4]


async def test_an_interrupted_run_is_repeated(volume: Path) -> None:
    helper = RootfsOwners()
    os.chown(volume / "rootfs/bin", *BASE)  # done before the crash; the marker was not written
    await helper.ensure(volume, BASE)
    assert owners(volume)["rootfs/bin"] == BASE
    assert owners(volume)["rootfs/home"] == (1_001_000, 1_000_100)


async def test_the_probe_is_honest(tmp_path: Path) -> None:
    helper = RootfsOwners()
    assert isinstance(await helper.idmapped_mounts(tmp_path), bool)
    assert await helper.idmapped_mounts(Path("/proc")) is False
