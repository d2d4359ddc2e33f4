"""Real bridges, nftables and dnsmasq in a namespace of the test."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from netns_kit import inside, ip, namespace, needs_network, open_directory, station

from incus_actors.drivers.base import DriverError
from incus_actors.drivers.bridge import NetworkDriver, NetworkSpec
from incus_actors.drivers.dnsmasq import Dnsmasq
from incus_actors.errors import ApiError

pytestmark = [pytest.mark.real, needs_network]

CONFIG = {"ipv4.address": "10.99.1.1/24", "ipv4.nat": "true", "ipv6.address": "fd42:99::1/64", "ipv6.nat": "true"}
HWADDR = "10:66:6a:aa:bb:cc"


@pytest.fixture
async def driver():
    with namespace(), open_directory() as directory:
        found = NetworkDriver(directory)
        yield found
        for name in await found.made():
            await found.remove(name)
        await found.close()


def spec(name: str = "br0", kind: str = "bridge", hosts: dict[str, str] | None = None, **changes: str) -> NetworkSpec:
    config = {**(CONFIG if kind == "bridge" else {}), **{k.replace("__", "."): v for k, v in changes.items()}}
    return NetworkSpec(name, kind, {k: v for k, v in config.items() if v}, HWADDR, hosts or {})


def link(name: str) -> dict:
    found = json.loads(ip("-d", "-j", "addr", "show", name, check=False) or "[]")
    return found[0] if found else {}


def addresses(name: str) -> set[str]:
    return {f"{a['local']}/{a['prefixlen']}" for a in link(name)["addr_info"] if a["scope"] == "global"}


def rules() -> str:
    return subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True, text=True).stdout


async def test_a_bridge_is_made_and_leaves_nothing(driver):
    before = rules()
    assert await driver.ensure(spec()) == []
    found = link("br0")
    assert (found["address"], found["mtu"], found["ifalias"]) == (HWADDR, 1500, driver.mark)
    assert addresses("br0") == {"10.99.1.1/24", "fd42:99::1/64"}
    text = rules()
    assert "ip saddr 10.99.1.0/24 ip daddr != 10.99.1.0/24 masquerade" in text
    assert "ip6 saddr fd42:99::/64 ip6 daddr != fd42:99::/64 masquerade" in text
    assert await driver.made() == {"br0"}
    await driver.remove("br0")
    await driver.remove("br0")
    assert (link("br0"), rules(), await driver.made()) == ({}, before, set())


async def test_what_changes_is_changed_and_the_rest_stays(driver):
    await driver.ensure(spec())
    index = link("br0")["ifindex"]
    with station("br0"):
        await driver.ensure(spec(bridge__mtu="1400", bridge__hwaddr="10:66:6A:00:00:01", ipv6__address="none"))
        assert link("br0")["address"] == "10:66:6a:00:00:01"
        await driver.ensure(spec(bridge__mtu="1400", ipv4__address="10.99.2.1/24", ipv4__routes="10.98.0.0/24"))
        found = link("br0")
        assert (found["ifindex"], found["mtu"], found["address"]) == (index, 1400, HWADDR)
        assert addresses("br0") == {"10.99.2.1/24", "fd42:99::1/64"}
        assert "10.98.0.0/24" in ip("route", "show", "proto", "static")
        await driver.ensure(spec(ipv4__address="none", ipv4__nat="", ipv6__nat="", ipv6__firewall="false"))
        assert "10.98.0.0/24" not in ip("route", "show", "proto", "static")
        assert "chain" not in rules()
        assert json.loads(ip("-j", "link", "show", "master", "br0"))  # the station's port was never touched


async def test_interfaces_of_others_are_left_alone(driver):
    ip("link", "add", "br0", "type", "bridge")
    with pytest.raises(DriverError, match=r'^Network interface "br0" already exists$'):
        await driver.ensure(spec())
    await driver.remove("br0")
    assert link("br0")
    other = NetworkDriver(driver._directory / "other")
    await driver.ensure(spec("br1"))
    try:
        with pytest.raises(DriverError, match="already exists"):
            await other.ensure(spec("br1"))
        await other.remove("br1")
        assert link("br1")
        assert "masquerade" in rules()
    finally:
        await other.close()


async def test_a_kill_in_the_middle_leaves_nothing_foreign(driver):
    ip("link", "add", driver._temporary, "type", "bridge")  # killed before the mark
    await driver.ensure(spec())
    assert not link(driver._temporary)
    ip("link", "add", driver._temporary, "type", "bridge")
    await driver.remove("br0")
    assert not link(driver._temporary)


async def test_external_interfaces(driver):
    ip("link", "add", "ext0", "type", "veth", "peer", "name", "ext1")
    problems = await driver.ensure(spec(bridge__external_interfaces="ext0,nope"))
    assert problems == ['External interface "nope" of network "br0" not found']
    assert link("ext0")["master"] == "br0"
    await driver.ensure(spec(bridge__external_interfaces="ext1"))
    assert ("master" in link("ext0"), link("ext1")["master"]) == (False, "br0")
    await driver.remove("br0")
    assert "master" not in link("ext1")
    ip("addr", "add", "10.1.2.3/24", "dev", "ext0")
    with pytest.raises(DriverError, match=r"^Only unconfigured network interfaces can be bridged$"):
        await driver.ensure(spec(bridge__external_interfaces="ext0"))
    assert not link("br0")
    with pytest.raises(DriverError, match=r'^External interface "ext1" already in use$'):
        await driver.ensure(spec(bridge__external_interfaces="ext1/ext0/5"))


async def test_parents(driver):
    ip("link", "add", "par0", "type", "veth", "peer", "name", "par1")
    assert await driver.ensure(spec("m", "macvlan", parent="par0")) == []
    with pytest.raises(ApiError, match=r'^Parent interface "nope" not found$'):
        await driver.ensure(spec("p", "physical", parent="nope"))
    await driver.remove("m")
    assert link("par0")


async def test_firewall_that_can_not_be_loaded_takes_the_bridge_back(driver):
    with pytest.raises(DriverError, match="nft"):
        await driver.ensure(spec(ipv4__nat__address="nonsense"))
    assert not link("br0")
    assert await driver.made() == set()


# -- DHCP and DNS -----------------------------------------------------------------------------------------------------


@pytest.fixture
async def process(driver):
    await driver.ensure(spec())
    found = driver.process("br0")
    yield found
    await found.stop()


HOSTS = {"default_c1.eth0": "10:66:6a:00:00:05,10.99.1.77,c1", "default_c2.eth0": "10:66:6a:00:00:06,10.99.1.78,c2"}


def lease_of(name: str) -> subprocess.CompletedProcess[str]:
    """Ask for a lease as busybox in an instance does, without taking it."""
    return inside(name, shutil.which("busybox"), "udhcpc", "-i", "eth0", "-n", "-q", "-t", "5", "-s", "/bin/true")


def lookup(name: str, server: str = "10.99.1.1") -> str:
    return subprocess.run(
        [shutil.which("busybox"), "nslookup", name, server], capture_output=True, text=True, timeout=10, check=False
    ).stdout


async def test_leases_and_names(driver, process):
    assert await driver.serve(process, spec(hosts=HOSTS))
    with station("br0") as first:
        done = lease_of(first)
        assert "lease of 10.99.1.77 obtained" in done.stdout + done.stderr
    assert [(x.address, x.hwaddr, x.hostname) for x in driver.leases("br0")] == [
        ("10.99.1.77", "10:66:6a:00:00:05", "c1")
    ]
    assert "10.99.1.77" in lookup("c1.incus")
    assert "10.99.1.1" in lookup("_gateway.incus")
    with station("br0", "10:66:6a:00:00:99") as stranger:
        assert "obtained" in lease_of(stranger).stderr + lease_of(stranger).stdout


async def test_hosts_follow_without_a_restart(driver, process):
    await driver.serve(process, spec())
    pid = process._identity.pid
    await driver.serve(process, spec(hosts={"default_c1.eth0": "10:66:6a:00:00:05,10.99.1.42,c1"}))
    assert process._identity.pid == pid
    with station("br0") as one:
        done = lease_of(one)
        assert "lease of 10.99.1.42 obtained" in done.stdout + done.stderr
    with pytest.raises(DriverError, match="Unsafe name"):
        await driver.serve(process, spec(hosts={"../x": "y"}))


async def test_the_next_daemon_takes_it_over(driver, process):
    await driver.serve(process, spec())
    pid = process._identity.pid
    process.release()
    again = Dnsmasq(driver.directory_of("br0"))
    await driver.serve(again, spec())
    assert again._identity.pid == pid
    await driver.serve(again, spec(dns__domain="example"))
    assert again._identity.pid != pid
    signal.pidfd_send_signal(again._pidfd, signal.SIGKILL)
    await again.ended()
    assert not again.running
    await driver.serve(again, spec(ipv4__address="none", ipv6__address="none"))
    assert not again.running
    again.release()


async def test_who_finds_a_pid_file_finds_the_pid(driver, process, monkeypatch):
    """dnsmasq makes the file before it writes it: who looked too early could never end the process."""
    real, looks = Path.read_text, []

    def slow(path, *args, **kwargs):
        if path.name == "dnsmasq.pid" and len(looks) < 3:
            looks.append(path)
            return ""
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", slow)
    await driver.serve(process, spec())
    assert len(looks) == 3
    assert process.pid > 0


async def test_removal_ends_a_process_of_an_earlier_daemon(driver, process):
    await driver.serve(process, spec())
    await driver.remove("br0")
    assert not process.running


@pytest.mark.parametrize(("raw", "text"), [("foo=bar", "bad option"), ("dhcp-range=x", "bad dhcp-range")])
async def test_what_dnsmasq_refuses_is_told(driver, process, raw, text):
    with pytest.raises(DriverError, match=f"^The DNS and DHCP service exited prematurely: exit status 1 .*{text}"):
        await driver.serve(process, spec(raw__dnsmasq=raw))
    assert await driver.serve(process, spec())
