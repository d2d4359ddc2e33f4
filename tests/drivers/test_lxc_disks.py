"""Disks that come and go while a real container runs, and stay for the daemon that comes later."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from drivers_kit import Machine, mounts_naming

from incus_actors.drivers import lxc_disks
from incus_actors.drivers.base import DriverError, InstanceSpec
from incus_actors.drivers.lxc import LxcDriver

pytestmark = pytest.mark.real


@pytest.fixture
async def running(lxc_machine: Machine) -> InstanceSpec:
    spec = await lxc_machine.create("g1-disks")
    await lxc_machine.driver.start(spec)
    return spec


def disk(source: Path, path: str, **more: str) -> dict[str, str]:
    return {"type": "disk", "source": str(source), "path": path, **more}


async def sh(machine: Machine, spec: InstanceSpec, script: str) -> str:
    code, out, err = await machine.run(spec, "sh", "-c", script)
    assert code == 0, err
    return out.decode()


async def test_volumes_are_plugged_in_and_out(lxc_machine: Machine, running: InstanceSpec, tmp_path: Path) -> None:
    volume, other = tmp_path / "volume", tmp_path / "other"
    for path in (volume, other):
        path.mkdir(mode=0o711)
    (other / "file").write_text("kept")
    spec = replace(
        running,
        devices={
            "v": disk(volume, "/mnt/deep/v", shift="true"),
            "o": disk(other, "/mnt/o", readonly="true"),
            "f": disk(other / "file", "/etc/given"),
            "gone": disk(tmp_path / "nothing", "/mnt/gone", required="false"),
        },
    )
    await lxc_machine.driver.update_devices(spec)
    assert await sh(lxc_machine, spec, "touch /mnt/deep/v/made && stat -c %u:%g /mnt/deep/v/made") == "0:0\n"
    found = (volume / "made").stat()
    assert (found.st_uid, found.st_gid) == (0, 0)  # root inside is root of the volume
    assert await sh(lxc_machine, spec, "cat /mnt/o/file /etc/given") == "keptkept"
    code, _, _ = await lxc_machine.run(spec, "touch", "/mnt/o/more")
    assert code != 0
    await lxc_machine.driver.update_devices(spec)  # nothing is done twice
    assert (await sh(lxc_machine, spec, "cat /proc/mounts")).count("/mnt/deep/v") == 1

    later = LxcDriver(lxc_machine.directory)  # the daemon was restarted
    assert await later.recover([spec]) == [spec]
    fewer = replace(spec, devices={"o": disk(other, "/mnt/elsewhere")})
    await later.update_devices(fewer)
    mounts = await sh(lxc_machine, spec, "cat /proc/mounts")
    assert " /mnt/elsewhere " in mounts
    assert "/mnt/deep/v" not in mounts
    assert " /mnt/o " not in mounts
    await sh(lxc_machine, spec, "touch /mnt/elsewhere/more 2>/dev/null || true")
    await later.close()
    assert mounts_naming("deep/v") == []  # nothing of it is on the host


async def test_what_cannot_be_plugged_says_so(lxc_machine: Machine, running: InstanceSpec, tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.mkdir()
    for device, reason in (
        (disk(tmp_path / "missing", "/mnt/x"), "Missing source path"),
        (disk(good, "/proc/nonsense/x"), "No such file|Permission|not permitted"),
        (disk(Path("/proc"), "/mnt/p", shift="true"), "map the owners of /proc"),
    ):
        with pytest.raises(DriverError, match=f'Failed to start device "bad": .*({reason})'):
            await lxc_machine.driver.update_devices(replace(running, devices={"bad": device}))
    await lxc_machine.driver.update_devices(replace(running, devices={"d": disk(good, "/mnt/d")}))
    assert list(lxc_disks.noted(running)) == ["d"]
    await sh(lxc_machine, running, "umount /mnt/d")  # somebody inside was faster
    await lxc_machine.driver.update_devices(running)
    assert lxc_disks.noted(running) == {}


async def test_a_mount_point_goes_with_its_disk_if_it_was_made_for_it(
    lxc_machine: Machine, running: InstanceSpec, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    (source / "below").chmod(0o777)
    (source / "file").touch()
    driver = lxc_machine.driver
    await sh(lxc_machine, running, "mkdir -p /mnt/old && touch /mnt/empty")
    devices = {
        "made": disk(source, "/mnt/deep/made/"),
        "file": disk(source / "file", "/mnt/file"),
        "top": disk(source, "/mnt/top"),
        "above": disk(source, "/mnt/top/below/made"),
        "old": disk(source, "/mnt/old"),
        "empty": disk(source / "file", "/mnt/empty"),
        "used": disk(source, "/mnt/used"),
        "swapped": disk(source, "/mnt/swapped"),
    }
    await driver.update_devices(replace(running, devices=devices))
    await sh(lxc_machine, running, "umount /mnt/used && touch /mnt/used/it")
    await sh(lxc_machine, running, "umount /mnt/swapped && mv /mnt/swapped /mnt/kept && mkdir /mnt/swapped")
    await driver.update_devices(replace(running, devices={"made": devices["made"]}))
    assert await sh(lxc_machine, running, "cd /mnt; ls -d * deep/*") == (
        "deep\ndeep/made\nempty\nkept\nold\nswapped\nused\n"
    )
    assert not (source / "below" / "made").exists()
    moved = replace(running, devices={"made": disk(source, "/mnt/moved")})
    await driver.update_devices(moved)
    assert await sh(lxc_machine, running, "ls /mnt/deep; ls -d /mnt/moved") == "/mnt/moved\n"
    await driver.stop(moved, force=True)
    await driver.start(moved)  # it is there now, but not because of anybody inside
    await driver.update_devices(running)
    assert await sh(lxc_machine, running, "ls /mnt | grep moved || true") == ""


@pytest.mark.parametrize("when", ["start", "later"])
async def test_what_is_mounted_on_the_host_later_is_seen_as_propagation_says(
    lxc_machine: Machine, tmp_path: Path, when: str
) -> None:
    modes = ["", "private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable", "runbindable"]
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "inside").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(source)], check=True)
    try:
        subprocess.run(["mount", "--make-shared", str(source)], check=True)
        for name in ("sub", "inside"):
            (source / name).mkdir()
        (source / "inside").chmod(0o777)
        spec = await lxc_machine.create("g1-propagation")
        devices = {f"d{mode}": disk(source, f"/mnt/d{mode}", propagation=mode) for mode in modes}
        given = replace(spec, devices=devices)
        await lxc_machine.driver.start(given if when == "start" else spec)
        await lxc_machine.driver.update_devices(given)
        subprocess.run(["mount", "-t", "tmpfs", "none", str(source / "sub")], check=True)
        mounts = [line.split() for line in (await sh(lxc_machine, spec, "cat /proc/self/mountinfo")).splitlines()]
        seen = {fields[4].split("/")[2][1:] for fields in mounts if fields[4].endswith("/sub")}
        assert seen == {"", "shared", "rshared", "slave", "rslave"}
        flags = {fields[4][6:]: fields[6] for fields in mounts if fields[4].startswith("/mnt/d")}
        assert (flags["unbindable"], flags["private"]) == ("unbindable", "-")
        for mode in modes:  # never the other way round
            await sh(lxc_machine, spec, f"mount -t tmpfs none /mnt/d{mode}/inside")
        assert mounts_naming(f"{source}/inside") == []
    finally:
        subprocess.run(["umount", "-R", str(source)], check=True)


async def test_a_link_inside_leads_nowhere_outside(lxc_machine: Machine, running: InstanceSpec, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    source = tmp_path / "source"
    source.mkdir()
    await sh(lxc_machine, running, f"mkdir -p /mnt {tmp_path} && ln -s {tmp_path} /mnt/evil")
    await lxc_machine.driver.update_devices(replace(running, devices={"d": disk(source, "/mnt/evil/outside")}))
    assert not outside.exists()
    assert f" {tmp_path}/outside " in await sh(lxc_machine, running, "cat /proc/mounts")


async def test_a_volume_is_there_from_the_start(lxc_machine: Machine, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir(mode=0o711)
    (volume / "old").touch()
    os.chown(volume / "old", 33, 33)
    spec = await lxc_machine.create("g1-cold")
    spec = replace(spec, devices={"v": disk(volume, "/srv/v", shift="true")})
    await lxc_machine.driver.start(spec)
    assert await sh(lxc_machine, spec, "stat -c %u:%g /srv/v/old; touch /srv/v/new") == "33:33\n"
    assert (volume / "new").stat().st_uid == 0
    assert list(lxc_disks.noted(spec)) == ["v"]
    await lxc_machine.driver.update_devices(replace(spec, devices={}))
    assert "/srv/v" not in await sh(lxc_machine, spec, "cat /proc/mounts")
    await lxc_machine.driver.stop(spec, force=True)
    for bad, reason in ((tmp_path / "missing", "Missing source path"), (Path("/proc"), "map the owners of /proc")):
        with pytest.raises(DriverError, match=f"Failed to start .*{reason}"):
            await lxc_machine.driver.start(replace(spec, devices={"v": disk(bad, "/srv/v", shift="true")}))
    root = {"type": "disk", "path": "/", "pool": "p", "readonly": "true"}
    nowhere = replace(spec, devices={"root": root, "v": disk(volume, "/not/there", shift="true")})
    with pytest.raises(DriverError, match=r"Failed to start .*Read-only file system"):  # found out inside the container
        await lxc_machine.driver.start(nowhere)
    await lxc_machine.driver.start(replace(spec, devices={"root": root}))
    assert await sh(lxc_machine, spec, "touch /x 2>/dev/null; echo $?") == "1\n"


def test_only_what_matters_is_compared(tmp_path: Path) -> None:
    spec = InstanceSpec(
        "c", "default", tmp_path, tmp_path, tmp_path,
        devices={
            "root": {"type": "disk", "path": "/", "pool": "p"},
            "d": {"type": "disk", "source": "/a", "path": "/b", "user.x": "1", "limits.max": "1MB"},
            "n": {"type": "nic"},
        },
    )  # fmt: skip
    assert lxc_disks.disks_of(spec) == {"d": {"source": "/a", "path": "/b"}}
    assert lxc_disks.noted(spec) == {}
    (tmp_path / "disks.json").write_text("{broken")
    assert lxc_disks.noted(spec) == {}


def test_paths_are_those_inside_however_they_are_written(tmp_path: Path) -> None:
    devices = {"r": disk(tmp_path, "srv/x"), "u": disk(tmp_path, "/../y/")}
    spec = InstanceSpec("c", "default", tmp_path, tmp_path, tmp_path, devices=devices)
    assert {name: found["path"] for name, found in lxc_disks.disks_of(spec).items()} == {"r": "/srv/x", "u": "/y"}


def test_an_optional_disk_may_be_missing(tmp_path: Path) -> None:
    devices = {"o": disk(tmp_path / "gone", "/x", optional="true")}
    spec = InstanceSpec("c", "default", tmp_path, tmp_path, tmp_path, devices=devices)
    assert lxc_disks.start_command(spec) == ""
    with pytest.raises(DriverError, match="Missing source path"):
        lxc_disks.start_command(replace(spec, devices={"o": disk(tmp_path / "gone", "/x", optional="false")}))
