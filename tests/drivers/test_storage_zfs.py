"""Pools on Debian's zfs-fuse: the same promises as every driver, on real datasets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from drivers_kit import mounts_naming, stream
from zfs_kit import answering

from incus_actors.drivers import loop
from incus_actors.drivers.base import DriverError, PoolSpec, VolumeSpec
from incus_actors.drivers.image_files import ImageFileStore
from incus_actors.drivers.images import ImageFiles
from incus_actors.drivers.storage_zfs import ZfsStorage
from incus_actors.errors import BadRequestError, MemberError

pytestmark = [pytest.mark.real, pytest.mark.may_skip]


def run(*argv: object) -> str:
    return subprocess.run([str(a) for a in argv], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module", autouse=True)
def zfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with answering(tmp_path_factory.mktemp("zfs-fuse")):
        yield


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncIterator[ZfsStorage]:
    found = ZfsStorage(tmp_path)
    assert found.availability().available, found.availability().reason
    name = f"t{os.getpid()}-{time.monotonic_ns() % 1_000_000}"
    found.test_name = name  # type: ignore[attr-defined]
    yield found
    for pool in run("zpool", "list", "-H", "-o", "name").split():
        if pool.startswith(name):
            subprocess.run(["zpool", "destroy", "-f", pool], check=False)
    assert mounts_naming(str(tmp_path)) == []


def spec(driver: ZfsStorage, **config: str) -> PoolSpec:
    given = {key.replace("_", "."): value for key, value in config.items()}
    return PoolSpec("p", "zfs", {"zfs.pool_name": driver.test_name, **given})  # type: ignore[attr-defined]


@pytest.fixture
async def pool(driver: ZfsStorage) -> PoolSpec:
    return PoolSpec("p", "zfs", await driver.create_pool(spec(driver, size="200MiB")))


@pytest.fixture
async def image(tmp_path: Path, tarball: Path) -> ImageFiles:
    return (await ImageFileStore(tmp_path / "images").add(stream(tarball.read_bytes()))).files


def custom(pool: PoolSpec, name: str, **config: str) -> VolumeSpec:
    return VolumeSpec(pool, name, kind="custom", config=config)


def datasets(pool: PoolSpec) -> list[str]:
    root = pool.config["zfs.pool_name"]
    text = run("zfs", "list", "-H", "-r", "-t", "filesystem", "-o", "name", root)
    return [line.removeprefix(f"{root}/") for line in text.splitlines() if line.count("/") > root.count("/") + 1]


async def test_a_pool_in_a_file_comes_grows_and_goes(driver, pool, tmp_path):
    file = tmp_path / "disks/p.img"
    assert pool.config == {"zfs.pool_name": driver.test_name, "source": str(file), "size": "200MiB"}
    usage = await driver.pool_usage(pool)
    assert 0 < usage.used_bytes < usage.total_bytes < 200 << 20
    with pytest.raises(MemberError, match=r"^Pool cannot be shrunk$"):
        await driver.update_pool(PoolSpec("p", "zfs", {**pool.config, "size": "100MiB"}), pool.config)
    again = await driver.create_pool(spec(driver, size="200MiB"))  # killed before it was recorded
    assert again == pool.config
    run("zpool", "export", driver.test_name)  # the machine was restarted
    await driver.activate_pool(pool)
    await driver.activate_pool(pool)
    volume = custom(pool, "v")
    await driver.create_volume(volume)
    with pytest.raises(DriverError, match="is not empty: custom/default_v"):
        await driver.delete_pool(pool)
    with pytest.raises(DriverError, match="it exists already"):
        await driver.create_pool(spec(driver, source="/dev/nonexistent"))
    await driver.delete_volume(volume)
    await driver.delete_pool(pool)
    await driver.delete_pool(pool)
    assert not file.exists()
    assert not driver.pool_path(pool).exists()
    assert driver.test_name not in run("zpool", "list", "-H")


async def test_an_existing_pool_or_dataset(driver, tmp_path):
    disk, name = tmp_path / "disk", f"{driver.test_name}x"
    loop.make(disk, 128 << 20)
    run("zpool", "create", "-m", "none", name, disk)
    for source in (name, f"{name}/inner/deep"):
        given = PoolSpec("s", "zfs", {"source": source})
        made = PoolSpec("s", "zfs", await driver.create_pool(given))
        assert made.config == {"source": source, "zfs.pool_name": source}
        assert await driver.create_pool(given) == made.config
        await driver.create_volume(custom(made, "v"))
        await driver.delete_volume(custom(made, "v"))
        await driver.delete_pool(made)
    assert run("zfs", "list", "-H", "-o", "name", "-r", name).split() == [name, f"{name}/inner", f"{name}/inner/deep"]
    for config, reason in (
        ({"source": name}, "isn't empty"),
        ({"source": "nope"}, 'ZFS pool "nope" does not exist'),
        ({"source": f"{name}/inner", "size": "1GiB"}, '"size" cannot be used'),
        ({"source": f"{name}/inner", "zfs.pool_name": "other"}, "differ"),
        ({"source": "-o bad"}, "Invalid ZFS pool name"),
    ):
        with pytest.raises(DriverError, match=reason):
            await driver.create_pool(PoolSpec("s", "zfs", config))
    with pytest.raises(DriverError, match=r"use '-f' to override|part of"):
        await driver.create_pool(spec(driver, source=str(disk)))
    with pytest.raises((BadRequestError, DriverError), match="Invalid ZFS pool name"):
        await driver.create_pool(PoolSpec("s", "zfs", {"zfs.pool_name": "0bad name"}))
    assert driver.test_name not in run("zpool", "list", "-H", "-o", "name").split()


async def test_the_second_instance_of_an_image_is_a_clone(driver, pool, image):
    paths = await asyncio.gather(*(driver.create_volume(VolumeSpec(pool, name), image) for name in ("c1", "c2")))
    for path in paths:
        assert (path / "rootfs/bin/busybox").is_file()
        assert path.stat().st_mode & 0o777 == 0o700
    (paths[0] / "rootfs/new").touch()
    assert not (paths[1] / "rootfs/new").exists()
    assert await driver.cached_images(pool) == [image.fingerprint]
    await driver.delete_image(pool, image.fingerprint)  # clones keep it, aside
    await driver.delete_image(pool, image.fingerprint)
    assert await driver.cached_images(pool) == []
    await driver.create_volume(VolumeSpec(pool, "c3"), image)
    for name in ("c1", "c2", "c3"):
        await driver.delete_volume(VolumeSpec(pool, name))
    assert datasets(pool) == [f"images/{image.fingerprint}"]
    await driver.delete_pool(pool)


async def test_volumes_and_snapshots(driver, pool):
    volume = custom(pool, "v", size="50MiB")
    path = await driver.create_volume(volume)
    (path / "file").write_text("one")
    await driver.create_snapshot(volume, "s1")
    with pytest.raises(DriverError, match='Snapshot "s1" already exists'):
        await driver.create_snapshot(volume, "s1")
    (path / "file").write_text("two")
    await driver.rename_snapshot(volume, "s1", "first")
    assert await driver.snapshots(volume) == ["first"]
    async with driver.readable(volume, "first") as frozen:
        assert (frozen / "file").read_text() == "one"
    await driver.restore_snapshot(volume, "first")
    assert (path / "file").read_text() == "one"
    await driver.create_snapshot(volume, "later")
    with pytest.raises(DriverError, match=r"cannot be restored due to subsequent snapshot\(s\)"):
        await driver.restore_snapshot(volume, "first")
    with pytest.raises(DriverError, match="is missing"):
        await driver.restore_snapshot(volume, "nope")
    await driver.delete_snapshot(volume, "later")
    await driver.delete_snapshot(volume, "later")
    assert (await driver.volume_usage(volume)).total_bytes == 50 << 20
    await driver.resize_volume(volume, 0)
    assert (await driver.volume_usage(volume)).total_bytes == 0
    other = custom(pool, "w")
    await driver.rename_volume(volume, other)
    assert (driver.volume_path(other) / "file").read_text() == "one"
    assert not path.exists()
    run("zfs", "unmount", f"{driver.test_name}/custom/default_w")
    assert (await driver.activate_volume(other) / "file").read_text() == "one"
    copy = custom(pool, "x")
    await driver.copy_volume(other, copy, ["first"])
    assert (driver.volume_path(copy) / "file").read_text() == "one"
    assert await driver.snapshots(copy) == ["first"]
    await driver.delete_volume(other)
    await driver.delete_volume(copy)
    await driver.delete_volume(copy)
    assert datasets(pool) == []
    assert list((driver.pool_path(pool) / "custom").iterdir()) == []


async def test_disks_are_sparse_files(driver, pool):
    disk = VolumeSpec(pool, "d", kind="custom", content="block", config={"size": "1GiB"})
    await driver.create_volume(disk)
    assert driver.disk_path(disk).stat().st_size == 1 << 30
    with pytest.raises(MemberError, match=r"^Block volumes cannot be shrunk: Cannot be shrunk$"):
        await driver.resize_volume(disk, 1 << 20)
    await driver.resize_volume(disk, 2 << 30)
    assert driver.disk_path(disk).stat().st_size == 2 << 30


@pytest.mark.parametrize("form", ["zfs", "tar"])
async def test_streams_carry_a_volume_with_its_snapshots(driver, pool, form):
    source, target = custom(pool, "v"), custom(pool, "w")
    path = await driver.create_volume(source)
    (path / "kept").write_text("x" * 1000)
    os.chown(path / "kept", 1000, 1001)
    await driver.create_snapshot(source, "s1")
    (path / "later").symlink_to("kept")
    await driver.create_snapshot(source, "s2")
    (path / "last").touch()
    async with driver.receiver(target, form) as receiver:
        parent = ""
        for snapshot in ("s1", "s2", ""):
            await receiver.receive(snapshot, driver.send(source, snapshot, form, parent=parent))
            parent = snapshot
        assert not driver.has_volume(target)
        await receiver.keep()
    assert await driver.snapshots(target) == ["s1", "s2"]
    copied = driver.volume_path(target)
    assert sorted(e.name for e in copied.iterdir()) == ["kept", "last", "later"]
    assert ((copied / "kept").stat().st_uid, (copied / "kept").stat().st_gid) == (1000, 1001)
    async with driver.readable(target, "s1") as frozen:
        assert [e.name for e in frozen.iterdir()] == ["kept"]

    async def cut(chunks):
        yield (await anext(chunks))[:-100]
        raise MemberError("The connection ended")

    with pytest.raises(MemberError, match="connection ended"):
        async with (
            driver.receiver(custom(pool, "x"), form) as receiver,
            contextlib.aclosing(driver.send(source, "", form)) as sending,
        ):
            await receiver.receive("", cut(sending))
    assert datasets(pool) == ["custom/default_v", "custom/default_w"]
    names = run("zfs", "list", "-H", "-t", "snapshot", "-o", "name")
    assert "sending" not in names


async def test_leftovers_of_a_crash_are_removed(driver, pool):
    root = driver.test_name
    run("zfs", "create", "-o", f"mountpoint={driver.pool_path(pool)}/work/x", f"{root}/work/x")
    run("zfs", "snapshot", f"{root}/work/x@snapshot-s")
    assert len(await driver.reconcile(pool)) == 1
    assert datasets(pool) == []


async def test_twenty_cycles_leak_nothing(driver, pool, tmp_path):
    before = mounts_naming(str(tmp_path)), sorted(tmp_path.rglob("*"))
    for cycle in range(20):
        volume = custom(pool, f"v{cycle}", size="16MiB")
        (await driver.create_volume(volume) / "f").write_text("x")
        await driver.create_snapshot(volume, "s")
        await driver.delete_volume(volume)
    assert datasets(pool) == []
    assert (mounts_naming(str(tmp_path)), sorted(tmp_path.rglob("*"))) == before
