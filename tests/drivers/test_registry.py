from __future__ import annotations

from pathlib import Path

import pytest

from incus_actors.drivers import lxc
from incus_actors.drivers.base import Availability, InstanceDriver
from incus_actors.drivers.registry import choose_drivers
from incus_actors.drivers.storage import StorageDriver
from incus_actors.errors import BadRequestError, MemberError


def test_protocols_are_kept(tmp_path: Path) -> None:
    for name in ("", "process"):
        drivers = choose_drivers(tmp_path, instance_driver=name)
        assert isinstance(drivers.instances, InstanceDriver)
        assert isinstance(drivers.storage["dir"], StorageDriver)


def test_the_fallback_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lxc.LxcDriver, "availability", lambda _: Availability(False, "no liblxc"))
    drivers = choose_drivers(tmp_path)
    assert drivers.instances.info.name == "process"
    assert drivers.reasons["lxc"].reason == "no liblxc"
    with pytest.raises(MemberError, match="lxc does not work: no liblxc"):
        choose_drivers(tmp_path, instance_driver="lxc")


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(MemberError, match="no instance driver docker"):
        choose_drivers(tmp_path, instance_driver="docker")
    with pytest.raises(BadRequestError, match='"zfs" is not supported'):
        choose_drivers(tmp_path).storage_driver("zfs")


@pytest.mark.real
def test_liblxc_is_found_but_not_loaded(tmp_path: Path) -> None:
    import sys

    drivers = choose_drivers(tmp_path)
    if drivers.instances.info.name == "lxc":
        assert drivers.instances.info.version[0].isdigit()
    assert "_lxc" not in sys.modules
