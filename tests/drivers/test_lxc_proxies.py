"""Proxies and device nodes of a real container: streams, datagrams, unix sockets, both directions, without the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from drivers_kit import Machine

from incus_actors.drivers import lxc_proxies
from incus_actors.drivers.base import DriverError, InstanceSpec
from incus_actors.drivers.lxc import LxcDriver
from incus_actors.drivers.processes import stat_of

pytestmark = pytest.mark.real


ECHO = """
import socket, threading
def one(client):
    while data := client.recv(65536): client.sendall(data)
    client.close()
def tcp():
    server = socket.create_server(("127.0.0.1", 7000))
    while True: threading.Thread(target=one, args=(server.accept()[0],)).start()
def udp():
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 7001))
    print("ready", flush=True)
    while True: server.sendto(*server.recvfrom(65536))
threading.Thread(target=tcp).start()
udp()
"""


@pytest.fixture
async def running(lxc_machine: Machine) -> AsyncIterator[InstanceSpec]:
    """A container in whose network something sends back what it gets."""
    spec = await lxc_machine.create("g1-proxies")
    await lxc_machine.driver.start(spec)
    pid = (await lxc_machine.driver.state(spec)).init_pid
    command = ["nsenter", "-t", str(pid), "-n", sys.executable, "-c", ECHO]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as echo:
        assert echo.stdout is not None
        assert echo.stdout.readline() == b"ready\n"
        yield spec
        echo.kill()


async def sh(machine: Machine, spec: InstanceSpec, script: str) -> str:
    code, out, err = await machine.run(spec, "sh", "-c", script)
    assert code == 0, err
    return out.decode()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def until_gone(pid: int) -> None:
    deadline = time.monotonic() + 5
    while (found := stat_of(pid)) is not None and found.state not in "ZX":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def proxy(listen: str, connect: str, **more: str) -> dict[str, str]:
    return {"type": "proxy", "listen": listen, "connect": connect, **more}


def _say(client: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # nobody listened: the answer says so
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)


def asked(family: int, address: object, data: bytes) -> bytes:
    """Send, say that this was all, return the whole answer."""
    with socket.socket(family) as client:
        client.settimeout(10)
        client.connect(address)  # type: ignore[arg-type]
        threading.Thread(target=_say, args=(client, data)).start()
        found = b""
        while chunk := client.recv(65536):
            found += chunk
        return found


@contextlib.contextmanager
def answering(answer: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """A server on this host's loopback: what it heard, and its port."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = server.accept()
                    with client:
                        heard.append(client.recv(65536))
                        client.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1], heard


async def test_streams_datagrams_and_unix_sockets(lxc_machine: Machine, running: InstanceSpec, tmp_path: Path) -> None:
    tcp, udp, path = free_port(), free_port(), tmp_path / "s"
    devices = {
        "t": proxy(f"tcp:127.0.0.1:{tcp}", "tcp:127.0.0.1:7000"),
        "u": proxy(f"udp:127.0.0.1:{udp}", "udp:127.0.0.1:7001"),
        "x": proxy(f"unix:{path}", "tcp:127.0.0.1:7000", mode="0600", uid="12", gid="34"),
    }
    spec = replace(running, devices=devices)
    await lxc_machine.driver.update_devices(spec)
    large = os.urandom(3 << 20)
    assert await asyncio.to_thread(asked, socket.AF_INET, ("127.0.0.1", tcp), large) == large
    assert await asyncio.to_thread(asked, socket.AF_UNIX, str(path), b"hello") == b"hello"
    found = path.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o600, 12, 34)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.sendto(b"ping", ("127.0.0.1", udp))
        assert client.recv(100) == b"ping"

    # A daemon that comes later knows them; one that died is started again; what goes, goes at once.
    carriers = {name: p["pid"] for name, p in lxc_proxies.noted(spec).items()}
    os.kill(carriers["t"], signal.SIGKILL)
    until_gone(carriers["t"])
    later = LxcDriver(lxc_machine.directory)
    try:
        assert await later.recover([spec]) == [spec]
        assert {n for n, p in lxc_proxies.noted(spec).items() if p["pid"] == carriers[n]} == {"u", "x"}
        assert await asyncio.to_thread(asked, socket.AF_INET, ("127.0.0.1", tcp), b"again") == b"again"
        await later.update_devices(running)
    finally:
        await later.close()
    assert lxc_proxies.noted(spec) == {}
    assert not path.exists()
    with pytest.raises(ConnectionRefusedError):
        asked(socket.AF_INET, ("127.0.0.1", tcp), b"")


