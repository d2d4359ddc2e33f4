"""Directory pools: complete or not there, and deletion that stays inside."""

from __future__ import annotations

import asyncio
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from drivers_kit import stream

from incus_actors.drivers.base import DriverError, PoolSpec, ProgressReport, VolumeSpec
from incus_actors.drivers.image_files import ImageFileStore
from incus_actors.drivers.images import ImageFiles
from incus_actors.drivers.storage_dir import DirStorage
from incus_actors.drivers.tiny_image import TinyImage
from incus_actors.errors import BadRequestError

POOL = PoolSpec("local")


@pytest.fixture
async def storage(tmp_path: Path) -> DirStorage:
    driver = DirStorage(tmp_path)
    assert driver.availability().available
    await driver.create_pool(POOL)
    return driver


@pytest.fixture
async def image(tmp_path: Path, tarball: Path) -> ImageFiles:
    return (await ImageFileStore(tmp_path / "images").add(stream(tarball.read_bytes()))).files


async def test_a_pool_comes_and_goes(storage: DirStorage, tmp_path: Path) -> None:
    assert (await storage.create_pool(POOL))["source"] == str(tmp_path / "storage-pools/local")
    usage = await storage.pool_usage(POOL)
    assert 0 < usage.used_bytes < usage.total_bytes
    assert 0 < usage.used_inodes < usage.total_inodes
    await storage.delete_pool(POOL)
    await storage.delete_pool(POOL)
    assert not (tmp_path / "storage-pools/local").exists()
    with pytest.raises(DriverError, match="unavailable"):
        await storage.pool_usage(POOL)


async def test_a_source_directory_of_ones_own(storage: DirStorage, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = tmp_path_factory.mktemp("source")
    pool = PoolSpec("other", config={"source": str(source)})
    await storage.create_pool(pool)
    path = await storage.create_volume(VolumeSpec(pool, "v", kind="custom"))
    assert path == source / "custom/default_v"
    with pytest.raises(DriverError, match="not empty"):
        await storage.delete_pool(pool)
    await storage.delete_volume(VolumeSpec(pool, "v", kind="custom"))
    await storage.delete_pool(pool)
    assert list(source.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "reason"),
    [("relative", "absolute"), ("/x/../y", "absolute"), ("/no/such/place", "doesn't exist"), ("INSIDE", "within")],
)
async def test_bad_sources(storage: DirStorage, tmp_path: Path, source: str, reason: str) -> None:
    source = source.replace("INSIDE", str(tmp_path / "storage-pools"))
    with pytest.raises((BadRequestError, DriverError), match=reason):
        await storage.create_pool(PoolSpec("bad", config={"source": source}))


