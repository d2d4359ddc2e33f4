"""The clock of a daemon that a nemesis sets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from incus_actors.lab import clock_daemon

ASK = """
import sys
from pathlib import Path
from incus_actors.lab import clock_daemon
import time
real, path = time.time(), Path(sys.argv[1])
clock_daemon.install(path)
from incus_actors.clock import SystemClock
found = []
for offset in (0, -1_576_800_000, 3600):
    clock_daemon.set_offset(path, offset)
    assert abs(time.time_ns() / 1e9 - time.time()) < 5
    found.append(round((SystemClock().wall_ms() / 1000 - real) / 60))
print(*found)
"""


def test_only_its_own_wall_clock_jumps_and_at_once(tmp_path: Path) -> None:
    path = clock_daemon.offset_file(tmp_path / "m1")
    assert path.parent == tmp_path, "not on the member's disk, which may run full"
    clock_daemon.set_offset(path, 0)
    found = subprocess.run(
        [sys.executable, "-c", ASK, str(path)], check=True, capture_output=True, text=True, timeout=60
    )
    assert found.stdout.split() == ["0", "-26280000", "60"]
