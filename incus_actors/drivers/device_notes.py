"""What a running container was given, in a file beside the instance: also a daemon that comes later can read it.

Owns reading and replacing such a file; used by lxc_disks, lxc_nics and lxc_proxies, each with a file of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write(path: Path, devices: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace the file in one step. Raises OSError."""
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(devices, sort_keys=True))
    temporary.replace(path)


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Return the devices by name; none if there is no file, or no readable one."""
    try:
        found: dict[str, dict[str, Any]] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found
