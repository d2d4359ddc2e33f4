"""Real containers: life, limits, what is left behind, and surviving the daemon."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from drivers_kit import PATH, Machine, groups_naming, mounts_naming, processes_naming

from incus_actors.drivers import cgroups, processes
from incus_actors.drivers.base import (
    DriverError,
    ExecRequest,
    ExitNotice,
    InstanceBusyError,
    InstanceSpec,
    RunStatus,
    StopTimeoutError,
    VolumeSpec,
)
from incus_actors.drivers.lxc import LxcDriver
from incus_actors.drivers.lxc_host import find_init
from incus_actors.errors import BadRequestError
from incus_actors.tasks import spawn

pytestmark = pytest.mark.real


async def test_start_state_stop(lxc_machine: Machine) -> None:
    driver = lxc_machine.driver
    spec = await lxc_machine.create("g1-life")
    assert driver.status(spec) is RunStatus.STOPPED
    state = await driver.start(spec)
    assert state.status is RunStatus.RUNNING
    assert Path(f"/proc/{state.init_pid}").exists()
    with pytest.raises(InstanceBusyError, match=r"^The instance is already running$"):
        await driver.start(spec)
    state = await driver.state(spec)
    assert state.processes >= 1
    assert state.memory_usage_bytes > 0
    assert state.cpu_ns > 0
    assert abs(state.started_at - Path(f"/proc/{state.init_pid}").stat().st_ctime) < 5
    assert state.network is not None
    loopback = state.network["lo"]
    assert (loopback.state, loopback.type) == ("up", "loopback")
    assert next((a.family, a.address, a.netmask, a.scope) for a in loopback.addresses) == (
        "inet",
        "127.0.0.1",
        "8",
        "local",
    )
    await driver.stop(spec, force=True)
    assert (await driver.state(spec)).status is RunStatus.STOPPED
    with pytest.raises(InstanceBusyError, match=r"^The instance is already stopped$"):
        await driver.stop(spec, force=True)


async def test_nothing_is_left_behind(lxc_machine: Machine) -> None:
    driver, name = lxc_machine.driver, "g1-leak"
    spec = await lxc_machine.create(name)
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        await driver.start(spec)
        await driver.state(spec)
        await lxc_machine.run(spec, "true", interactive=True)
        await driver.stop(spec, force=True)
    assert groups_naming(f"?-{name}") == []
    await driver.delete(spec)
    await driver.delete(spec)
    await lxc_machine.storage.delete_volume(VolumeSpec(lxc_machine.pool, name))
    parent = driver._host.parent  # type: ignore[attr-defined]
    assert groups_naming(parent) == []
    assert mounts_naming(name) == []
    assert processes_naming(f"[lxc monitor] {driver._host.lxc_path}") == []  # type: ignore[attr-defined]
    assert not spec.instance_dir.exists()
    assert not spec.log_dir.exists()
    assert not spec.volume_dir.exists()
    assert len(os.listdir("/proc/self/fd")) == descriptors


async def test_it_is_unprivileged(lxc_machine: Machine) -> None:
    spec = await lxc_machine.create("g1-unpriv")
    state = await lxc_machine.driver.start(spec)
    uid = processes.status_field(state.init_pid, "Uid").split()[0]
    assert int(uid) >= 65536
    assert processes.status_field(state.init_pid, "Seccomp") == "2"
    code, output, _ = await lxc_machine.run(
        spec, "sh", "-c", "cat /proc/self/uid_map; stat -c %u /etc/passwd; mknod /tmp/d b 8 0"
    )
    assert code == 1  # no device nodes
    first, owner = output.split(b"\n")[:2]
    assert first.split()[:2] == [b"0", uid.encode()]
    assert owner == b"0"
    assert (spec.volume_dir.stat().st_mode & 0o777, spec.volume_dir.stat().st_uid) == (0o700, 0)


async def test_privileged_when_asked(lxc_machine: Machine) -> None:
    spec = await lxc_machine.create("g1-priv", security_privileged="true")
    state = await lxc_machine.driver.start(spec)
    assert processes.status_field(state.init_pid, "Uid").split()[0] == "0"
    _, output, _ = await lxc_machine.run(spec, "sh", "-c", "cat /proc/self/uid_map")
    assert output.split()[:2] == [b"0", b"0"]
    code, _, _ = await lxc_machine.run(spec, "sh", "-c", "mknod /tmp/d b 8 0 && cat /tmp/d")
    assert code != 0  # the device control group keeps disks out


async def test_limits_are_in_the_control_groups(lxc_machine: Machine) -> None:
    driver = lxc_machine.driver
    spec = await lxc_machine.create("g1-limits", limits_memory="64MiB", limits_processes="77", limits_cpu="1")
    state = await driver.start(spec)
    assert state.memory_total_bytes == 64 << 20
    layout = cgroups.detect()
    group = f"{driver._host.parent}/c-g1-limits"  # type: ignore[attr-defined]

    def value(controller: str, v1: str, v2: str) -> str:
        directory = layout.directory(controller, group)
        assert directory is not None
        return (directory / (v1 if controller in layout.v1 else v2)).read_text().strip()

    assert value("memory", "memory.limit_in_bytes", "memory.max") == str(64 << 20)
    assert value("pids", "pids.max", "pids.max") == "77"
    assert value("cpuset", "cpuset.cpus", "cpuset.cpus").isdigit()
    changed = replace(spec, config={"limits.memory": "128MiB", "limits.processes": "99"})
    await driver.apply_limits(changed)
    assert value("memory", "memory.limit_in_bytes", "memory.max") == str(128 << 20)
    assert value("pids", "pids.max", "pids.max") == "99"
    await driver.apply_limits(replace(changed, config={"limits.processes": "99"}))
    assert value("memory", "memory.limit_in_bytes", "memory.max") != str(128 << 20)
    assert (await driver.state(spec)).memory_total_bytes > 128 << 20
    code, _, _ = await lxc_machine.run(spec, "sh", "-c", "for i in $(seq 200); do sleep 60 & done; wait")
    assert code != 0  # fork fails


async def test_a_clean_stop_tells_init(lxc_machine: Machine) -> None:
    driver = lxc_machine.driver
    spec = await lxc_machine.create("g1-clean")
    inittab = spec.rootfs / "etc/inittab"
    inittab.write_text(inittab.read_text().replace("::shutdown:/bin/true", "::shutdown:/bin/touch /stopped"))
    await driver.start(spec)
    await driver.stop(spec, timeout_s=30)  # at once after the start: init may not listen yet
    assert (spec.rootfs / "stopped").exists()


async def test_a_clean_stop_times_out_with_the_words_of_incus(lxc_machine: Machine) -> None:
    driver = lxc_machine.driver
    spec = await lxc_machine.create("g1-stubborn")
    init = spec.rootfs / "sbin/init"
    init.unlink()
    init.write_text("#!/bin/sh\ntrap '' PWR TERM\nwhile true; do sleep 60; done\n")
    init.chmod(0o755)
    await driver.start(spec)
    with pytest.raises(
        StopTimeoutError, match=r'^Failed shutting down instance, status is "Running": context deadline exceeded$'
    ):
        await driver.stop(spec, timeout_s=0.2)
    assert driver.status(spec) is RunStatus.RUNNING
    assert (await lxc_machine.run(spec, "true"))[0] == 0
    await driver.stop(spec, force=True)


async def test_freeze_and_stop_while_frozen(lxc_machine: Machine) -> None:
    driver = lxc_machine.driver
    spec = await lxc_machine.create("g1-freeze")
    await driver.start(spec)
    await driver.freeze(spec)
    assert driver.status(spec) is RunStatus.FROZEN
    assert (await driver.state(spec)).status is RunStatus.FROZEN
    await driver.unfreeze(spec)
    assert driver.status(spec) is RunStatus.RUNNING
    await driver.freeze(spec)
    await driver.stop(spec, force=True)
    assert driver.status(spec) is RunStatus.STOPPED


async def test_death_is_noticed(lxc_machine: Machine) -> None:
    driver = lxc_machine.driver
    spec = await lxc_machine.create("g1-death")
    state = await driver.start(spec)
    noticed: asyncio.Future[ExitNotice] = asyncio.get_running_loop().create_future()
    driver.watch(spec, noticed.set_result)
    os.kill(state.init_pid, signal.SIGKILL)
    notice = await asyncio.wait_for(noticed, 10)
    assert (notice.name, notice.init_pid) == ("g1-death", state.init_pid)
    assert driver.status(spec) is RunStatus.STOPPED
    assert (await driver.start(spec)).status is RunStatus.RUNNING  # whatever is left is no obstacle


async def test_a_stop_of_ours_is_no_death(lxc_machine: Machine) -> None:
    driver = lxc_machine.driver
    spec = await lxc_machine.create("g1-watch")
    await driver.start(spec)
    notices: list[ExitNotice] = []
    driver.watch(spec, notices.append)
    await driver.stop(spec, force=True)
    await asyncio.sleep(0.05)
    assert notices == []
    driver.watch(spec, notices.append)  # too late: told at once
    assert len(notices) == 1


async def test_a_reboot_from_inside_is_no_end(lxc_machine: Machine) -> None:
    driver = lxc_machine.driver
    spec = await lxc_machine.create("g1-reboot")
    first = await driver.start(spec)
    notices: list[ExitNotice] = []
    driver.watch(spec, notices.append)
    await lxc_machine.run(spec, "reboot", "-f")
    async with asyncio.timeout(15):
        while (state := await driver.state(spec)).init_pid == first.init_pid or not processes.identity_of(
            state.init_pid
        ):
            await asyncio.sleep(0.02)
    assert state.status is RunStatus.RUNNING
    assert notices == []
    async with asyncio.timeout(15):
        while True:
            try:
                code, _, _ = await lxc_machine.run(spec, "true")
                break
            except DriverError:
                await asyncio.sleep(0.05)
    assert code == 0


async def test_a_reboot_while_no_daemon_is_there(lxc_machine: Machine) -> None:
    spec = await lxc_machine.create("g1-reboot2")
    first = await lxc_machine.driver.start(spec)
    stat = processes.stat_of(first.init_pid)
    assert stat is not None
    session = await lxc_machine.driver.exec(spec, ExecRequest(("sh", "-c", "sleep 0.3; reboot -f"), PATH))
    await lxc_machine.driver.close()
    async with asyncio.timeout(15):
        while processes.identity_of(stat.parent) is not None:
            await asyncio.sleep(0.02)
    await session.close()
    driver = LxcDriver(lxc_machine.directory)
    assert driver.availability().available
    lxc_machine.driver = driver
    assert await driver.recover([spec]) == [spec]
    assert (await driver.state(spec)).init_pid != first.init_pid


async def test_a_dead_monitor_is_cleaned_up_after(lxc_machine: Machine) -> None:
    driver = lxc_machine.driver
    spec = await lxc_machine.create("g1-monitor")
    state = await driver.start(spec)
    stat = processes.stat_of(state.init_pid)
    assert stat is not None
    noticed: asyncio.Future[ExitNotice] = asyncio.get_running_loop().create_future()
    driver.watch(spec, noticed.set_result)
    os.kill(stat.parent, signal.SIGKILL)
    await asyncio.wait_for(noticed, 10)
    async with asyncio.timeout(10):
        while Path(f"/proc/{state.init_pid}").exists():
            await asyncio.sleep(0.01)
    assert (await driver.start(spec)).init_pid != state.init_pid


_STARTER = """
import asyncio, json, os, sys
from pathlib import Path
from incus_actors.drivers.base import InstanceSpec
from incus_actors.drivers.lxc import LxcDriver