async def test_from_inside_to_the_host_as_somebody_else(lxc_machine: Machine, running: InstanceSpec) -> None:
    with answering(b"from the host\n") as (port, heard):
        spec = replace(
            running,
            devices={
                "t": proxy("tcp:127.0.0.1:80", f"tcp:127.0.0.1:{port}", bind="instance", proxy_protocol="true"),
                "x": proxy(
                    "unix:/run/deep.sock", f"tcp:127.0.0.1:{port}", bind="instance", **{"security.uid": "65534"}
                ),
            },
        )
        await lxc_machine.driver.update_devices(spec)
        assert await sh(lxc_machine, spec, "echo hi | nc 127.0.0.1 80") == "from the host\n"
        assert heard[0].startswith(b"PROXY TCP4 127.0.0.1 127.0.0.1 ")
        assert await sh(lxc_machine, spec, "ls -l /run/deep.sock | cut -c1") == "s\n"
        pid = lxc_proxies.noted(spec)["x"]["pid"]
        assert Path(f"/proc/{pid}/status").read_text().partition("Uid:\t")[2].split()[0] == "65534"


async def test_they_end_with_the_container_even_without_us(lxc_machine: Machine, running: InstanceSpec) -> None:
    port = free_port()
    spec = replace(running, devices={"t": proxy(f"tcp:127.0.0.1:{port}", "tcp:127.0.0.1:7000")})
    await lxc_machine.driver.update_devices(spec)
    pid = lxc_proxies.noted(spec)["t"]["pid"]
    state = await lxc_machine.driver.state(spec)
    os.kill(state.init_pid, signal.SIGKILL)
    until_gone(pid)


async def test_what_cannot_be_listened_on(lxc_machine: Machine, running: InstanceSpec, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for listen, words in (
            (f"tcp:127.0.0.1:{port}", f"listen tcp 127.0.0.1:{port}: bind: address already in use"),
            ("tcp:192.0.2.1:80", "listen tcp 192.0.2.1:80: bind: cannot assign requested address"),
            (f"unix:{file}", f"listen unix {file}: bind: address already in use"),
        ):
            spec = replace(running, devices={"t": proxy(listen, "tcp:127.0.0.1:7000")})
            with pytest.raises(DriverError, match=words):
                await lxc_machine.driver.update_devices(spec)
    assert file.read_text() == "mine"
    assert lxc_proxies.noted(running) == {}


async def test_device_nodes_come_and_go(lxc_machine: Machine, running: InstanceSpec) -> None:
    node = {"type": "unix-char", "source": "/dev/loop-control", "path": "/dev/deep/log", "mode": "0640", "uid": "7"}
    spec = replace(
        running, devices={"k": node, "gone": {"type": "unix-char", "source": "/dev/nope", "required": "false"}}
    )
    await lxc_machine.driver.update_devices(spec)
    assert await sh(lxc_machine, spec, "stat -c '%a %u:%g %t:%T' /dev/deep/log") == "640 7:0 a:ed\n"
    assert await sh(lxc_machine, spec, ": < /dev/deep/log && echo opened") == "opened\n"
    await lxc_machine.driver.update_devices(running)
    assert await sh(lxc_machine, running, "ls /dev/deep; grep -c deep /proc/mounts || true") == "0\n"
    for device, words in (
        ({"type": "unix-char", "source": "/dev/nope"}, "The required device path doesn't exist"),
        ({"type": "unix-block", "source": "/dev/null"}, "Path specified is not a unix-block device"),
    ):
        with pytest.raises(DriverError, match=words):
            await lxc_machine.driver.update_devices(replace(running, devices={"k": device}))


async def test_everything_is_there_from_the_start(lxc_machine: Machine, running: InstanceSpec) -> None:
    await lxc_machine.driver.stop(running, force=True)
    port = free_port()
    spec = replace(
        running,
        devices={
            "t": proxy(f"tcp:127.0.0.1:{port}", "unix:@inside"),
            "k": {"type": "unix-char", "path": "/dev/own", "major": "1", "minor": "3"},
        },
    )
    await lxc_machine.driver.start(spec)
    assert await sh(lxc_machine, spec, "echo lost > /dev/own && stat -c %t:%T /dev/own") == "1:3\n"
    assert asked(socket.AF_INET, ("127.0.0.1", port), b"") == b""  # nobody listens inside: a clean end
    await lxc_machine.driver.stop(spec, force=True)
    with pytest.raises(ConnectionRefusedError):
        asked(socket.AF_INET, ("127.0.0.1", port), b"")
    with socket.create_server(("127.0.0.1", port)), pytest.raises(DriverError, match="address already in use"):
        await lxc_machine.driver.start(spec)
    assert (await lxc_machine.driver.state(spec)).init_pid == 0
