from __future__ import annotations

import pytest

from incus_actors.drivers.limits import (
    Machine,
    changed_files,
    choose_cpus,
    limit_files,
    parse_memory_bytes,
    parse_size_bytes,
)
from incus_actors.errors import BadRequestError

V1 = {"cpu": 1, "cpuset": 1, "memory": 1, "pids": 1}
MACHINE = Machine(1 << 30, (0, 1, 2, 3), V1)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("42", 42),
        ("1kB", 1000),
        ("1KiB", 1024),
        ("512MiB", 512 << 20),
        ("2GB", 2 * 10**9),
        ("1TiB", 1 << 40),
        ("7B", 7),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1.5GiB", "1 giga", "1Mib", "0x10"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(BadRequestError, match="Invalid value"):
        parse_size_bytes(text)


def test_percentages() -> None:
    assert parse_memory_bytes("50%", 1000) == 500
    assert parse_memory_bytes("100%", 1000) == 1000
    for text in ("0%", "101%", "-5%", "x%", "%"):
        with pytest.raises(BadRequestError):
            parse_memory_bytes(text, 1000)


def test_cpu_counts_are_spread_and_stable() -> None:
    chosen = {choose_cpus("1", (0, 1, 2, 3), f"c{number}") for number in range(50)}
    assert chosen == {"0", "1", "2", "3"}
    assert choose_cpus("2", (0, 1, 2, 3), "c1") == choose_cpus("2", (0, 1, 2, 3), "c1")
    assert choose_cpus("4", (0, 1, 2, 3), "c1") == ""
    assert choose_cpus("99", (0, 1), "c1") == ""


def test_cpu_sets() -> None:
    assert choose_cpus("0-1,3", (0, 1, 2, 3), "c") == "0,1,3"
    assert choose_cpus("2-2", (0, 1, 2, 3), "c") == "2"
    assert choose_cpus("0,7", (0, 1, 2, 3), "c") == "0"  # what there is of it
    assert [choose_cpus(text, (0, 1, 2, 3), "c") for text in ("9-10", "3-1")] == ["", ""]


@pytest.mark.parametrize("text", ["0", "a", "1-", "1,,2", "0-99999999"])
def test_bad_cpus(text: str) -> None:
    with pytest.raises(BadRequestError):
        choose_cpus(text, (0, 1, 2, 3), "c")


def test_nothing_set_is_nothing_written() -> None:
    assert limit_files({}, MACHINE, "c") == {}


def test_taking_limits_away() -> None:
    old = {"limits.memory": "1MiB", "limits.processes": "5", "limits.cpu": "1", "limits.cpu.allowance": "10ms/20ms"}
    assert changed_files(old, {"limits.processes": "6"}, MACHINE, "c") == {
        "pids.max": "6",
        "memory.limit_in_bytes": "-1",
        "cpuset.cpus": "0,1,2,3",
        "cpu.cfs_period_us": "100000",
        "cpu.cfs_quota_us": "-1",
    }
    second = Machine(1 << 30, (0, 1), dict.fromkeys(V1, 2))
    everything = {**old, "limits.memory.swap": "false", "limits.cpu.allowance": "10%"}
    assert set(changed_files(everything, {}, second, "c").values()) == {"max", "0,1", "100"}
    assert changed_files({"limits.memory": "odd"}, {}, MACHINE, "c") == {}


def test_missing_controllers_are_left_out() -> None:
    config = {"limits.memory": "1MiB", "limits.processes": "5", "limits.cpu": "1", "limits.cpu.allowance": "10%"}
    assert limit_files(config, Machine(1 << 30, (0, 1), {}), "c") == {}


@pytest.mark.parametrize(
    ("text", "files"),
    [("50%", {"cpu.shares": "512"}), ("10ms/20ms", {"cpu.cfs_period_us": "20000", "cpu.cfs_quota_us": "10000"})],
)
def test_allowances(text: str, files: dict[str, str]) -> None:
    assert limit_files({"limits.cpu.allowance": text}, MACHINE, "c") == files


@pytest.mark.parametrize(
    "config",
    [
        {"limits.cpu.allowance": "110%"},
        {"limits.cpu.allowance": "lots"},
        {"limits.cpu.allowance": "10ms/0ms"},
        {"limits.processes": "many"},
        {"limits.memory": "much"},
    ],
)
def test_bad_values(config: dict[str, str]) -> None:
    with pytest.raises(BadRequestError):
        limit_files(config, MACHINE, "c")


def test_soft_memory_and_swap() -> None:
    config = {"limits.memory": "1MiB", "limits.memory.enforce": "soft", "limits.memory.swap": "false"}
    assert limit_files(config, MACHINE, "c") == {"memory.soft_limit_in_bytes": "1048576", "memory.swappiness": "0"}
    second = Machine(1 << 30, (0,), {"memory": 2})
    assert limit_files(config, second, "c") == {"memory.high": "1048576", "memory.swap.max": "0"}
