"""From `limits.*` to the numbers of the kernel.

Owns parsing and the choice of control files for both versions of control groups; pure. Called by the drivers
when an instance starts or its limits change; must never read the machine itself.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from incus_actors.drivers.base import Config
from incus_actors.errors import BadRequestError
from incus_actors.model.config_values import is_true

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("kMGTPE", start=1):
    _UNITS[f"{_letter}B"] = 1000**_power
    _UNITS[f"{_letter}iB"] = 1024**_power
_UNITS["KB"] = 1000
_UNITS["KiB"] = 1024
_SIZE = re.compile(r"(\d+)\s*([A-Za-z]*)")

#: What to write into a control file to take a limit away.
_NO_LIMIT = {
    "memory.limit_in_bytes": "-1",
    "memory.soft_limit_in_bytes": "-1",
    "memory.swappiness": "60",
    "memory.max": "max",
    "memory.high": "max",
    "memory.swap.max": "max",
    "pids.max": "max",
    "cpu.cfs_period_us": "100000",
    "cpu.cfs_quota_us": "-1",
    "cpu.shares": "1024",
    "cpu.max": "max 100000",
    "cpu.weight": "100",
}


@dataclass(frozen=True, slots=True)
class Machine:
    """What limits are measured against. `versions`: controller → 1 or 2; a missing one can't be limited."""

    memory_bytes: int
    cpus: tuple[int, ...]
    versions: Mapping[str, int]


def parse_size_bytes(text: str) -> int:
    """Return bytes of "512MiB", "1GB", "42". Raises BadRequestError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or _UNITS.get(match[2], 0) == 0:
        raise BadRequestError(f"Invalid value: {text}")
    return int(match[1]) * _UNITS[match[2]]


def parse_memory_bytes(text: str, total_bytes: int) -> int:
    """Return bytes of a size or of a percentage of the machine's memory. Raises BadRequestError."""
    if text.endswith("%"):
        if not text[:-1].isdigit() or not 0 < int(text[:-1]) <= 100:
            raise BadRequestError(f"Invalid value: {text}")
        return total_bytes * int(text[:-1]) // 100
    return parse_size_bytes(text)


def choose_cpus(text: str, online: tuple[int, ...], name: str) -> str:
    """Return a cpuset ("0-1,3"): what there is of the set asked for, or as many cpus as asked for, spread by name.

    A count of at least the number of cpus is no limit: ""; nor, as in Incus, is a set of which there is nothing. Raises
    BadRequestError.
    """
    if text.isdigit():
        count = int(text)
        if count <= 0:
            raise BadRequestError(f"Invalid value: {text}")
        if count >= len(online):
            return ""
        first = zlib.crc32(name.encode()) % len(online)
        chosen = {online[(first + step) % len(online)] for step in range(count)}
    else:
        chosen = _parse_set(text) & set(online)
    return ",".join(str(cpu) for cpu in sorted(chosen))


def _parse_set(text: str) -> set[int]:
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise BadRequestError(f"Invalid CPU set: {text}")
        if dash and int(last) - int(first) > 8192:
            raise BadRequestError(f"Invalid CPU set: {text}")
        chosen |= set(range(int(first), int(last or first) + 1))
    return chosen


def limit_files(config: Config, machine: Machine, name: str) -> dict[str, str]:
    """Return control file → value for all limits set, in the order they must be written.

    Raises BadRequestError for bad values. A controller that is missing here is left out.
    """
    files: dict[str, str] = {}
    _memory(config, machine, files)
    if config.get("limits.processes"):
        if not config["limits.processes"].isdigit():
            raise BadRequestError(f"Invalid value: {config['limits.processes']}")
        if "pids" in machine.versions:
            files["pids.max"] = config["limits.processes"]
    if config.get("limits.cpu") and "cpuset" in machine.versions:
        cpus = choose_cpus(config["limits.cpu"], machine.cpus, name)
        if cpus:
            files["cpuset.cpus"] = cpus
    _allowance(config, machine, files)
    return files


def changed_files(old: Config, new: Config, machine: Machine, name: str) -> dict[str, str]:
    """Return what to write so that a running instance goes from `old` limits to `new` ones: also "no limit".

    Raises BadRequestError for bad new values; bad old ones count as none.
    """
    files = limit_files(new, machine, name)
    try:
        gone = limit_files(old, machine, name).keys() - files.keys()
    except BadRequestError:
        gone = set()
    everything = {"cpuset.cpus": ",".join(str(cpu) for cpu in machine.cpus)}
    return files | {file: everything.get(file) or _NO_LIMIT[file] for file in sorted(gone)}


def _memory(config: Config, machine: Machine, files: dict[str, str]) -> None:
    text = config.get("limits.memory", "")
    version = machine.versions.get("memory", 0)
    if not text:
        return
    value = parse_memory_bytes(text, machine.memory_bytes)
    soft = config.get("limits.memory.enforce") == "soft"
    if version == 1:
        files["memory.soft_limit_in_bytes" if soft else "memory.limit_in_bytes"] = str(value)
        if config.get("limits.memory.swap") and not is_true(config["limits.memory.swap"]):
            files["memory.swappiness"] = "0"
    elif version == 2:
        files["memory.high" if soft else "memory.max"] = str(value)
        if config.get("limits.memory.swap") and not is_true(config["limits.memory.swap"]):
            files["memory.swap.max"] = "0"


def _allowance(config: Config, machine: Machine, files: dict[str, str]) -> None:
    text = config.get("limits.cpu.allowance", "")
    version = machine.versions.get("cpu", 0)
    if not text:
        return
    if hard := re.fullmatch(r"(\d+)ms/(\d+)ms", text):
        quota_us, period_us = int(hard[1]) * 1000, int(hard[2]) * 1000
        if not quota_us > 0 or not 1000 <= period_us <= 1_000_000:
            raise BadRequestError(f"Invalid value: {text}")
        if version == 1:
            files["cpu.cfs_period_us"], files["cpu.cfs_quota_us"] = str(period_us), str(quota_us)
        elif version == 2:
            files["cpu.max"] = f"{quota_us} {period_us}"
    elif re.fullmatch(r"\d{1,3}%", text) and 0 < int(text[:-1]) <= 100:
        if version == 1:
            files["cpu.shares"] = str(max(2, 1024 * int(text[:-1]) // 100))
        elif version == 2:
            files["cpu.weight"] = str(int(text[:-1]))
    else:
        raise BadRequestError(f"Invalid value: {text}")
