"""The LVM driver: which commands it runs, in which order, and how it reads their answers.

This machine has no device-mapper, so the programs are a simulation that only keeps names (`SimulatedLvm`); with one, the
tests at the end make a real volume group on a loop file.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from drivers_kit import mounts_naming

from incus_actors.drivers import commands, loop, lvm_tools, mounts
from incus_actors.drivers.base import DriverError, PoolSpec, VolumeSpec
from incus_actors.drivers.commands import CommandError
from incus_actors.drivers.storage import TAR
from incus_actors.drivers.storage_lvm import LvmStorage
from incus_actors.errors import BadRequestError, MemberError

GIB = 1 << 30


class SimulatedLvm:
    """Volume groups and logical volumes by name; every command is kept. Fails where `failing` is in the command."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.groups: dict[str, dict[str, tuple[int, str]]] = {}  # group → volume → (size, thin pool)
        self.devices: dict[str, str] = {}
        self.failing = ""

    async def run(self, *argv: str, **_: object) -> str:
        line = " ".join(argv)
        name, *rest = argv
        if name not in ("lvs", "vgs", "pvs"):
            self.ran.append(line)
        if self.failing and self.failing in line:
            raise CommandError(argv, 5, "  simulated failure")
        return str(getattr(self, f"_{name.replace('.', '_')}", lambda *_: "")(*rest) or "")

    def _lvs(self, *argv: str) -> str:
        found = self.groups[argv[-1]]
        return "".join(f"  {name}|{size}|25.00||{thin}\n" for name, (size, thin) in found.items())

    def _vgs(self, *_: str) -> str:
        return "".join(f"  {name}|{len(found)}\n" for name, found in self.groups.items())

    def _pvs(self, *_: str) -> str:
        return "".join(f"  {device}|{group}\n" for device, group in self.devices.items())

    def _vgcreate(self, group: str, device: str) -> None:
        self.groups[group], self.devices[device] = {}, group

    def _vgremove(self, *argv: str) -> None:
        del self.groups[argv[-1]]
        self.devices = {device: group for device, group in self.devices.items() if group != argv[-1]}

    def _lvcreate(self, *argv: str) -> None:
        group, _, source = argv[-1].partition("/")
        if "--thinpool" in argv:
            self.groups[group][argv[argv.index("--thinpool") + 1]] = (10 * GIB, "")
            return
        name = argv[argv.index("--name") + 1]
        assert name not in self.groups[group]
        if "--virtualsize" in argv:
            size = int(argv[argv.index("--virtualsize") + 1].rstrip("b"))
            self.groups[group][name] = (size, source)
        else:
            self.groups[group][name] = self.groups[group][source]

    def _lvremove(self, *argv: str) -> None:
        group, _, name = argv[-1].partition("/")
        del self.groups[group][name]

    def _lvrename(self, group: str, name: str, new: str) -> None:
        assert new not in self.groups[group]
        self.groups[group][new] = self.groups[group].pop(name)

    def _lvextend(self, *argv: str) -> None:
        group, _, name = argv[-1].partition("/")
        if "--size" in argv:
            size = int(argv[argv.index("--size") + 1].rstrip("b"))
            self.groups[group][name] = (size, self.groups[group][name][1])

    def names(self, group: str = "p1") -> set[str]:
        return set(self.groups[group]) - {"IncusThinPool"}


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> SimulatedLvm:
    lvm = SimulatedLvm()
    mounted: dict[Path, str] = {}

    async def mount(source: str, target: Path, *arguments: str) -> None:
        lvm.ran.append(f"mount {source} {' '.join(arguments)}")
        mounted[target] = source

    async def unmount(target: Path) -> None:
        if mounted.pop(target, None):
            lvm.ran.append("umount")

    async def attach(path: Path) -> str:
        return "/dev/loop7"

    async def detach(path: Path) -> None:
        return None

    monkeypatch.setattr(commands, "run", lvm.run)
    monkeypatch.setattr(loop, "run", lvm.run)
    monkeypatch.setattr(mounts, "mount", mount)
    monkeypatch.setattr(mounts, "unmount", unmount)
    monkeypatch.setattr(mounts, "mounted_at", lambda path: mounted.get(path))
    monkeypatch.setattr(loop, "attach", attach)
    monkeypatch.setattr(loop, "detach", detach)
    monkeypatch.setattr(loop, "devices", lambda path: ["/dev/loop7"])
    return lvm


