"""Hardware from a /sys and /proc, real or made up."""

from __future__ import annotations

import os
from pathlib import Path

from incus_actors.services.resources import read_resources


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_this_machine():
    found = read_resources()
    assert found["cpu"]["total"] == os.cpu_count()
    assert found["cpu"]["architecture"] == os.uname().machine
    assert found["memory"]["total"] > found["memory"]["used"] > 0
    assert found["pci"]["total"] == len(found["pci"]["devices"])
    assert found["load"]["Processes"] > 0


def test_two_sockets_threads_and_isolated_cpus(tmp_path):
    cpu = "sys/devices/system/cpu"
    files = {f"{cpu}/isolated": "1", "proc/cpuinfo": "model name\t: X\nvendor_id : V\nflags : a b\n\nprocessor: 1"}
    for number, (package, core) in enumerate([(0, 0), (0, 0), (1, 0)]):
        files[f"{cpu}/cpu{number}/topology/physical_package_id"] = str(package)
        files[f"{cpu}/cpu{number}/topology/core_id"] = str(core)
        files[f"{cpu}/cpu{number}/online"] = "0" if number == 2 else "1"
    files[f"{cpu}/cpu0/cache/index0/size"] = "32K"
    files[f"{cpu}/cpu0/cache/index0/level"] = "1"
    files[f"{cpu}/cpu0/cache/index0/type"] = "Data"
    write(tmp_path, files)
    found = read_resources(tmp_path / "sys", tmp_path / "proc")["cpu"]
    assert found["total"] == 3
    first, second = found["sockets"]
    assert (first["name"], first["vendor"]) == ("X", "V")
    assert first["cache"] == [{"level": 1, "type": "Data", "size": 32768}]
    assert [t["thread"] for t in first["cores"][0]["threads"]] == [0, 1]
    assert [t["isolated"] for t in first["cores"][0]["threads"]] == [False, True]
    assert first["cores"][0]["flags"] == ["a", "b"]
    assert not second["cores"][0]["threads"][0]["online"]


def test_memory_with_huge_pages(tmp_path):
    write(
        tmp_path,
        {
            "proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 400 kB\nHugePages_Total: 3\nHugePages_Free: 1\n"
            "Hugepagesize: 2048 kB\n",
            "sys/devices/system/node/node0/meminfo": "Node 0 MemTotal: 1000 kB\nNode 0 MemFree: 100 kB\n"
            "Node 0 FilePages: 200 kB\nNode 0 HugePages_Total: 3\nNode 0 HugePages_Free: 1\n",
        },
    )
    found = read_resources(tmp_path / "sys", tmp_path / "proc")["memory"]
    assert (found["total"], found["used"]) == (1000 << 10, 600 << 10)
    assert (found["hugepages_total"], found["hugepages_used"]) == (3 << 21, 2 << 21)
    assert found["nodes"][0]["used"] == 700 << 10


def test_disks_with_partitions_but_no_loop_devices(tmp_path):
    disk = "sys/block/sda"
    write(
        tmp_path,
        {
            f"{disk}/device/model": "M",
            f"{disk}/dev": "8:0",
            f"{disk}/size": "100",
            f"{disk}/sda1/partition": "1",
            f"{disk}/sda1/size": "50",
            f"{disk}/sda1/dev": "8:1",
            "sys/block/loop0/size": "5",
        },
    )
    found = read_resources(tmp_path / "sys", tmp_path / "proc")["storage"]
    assert found["total"] == 2
    assert found["disks"][0]["size"] == 51200
    assert found["disks"][0]["partitions"][0]["device"] == "8:1"


def test_a_machine_that_tells_nothing(tmp_path):
    found = read_resources(tmp_path / "sys", tmp_path / "proc")
    assert found["cpu"]["total"] == found["storage"]["total"] == found["network"]["total"] == 0
