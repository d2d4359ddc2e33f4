from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from incus_actors.drivers import liblxc
from incus_actors.drivers.base import DriverError


def test_the_log_tells_the_cause_first(tmp_path: Path) -> None:
    log = tmp_path / "lxc.log"
    log.write_text(
        "lxc 20261121031706.918 WARN     cgfsng - ../src/a.c:f:1 - No such file - not important\n"
        "lxc 20261121031706.919 ERROR    start - ../src/b.c:g:99 - Permission denied - Could not access /x\n"
        "lxc 20261121031706.919 ERROR    start - ../src/b.c:h:2107 - Failed to spawn container\n"
    )
    assert liblxc.log_excerpt(log).splitlines() == [
        "Permission denied - Could not access /x",
        "Failed to spawn container",
    ]
    assert liblxc.log_excerpt(tmp_path / "missing") == ""


def test_a_binding_that_does_not_load(tmp_path: Path) -> None:
    (tmp_path / "_lxc.py").write_text("raise ImportError('liblxc.so.1: cannot open shared object file')\n")
    with pytest.raises(DriverError, match=r"cannot open shared object file"):
        liblxc.version(tmp_path)


@pytest.mark.parametrize(("target", "code", "marked"), [("stop", 0, False), ("reboot", 1, True)])
def test_the_hook_stops_only_reboots(tmp_path: Path, target: str, code: int, marked: bool) -> None:
    hook = tmp_path / "a dir" / "post-stop"
    hook.parent.mkdir()
    hook.write_text(liblxc.POST_STOP_HOOK)
    environment = {**os.environ, "LXC_TARGET": target}
    assert subprocess.run(["/bin/sh", hook, "c1", "lxc", "post-stop"], env=environment, check=False).returncode == code
    assert (hook.parent / liblxc.REBOOT_MARKER).exists() is marked