@pytest.fixture
def storage(tmp_path: Path) -> LvmStorage:
    return LvmStorage(tmp_path)


async def made(storage: LvmStorage, **config: str) -> PoolSpec:
    pool = PoolSpec("p1", "lvm", config or {"size": "10GiB"})
    return PoolSpec("p1", "lvm", dict(await storage.create_pool(pool)))


# --- what LVM says --------------------------------------------------------------------------------------------------


def test_answers_are_read() -> None:
    text = "  IncusThinPool|10733223936|12.50||\n  custom_default_v1|1073741824|50.00||IncusThinPool\n\n  odd line\n"
    pool, volume = lvm_tools.parse_lvs(text)
    assert (pool.name, pool.size, pool.used_bytes, pool.pool) == ("IncusThinPool", 10733223936, 1341652992, "")
    assert (volume.name, volume.used_bytes, volume.pool) == ("custom_default_v1", GIB // 2, "IncusThinPool")
    assert lvm_tools.parse_lvs("  swap|1024|||\n")[0].used_percent == 0
    assert lvm_tools.parse_vgs("  vg0|3\n  empty|0\n") == {"vg0": 3, "empty": 0}
    assert lvm_tools.parse_pvs("  /dev/loop7|vg0\n  /dev/sdb|\n") == {"/dev/loop7": "vg0", "/dev/sdb": ""}
    version = "  LVM version:     2.03.16(2) (2022-05-18)\n  Library version: 1.02.185 (2022-05-18)\n"
    assert lvm_tools.parse_version(version) == "2.03.16(2)"


def test_names_cannot_be_mistaken_for_each_other() -> None:
    assert lvm_tools.lv_name("containers", "c1") == "containers_c1"
    assert lvm_tools.lv_name("containers", "c-1", "s-0") == "containers_c--1-s--0"
    one, other = lvm_tools.lv_name("containers", "c"), lvm_tools.lv_name("containers", "c-s0")
    assert lvm_tools.snapshot_of(lvm_tools.lv_name("containers", "c", "s0"), one) == "s0"
    assert lvm_tools.snapshot_of(lvm_tools.lv_name("containers", "c", "a-b"), one) == "a-b"
    assert lvm_tools.snapshot_of(other, one) == ""
    assert lvm_tools.snapshot_of(one, one) == ""


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "snapshot1", "pvmove0", "x_tmeta", "a" * 128, "ä"])
def test_names_that_lvm_does_not_take(name: str) -> None:
    with pytest.raises(BadRequestError):
        lvm_tools.checked(name)


# --- what it is told ------------------------------------------------------------------------------------------------


