"""Which host ids stand for the ids inside an unprivileged instance.

Owns reading /etc/subuid and /etc/subgid and the map made from them. Called by the lxc driver and by the
storage of templates; must never hand out host id 0.
"""

from __future__ import annotations

from pathlib import Path

from incus_actors.drivers.base import DriverError, IdMapEntry

_FALLBACK = (1_000_000, 1_000_000_000)  #: what Incus takes on a machine without the two files
SIZE_MIN = 65_536


def parse_sub_ids(text: str, owners: tuple[str, ...] = ("root", "0")) -> list[tuple[int, int]]:
    """Return (first id, count) for each line `owner:first:count`; other lines are ignored."""
    ranges = []
    for line in text.splitlines():
        parts = line.split(":")
        if len(parts) == 3 and parts[0] in owners and parts[1].isdigit() and parts[2].strip().isdigit():
            ranges.append((int(parts[1]), int(parts[2])))
    return ranges


def default_idmap(etc: Path = Path("/etc")) -> tuple[IdMapEntry, ...]:
    """Return the map for unprivileged instances. Raises DriverError if root has no usable range."""
    first_uid, count_uid = _range(etc / "subuid")
    first_gid, count_gid = _range(etc / "subgid")
    if (first_uid, count_uid) == (first_gid, count_gid):
        return (IdMapEntry("both", 0, first_uid, count_uid),)
    return (IdMapEntry("uid", 0, first_uid, count_uid), IdMapEntry("gid", 0, first_gid, count_gid))


def _range(path: Path) -> tuple[int, int]:
    if not path.exists():
        return _FALLBACK
    usable = [found for found in parse_sub_ids(path.read_text()) if found[1] >= SIZE_MIN and found[0] >= SIZE_MIN]
    if not usable:
        raise DriverError(
            f"{path} gives root no range of at least {SIZE_MIN} ids",
            remedy=f"echo root:1000000:1000000000 >> {path}",
        )
    return usable[0]


def lxc_lines(entries: tuple[IdMapEntry, ...]) -> list[str]:
    """Return values for lxc.idmap, uids first."""
    lines = []
    for kind, letter in (("uid", "u"), ("gid", "g")):
        lines += [
            f"{letter} {entry.container} {entry.host} {entry.size}" for entry in entries if entry.kind in {kind, "both"}
        ]
    return lines


def host_base(entries: tuple[IdMapEntry, ...]) -> tuple[int, int]:
    """Return the host uid and gid of root inside; (0, 0) for an empty map."""
    uid = next((entry.host for entry in entries if entry.kind in {"uid", "both"} and entry.container == 0), 0)
    gid = next((entry.host for entry in entries if entry.kind in {"gid", "both"} and entry.container == 0), 0)
    return uid, gid
