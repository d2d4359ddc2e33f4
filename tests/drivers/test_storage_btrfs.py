"""Pools on real btrfs in loop files: everything is there or not, and nothing stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from drivers_kit import mounts_naming, stream

from incus_actors.drivers import loop
from incus_actors.drivers.base import DriverError, PoolSpec, VolumeSpec
from incus_actors.drivers.commands import CommandError
from incus_actors.drivers.image_files import ImageFileStore
from incus_actors.drivers.images import ImageFiles
from incus_actors.drivers.storage_btrfs import BtrfsStorage
from incus_actors.drivers.storage_dir import DirStorage
from incus_actors.errors import BadRequestError, MemberError

pytestmark = pytest.mark.real


def run(*argv: object) -> str:
    return subprocess.run([str(a) for a in argv], check=True, capture_output=True, text=True).stdout


def loops_of(directory: Path) -> list[str]:
    disks = (directory / "disks").resolve()
    return [line for line in run("losetup", "--all").splitlines() if str(disks) in line or str(directory) in line]


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncIterator[BtrfsStorage]:
    found = BtrfsStorage(tmp_path)
    if not found.availability().available:
        pytest.skip(found.availability().reason)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:  # each snapshot waits for the disk otherwise
        (tmp_path / "disks").symlink_to(memory)
        yield found
        clean_up(tmp_path)
        async with asyncio.timeout(20):  # a container that others start just now has a copy of our mounts for a moment
            while loops_of(tmp_path):
                await asyncio.sleep(0.05)


def clean_up(tmp_path: Path) -> None:
    """What a failed test leaves."""
    for line in reversed(mounts_naming(str(tmp_path))):
        subprocess.run(["umount", line.split()[1]], check=False)
    for line in loops_of(tmp_path):
        subprocess.run(["losetup", "-d", line.split(":")[0]], check=False)


@pytest.fixture
async def pool(driver: BtrfsStorage) -> PoolSpec:
    return PoolSpec("p", "btrfs", await driver.create_pool(PoolSpec("p", "btrfs", {"size": "256MiB"})))


@pytest.fixture
async def image(tmp_path: Path, tarball: Path) -> ImageFiles:
    return (await ImageFileStore(tmp_path / "images").add(stream(tarball.read_bytes()))).files


def custom(pool: PoolSpec, name: str, **config: str) -> VolumeSpec:
    return VolumeSpec(pool, name, kind="custom", config=config)


def subvolumes(driver: BtrfsStorage, pool: PoolSpec) -> list[str]:
    text = run("btrfs", "subvolume", "list", driver.pool_path(pool))
    return sorted(line.split(" path ")[1] for line in text.splitlines())


async def test_a_pool_in_a_file_comes_grows_and_goes(driver, pool, tmp_path):
    file = tmp_path / "disks/p.img"
    assert pool.config == {"size": "256MiB", "source": str(file)}
    usage = await driver.pool_usage(pool)
    assert 0 < usage.used_bytes < usage.total_bytes == 256 << 20
    assert await driver.create_pool(pool) == pool.config  # repeated after a crash
    with pytest.raises(MemberError, match=r"^Pool cannot be shrunk$"):
        await driver.update_pool(PoolSpec("p", "btrfs", {**pool.config, "size": "128MiB"}), pool.config)
    bigger = PoolSpec("p", "btrfs", {**pool.config, "size": "400MiB", "btrfs.mount_options": "noatime"})
    await driver.update_pool(bigger, pool.config)
    assert (await driver.pool_usage(bigger)).total_bytes == 400 << 20
    assert "noatime" in mounts_naming(str(tmp_path))[0]
    run("umount", driver.pool_path(pool))  # the machine was restarted
    assert loops_of(tmp_path) == []
    await driver.activate_pool(bigger)
    await driver.activate_pool(bigger)
    assert len(mounts_naming(str(tmp_path))) == 1
    await driver.delete_pool(bigger)
    await driver.delete_pool(bigger)
    assert (mounts_naming(str(tmp_path)), loops_of(tmp_path)) == ([], [])
    assert not file.exists()
    assert not driver.pool_path(pool).exists()


@pytest.fixture(params=["half-made", "complete", "mounted"])
def interrupted(request, driver, tmp_path):
    """What is left of a pool "p" by a daemon that was killed while it made it."""
    file, stage = tmp_path / "disks/p.img", request.param
    loop.make(file.with_suffix(".new") if stage == "half-made" else file, 200 << 20)
    if stage != "half-made":
        run("mkfs.btrfs", "-q", file)
    if stage == "mounted":
        driver.pool_path(PoolSpec("p")).mkdir(parents=True)
        run("mount", "-o", "loop", file, driver.pool_path(PoolSpec("p")))


@pytest.mark.usefixtures("interrupted")
async def test_a_pool_that_was_interrupted_is_removed(driver, tmp_path):
    assert driver.has_traces(PoolSpec("p", "btrfs"))
    await driver.delete_pool(PoolSpec("p", "btrfs"))
    assert not driver.has_traces(PoolSpec("p", "btrfs"))
    assert list((tmp_path / "disks").iterdir()) == []
    assert loops_of(tmp_path) == mounts_naming(str(tmp_path)) == []


@pytest.mark.usefixtures("interrupted")
async def test_a_pool_that_was_interrupted_is_made_again(driver, tmp_path):
    pool = PoolSpec("p", "btrfs", await driver.create_pool(PoolSpec("p", "btrfs", {"size": "256MiB"})))
    assert (await driver.pool_usage(pool)).total_bytes == 256 << 20
    assert len(loops_of(tmp_path)) == len(mounts_naming(str(tmp_path))) == 1
    await driver.create_volume(custom(pool, "v"))
    with pytest.raises(DriverError, match="is not empty: custom/default_v"):
        await driver.create_pool(PoolSpec("p", "btrfs", {"size": "256MiB"}))
    with pytest.raises(DriverError, match="is not empty: custom/default_v"):
        await driver.delete_pool(pool)
    await driver.delete_volume(custom(pool, "v"))
    await driver.delete_pool(pool)


@pytest.mark.parametrize(
    ("config", "error", "reason"),
    [
        ({"size": "10MiB"}, DriverError, "Failed to format sparse file: Failed to run: mkfs.btrfs .* is too small"),
        ({"size": "nonsense"}, BadRequestError, "Invalid value"),
        ({"source": "relative"}, BadRequestError, "Only absolute paths are supported"),
        ({"source": "/x/../y"}, BadRequestError, "Only absolute paths are supported"),
        ({"source": "/dev/nonexistent"}, DriverError, "/dev/nonexistent"),
        ({"source": "ELSEWHERE"}, DriverError, r"^Provided path does not reside on a btrfs filesystem \(detected "),
        ({"source": "FILE"}, DriverError, "neither a block device nor a directory"),
        ({"source": "/sys/nonexistent"}, DriverError, "not a btrfs filesystem"),
    ],
)
async def test_bad_pools_leave_nothing(driver, tmp_path, tmp_path_factory, config, error, reason):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "file").touch()
    given = {
        k: v.replace("ELSEWHERE", str(elsewhere)).replace("FILE", str(elsewhere / "file")) for k, v in config.items()
    }
    with pytest.raises(error, match=reason):
        await driver.create_pool(PoolSpec("bad", "btrfs", given))
    assert not (tmp_path / "storage-pools/bad").exists()
    assert not list(tmp_path.glob("disks/*"))
    assert mounts_naming(str(tmp_path)) == []


async def test_a_block_device_is_never_overwritten_unasked(driver, tmp_path):
    disk = tmp_path / "disk"
    loop.make(disk, 200 << 20)
    run("mkfs.ext4", "-q", disk)
    device = await loop.attach(disk)
    assert await loop.attach(disk) == device
    with pytest.raises(DriverError, match=r"isn't empty \(it holds ext4\): set source.wipe"):
        await driver.create_pool(PoolSpec("d", "btrfs", {"source": device}))
    made = await driver.create_pool(PoolSpec("d", "btrfs", {"source": device, "source.wipe": "true"}))
    assert made["volatile.initial_source"] == device
    assert len(made["source"]) == 36
    pool = PoolSpec("d", "btrfs", made)
    with pytest.raises(DriverError, match="in use: it is mounted at"):
        await driver.create_pool(PoolSpec("e", "btrfs", {"source": device}))
    with pytest.raises(DriverError, match=r"^Cannot resize non-loopback pools$"):
        await driver.update_pool(PoolSpec("d", "btrfs", {**made, "size": "1GiB"}), made)
    run("umount", driver.pool_path(pool))
    await driver.activate_pool(pool)
    await driver.create_volume(custom(pool, "v"))
    await driver.delete_volume(custom(pool, "v"))
    run("umount", driver.pool_path(pool))
    again = await driver.create_pool(PoolSpec("d", "btrfs", {"source": device}))  # killed before it was recorded
    await driver.delete_pool(PoolSpec("d", "btrfs", again))
    await loop.detach(disk)
    assert loops_of(tmp_path) == []


async def test_a_subvolume_that_is_there_already(driver, pool, tmp_path):
    root = driver.pool_path(pool)
    run("btrfs", "subvolume", "create", root / "given")
    (root / "plain").mkdir()
    with pytest.raises(DriverError, match="is no btrfs subvolume"):
        await driver.create_pool(PoolSpec("s", "btrfs", {"source": str(root / "plain")}))
    (root / "given/precious").touch()
    with pytest.raises(DriverError, match="isn't empty"):
        await driver.create_pool(PoolSpec("s", "btrfs", {"source": str(root / "given")}))
    (root / "given/precious").unlink()
    for name in ("given", "made"):
        source = root / name
        inner = PoolSpec("s", "btrfs", await driver.create_pool(PoolSpec("s", "btrfs", {"source": str(source)})))
        assert await driver.create_pool(PoolSpec("s", "btrfs", {"source": str(source)})) == inner.config
        path = await driver.create_volume(custom(inner, "v", size="20MiB"))
        assert path == tmp_path / "storage-pools/s/custom/default_v"
        assert (source / "custom/default_v").is_dir()
        await driver.delete_volume(custom(inner, "v"))
        await driver.delete_pool(inner)
        assert source.exists() == (name == "given")
    assert list((root / "given").iterdir()) == []
    (root / "plain").rmdir()
    run("btrfs", "subvolume", "delete", root / "given")
    await driver.delete_pool(pool)


async def test_the_second_instance_of_an_image_is_a_clone(driver, pool, image):
    paths = await asyncio.gather(*(driver.create_volume(VolumeSpec(pool, name), image) for name in ("c1", "c2")))
    third = await driver.create_volume(VolumeSpec(pool, "c3", config={"size": "64MiB"}), image)
    for path in (*paths, third):
        shown = run("btrfs", "subvolume", "show", path)
        assert re.search(r"Parent UUID:\s+[0-9a-f]{8}-", shown), f"nothing was unpacked again: {shown}"
    for path in (*paths, third):
        assert (path / "rootfs/bin/busybox").is_file()
        assert (path / "apply-template").read_text() == "create\n"
        assert path.stat().st_mode & 0o777 == 0o700
    assert await driver.cached_images(pool) == [image.fingerprint]
    cached = driver.volume_path(VolumeSpec(pool, image.fingerprint, kind="image"))
    with pytest.raises(OSError, match="Read-only"):
        (cached / "x").touch()
    (paths[0] / "rootfs/new").touch()
    assert not (paths[1] / "rootfs/new").exists()
    await driver.delete_image(pool, image.fingerprint)
    await driver.delete_image(pool, image.fingerprint)
    for name in ("c1", "c2", "c3"):
        await driver.delete_volume(VolumeSpec(pool, name))
    assert subvolumes(driver, pool) == []
    await driver.create_volume(VolumeSpec(pool, "c1"), image)
    await driver.delete_volume(VolumeSpec(pool, "c1"))
    await driver.delete_pool(pool)  # a cached image is nobody's


async def test_snapshots_are_restored_all_or_nothing(driver, pool):
    volume = custom(pool, "v", size="32MiB")
    path = await driver.create_volume(volume)
    (path / "file").write_text("one")
    await driver.create_snapshot(volume, "s1")
    with pytest.raises(DriverError, match='Snapshot "s1" already exists'):
        await driver.create_snapshot(volume, "s1")
    (path / "file").write_text("two")
    await driver.rename_snapshot(volume, "s1", "first")
    assert await driver.snapshots(volume) == ["first"]
    assert (driver.snapshot_path(volume, "first") / "file").read_text() == "one"
    with pytest.raises(DriverError, match=r'Snapshot "nope" .* is missing'):
        await driver.restore_snapshot(volume, "nope")
    assert (path / "file").read_text() == "two"
    await driver.restore_snapshot(volume, "first")
    assert (path / "file").read_text() == "one"
    with pytest.raises(OSError, match="quota"):  # the restored one has its limit too
        (path / "big").write_bytes(os.urandom(64 << 20))
    other = custom(pool, "w")
    await driver.rename_volume(volume, other)
    assert await driver.snapshots(other) == ["first"]
    copy = custom(pool, "x")
    await driver.copy_volume(other, copy, ["first"])
    assert (driver.volume_path(copy) / "file").read_text() == "one"
    assert await driver.snapshots(copy) == ["first"]
    with pytest.raises(DriverError, match="already exists"):
        await driver.copy_volume(other, copy)
    await driver.delete_snapshot(other, "first")
    await driver.delete_snapshot(other, "first")
    await driver.delete_volume(other)
    await driver.delete_volume(copy)
    assert subvolumes(driver, pool) == []
    assert not list((driver.pool_path(pool) / "custom-snapshots").iterdir())


async def test_sizes_are_kept_and_usage_is_told(driver, pool):
    volume = custom(pool, "v", size="24MiB")
    path = await driver.create_volume(volume)
    assert (await driver.volume_usage(volume)).total_bytes == 24 << 20
    with pytest.raises(OSError, match="quota"):
        (path / "big").write_bytes(bytes(1) + os.urandom(48 << 20))
    await driver.resize_volume(volume, 1 << 20)  # less than it has
    with pytest.raises(OSError, match="quota"):
        (path / "more").write_bytes(os.urandom(1 << 20))
    await driver.resize_volume(volume, 100 << 20)
    (path / "big").write_bytes(os.urandom(30 << 20))
    os.sync()
    assert (await driver.volume_usage(volume)).used_bytes > 30 << 20
    await driver.resize_volume(volume, 0)
    assert (await driver.volume_usage(volume)).total_bytes == 0
    await driver.delete_volume(volume)


async def test_disks_are_sparse_files(driver, pool):
    disk = VolumeSpec(pool, "d", kind="custom", content="block", config={"size": "1GiB"})
    await driver.create_volume(disk)
    assert driver.disk_path(disk).stat().st_size == 1 << 30
    with pytest.raises(MemberError, match=r"^Block volumes cannot be shrunk: Cannot be shrunk$"):
        await driver.resize_volume(disk, 1 << 20)
    await driver.resize_volume(disk, 2 << 30)
    assert driver.disk_path(disk).stat().st_size == 2 << 30
    default = VolumeSpec(pool, "e", kind="custom", content="block")
    await driver.create_volume(default)
    assert driver.disk_path(default).stat().st_size == 10 << 30
    for volume in (disk, default):
        await driver.delete_volume(volume)


async def test_a_full_pool_says_so_and_loses_nothing(driver):
    made = await driver.create_pool(PoolSpec("tiny", "btrfs", {"size": "112MiB"}))
    pool = PoolSpec("tiny", "btrfs", made)
    volume = custom(pool, "v")
    path = await driver.create_volume(volume)
    (path / "file").write_text("kept")
    with contextlib.suppress(OSError):
        (path / "ballast").write_bytes(bytes(100 << 20))
    source = DirStorage(driver._directory)
    plain = PoolSpec("plain", config=await source.create_pool(PoolSpec("plain")))
    big = VolumeSpec(plain, "big", kind="custom")
    (await source.create_volume(big) / "data").write_bytes(b"x" * (90 << 20))
    target = custom(pool, "copy")

    async def copy() -> None:
        async with driver.receiver(target, "tar") as receiver:
            await receiver.receive("", source.send(big, "", "tar"))
            await receiver.keep()

    with pytest.raises(DriverError, match="No space left on device"):
        await copy()
    assert (path / "file").read_text() == "kept"
    assert subvolumes(driver, pool) == ["custom/default_v"]
    (path / "ballast").unlink()
    await driver.delete_volume(volume)
    await driver.delete_pool(pool)


async def test_subvolumes_inside_an_instance_go_with_it(driver, pool):
    path = await driver.create_volume(VolumeSpec(pool, "c1"))
    run("btrfs", "subvolume", "create", path / "rootfs/a")
    run("btrfs", "subvolume", "create", path / "rootfs/a/b")
    (path / "rootfs/link").symlink_to(driver.pool_path(pool) / "custom")
    await driver.delete_volume(VolumeSpec(pool, "c1"))
    assert subvolumes(driver, pool) == []
    assert (driver.pool_path(pool) / "custom").is_dir()


async def test_leftovers_of_a_crash_are_removed(driver, pool):
    root = driver.pool_path(pool)
    volume = custom(pool, "v")
    await driver.create_volume(volume)
    await driver.create_snapshot(volume, "s")
    for place in ("custom/.incoming-1", "containers/.deleting-2", "custom/.sending-3"):
        run("btrfs", "subvolume", "create", root / place)
    run(
        "btrfs",
        "subvolume",
        "snapshot",
        "-r",
        root / "custom/default_v",
        root / "custom-snapshots/default_v/.incoming-4",
    )
    (root / "custom/.incoming-5").mkdir()
    run("btrfs", "subvolume", "create", root / "custom/.incoming-5/0")
    assert len(await driver.reconcile(pool)) == 5
    assert subvolumes(driver, pool) == ["custom-snapshots/default_v/s", "custom/default_v"]


@pytest.mark.parametrize("form", ["btrfs", "tar"])
async def test_streams_carry_a_volume_with_its_snapshots(driver, pool, form):
    source = custom(pool, "v")
    path = await driver.create_volume(source)
    (path / "kept").write_text("x" * 100_000)
    await driver.create_snapshot(source, "s1")
    (path / "later").symlink_to("kept")
    os.chown(path / "kept", 1000, 1001)
    os.setxattr(path / "kept", "user.colour", b"blue")
    await driver.create_snapshot(source, "s2")
    (path / "last").touch()
    target = custom(pool, "w")
    sizes = []

    async def counted(chunks):
        total = 0
        async for chunk in chunks:
            total += len(chunk)
            yield chunk
        sizes.append(total)

    async with driver.receiver(target, form) as receiver:
        parent = ""
        for snapshot in ("s1", "s2", ""):
            await receiver.receive(snapshot, counted(driver.send(source, snapshot, form, parent=parent)))
            parent = snapshot
        assert not driver.has_volume(target)
        await receiver.keep()
    assert await driver.snapshots(target) == ["s1", "s2"]
    assert sorted(e.name for e in driver.snapshot_path(target, "s1").iterdir()) == ["kept"]
    copied = driver.volume_path(target)
    assert sorted(e.name for e in copied.iterdir()) == ["kept", "last", "later"]
    assert os.getxattr(copied / "kept", "user.colour") == b"blue"
    assert ((copied / "kept").stat().st_uid, (copied / "kept").stat().st_gid) == (1000, 1001)
    (copied / "writable").touch()
    if form == "btrfs":
        assert sizes[1] < 10_000 < sizes[0]
    for volume in (source, target):
        await driver.delete_volume(volume)
    assert subvolumes(driver, pool) == []


async def test_a_stream_that_ends_early_leaves_nothing(driver, pool):
    source = custom(pool, "v")
    (await driver.create_volume(source) / "data").write_bytes(os.urandom(1 << 20))
    target = custom(pool, "w")

    async def cut(chunks):
        yield (await anext(chunks))[:-100]
        raise MemberError("The connection ended")

    for form in ("btrfs", "tar"):
        with pytest.raises(MemberError, match="connection ended"):
            async with driver.receiver(target, form) as receiver:
                await receiver.receive("", cut(driver.send(source, "", form)))
        with pytest.raises((CommandError, DriverError)):
            async with driver.receiver(target, form) as receiver:
                await receiver.receive("", stream(b"nonsense" * 100))
    async with driver.receiver(target, "tar") as receiver:
        with pytest.raises(DriverError, match="itself is missing"):
            await receiver.keep()
    assert subvolumes(driver, pool) == ["custom/default_v"]


async def test_two_hundred_cycles_leak_nothing(driver, pool, tmp_path):
    """Eight at a time, so that it takes seconds."""
    await driver.limit(pool, driver.pool_path(pool), 0)
    before = mounts_naming(str(tmp_path)), loops_of(tmp_path), sorted(tmp_path.rglob("*"))
    descriptors = len(os.listdir("/proc/self/fd"))

    async def worker(number: int) -> None:
        for cycle in range(25):
            volume = custom(pool, f"v{number}", size="16MiB")
            (await driver.create_volume(volume) / "f").write_text("x")
            await driver.create_snapshot(volume, f"s{cycle}")
            await driver.delete_volume(volume)

    await asyncio.gather(*(worker(n) for n in range(8)))
    assert subvolumes(driver, pool) == []
    assert (mounts_naming(str(tmp_path)), loops_of(tmp_path), sorted(tmp_path.rglob("*"))) == before
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    run("btrfs", "filesystem", "sync", driver.pool_path(pool))  # also wakes the kernel's cleaner
    async with asyncio.timeout(10):
        while run("btrfs", "subvolume", "list", "-d", driver.pool_path(pool)):
            await asyncio.sleep(0.05)
    await driver.reconcile(pool)
    groups = run("btrfs", "qgroup", "show", driver.pool_path(pool))
    assert [line.split()[0] for line in groups.splitlines() if line.startswith("0/")] == ["0/5"]
