"""The fallback driver: real processes in real namespaces, also for an ordinary user."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from drivers_kit import Machine

from incus_actors.drivers import processes
from incus_actors.drivers.base import ExecError, ExitNotice, InstanceBusyError, RunStatus, StopTimeoutError
from incus_actors.drivers.process import ProcessDriver
from incus_actors.errors import BadRequestError

pytestmark = pytest.mark.real


async def test_life(process_machine: Machine) -> None:
    driver = process_machine.driver
    spec = await process_machine.create("g1-process")
    state = await driver.start(spec)
    assert driver.info.name == "process"
    assert state.status is RunStatus.RUNNING
    assert state.memory_peak_bytes == -1  # not counted without control groups
    async with asyncio.timeout(10):  # the kernel's own count of a young process lags behind
        while (await driver.state(spec)).memory_usage_bytes == 0:
            await asyncio.sleep(0.02)
    with pytest.raises(InstanceBusyError, match=r"^The instance is already running$"):
        await driver.start(spec)
    await driver.stop(spec, force=True)
    assert not Path(f"/proc/{state.init_pid}").exists()
    with pytest.raises(InstanceBusyError, match=r"^The instance is already stopped$"):
        await driver.stop(spec, force=True)
    await driver.delete(spec)
    assert not spec.instance_dir.exists()


async def test_it_sees_only_itself(process_machine: Machine) -> None:
    spec = await process_machine.create("g1-alone")
    state = await process_machine.driver.start(spec)
    if not process_machine.driver.info.features["namespaces"]:
        pytest.skip("no user namespaces here")
    _, output, _ = await process_machine.run(spec, "sh", "-c", "hostname; ls /; ps | wc -l; ip link | grep -c UP")
    lines = output.split(b"\n")
    assert lines[0] == b"g1-alone"
    assert b"work" not in lines
    assert int(lines[-3]) < 8
    for kind in ("pid", "mnt", "user", "net", "uts", "ipc"):
        assert os.readlink(f"/proc/{state.init_pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
    code, _, _ = await process_machine.run(spec, "sh", "-c", "echo 1 > /proc/sys/vm/drop_caches")
    assert code != 0


async def test_stop_cleanly_and_not(process_machine: Machine) -> None:
    driver = process_machine.driver
    spec = await process_machine.create("g1-clean")
    await driver.start(spec)
    await driver.stop(spec, timeout_s=30)
    assert driver.status(spec) is RunStatus.STOPPED
    init = spec.rootfs / "sbin/init"
    init.unlink()
    init.write_text("#!/bin/sh\ntrap '' PWR TERM\nwhile true; do sleep 60; done\n")
    init.chmod(0o755)
    await driver.start(spec)
    with pytest.raises(StopTimeoutError):
        await driver.stop(spec, timeout_s=0.1)
    await driver.freeze(spec)
    assert driver.status(spec) is RunStatus.FROZEN
    await driver.stop(spec, force=True)


async def test_death_is_noticed(process_machine: Machine) -> None:
    driver = process_machine.driver
    spec = await process_machine.create("g1-death")
    state = await driver.start(spec)
    noticed: asyncio.Future[ExitNotice] = asyncio.get_running_loop().create_future()
    driver.watch(spec, noticed.set_result)
    os.kill(state.init_pid, signal.SIGKILL)
    assert (await asyncio.wait_for(noticed, 10)).init_pid == state.init_pid
    assert driver.status(spec) is RunStatus.STOPPED


async def test_it_outlives_the_driver(process_machine: Machine) -> None:
    spec = await process_machine.create("g1-outlive")
    state = await process_machine.driver.start(spec)
    await process_machine.driver.close()
    driver = ProcessDriver(process_machine.directory)
    process_machine.driver = driver
    assert await driver.recover([spec]) == [spec]
    assert (await driver.state(spec)).init_pid == state.init_pid
    assert (await process_machine.run(spec, "echo", "hi"))[1] == b"hi\n"


async def test_a_record_of_another_boot_is_not_believed(process_machine: Machine) -> None:
    driver = process_machine.driver
    spec = await process_machine.create("g1-record")
    await driver.start(spec)
    record = spec.instance_dir / "process.json"
    text = record.read_text()
    await driver.stop(spec, force=True)
    me = processes.identity_of(os.getpid())
    assert me is not None
    for change in (
        {"boot_id": "another"},
        {"monitor": [me.pid, me.start_ticks + 1]},
        {"monitor": [4_000_000, 1]},
    ):
        record.write_text(json.dumps(json.loads(text) | change))
        assert driver.status(spec) is RunStatus.STOPPED
    record.write_text("not json")
    assert driver.status(spec) is RunStatus.STOPPED


async def test_what_it_cannot_do_is_refused(process_machine: Machine) -> None:
    driver = process_machine.driver
    spec = await process_machine.create("g1-refuse")
    with pytest.raises(BadRequestError, match="privileged"):
        driver.validate(replace(spec, config={"security.privileged": "true"}))
    with pytest.raises(BadRequestError, match="only the root disk"):
        driver.validate(replace(spec, devices={"d": {"type": "disk", "path": "/x", "source": "/y"}}))
    await driver.start(spec)
    with pytest.raises(ExecError, match="no user but root"):
        await process_machine.run(spec, "id", uid=1000)


async def test_plain_processes_where_namespaces_are_refused(process_machine: Machine) -> None:
    driver = process_machine.driver
    assert isinstance(driver, ProcessDriver)
    driver._mode = "plain"
    assert "plain processes" in driver.availability().reason
    spec = await process_machine.create("g1-plain")
    state = await driver.start(spec)
    assert state.processes == 1
    code, output, _ = await process_machine.run(spec, "sh", "-c", "echo hi; busybox | head -1")
    assert code == 0
    assert output.startswith(b"hi\nBusyBox")
    with pytest.raises(ExecError, match="Command not found"):
        await process_machine.run(spec, "no-such-command")
    await driver.stop(spec, timeout_s=10)
    assert driver.status(spec) is RunStatus.STOPPED


_USER_SCRIPT = """
import asyncio, sys
from pathlib import Path
from incus_actors.drivers.base import ExecRequest, InstanceSpec, PoolSpec, VolumeSpec
from incus_actors.drivers.registry import choose_drivers

