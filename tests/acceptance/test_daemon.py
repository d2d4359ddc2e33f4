"""The daemon by itself: standalone work, clean stop, crash, refusals."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from incus_actors.lab import debris
from incus_actors.lab.cluster import wait_for
from incus_actors.lab.processes import OWN_DAEMON


def test_a_fresh_daemon_is_a_standalone_server(servers, incus_on) -> None:
    member = servers(1).members[0]
    incus = incus_on(member)
    assert incus("admin", "waitready", "--timeout", "10") == ""
    info = incus("info")
    assert "server_clustered: false" in info
    assert "server: incus" in info
    assert "Server version: " in incus("version")
    assert incus.fails("cluster", "list") == "Error: Server isn't part of a cluster"
    mode = stat.S_IMODE((member.directory / "unix.socket").stat().st_mode)
    assert mode == 0o660
    for secret in ("server.key", "transport.key"):
        assert stat.S_IMODE((member.directory / secret).stat().st_mode) == 0o600, secret


def test_a_standalone_server_launches_and_keeps_its_data_when_it_becomes_a_cluster(servers, incus_on, unified) -> None:
    member = servers(1).members[0]
    incus = incus_on(member)
    preseed = "storage_pools:\n- name: default\n  driver: dir\nprofiles:\n- name: default\n  devices:\n"
    preseed += "    root: {path: /, pool: default, type: disk}\n"
    incus("admin", "init", "--preseed", input=preseed)
    incus("image", "import", str(unified), "--alias", "tiny")
    incus("launch", "tiny", "c1")
    assert incus("exec", "c1", "--", "hostname").strip() == "c1"
    incus("config", "set", f"core.https_address={member.address}:8443", "user.kept=yes")
    incus("cluster", "enable", "m1")
    assert "m1" in incus("cluster", "list", "-f", "csv")
    assert incus("list", "-f", "csv", "-c", "nsL").strip() == "c1,RUNNING,m1"
    assert incus("exec", "c1", "--", "hostname").strip() == "c1"
    assert incus("config", "get", "user.kept").strip() == "yes"
    incus("delete", "-f", "c1")


def test_instances_outlive_the_daemon_and_a_kill_loses_nothing(servers, incus_on, unified) -> None:
    member = servers(1).members[0]
    incus = incus_on(member)
    preseed = "storage_pools:\n- name: default\n  driver: dir\nprofiles:\n- name: default\n  devices:\n"
    incus("admin", "init", "--preseed", input=preseed + "    root: {path: /, pool: default, type: disk}\n")
    incus("image", "import", str(unified), "--alias", "tiny")
    incus("launch", "tiny", "c1")
    before = incus("query", "/1.0/instances/c1/state")
    incus("config", "set", "user.before=kill")
    member.kill()
    member.start()
    member.wait_until_ready()
    after = incus("query", "/1.0/instances/c1/state")
    pid = [line for line in before.splitlines() if '"pid"' in line]
    assert pid
    assert pid == [line for line in after.splitlines() if '"pid"' in line]
    assert incus("config", "get", "user.before").strip() == "kill"
    assert incus("exec", "c1", "--", "echo", "alive").strip() == "alive"
    incus("delete", "-f", "c1")


def held_by(pid: int, directory: Path) -> set[str]:
    """The sockets of a process, and the files below `directory` that it has open."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since
            link = os.readlink(entry)
            if link.startswith((f"{directory}/", "socket:")):
                found.add(link)
    return found