async def main():
    directory, name, volume = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    driver = LxcDriver(directory)
    assert driver.availability().available
    spec = InstanceSpec(name, "default", directory / "instances" / name, volume, directory / "logs" / name)
    state = await driver.start(spec)
    print(json.dumps(state.init_pid), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_an_instance_outlives_a_killed_daemon(lxc_machine: Machine) -> None:
    driver = lxc_machine.driver
    spec = await lxc_machine.create("g1-outlive")
    starter = subprocess.Popen(
        [sys.executable, "-c", _STARTER, str(lxc_machine.directory), spec.name, str(spec.volume_dir)],
        stdout=subprocess.PIPE,
    )
    assert starter.stdout is not None
    pid = json.loads(await asyncio.to_thread(starter.stdout.readline))
    starter.kill()
    starter.wait()
    assert starter.stdout.read() == b""  # end of file: nobody inherited the daemon's pipe
    starter.stdout.close()
    assert processes.identity_of(pid) is not None
    gone = replace(spec, name="g1-gone", instance_dir=spec.instance_dir.with_name("g1-gone"))
    assert await driver.recover([gone, spec]) == [spec]
    state = await driver.state(spec)
    assert (state.status, state.init_pid) == (RunStatus.RUNNING, pid)
    assert (await lxc_machine.run(spec, "true"))[0] == 0
    await driver.stop(spec, force=True)


async def test_the_monitor_holds_nothing_of_ours(lxc_machine: Machine) -> None:
    spec = await lxc_machine.create("g1-inherit")
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)  # as a careless library would
    state = await lxc_machine.driver.start(spec)
    stat = processes.stat_of(state.init_pid)
    assert stat is not None
    ours = os.readlink(f"/proc/self/fd/{write_end}")
    for pid in (stat.parent, state.init_pid):
        targets = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
        assert ours not in targets
        assert not [target for target in targets[:3] if target.startswith("socket:")]
    os.close(read_end)
    os.close(write_end)


