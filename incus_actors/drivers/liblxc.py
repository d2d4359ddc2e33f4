"""What this machine's liblxc is and says: where the binding is, its version, its log.

Owns no state. Called by drivers/lxc.py; must never import the binding into the daemon (it costs 4 MB and DESIGN
D14 forbids its forks there).
"""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

from incus_actors.drivers.base import DriverError
from incus_actors.drivers.child import helper_argv

#: Run by liblxc's monitor at the very end. liblxc 5.0 would restart a rebooting container itself, but without
#: its idmapped root: files would belong to nobody. A failing hook makes it end instead; the driver restarts it.
POST_STOP_HOOK = """#!/bin/sh
[ "$LXC_TARGET" = reboot ] || exit 0
: > "${0%/*}/rebooted"
exit 1
"""
REBOOT_MARKER = "rebooted"


def extension_directory() -> Path | None:
    """Return the directory of the extension module `_lxc`, None if it is not installed."""
    found = importlib.util.find_spec("_lxc")
    return Path(found.origin).parent if found is not None and found.origin else None


def version(extension: Path) -> str:
    """Return liblxc's version, asked in a helper (10 ms). Raises DriverError if it does not load."""
    done = subprocess.run(
        helper_argv("lxc_helper", "version", str(extension), "0"),
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    if done.returncode != 0:
        raise DriverError(f"liblxc does not load: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout.strip()


def log_excerpt(path: Path) -> str:
    """Return the last error lines of a log, oldest first, without time stamps and source lines."""
    try:
        lines = path.read_text(errors="replace").splitlines()[-200:]
    except OSError:
        return ""
    return "\n".join(line.split(" - ", 2)[-1] for line in lines if " ERROR " in line)[-2000:]
