"""What the programs of LVM are asked, and how their answers are read.

Owns names of logical volumes and the parsers. Called by lvm_pools.py and storage_lvm.py. LVM keeps one flat list of names
in a volume group, so kind, project, volume and snapshot are all in the name, as Incus has it: `containers_c1-snap0`, with
every "-" of ours doubled.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from incus_actors.drivers import commands
from incus_actors.errors import BadRequestError

PROGRAMS = ("lvm", "lvs", "vgs", "pvs", "pvcreate", "vgcreate", "lvcreate", "mkfs.ext4", "resize2fs", "mount", "tar")
CONTROL = Path("/dev/mapper/control")
_NAME = re.compile(r"[A-Za-z0-9+_.][A-Za-z0-9+_.-]{0,126}")
#: LVM keeps these for itself (lvm(8), "Valid names").
_KEPT = (
    "_cdata",
    "_cmeta",
    "_corig",
    "_mimage",
    "_mlog",
    "_pmspare",
    "_rimage",
    "_rmeta",
    "_tdata",
    "_tmeta",
    "_vorigin",
)
_VERSION = re.compile(r"LVM version:\s+(\S+)")


@dataclass(frozen=True, slots=True)
class LogicalVolume:
    """One line of `lvs`. Sizes in bytes; `used_percent` of a thin volume or pool, 0 where there is none."""

    name: str
    size: int
    used_percent: float
    origin: str
    pool: str

    @property
    def used_bytes(self) -> int:
        """Return what is really taken."""
        return int(self.size * self.used_percent / 100)


def problem() -> str:
    """Return why LVM doesn't work here, "" if it does; looks, starts nothing."""
    missing = commands.missing(*PROGRAMS)
    if missing:
        return f"Required tool '{missing[0]}' is missing"
    try:
        os.close(os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC))  # the node may be there without the driver behind it
    except OSError as error:
        return f"this kernel has no device-mapper ({CONTROL}: {error.strerror})"
    return ""


def version() -> str:
    """Return the version of LVM. Blocks some 10 ms."""
    program = commands.which("lvm") or "lvm"
    done = subprocess.run([program, "version"], capture_output=True, text=True, check=False, timeout=10)
    return parse_version(done.stdout)


def parse_version(text: str) -> str:
    """Read `lvm version`."""
    found = _VERSION.search(text)
    return found[1] if found else "unknown"


def checked(name: str) -> str:
    """Return a name that LVM takes. Raises BadRequestError."""
    if not _NAME.fullmatch(name) or name.startswith(("snapshot", "pvmove")) or any(part in name for part in _KEPT):
        raise BadRequestError(f'Invalid name for a logical volume or a volume group: "{name}"')
    return name


def lv_name(kind: str, disk_name: str, snapshot: str = "") -> str:
    """Return the name of a volume (`kind` as in the pool's directories) or of its snapshot. Raises BadRequestError."""
    name = f"{kind}_{_escaped(disk_name)}"
    return checked(f"{name}-{_escaped(snapshot)}" if snapshot else name)


def snapshot_of(name: str, volume: str) -> str:
    """Return the snapshot's own name if `name` is one of `volume`, else ""."""
    prefix = f"{volume}-"
    rest = name.removeprefix(prefix)
    # What follows an odd dash is a snapshot; a doubled one belongs to the name of another volume.
    return rest.replace("--", "-") if name.startswith(prefix) and not rest.startswith("-") else ""


def _escaped(name: str) -> str:
    return name.replace("-", "--")


LVS = ("lvs", "--noheadings", "--nosuffix", "--units", "b", "--separator", "|", "-o")
LVS_FIELDS = "lv_name,lv_size,data_percent,origin,pool_lv"


def parse_lvs(text: str) -> list[LogicalVolume]:
    """Read `lvs` with LVS_FIELDS."""
    found = []
    for line in text.splitlines():
        fields = line.strip().split("|")
        if len(fields) != 5:
            continue
        name, size, percent, origin, pool = fields
        found.append(LogicalVolume(name, int(float(size or 0)), float(percent or 0), origin, pool))
    return found


def parse_vgs(text: str) -> dict[str, int]:
    """Read `vgs -o vg_name,lv_count`: name → number of logical volumes."""
    found = {}
    for line in text.splitlines():
        name, _, count = line.strip().partition("|")
        if name and count.isdigit():
            found[name] = int(count)
    return found


def parse_pvs(text: str) -> dict[str, str]:
    """Read `pvs -o pv_name,vg_name`: device → volume group ("" for none)."""
    found = {}
    for line in text.splitlines():
        device, bar, group = line.strip().partition("|")
        if device and bar:
            found[device] = group
    return found