async def test_two_daemons_with_the_same_names_do_not_meet(lxc_machine: Machine, tmp_path: Path) -> None:
    spec = await lxc_machine.create("g1-twin")
    await lxc_machine.driver.start(spec)
    other = tmp_path / "other"
    other.mkdir()
    driver = LxcDriver(other)
    assert driver.availability().available
    volume = await lxc_machine.storage.create_volume(VolumeSpec(lxc_machine.pool, "g1-twin-2"), lxc_machine.image)
    twin = InstanceSpec("g1-twin", "default", other / "instances/g1-twin", volume, other / "logs/g1-twin")
    assert driver.status(twin) is RunStatus.STOPPED
    await driver.start(twin)
    try:
        first, second = await lxc_machine.driver.state(spec), await driver.state(twin)
        assert first.init_pid != second.init_pid
    finally:
        await driver.stop(twin, force=True)
        await driver.delete(twin)
        await driver.close()
    assert lxc_machine.driver.status(spec) is RunStatus.RUNNING


async def test_a_failed_start_says_why_and_leaves_nothing(lxc_machine: Machine) -> None:
    driver = lxc_machine.driver
    spec = await lxc_machine.create("g1-broken")
    (spec.rootfs / "sbin/init").unlink()
    with pytest.raises(DriverError, match=r'^Failed to start instance "g1-broken": .*|ended right after'):
        await driver.start(spec)
    async with asyncio.timeout(10):
        while driver.status(spec) is not RunStatus.STOPPED:
            await asyncio.sleep(0.01)
    await driver.delete(spec)
    assert groups_naming("?-g1-broken") == []


