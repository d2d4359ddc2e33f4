from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from incus_actors.drivers.base import DriverError
from incus_actors.drivers.tiny_image import BUSYBOX, TinyImage, applet_links

needs_busybox = pytest.mark.skipif(not BUSYBOX.exists(), reason="needs busybox-static")


@needs_busybox
@pytest.mark.parametrize("compression", ["", "gz", "xz", "bz2"])
def test_the_same_input_gives_the_same_bytes(tmp_path: Path, compression: str) -> None:
    first = TinyImage().write_unified(tmp_path / "a", compression=compression).read_bytes()
    second = TinyImage().write_unified(tmp_path / "b", compression=compression).read_bytes()
    assert first == second
    assert first != TinyImage(variant="other").write_unified(tmp_path / "c", compression=compression).read_bytes()


@needs_busybox
def test_contents(tmp_path: Path) -> None:
    with tarfile.open(TinyImage().write_unified(tmp_path / "image")) as archive:
        names = set(archive.getnames())
        assert {"metadata.yaml", "templates/hostname.tpl", "rootfs/bin/busybox", "rootfs/sbin/init"} <= names
        assert archive.getmember("rootfs/sbin/init").linkname == "../bin/busybox"
        assert not [member for member in archive if member.isdev()]


@needs_busybox
def test_links_reach_busybox() -> None:
    links = dict(applet_links(BUSYBOX))
    assert links["bin/sh"] == "busybox"
    assert links["usr/bin/wget"] == "../../bin/busybox"
    assert "bin/busybox" not in links


def test_without_busybox(tmp_path: Path) -> None:
    with pytest.raises(DriverError, match="No /no/such/busybox on this machine"):
        TinyImage(busybox=Path("/no/such/busybox")).write_unified(tmp_path / "image")
