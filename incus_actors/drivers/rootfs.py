"""Who owns the files of a root file system: mapped at mount time where possible, changed on disk elsewhere.

Owns the marker `idmap` in a volume (which base its files have on disk) and the knowledge which file systems
can be mapped. Called by the lxc driver before each start; must never leave a half-changed tree marked as done.
"""

from __future__ import annotations

import os
from pathlib import Path

from incus_actors.drivers import mounts
from incus_actors.drivers.child import run_helper

_SIZE = 1_000_000_000
_SHIFT_TIMEOUT_S = 3600.0


class RootfsOwners:
    """Remembers per mounted file system whether idmapped mounts work (on btrfs each volume has a device number)."""

    def __init__(self) -> None:
        self._idmapped: dict[str, bool] = {}

    async def idmapped_mounts(self, directory: Path) -> bool:
        """Return whether the file system of `directory` can be mounted with an id map here; asks once."""
        found = mounts.holding(directory)
        device = str(directory.stat().st_dev) if found is None else f"{found.device} {found.kind} {found.point}"
        if device not in self._idmapped:
            answer = await run_helper("rootfs_helper", ["probe"], [("path", str(directory))])
            self._idmapped[device] = answer["idmapped"] == "1"
        return self._idmapped[device]

    def on_disk(self, volume: Path) -> tuple[int, int]:
        """Return the uid and gid that root of the instance has on disk now."""
        return _read_marker(volume / "idmap")

    async def ensure(self, volume: Path, base: tuple[int, int]) -> None:
        """Make the files' owners on disk start at `base`. An interrupted run is simply repeated."""
        marker = volume / "idmap"
        current = _read_marker(marker)
        if current == base:
            return
        await run_helper(
            "rootfs_helper",
            ["shift"],
            [
                ("path", str(volume / "rootfs")),
                ("from_uid", str(current[0])),
                ("from_gid", str(current[1])),
                ("to_uid", str(base[0])),
                ("to_gid", str(base[1])),
                ("size", str(_SIZE)),
            ],
            timeout_s=_SHIFT_TIMEOUT_S,
        )
        # Root of the instance must pass here itself where the mount does not map it; nobody else may.
        volume.chmod(0o700 if base == (0, 0) else 0o100)
        os.chown(volume, base[0], 0)
        temporary = volume / "idmap.new"
        temporary.write_text(f"{base[0]} {base[1]}\n")
        temporary.replace(marker)


def _read_marker(marker: Path) -> tuple[int, int]:
    try:
        uid, gid = marker.read_text().split()
    except FileNotFoundError:
        return 0, 0
    return int(uid), int(gid)
