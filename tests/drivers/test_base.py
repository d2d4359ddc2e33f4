from __future__ import annotations

from pathlib import Path

import pytest

from incus_actors.drivers.base import InstanceSpec, RunStatus, disk_name, exit_code_of
from incus_actors.model.config_values import is_true


def test_names_on_disk() -> None:
    assert disk_name("default", "c1") == "c1"
    assert disk_name("blue", "c1") == "blue_c1"
    for project, name in (("default", "../x"), ("a/b", "c"), ("default", ""), ("..", "x"), ("default", "a\0b")):
        with pytest.raises(ValueError, match="unsafe name"):
            disk_name(project, name)


def test_status_codes() -> None:
    assert [(status.value, status.code) for status in (RunStatus.RUNNING, RunStatus.STOPPED, RunStatus.FROZEN)] == [
        ("Running", 103),
        ("Stopped", 102),
        ("Frozen", 110),
    ]


def test_small_things() -> None:
    assert [is_true(text) for text in ("true", "1", "on", "Yes", "false", "", None)] == [True] * 4 + [False] * 3
    assert (exit_code_of(0), exit_code_of(3), exit_code_of(-9)) == (0, 3, 137)
    spec = InstanceSpec("c", "default", Path("/i"), Path("/v"), Path("/l"), {"security.privileged": "true"})
    assert (spec.rootfs, spec.privileged, spec.log_file) == (Path("/v/rootfs"), True, Path("/l/lxc.log"))