def test_nobody_that_outlives_the_daemon_holds_a_socket_or_file_of_it(fresh_cluster, incus_on, unified) -> None:
    """Else a killed member would seem to live (chaos: HoldDescriptors), and its start would be refused."""
    member = fresh_cluster.members[1]
    incus = incus_on(member)
    incus("image", "import", str(unified), "--alias", "tiny")
    incus("launch", "tiny", "c1", "--target", member.name)
    incus("config", "device", "add", "c1", "p", "proxy", "listen=tcp:127.0.0.1:8081", "connect=tcp:127.0.0.1:80")
    command = ["incus", "exec", "c1", "--", "sleep", "60"]
    session = subprocess.Popen(command, env=incus.environment, stdin=subprocess.DEVNULL)
    try:
        wait_for(lambda: "sleep" in incus("exec", "c1", "--", "ps"), "the session runs")
        assert member.process is not None
        daemon = member.process.pid
        own = held_by(daemon, member.directory)
        assert {f"{member.directory}/database/log.lock", f"{member.directory}/daemon.lock"} <= own
        assert sum(link.startswith("socket:") for link in own) > 10
        others = [pid for pid in debris.descendants(debris.processes_of(fresh_cluster.directory)) if pid != daemon]
        commands = {}
        for pid in others:
            with suppress(FileNotFoundError, ProcessLookupError):  # ended since
                commands[pid] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
                shared = held_by(pid, member.directory) & own
                assert not shared, commands[pid]
        member.kill()
        alive = [command for pid, command in commands.items() if Path(f"/proc/{pid}").exists()]
        for what in ("[lxc monitor]", "proxy_helper", "init"):
            assert any(what in command for command in alive), (what, alive)
        member.start()
        member.wait_until_ready()
        fresh_cluster.wait_until_healthy()
    finally:
        session.kill()
        session.wait()
    incus("delete", "-f", "c1")


def test_a_second_daemon_on_the_same_directory_is_refused(servers) -> None:
    member = servers(1).members[0]
    done = subprocess.run(
        OWN_DAEMON, env={**os.environ, "INCUS_DIR": str(member.directory)}, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1
    assert "already running" in done.stderr
    assert member.running


def test_a_directory_of_a_real_incus_is_refused(tmp_path: Path) -> None:
    (tmp_path / "database" / "global").mkdir(parents=True)
    done = subprocess.run(
        OWN_DAEMON, env={**os.environ, "INCUS_DIR": str(tmp_path)}, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1
    assert "belongs to a real Incus" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["database"], "it touched nothing"


def test_shutdown_by_the_stock_client_and_by_sigterm(servers, incus_on) -> None:
    member = servers(1).members[0]
    incus_on(member)("admin", "shutdown", "--timeout", "20", timeout=30)
    assert member.process is not None
    assert member.process.wait(timeout=10) == 0
    member.start()
    member.wait_until_ready()
    member.signal(signal.SIGTERM)
    assert member.process.wait(timeout=10) == 0
    assert not (member.directory / "unix.socket").exists()


def test_systemd_notify_and_socket_activation(tmp_path: Path) -> None:
    """A parent passes a listening socket as descriptor 3 and hears READY=1."""
    import socket

    directory = tmp_path / "member"
    directory.mkdir()
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(str(tmp_path / "notify"))
    notify.settimeout(30)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(directory / "unix.socket"))
    listener.listen()
    script = (
        "import os,sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID']=str(os.getpid());"
        "os.execv(sys.argv[2], sys.argv[2:])"
    )
    environment = {
        **os.environ,
        "INCUS_DIR": str(directory),
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "LISTEN_FDS": "1",
        "LISTEN_FDNAMES": "unix",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(listener.fileno()), *OWN_DAEMON],
        env=environment,
        pass_fds=[listener.fileno()],
        stderr=subprocess.DEVNULL,
    )
    try:
        said = b""
        while b"READY=1" not in said:
            said += notify.recv(4096) + b"\n"
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(10)
        client.connect(str(directory / "unix.socket"))
        client.sendall(b"GET /internal/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
        process.terminate()
        assert process.wait(timeout=15) == 0
        while b"STOPPING=1" not in said:
            said += notify.recv(4096) + b"\n"
        assert (directory / "unix.socket").is_socket(), "it is systemd's: the next request starts us again"
    finally:
        process.kill()
        process.wait()
        listener.close()
        notify.close()


@pytest.mark.parametrize("flag", ["--nope", "--log-format=xml"])
def test_bad_flags_are_refused(flag: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [*OWN_DAEMON, flag], env={**os.environ, "INCUS_DIR": str(tmp_path)}, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 2
    assert list(tmp_path.iterdir()) == []
