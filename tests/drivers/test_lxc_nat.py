"""Proxies that the kernel carries: rules of nftables that come and go with a real container's devices."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from drivers_kit import Machine
from netns_kit import ip, namespace, needs_network

from incus_actors.drivers import lxc_nat
from incus_actors.drivers.base import DriverError, InstanceSpec
from incus_actors.drivers.lxc import LxcDriver

NIC = {"type": "nic", "nictype": "bridged", "parent": "br0", "name": "eth0", "ipv4.address": "10.99.0.7"}


def proxy(listen: str, connect: str) -> dict[str, str]:
    return {"type": "proxy", "listen": listen, "connect": connect, "nat": "true"}


def spec_with(directory: Path, **devices: dict[str, str]) -> InstanceSpec:
    return InstanceSpec("c", "default", directory / "instances/c", directory, directory, devices=devices)


def test_what_is_lead_where(tmp_path: Path) -> None:
    spec = spec_with(tmp_path, eth0={**NIC, "ipv6.address": "fd00::7"})
    forwards = [
        *lxc_nat.forwards_of(spec, "a", proxy("tcp:192.0.2.1:80-82", "tcp:0.0.0.0:8080")),
        *lxc_nat.forwards_of(spec, "b", proxy("udp:[fd01::1]:1-2", "udp:[::]:11-12")),
    ]
    text = lxc_nat.ruleset("t", forwards)
    lead = [
        "  ip daddr 192.0.2.1 tcp dport { 80, 81, 82 } dnat ip to 10.99.0.7:8080",
        "  ip6 daddr fd01::1 udp dport 1 dnat ip6 to [fd00::7]:11",
        "  ip6 daddr fd01::1 udp dport 2 dnat ip6 to [fd00::7]:12",
    ]
    for hook in ("prerouting", "output"):
        assert "\n".join([f"  type nat hook {hook} priority -100; policy accept;", *lead]) in text
    assert "  ip saddr 10.99.0.7 ip daddr 10.99.0.7 tcp dport 8080 masquerade" in text


def test_every_daemon_and_project_has_tables_of_its_own(tmp_path: Path) -> None:
    one = spec_with(tmp_path / "a")
    tables = {
        lxc_nat.table_of(spec)
        for spec in (one, replace(one, project="p"), replace(one, project="€"), spec_with(tmp_path))
    }
    assert len(tables) == 4
    assert all(name.isascii() for name in tables)


@pytest.mark.real
@needs_network
async def test_rules_come_and_go_with_the_device_also_over_a_killed_daemon(lxc_machine: Machine) -> None:
    with namespace():
        ip("link", "add", "br0", "type", "bridge")
        ip("addr", "add", "10.99.0.1/24", "dev", "br0")
        ip("link", "set", "br0", "up")
        plain = await lxc_machine.create("g1-nat")
        plain = replace(plain, devices={"eth0": NIC}, config={"volatile.eth0.hwaddr": "10:66:6a:00:00:01"})
        p, q = proxy("tcp:10.99.0.1:8081", "tcp:0.0.0.0:80"), proxy("tcp:10.99.0.1:8082", "tcp:10.99.0.7:80")
        given = replace(plain, devices={**plain.devices, "p": p})
        lxc_machine.specs[:] = [given]
        await lxc_machine.driver.start(given)
        for command in ("ip addr add 10.99.0.7/24 dev eth0", "(while true; do echo hello | nc -l -p 80; done) &"):
            code, _, err = await lxc_machine.run(given, "sh", "-c", f"{command} >/dev/null 2>&1")
            assert code == 0, err
        assert heard(8081) == "hello"
        await lxc_machine.driver.update_devices(replace(given, devices={**given.devices, "q": q}))
        assert (heard(8081), heard(8082)) == ("hello", "hello")
        bad = proxy("tcp:10.99.0.1:8083", "tcp:10.99.0.8:80")
        with pytest.raises(DriverError, match=r'"b": Connect IP "10\.99\.0\.8" must be one of the instance'):
            await lxc_machine.driver.update_devices(replace(given, devices={**given.devices, "b": bad}))
        later = LxcDriver(lxc_machine.directory)  # the daemon was killed before the rows said "q"
        assert await later.recover([given]) == [given]
        assert ("dport 8081 " in tables(), "8082" in tables()) == (True, False)
        await later.update_devices(plain)
        assert "_nat_" not in tables()
        await later.update_devices(given)
        await later.close()
        subprocess.run(["kill", "-9", str((await lxc_machine.driver.state(given)).init_pid)], check=True)
        await lxc_machine.driver.close()
        latest = LxcDriver(lxc_machine.directory)  # and ended while there was no daemon
        lxc_machine.driver = latest
        while await latest.recover([given]):
            pass
        assert "_nat_" not in tables()


def heard(port: int) -> str:
    """What is said there. Between two answers nobody listens for a moment, so it is tried again."""
    script = f"for i in $(seq 100); do exec 3<>/dev/tcp/10.99.0.1/{port} && head -1 <&3 && exit; sleep 0.05; done"
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=20, check=False
    ).stdout.strip()


def tables() -> str:
    return subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True, text=True).stdout
