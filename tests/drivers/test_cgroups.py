"""Both versions, over a directory tree that looks like the kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from incus_actors.drivers import cgroups
from incus_actors.drivers.cgroups import CgroupLayout

MIXED = """\
tmpfs /sys/fs/cgroup tmpfs rw 0 0
cgroup /c/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0
cgroup /c/memory cgroup rw,memory 0 0
cgroup /c/systemd cgroup rw,name=systemd 0 0
cgroup /c/net cgroup rw,net_cls 0 0
cgroup2 /c/unified cgroup2 rw 0 0
"""


def test_a_mixed_machine() -> None:
    layout = cgroups.detect(MIXED)
    assert layout.v1["cpu"] == layout.v1["cpuacct"] == Path("/c/cpu,cpuacct")
    assert layout.v1["systemd"] == Path("/c/systemd")
    assert "net_cls" not in layout.v1
    assert layout.v2 == Path("/c/unified")
    assert layout.directory("memory", "a/b") == Path("/c/memory/a/b")
    assert layout.directory("pids", "a/b") is None
    assert len(layout.roots()) == 4


def test_a_pure_machine(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu memory pids\n")
    layout = cgroups.detect(f"cgroup2 {tmp_path} cgroup2 rw 0 0\n")
    assert layout.v1 == {}
    assert layout.has("memory")
    assert layout.has("freezer")
    assert not layout.has("blkio")


def test_no_groups_at_all() -> None:
    assert cgroups.detect("").roots() == []


@pytest.fixture
def unified(tmp_path: Path) -> CgroupLayout:
    group = tmp_path / "p/c-x"
    group.mkdir(parents=True)
    files = {
        "memory.current": "1000",
        "memory.peak": "2000",
        "memory.max": "max",
        "memory.swap.current": "5",
        "memory.swap.peak": "6",
        "pids.current": "3",
        "cpu.stat": "usage_usec 12\nuser_usec 3\n",
        "cgroup.freeze": "0",
        "cgroup.events": "populated 1\nfrozen 0\n",
        "cgroup.procs": "",
    }
    for name, text in files.items():
        (group / name).write_text(text + "\n")
    return CgroupLayout({}, tmp_path, frozenset({"memory", "pids", "cpu", "freezer", "cpuacct"}))


def test_counters_version_2(unified: CgroupLayout) -> None:
    found = cgroups.counters(unified, "p/c-x")
    assert found == cgroups.Counters(3, 1000, 2000, 0, 5, 6, 12_000)


def test_counters_version_1(tmp_path: Path) -> None:
    group = tmp_path / "memory/p/c-x"
    group.mkdir(parents=True)
    for name, value in {
        "memory.usage_in_bytes": 100,
        "memory.max_usage_in_bytes": 200,
        "memory.limit_in_bytes": 9223372036854771712,
        "memory.memsw.usage_in_bytes": 130,
        "memory.memsw.max_usage_in_bytes": 240,
    }.items():
        (group / name).write_text(f"{value}\n")
    cpu = tmp_path / "cpuacct/p/c-x"
    cpu.mkdir(parents=True)
    (cpu / "cpuacct.usage").write_text("77\n")
    layout = CgroupLayout({"memory": tmp_path / "memory", "cpuacct": tmp_path / "cpuacct"})
    assert cgroups.counters(layout, "p/c-x") == cgroups.Counters(-1, 100, 200, 0, 30, 40, 77)


def test_a_group_that_is_gone(unified: CgroupLayout) -> None:
    found = cgroups.counters(unified, "p/c-gone")
    assert (found.processes, found.memory_usage_bytes, found.cpu_ns) == (-1, -1, -1)
    assert not cgroups.is_frozen(unified, "p/c-gone")
    assert list(cgroups.processes(unified, "p/c-gone")) == []


def test_freezing_version_2(unified: CgroupLayout) -> None:
    cgroups.set_frozen(unified, "p/c-x", True)
    assert cgroups.is_frozen(unified, "p/c-x")
    assert not cgroups.is_settled(unified, "p/c-x", True)  # the kernel has not said so yet
    assert cgroups.is_settled(unified, "p/c-x", False)


def test_freezing_version_1(tmp_path: Path) -> None:
    group = tmp_path / "g"
    group.mkdir()
    (group / "freezer.state").write_text("THAWED\n")
    layout = CgroupLayout({"freezer": tmp_path})
    assert not cgroups.is_frozen(layout, "g")
    cgroups.set_frozen(layout, "g", True)
    assert cgroups.is_frozen(layout, "g")
    assert cgroups.is_settled(layout, "g", True)
    with pytest.raises(OSError, match="no freezer"):
        cgroups.set_frozen(CgroupLayout(), "g", True)


def test_limits_are_written_where_they_belong(unified: CgroupLayout) -> None:
    cgroups.write_limits(unified, "p/c-x", {"memory.max": "123", "blkio.weight": "5"})
    assert unified.v2 is not None
    assert (unified.v2 / "p/c-x/memory.max").read_text() == "123"


def test_removal_is_bottom_up_and_everywhere(tmp_path: Path) -> None:
    layout = CgroupLayout({"memory": tmp_path / "a", "pids": tmp_path / "b"})
    (tmp_path / "a/p/c-x/inner/deep").mkdir(parents=True)
    (tmp_path / "b/p/c-x").mkdir(parents=True)
    assert cgroups.remove(layout, "p/c-x") == []
    assert not (tmp_path / "a/p/c-x").exists()
    cgroups.remove_if_empty(layout, "p")
    assert list((tmp_path / "a").iterdir()) == list((tmp_path / "b").iterdir()) == []


def test_what_is_busy_is_named(tmp_path: Path) -> None:
    layout = CgroupLayout({"memory": tmp_path})
    (tmp_path / "p/c-x").mkdir(parents=True)
    (tmp_path / "p/c-x/file").write_text("a real directory is not empty")
    assert cgroups.remove(layout, "p/c-x", deadline_s=0.01) == [str(tmp_path / "p/c-x")]


@pytest.mark.parametrize("path", ["", "/", "/abs", "a/../..", ".."])
def test_only_below_the_root(path: str) -> None:
    with pytest.raises(ValueError, match="unsafe"):
        cgroups.remove(CgroupLayout(), path)