async def main():
    directory, tarball = Path(sys.argv[1]), Path(sys.argv[2])
    drivers = choose_drivers(directory)
    async def chunks():
        yield tarball.read_bytes()
    added = await drivers.images.add(chunks())
    pool = PoolSpec("local")
    await drivers.storage["dir"].create_pool(pool)
    volume = await drivers.storage["dir"].create_volume(VolumeSpec(pool, "c1"), added.files)
    spec = InstanceSpec("c1", "default", directory / "instances/c1", volume, directory / "logs/c1")
    await drivers.instances.start(spec)
    session = await drivers.instances.exec(spec, ExecRequest(("id",), {"PATH": "/bin:/usr/bin"}))
    output = await session.stdout.read()
    await session.close()
    await drivers.instances.stop(spec, force=True)
    await drivers.storage["dir"].delete_volume(VolumeSpec(pool, "c1"))
    print(drivers.instances.info.name, output.decode().strip(), drivers.reasons["lxc"].reason, sep="|")

asyncio.run(main())
"""


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root to become nobody")
async def test_an_ordinary_user_runs_instances(tarball: Path, request: pytest.FixtureRequest) -> None:
    python = Path("/usr/bin/python3.11")
    if not python.exists():
        pytest.skip("no interpreter that nobody may execute")
    directory = Path(subprocess.check_output(["mktemp", "-d", "/tmp/g1-user-XXXXXX"], text=True).strip())
    request.addfinalizer(lambda: shutil.rmtree(directory))
    shutil.copy(tarball, directory / "image")
    for path in (directory, directory / "image"):
        os.chown(path, 65534, 65534)
    root = Path(__file__).parents[2]
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    done = await asyncio.to_thread(
        subprocess.run,
        [
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            python,
            "-c",
            _USER_SCRIPT,
            directory,
            directory / "image",
        ],
        env={"PYTHONPATH": f"{root}:{packages}", "PYTHONDONTWRITEBYTECODE": "1", "PATH": os.environ["PATH"]},
        cwd="/",
        capture_output=True,
        text=True,
    )
    if "Permission denied" in done.stderr and str(packages) in done.stderr:
        pytest.skip("nobody may not read this virtual environment")
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.strip()
        == "process|uid=0(root) gid=0(root) groups=65534(nobody),0(root)|system containers need root"
        or (
            done.stdout.startswith("process|uid=0(root) gid=0(root)")
            and done.stdout.endswith("system containers need root\n")
        )
    )