async def test_a_foreign_directory_is_not_taken(storage: DirStorage, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = tmp_path_factory.mktemp("full")
    (source / "containers").mkdir()
    (source / "precious").write_text("data")
    with pytest.raises(DriverError, match="isn't empty"):
        await storage.create_pool(PoolSpec("bad", config={"source": str(source)}))


async def test_unknown_config(storage: DirStorage) -> None:
    with pytest.raises(BadRequestError, match=r'^Invalid option "zfs.pool_name"$'):
        storage.validate_pool(PoolSpec("p", config={"zfs.pool_name": "x"}))
    with pytest.raises(BadRequestError, match="Invalid storage pool name"):
        await storage.create_pool(PoolSpec("../up"))


async def test_a_volume_from_an_image(storage: DirStorage, image: ImageFiles) -> None:
    volume = VolumeSpec(POOL, "c1")
    reports: list[ProgressReport] = []
    path = await storage.create_volume(volume, image, progress=reports.append)
    assert path == storage.volume_path(volume)
    assert storage.has_volume(volume)
    assert (path / "rootfs/bin/busybox").is_file()
    assert os.readlink(path / "rootfs/sbin/init") == "../bin/busybox"
    assert (path / "metadata.yaml").is_file()
    assert path.stat().st_mode & 0o777 == 0o700
    assert reports[-1].percent == 100
    usage = await storage.volume_usage(volume)
    assert 1 << 20 < usage.used_bytes < 1 << 24
    with pytest.raises(DriverError, match="already exists"):
        await storage.create_volume(volume, image)
    await storage.delete_volume(volume)
    await storage.delete_volume(volume)
    assert not storage.has_volume(volume)
    assert list(path.parent.iterdir()) == []


async def test_a_volume_from_a_split_image(storage: DirStorage, tmp_path: Path) -> None:
    metadata, rootfs = TinyImage().write_split(tmp_path / "m", tmp_path / "r")
    store = ImageFileStore(tmp_path / "images")
    added = await store.add(stream(metadata.read_bytes()), stream(rootfs.read_bytes()))
    path = await storage.create_volume(VolumeSpec(POOL, "c1"), added.files)
    assert (path / "rootfs/bin/busybox").is_file()
    assert (path / "templates/hostname.tpl").is_file()
    assert not (path / "rootfs/metadata.yaml").exists()


async def test_a_failed_unpack_leaves_nothing(storage: DirStorage, image: ImageFiles) -> None:
    data = image.metadata_file.read_bytes()
    image.metadata_file.write_bytes(data[: len(data) // 2])
    volume = VolumeSpec(POOL, "c1")
    with pytest.raises(DriverError, match="Failed to unpack the image"):
        await storage.create_volume(volume, image)
    assert list(storage.volume_path(volume).parent.iterdir()) == []


async def test_a_cancelled_unpack_leaves_nothing(storage: DirStorage, image: ImageFiles) -> None:
    volume = VolumeSpec(POOL, "c1")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await storage.create_volume(volume, image)
    assert list(storage.volume_path(volume).parent.iterdir()) == []


async def test_leftovers_of_a_crash_are_removed(storage: DirStorage, image: ImageFiles) -> None:
    path = await storage.create_volume(VolumeSpec(POOL, "good"), image)
    (path.parent / ".incoming-1/rootfs").mkdir(parents=True)
    (path.parent / ".deleting-2").mkdir()
    assert len(await storage.reconcile(POOL)) == 2
    assert [entry.name for entry in path.parent.iterdir()] == ["good"]


async def test_deletion_follows_no_links(storage: DirStorage, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("data")
    volume = VolumeSpec(POOL, "c1")
    path = await storage.create_volume(volume)
    (path / "rootfs/link").symlink_to(precious)
    (path / "rootfs/deep").mkdir()
    (path / "rootfs/deep/link").symlink_to("/")
    await storage.delete_volume(volume)
    assert (precious / "file").read_text() == "data"


@pytest.mark.real
async def test_deletion_crosses_no_mounts(storage: DirStorage, tmp_path: Path) -> None:
    volume = VolumeSpec(POOL, "c1")
    path = await storage.create_volume(volume)
    target = path / "rootfs/mnt"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(target)], check=True)
    try:
        (target / "file").write_text("data")
        with pytest.raises(DriverError, match=r"Failed to re|Failed to delete"):
            await storage.delete_volume(volume)
        survivors = list(path.parent.glob("*/rootfs/mnt/file"))
        assert [survivor.read_text() for survivor in survivors] == ["data"]
    finally:
        for directory in path.parent.glob(".deleting-*/rootfs/mnt"):
            target = directory
        subprocess.run(["umount", str(target)], check=True)
    await storage.reconcile(POOL)
    assert list(path.parent.iterdir()) == []


async def test_rename(storage: DirStorage) -> None:
    old, new = VolumeSpec(POOL, "old"), VolumeSpec(POOL, "new")
    await storage.create_volume(old)
    await storage.rename_volume(old, new)
    assert (storage.has_volume(old), storage.has_volume(new)) == (False, True)
    await storage.create_volume(old)
    with pytest.raises(DriverError, match="already exists"):
        await storage.rename_volume(old, new)


def test_names_are_kept_apart_and_inside(storage: DirStorage) -> None:
    other = VolumeSpec(POOL, "c1", project="p1")
    assert storage.volume_path(other).name == "p1_c1"
    assert storage.volume_path(VolumeSpec(POOL, "c1")).name == "c1"
    for name in ("../x", "a/b", "", ".", ".."):
        with pytest.raises(ValueError, match="unsafe name"):
            storage.volume_path(VolumeSpec(POOL, name))
    with pytest.raises(BadRequestError, match="Invalid storage volume name"):
        storage.volume_path(VolumeSpec(POOL, ".incoming-x"))
    with pytest.raises(BadRequestError, match="Invalid storage volume type"):
        storage.volume_path(VolumeSpec(POOL, "x", kind="odd"))


async def test_a_second_archive_is_never_unpacked_over_a_first_rootfs(
    storage: DirStorage, image: ImageFiles, tmp_path: Path, tarball: Path
) -> None:
    evil = replace(image, rootfs_file=tarball)
    with pytest.raises(DriverError, match="rootfs in the metadata"):
        await storage.create_volume(VolumeSpec(POOL, "evil"), image=evil)
    assert not (tmp_path / "storage-pools/local/containers/evil").exists()
