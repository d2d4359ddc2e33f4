"""`GET /1.0/resources`: the hardware of this machine from /proc and /sys (CONTRACT 15, B.16).

Owns the reading; run in an executor by ServerInfoService, because some files are slow. Must never start a process,
and what can't be read is left empty.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any, Final

from incus_actors.model import architectures

_SECTOR_BYTES: Final = 512
_CACHE_TYPES: Final = frozenset({"Data", "Instruction", "Unified"})


def read_resources(sys: Path = Path("/sys"), proc: Path = Path("/proc")) -> dict[str, Any]:
    """Return the whole object. Blocks for some milliseconds."""
    pci = _pci(sys)
    return {
        "cpu": _cpu(sys, proc),
        "memory": _memory(sys, proc),
        "gpu": {"cards": [], "total": 0},
        "network": _network(sys),
        "storage": _storage(sys),
        "usb": {"devices": [], "total": 0},
        "pci": {"devices": pci, "total": len(pci)},
        "system": _system(sys),
        "load": _load(proc),
    }


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path, default: int = 0) -> int:
    text = _text(path)
    return int(text) if text.lstrip("-").isdigit() else default


def _size(text: str) -> int:
    """Return the bytes of "32K" or "8192 kB"."""
    digits = "".join(c for c in text if c.isdigit())
    scale = {"K": 1 << 10, "M": 1 << 20, "k": 1 << 10}.get(next((c for c in text if c.isalpha()), ""), 1)
    return int(digits or 0) * scale


def _link(path: Path) -> str:
    """Return the name of what a link points at, "" without one."""
    return path.resolve().name if path.is_symlink() else ""


# -- CPU ------------------------------------------------------------------------------------------------------------


def _cpu(sys: Path, proc: Path) -> dict[str, Any]:
    info = _cpuinfo(proc)
    isolated = _ranges(_text(sys / "devices/system/cpu/isolated"))
    sockets: dict[int, dict[str, Any]] = {}
    total = 0
    directories = sorted((sys / "devices/system/cpu").glob("cpu[0-9]*"), key=lambda p: int(p.name[3:]))
    for directory in directories:
        number = int(directory.name[3:])
        topology = directory / "topology"
        if not topology.is_dir():
            continue
        socket = _number(topology / "physical_package_id")
        found = sockets.setdefault(
            socket,
            {
                "name": info.get("model name", ""),
                "vendor": info.get("vendor_id", ""),
                "socket": socket,
                "cache": _caches(directory),
                "cores": [],
            },
        )
        core_id, die = _number(topology / "core_id"), _number(topology / "die_id")
        cores: list[dict[str, Any]] = found["cores"]
        core = next((c for c in cores if (c["core"], c["die"]) == (core_id, die)), None)
        if core is None:
            core = {"core": core_id, "die": die, "threads": [], "flags": info.get("flags", "").split()}
            cores.append(core)
        core["threads"].append(
            {
                "id": number,
                "numa_node": _numa_node(directory),
                "thread": len(core["threads"]),
                "online": _text(directory / "online") != "0",
                "isolated": number in isolated,
            }
        )
        total += 1
    return {
        "architecture": architectures.native(),
        "sockets": [sockets[number] for number in sorted(sockets)],
        "total": total,
    }


def _cpuinfo(proc: Path) -> dict[str, str]:
    """Return the fields of the first CPU."""
    first = _text(proc / "cpuinfo").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _caches(directory: Path) -> list[dict[str, Any]]:
    return [
        {"level": _number(cache / "level"), "type": _text(cache / "type"), "size": _size(_text(cache / "size"))}
        for cache in sorted((directory / "cache").glob("index[0-9]*"))
        if _text(cache / "type") in _CACHE_TYPES
    ]


def _numa_node(directory: Path) -> int:
    return next((int(node.name[4:]) for node in directory.glob("node[0-9]*")), 0)


def _ranges(text: str) -> set[int]:
    """Return the numbers of "0-2,5"."""
    numbers: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return numbers


# -- memory, load, system ---------------------------------------------------------------------------------------------


def _meminfo(path: Path) -> dict[str, int]:
    """Return bytes (or counts) by name; lines of a NUMA node begin with "Node 0"."""
    found = {}
    for line in _text(path).splitlines():
        name, _, value = line.removeprefix("Node").lstrip("0123456789 ").partition(":")
        found[name] = _size(value.strip())
    return found


def _memory(sys: Path, proc: Path) -> dict[str, Any]:
    info = _meminfo(proc / "meminfo")
    page = info.get("Hugepagesize", 0)
    nodes = []
    for directory in sorted((sys / "devices/system/node").glob("node[0-9]*")):
        of_node = _meminfo(directory / "meminfo")
        total = of_node.get("MemTotal", 0)
        huge = of_node.get("HugePages_Total", 0)
        nodes.append(
            {
                "numa_node": int(directory.name[4:]),
                "hugepages_used": (huge - of_node.get("HugePages_Free", 0)) * page,
                "hugepages_total": huge * page,
                "used": total - of_node.get("MemFree", 0) - of_node.get("FilePages", 0),
                "total": total,
            }
        )
    huge = info.get("HugePages_Total", 0)
    return {
        "nodes": nodes,
        "hugepages_total": huge * page,
        "hugepages_used": (huge - info.get("HugePages_Free", 0)) * page,
        "hugepages_size": page,
        "used": info.get("MemTotal", 0) - info.get("MemAvailable", 0),
        "total": info.get("MemTotal", 0),
    }


def _load(proc: Path) -> dict[str, Any]:
    one, five, ten = os.getloadavg()
    running = _text(proc / "loadavg").split()
    processes = int(running[3].partition("/")[2] or 0) if len(running) > 3 else 0
    return {
        "Average1Min": round(one, 2),
        "Average5Min": round(five, 2),
        "Average10Min": round(ten, 2),
        "Processes": processes,
    }


def _system(sys: Path) -> dict[str, Any]:
    dmi = sys / "class/dmi/id"
    return {
        "uuid": _text(dmi / "product_uuid"),
        "vendor": _text(dmi / "sys_vendor"),
        "product": _text(dmi / "product_name"),
        "family": _text(dmi / "product_family"),
        "version": _text(dmi / "product_version"),
        "sku": _text(dmi / "product_sku"),
        "serial": _text(dmi / "product_serial"),
        "type": _machine_type(dmi),
        "firmware": None,
        "chassis": None,
        "motherboard": None,
    }


def _machine_type(dmi: Path) -> str:
    product = f"{_text(dmi / 'sys_vendor')} {_text(dmi / 'product_name')}".lower()
    if any(word in product for word in ("qemu", "kvm", "virtualbox", "vmware", "virtual machine", "amazon ec2")):
        return "virtual-machine"
    return "physical" if dmi.is_dir() else "container"


# -- devices ----------------------------------------------------------------------------------------------------------


def _hex(path: Path) -> str:
    return _text(path).removeprefix("0x")


def _pci_of(device: Path) -> Path | None:
    """Return the PCI device that a device hangs on."""
    if not device.exists():
        return None
    for parent in (real := device.resolve(), *real.parents):
        if parent.parent.name.startswith("pci") or (parent / "subsystem").resolve().name == "pci":
            return parent
    return None


def _network(sys: Path) -> dict[str, Any]:
    cards: dict[Path, dict[str, Any]] = {}
    for interface in sorted((sys / "class/net").iterdir()) if (sys / "class/net").is_dir() else ():
        pci = _pci_of(interface / "device")
        if pci is None:
            continue
        card = cards.setdefault(
            pci,
            {
                "driver": _link(pci / "driver"),
                "driver_version": platform.release(),
                "ports": [],
                "numa_node": max(_number(pci / "numa_node"), 0),
                "pci_address": pci.name,
                "vendor_id": _hex(pci / "vendor"),
                "product_id": _hex(pci / "device"),
            },
        )
        speed = _number(interface / "speed", -1)
        card["ports"].append(
            {
                "id": interface.name,
                "address": _text(interface / "address"),
                "port": _number(interface / "dev_port"),
                "protocol": "ethernet",
                "auto_negotiation": False,
                "link_detected": _text(interface / "carrier") == "1",
                **({"link_speed": speed} if speed > 0 else {}),
            }
        )
    return {"cards": list(cards.values()), "total": len(cards)}


def _storage(sys: Path) -> dict[str, Any]:
    disks = []
    for block in sorted((sys / "block").iterdir()) if (sys / "block").is_dir() else ():
        if not (block / "device").exists():  # loop, zram, device mapper
            continue
        pci = _pci_of(block / "device")
        disk: dict[str, Any] = {
            "id": block.name,
            "device": _text(block / "dev"),
            "model": _text(block / "device/model"),
            "type": _disk_type(block),
            "read_only": _text(block / "ro") == "1",
            "size": _number(block / "size") * _SECTOR_BYTES,
            "removable": _text(block / "removable") == "1",
            "numa_node": max(_number(pci / "numa_node"), 0) if pci else 0,
            "block_size": _number(block / "queue/physical_block_size"),
            "rpm": _number(block / "queue/rotational"),
            "device_id": "",
            "partitions": _partitions(block),
        }
        if pci is not None:
            disk["pci_address"] = pci.name
        disks.append(disk)
    return {"disks": disks, "total": len(disks) + sum(len(disk["partitions"]) for disk in disks)}


def _disk_type(block: Path) -> str:
    if block.name.startswith("vd"):
        return "virtio"
    if block.name.startswith("nvme"):
        return "nvme"
    return "scsi" if block.name.startswith("sd") else "unknown"


def _partitions(block: Path) -> list[dict[str, Any]]:
    return [
        {
            "id": path.parent.name,
            "device": _text(path.parent / "dev"),
            "read_only": _text(path.parent / "ro") == "1",
            "size": _number(path.parent / "size") * _SECTOR_BYTES,
            "partition": _number(path),
        }
        for path in sorted(block.glob("*/partition"))
    ]


def _pci(sys: Path) -> list[dict[str, Any]]:
    return [
        {
            "driver": _link(device / "driver"),
            "driver_version": platform.release() if _link(device / "driver") else "",
            "numa_node": max(_number(device / "numa_node"), 0),
            "pci_address": device.name,
            "vendor": "",
            "vendor_id": _hex(device / "vendor"),
            "product": "",
            "product_id": _hex(device / "device"),
            "iommu_group": int(_link(device / "iommu_group") or 0),
            "vpd": {},
        }
        for device in sorted((sys / "bus/pci/devices").glob("*"))
    ]
