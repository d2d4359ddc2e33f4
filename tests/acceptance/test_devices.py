"""Proxies and device nodes with the stock client: from any member, through profiles, over restarts of the daemon."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from incus_actors.lab.cluster import LabCluster
from incus_actors.lab.processes import LabMember


@pytest.fixture
def lab(fresh_cluster: LabCluster, incus_on: Any, unified: Path) -> LabCluster:
    incus = incus_on(fresh_cluster.members[0])
    incus("image", "import", str(unified), "--alias", "tiny")
    incus("launch", "tiny", "c1", "--target", "m2")
    server = "while true; do echo hello | nc -l -p 80; done >/dev/null 2>&1 & sleep 0.2"
    incus("exec", "c1", "--", "sh", "-c", server)
    return fresh_cluster


def heard(member: LabMember, port: int) -> str:
    """What answers on a member's loopback; "" if nothing does."""
    script = f"exec 3<>/dev/tcp/127.0.0.1/{port} && head -1 <&3"
    done = subprocess.run(
        [*member.enter, "bash", "-c", script], capture_output=True, text=True, timeout=10, check=False
    )
    return done.stdout.strip()


def test_proxies(lab: LabCluster, incus_on: Any) -> None:
    one, two, _ = lab.members
    incus = incus_on(one)
    device = ("proxy", "listen=tcp:127.0.0.1:8081", "connect=tcp:127.0.0.1:80")
    assert incus("config", "device", "add", "c1", "p", *device) == "Device p added to c1\n"
    assert heard(two, 8081) == "hello"
    assert "address already in use" in incus.fails("config", "device", "add", "c1", "q", *device)
    assert "q" not in incus("config", "device", "list", "c1").split()
    # Nobody but the container's end ends it: not a killed daemon, nor one that starts again.
    two.kill()
    assert heard(two, 8081) == "hello"
    two.start()
    two.wait_until_ready()
    lab.wait_until_healthy()
    assert heard(two, 8081) == "hello"
    incus("config", "device", "set", "c1", "p", "listen=tcp:127.0.0.1:8082")
    assert (heard(two, 8081), heard(two, 8082)) == ("", "hello")
    incus("config", "device", "remove", "c1", "p")
    assert heard(two, 8082) == ""
    # By a profile, and masked by the instance.
    incus("profile", "device", "add", "default", "p", *device)
    assert heard(two, 8081) == "hello"
    assert incus.fails("profile", "device", "add", "default", "q", *device).startswith(
        "Error: The following instances failed to update (profile change still saved):\n"
        ' - Project: default, Instance: c1: Failed to start device "q": Error occurred when starting proxy device:'
    )
    incus("profile", "device", "remove", "default", "q")
    assert heard(two, 8081) == "hello"
    incus("config", "device", "add", "c1", "p", "none")
    assert heard(two, 8081) == ""
    incus("config", "device", "remove", "c1", "p")
    assert heard(two, 8081) == "hello"
    incus("delete", "-f", "c1")
    assert heard(two, 8081) == ""
    assert "proxy_helper" not in subprocess.run(["ps", "ax"], capture_output=True, text=True, check=True).stdout


def test_device_nodes(lab: LabCluster, incus_on: Any) -> None:
    incus = incus_on(lab.members[2])
    incus("config", "device", "add", "c1", "u", "unix-char", "source=/dev/loop-control", "path=/dev/foo", "mode=0666")
    assert incus("exec", "c1", "--", "stat", "-c", "%a %u:%g %t:%T", "/dev/foo") == "666 0:0 a:ed\n"
    incus("restart", "-f", "c1")
    assert incus("exec", "c1", "--", "sh", "-c", ": < /dev/foo && echo opened") == "opened\n"
    incus("config", "device", "remove", "c1", "u")
    assert incus.run("exec", "c1", "--", "ls", "/dev/foo").returncode == 1
    refused = incus.fails("config", "device", "add", "c1", "u", "unix-char", "source=/dev/nope")
    assert refused.startswith('Error: Failed to start device "u": The required device path doesn\'t exist')
    assert incus("config", "device", "list", "c1").strip() == ""
