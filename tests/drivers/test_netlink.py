from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from incus_actors.drivers.netlink import NamespaceNetwork, in_namespace

pytestmark = pytest.mark.real


def test_our_own_interfaces() -> None:
    network = NamespaceNetwork(os.getpid())
    try:
        found = network.interfaces()
    finally:
        network.close()
    assert set(found) == {entry.name for entry in Path("/sys/class/net").iterdir()}
    assert found["lo"].type == "loopback"
    assert found["lo"].counters["bytes_received"] >= 0


def test_another_namespace_and_the_way_back() -> None:
    before = os.readlink("/proc/self/ns/net")
    sleeper = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "ip link set lo up; echo up; sleep 60"], stdout=subprocess.PIPE
    )
    try:
        assert sleeper.stdout is not None
        sleeper.stdout.readline()
        network = NamespaceNetwork(sleeper.pid)
        found = network.interfaces()
        network.close()
        sleeper.stdout.close()
    finally:
        sleeper.kill()
        sleeper.wait()
    assert list(found) == ["lo"]
    assert found["lo"].addresses[0].address == "127.0.0.1"
    assert os.readlink("/proc/self/ns/net") == before
    assert os.readlink("/proc/thread-self/ns/net") == before


def test_a_process_that_is_gone() -> None:
    with pytest.raises(OSError, match="No such file"):
        NamespaceNetwork(4_000_000)
    with pytest.raises(OSError, match=r"Invalid argument|not permitted"):
        in_namespace("/proc/self/ns/uts", 0x40000000, lambda: 0)