async def test_a_missing_bridge_is_named(lxc_machine: Machine) -> None:
    spec = await lxc_machine.create("g1-nobridge")
    nic = {"eth0": {"type": "nic", "nictype": "bridged", "parent": "g1nobr0"}}
    with pytest.raises(DriverError, match=r'^Failed to start device "eth0": Parent device "g1nobr0" doesn\'t exist$'):
        await lxc_machine.driver.start(replace(spec, devices=nic))


async def test_a_nic_on_a_bridge(lxc_machine: Machine) -> None:
    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    spec = await lxc_machine.create("g1-nic")
    ip("link", "add", "g1testbr0", "type", "bridge")
    try:
        ip("link", "set", "g1testbr0", "up")
        device = {"type": "nic", "nictype": "bridged", "parent": "g1testbr0", "hwaddr": "10:66:6a:00:11:22"}
        spec = replace(spec, devices={"eth0": device, "root": {"type": "disk", "path": "/", "pool": "local"}})
        await lxc_machine.driver.start(spec)
        await lxc_machine.run(spec, "ip", "addr", "add", "10.99.98.2/24", "dev", "eth0")
        state = await lxc_machine.driver.state(spec)
        assert state.network is not None
        eth0 = state.network["eth0"]
        assert (eth0.hwaddr, eth0.state, eth0.type, eth0.mtu) == ("10:66:6a:00:11:22", "up", "broadcast", 1500)
        assert ("inet", "10.99.98.2", "24", "global") in [
            (a.family, a.address, a.netmask, a.scope) for a in eth0.addresses
        ]
        assert Path("/sys/class/net", eth0.host_name, "brport").exists()
        await lxc_machine.driver.stop(spec, force=True)
        assert not Path("/sys/class/net", eth0.host_name).exists()
    finally:
        ip("link", "del", "g1testbr0")