async def test_a_pool_on_a_file(simulated: SimulatedLvm, storage: LvmStorage, tmp_path: Path) -> None:
    pool = await made(storage)
    file = tmp_path / "disks/p1.img"
    assert pool.config == {"size": "10GiB", "lvm.vg_name": "p1", "source": str(file)}
    assert file.stat().st_size == 10 * GIB
    assert simulated.ran == [
        "pvcreate --yes /dev/loop7",
        "vgcreate p1 /dev/loop7",
        "lvcreate --yes --wipesignatures y --extents 100%FREE --thinpool IncusThinPool p1",
    ]
    usage = await storage.pool_usage(pool)
    assert (usage.used_bytes, usage.total_bytes) == (10 * GIB // 4, 10 * GIB)
    simulated.ran.clear()
    await storage.update_pool(PoolSpec("p1", "lvm", {**pool.config, "size": "12GiB"}), pool.config)
    assert simulated.ran == [
        "losetup --set-capacity /dev/loop7",
        "pvresize /dev/loop7",
        "lvextend --extents +100%FREE p1/IncusThinPool",
    ]
    with pytest.raises(MemberError, match="Pool cannot be shrunk"):
        await storage.update_pool(PoolSpec("p1", "lvm", {**pool.config, "size": "1GiB"}), pool.config)
    simulated.ran.clear()
    await storage.delete_pool(pool)
    assert simulated.ran == ["vgremove --force p1"]
    assert not file.exists()
    assert not storage.pool_path(pool).exists()
    await storage.delete_pool(pool)  # once more is fine


async def test_a_pool_on_a_device_and_on_a_group_that_is_there(simulated: SimulatedLvm, storage: LvmStorage) -> None:
    pool = await made(storage, source="/dev/sdb", **{"source.wipe": "true", "lvm.vg_name": "vg1"})
    assert simulated.ran[:3] == ["wipefs --all /dev/sdb", "pvcreate --quiet /dev/sdb", "vgcreate vg1 /dev/sdb"]
    assert "source.wipe" not in pool.config
    await storage.delete_pool(pool)
    assert simulated.ran[-2:] == ["vgremove --force vg1", "pvremove --yes /dev/sdb"]

    simulated.groups["theirs"] = {"root": (GIB, "")}
    with pytest.raises(DriverError, match='Volume group "theirs" is not empty: root'):
        await made(storage, source="theirs")
    with pytest.raises(DriverError, match='"nope" does not exist'):
        await made(storage, source="nope")
    with pytest.raises(DriverError, match='"size" cannot be used'):
        await made(storage, source="theirs", size="1GiB")
    pool = await made(storage, source="theirs", **{"lvm.vg.force_reuse": "true", "lvm.thinpool_name": "ours"})
    assert set(simulated.groups["theirs"]) == {"root", "ours"}
    await storage.delete_pool(pool)
    assert set(simulated.groups["theirs"]) == {"root"}  # what was there stays


async def test_what_cannot_be_made_leaves_nothing(simulated: SimulatedLvm, storage: LvmStorage, tmp_path: Path) -> None:
    for failing in ("pvcreate", "vgcreate", "--thinpool"):
        simulated.failing = failing
        with pytest.raises(DriverError, match="simulated failure"):
            await made(storage)
        assert simulated.groups == {}
        assert not (tmp_path / "disks/p1.img").exists()
    simulated.failing = ""
    with pytest.raises(BadRequestError, match=r"lvm\.use_thinpool=false"):
        await made(storage, **{"lvm.use_thinpool": "false"})
    simulated.groups["p1"] = {}
    with pytest.raises(DriverError, match='A volume group already exists called "p1"'):
        await made(storage)


async def test_volumes_and_snapshots(simulated: SimulatedLvm, storage: LvmStorage) -> None:
    pool = await made(storage)
    volume = VolumeSpec(pool, "v1", kind="custom", config={"size": "1GiB"})
    simulated.ran.clear()
    await storage.create_volume(volume)
    work = simulated.ran[0].split()[4]
    assert work.startswith("work_")
    assert simulated.ran == [
        f"lvcreate --yes --thin --name {work} --virtualsize {GIB}b p1/IncusThinPool",
        f"mkfs.ext4 -q -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 /dev/p1/{work}",
        f"mount /dev/p1/{work} -o discard",
        "umount",
        f"lvrename p1 {work} custom_default_v1",
        "mount /dev/p1/custom_default_v1 -o discard",
    ]
    with pytest.raises(DriverError, match="already exists"):
        await storage.create_volume(volume)

    simulated.ran.clear()
    await storage.create_snapshot(volume, "s-1")
    assert simulated.ran == [
        "lvcreate --yes --snapshot --setactivationskip n --name custom_default_v1-s--1 --permission r p1/custom_default_v1",
        "lvchange --activate y p1/custom_default_v1-s--1",
    ]
    assert await storage.snapshots(volume) == ["s-1"]
    await storage.rename_snapshot(volume, "s-1", "s2")
    await storage.create_snapshot(volume, "s3")
    with pytest.raises(DriverError, match="already exists"):
        await storage.rename_snapshot(volume, "s2", "s3")

    simulated.ran.clear()
    await storage.restore_snapshot(volume, "s2")
    kinds = [line.split()[0] for line in simulated.ran]
    assert kinds == ["lvcreate", "lvchange", "umount", "lvrename", "lvrename", "lvremove", "mount"]
    assert simulated.names() == {"custom_default_v1", "custom_default_v1-s2", "custom_default_v1-s3"}

    copy = VolumeSpec(pool, "v2", kind="custom", config={"size": "1GiB"})
    await storage.copy_volume(volume, copy, ["s2"])
    renamed = VolumeSpec(pool, "v3", kind="custom", config={"size": "1GiB"})
    await storage.rename_volume(copy, renamed)
    assert await storage.snapshots(renamed) == ["s2"]
    simulated.ran.clear()
    await storage.resize_volume(volume, 2 * GIB)
    assert simulated.ran == [
        f"lvextend --size {2 * GIB}b p1/custom_default_v1",
        "resize2fs /dev/p1/custom_default_v1",
    ]
    with pytest.raises(MemberError, match="cannot be shrunk"):
        await storage.resize_volume(volume, GIB)
    with pytest.raises(DriverError, match="is not empty"):
        await storage.delete_pool(pool)
    await storage.delete_volume(volume)
    await storage.delete_volume(renamed)
    assert simulated.names() == set()
    await storage.delete_volume(volume)


async def test_disks_are_bare_devices(simulated: SimulatedLvm, storage: LvmStorage) -> None:
    pool = await made(storage)
    disk = VolumeSpec(pool, "d1", kind="custom", content="block")
    simulated.ran.clear()
    await storage.create_volume(disk)
    assert [line.split()[0] for line in simulated.ran] == ["lvcreate", "lvrename"]
    assert storage.disk_path(disk) == Path("/dev/p1/custom_default_d1")
    assert simulated.groups["p1"]["custom_default_d1"][0] == 10 * GIB
    with pytest.raises(MemberError, match="cannot be shrunk"):
        await storage.resize_volume(disk, GIB)
    assert (await storage.volume_usage(disk)).used_bytes == 10 * GIB // 4


async def test_unfinished_work_is_removed(simulated: SimulatedLvm, storage: LvmStorage) -> None:
    pool = await made(storage)
    volume = VolumeSpec(pool, "v1", kind="custom", config={"size": "1GiB"})
    for failing in ("mkfs", "mount", "lvrename"):
        simulated.failing = failing
        if failing != "mount":
            with pytest.raises(DriverError):
                await storage.create_volume(volume)
            assert simulated.names() == set()
    simulated.failing = ""
    await storage.make(pool, "work_dead", GIB)
    assert await storage.reconcile(pool) == ["unfinished volume work_dead removed"]
    assert simulated.names() == set()
    await storage.create_volume(volume)
    await storage.create_snapshot(volume, "s1")
    simulated.failing = " custom_default_v1"  # the clone can't take the volume's place: the old one comes back
    with pytest.raises(DriverError, match="simulated failure"):
        await storage.restore_snapshot(volume, "s1")
    assert simulated.names() >= {"custom_default_v1-s1"}


async def test_xfs_takes_its_own_commands(simulated: SimulatedLvm, storage: LvmStorage) -> None:
    pool = await made(storage)
    config = {"size": "1GiB", "block.filesystem": "xfs", "block.mount_options": "noatime"}
    volume = VolumeSpec(pool, "x", kind="custom", config=config)
    simulated.ran.clear()
    await storage.create_volume(volume)
    assert simulated.ran[1].startswith("mkfs.xfs -q /dev/p1/")
    assert simulated.ran[2].endswith("-o noatime,nouuid")
    with pytest.raises(BadRequestError, match=r"block\.filesystem"):
        await storage.create_volume(VolumeSpec(pool, "y", kind="custom", config={"block.filesystem": "fat"}))


# --- with a device-mapper -------------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.may_skip
async def test_on_a_real_volume_group(tmp_path: Path) -> None:
    reason = lvm_tools.problem() if os.geteuid() == 0 else "needs root"
    if reason:
        pytest.skip(f"LVM can't be tried here: {reason}")
    storage = LvmStorage(tmp_path)
    pool = PoolSpec(f"ialvm{os.getpid()}", "lvm", {"size": "512MiB"})
    pool = PoolSpec(pool.name, "lvm", dict(await storage.create_pool(pool)))
    try:
        volume = VolumeSpec(pool, "v1", kind="custom", config={"size": "64MiB"})
        path = await storage.create_volume(volume)
        (path / "file").write_text("one")
        await storage.create_snapshot(volume, "s1")
        (path / "file").write_text("two")
        await storage.restore_snapshot(volume, "s1")
        assert (path / "file").read_text() == "one"
        copy = VolumeSpec(pool, "v2", kind="custom", config={"size": "64MiB"})
        async with storage.receiver(copy, TAR) as receiver:
            await receiver.receive("", storage.send(volume, "", TAR))
            await receiver.keep()
        assert (storage.volume_path(copy) / "file").read_text() == "one"
        for each in (volume, copy):
            await storage.delete_volume(each)
    finally:
        await storage.delete_pool(pool)
    assert mounts_naming(str(tmp_path)) == []
