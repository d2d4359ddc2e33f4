"""Files that stand for disks."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from incus_actors.drivers import loop
from incus_actors.drivers.base import DriverError
from incus_actors.errors import BadRequestError, MemberError

GIB = 1 << 30


@pytest.mark.parametrize(("free", "size"), [(10 * GIB, "5GiB"), (60 * GIB, "12GiB"), (900 * GIB, "30GiB")])
def test_default_size_is_a_share_of_what_is_free(monkeypatch, tmp_path, free, size):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=free))
    assert loop.default_size(tmp_path) == size


async def test_files_are_sparse_and_only_grow(tmp_path):
    file = tmp_path / "disks/p.img"
    loop.make(file, GIB)
    assert (file.stat().st_size, file.stat().st_blocks, file.stat().st_mode & 0o777) == (GIB, 0, 0o600)
    await loop.grow(file, 2 * GIB)
    with pytest.raises(MemberError, match=r"^Pool cannot be shrunk$"):
        await loop.grow(file, GIB)
    assert file.stat().st_size == 2 * GIB
    assert loop.devices(file) == []
    with pytest.raises(DriverError, match="Failed to create sparse file"):
        loop.make(tmp_path / "huge", 1 << 62)
    assert not (tmp_path / "huge").exists()
    with pytest.raises(BadRequestError, match=r'^Invalid value for option "size": Invalid value: zz$'):
        loop.size_bytes("zz")


@pytest.mark.real
async def test_a_device_follows_its_file(tmp_path):
    file = tmp_path / "disk"
    loop.make(file, 16 << 20)
    device = await loop.attach(file)
    try:
        assert loop.devices(file) == [device] == [await loop.attach(file)]
        await loop.grow(file, 32 << 20)
        with open(device, "rb") as opened:
            assert opened.seek(0, 2) == 32 << 20
    finally:
        await loop.detach(file)
    await loop.detach(file)
    assert loop.devices(file) == []
