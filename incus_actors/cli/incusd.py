"""`incusd`: so that the stock client's `incus admin cluster …` reaches us.

The client runs the `incusd` that it finds in PATH, with `admin cluster …`. Owns the choice whom that concerns: a
directory of a real Incus is passed on to the real incusd. Must never run our commands on somebody else's database.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

REAL = ("/usr/libexec/incus/incusd", "/usr/lib/incus/incusd", "/opt/incus/bin/incusd")
REAL_DIRECTORY = "/var/lib/incus"


def real_incusd(directory: str | None, candidates: tuple[str, ...] = REAL) -> str | None:
    """Return the real incusd if `directory` ($INCUS_DIR) is one of its own, None if it is ours.

    Without a directory it is ours, unless only the real product has a database on this machine.
    """
    from incus_actors.settings import DEFAULT_DIRECTORY, DirectoryInUseError, refuse_foreign_directory

    found = next((path for path in candidates if Path(path).exists()), None)
    if found is None or (not directory and (Path(DEFAULT_DIRECTORY) / "database").exists()):
        return None
    try:
        refuse_foreign_directory(Path(directory or REAL_DIRECTORY))
    except DirectoryInUseError:
        return found
    return None


def main() -> None:
    """Run our own daemon's command line, or become the real incusd."""
    real = real_incusd(os.environ.get("INCUS_DIR"))
    if real is not None:
        os.execv(real, ["incusd", *sys.argv[1:]])  # noqa: S606 - exactly the program the client would have run
    from incus_actors.cli.daemon import main as daemon

    daemon(prog_name="incusd")


if __name__ == "__main__":
    main()
