"""Reading mountinfo."""

from __future__ import annotations

from pathlib import Path

import pytest

from incus_actors.drivers import mounts
from incus_actors.drivers.commands import CommandError

TEXT = r"""22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
23 22 0:20 / /proc rw - proc proc rw
41 22 0:51 /sub /srv/a\040b rw,noatime shared:1 master:2 - btrfs /dev/loop0 rw,subvol=/sub
42 41 0:52 / /srv/a\040b/deep rw - tmpfs none rw
broken line
"""


def test_lines_are_read_with_and_without_optional_fields(monkeypatch, tmp_path):
    found = mounts.parse(TEXT)
    assert [str(m.point) for m in found] == ["/", "/proc", "/srv/a b", "/srv/a b/deep"]
    assert (found[2].device, found[2].root, found[2].kind, found[2].source) == ("0:51", "/sub", "btrfs", "/dev/loop0")
    assert "noatime" in found[2].options
    assert "subvol=/sub" in found[2].options
    table = tmp_path / "mountinfo"
    table.write_text(TEXT)
    monkeypatch.setattr(mounts, "_MOUNTINFO", table)
    holding = {path: str(mounts.holding(Path(path)).point) for path in ("/srv/a b/x", "/srv/a b/deep/x/y", "/srv", "/")}
    assert holding == {"/srv/a b/x": "/srv/a b", "/srv/a b/deep/x/y": "/srv/a b/deep", "/srv": "/", "/": "/"}
    assert mounts.mounted_at(Path("/srv/a b")) == found[2]
    assert mounts.mounted_at(Path("/srv")) is None


@pytest.mark.real
async def test_a_mount_comes_and_goes_unless_it_is_busy(tmp_path, monkeypatch):
    monkeypatch.setattr(mounts, "_BUSY_S", 0.2)
    await mounts.mount("none", tmp_path, "-t", "tmpfs")
    assert mounts.mounted_at(tmp_path).kind == "tmpfs"
    with (tmp_path / "busy").open("w"), pytest.raises(CommandError, match="busy"):
        await mounts.unmount(tmp_path)
    await mounts.unmount(tmp_path)
    await mounts.unmount(tmp_path)
    assert mounts.mounted_at(tmp_path) is None