async def test_a_host_directory_as_disk(lxc_machine: Machine, request: pytest.FixtureRequest) -> None:
    top = Path(tempfile.mkdtemp(prefix="g1-disk-", dir="/tmp"))  # root of the instance must be able to pass
    request.addfinalizer(lambda: shutil.rmtree(top))
    top.chmod(0o755)
    shared = top / "shared dir"
    shared.mkdir(mode=0o755)
    (shared / "hello").write_text("from the host\n")
    spec = await lxc_machine.create("g1-disk")
    disk = {"type": "disk", "source": str(shared), "path": "/mnt/my data", "readonly": "true"}
    await lxc_machine.driver.start(replace(spec, devices={"data": disk}))
    code, output, _ = await lxc_machine.run(spec, "sh", "-c", "cat '/mnt/my data/hello'; touch '/mnt/my data/x'")
    assert (code, output) == (1, b"from the host\n")


async def test_templates_are_rendered_once(lxc_machine: Machine) -> None:
    driver = lxc_machine.driver
    spec = await lxc_machine.create("g1-templates")
    await driver.start(spec)
    assert (spec.rootfs / "etc/hostname").read_text() == "g1-templates\n"
    assert "127.0.1.1 g1-templates" in (spec.rootfs / "etc/hosts").read_text()
    await driver.stop(spec, force=True)
    (spec.rootfs / "etc/hostname").write_text("mine\n")
    await driver.start(spec)
    assert (spec.rootfs / "etc/hostname").read_text() == "mine\n"


async def test_rename(lxc_machine: Machine) -> None:
    driver = lxc_machine.driver
    spec = await lxc_machine.create("g1-old")
    await driver.start(spec)
    target = replace(
        spec,
        name="g1-new",
        instance_dir=spec.instance_dir.with_name("g1-new"),
        log_dir=spec.log_dir.with_name("g1-new"),
    )
    with pytest.raises(InstanceBusyError, match="Renaming of running instance not allowed"):
        await driver.rename(spec, target)
    await driver.stop(spec, force=True)
    await lxc_machine.storage.rename_volume(
        VolumeSpec(lxc_machine.pool, "g1-old"), VolumeSpec(lxc_machine.pool, "g1-new")
    )
    target = replace(target, volume_dir=spec.volume_dir.with_name("g1-new"))
    await driver.rename(spec, target)
    lxc_machine.specs.append(target)
    await driver.start(target)
    assert (await lxc_machine.run(target, "hostname"))[1] == b"g1-new\n"


async def test_bad_config_is_refused_before_anything_happens(lxc_machine: Machine) -> None:
    spec = await lxc_machine.create("g1-raw", raw_lxc="lxc.cap.drop =")
    with pytest.raises(BadRequestError, match=r"raw\.lxc is not supported"):
        await lxc_machine.driver.start(spec)
    assert not (spec.instance_dir / "seccomp").exists()


async def test_six_at_once(lxc_machine: Machine) -> None:
    specs = [await lxc_machine.create(f"g1-six{number}") for number in range(6)]
    states = await asyncio.gather(*(lxc_machine.driver.start(spec) for spec in specs))
    assert len({state.init_pid for state in states}) == 6
    await asyncio.gather(*(lxc_machine.driver.stop(spec, force=True) for spec in specs))


async def test_deleting_the_last_others_does_not_disturb_a_start(lxc_machine: Machine) -> None:
    driver = lxc_machine.driver
    spec = await lxc_machine.create("g1-last")
    others = await lxc_machine.create("g1-others")
    starting = spawn(driver.start(spec), name="start")
    while not starting.done():
        await driver.delete(others)
        await asyncio.sleep(0)
    assert (await starting).status is RunStatus.RUNNING
    await driver.stop(spec, force=True)


async def test_find_init_ignores_other_groups() -> None:
    assert find_init(cgroups.detect(), "incus-actors-nothing/c-nothing") == 0
