"""Nics of real containers in a namespace of the test: from the start, plugged while they run, rates and filters."""

from __future__ import annotations

import json
import socket
import subprocess
from dataclasses import replace

import pytest
from drivers_kit import Machine
from netns_kit import ip, namespace, needs_network

from incus_actors.drivers import lxc_nics
from incus_actors.drivers.base import DriverError, InstanceSpec
from incus_actors.drivers.lxc import LxcDriver
from incus_actors.drivers.lxc_config import host_interface

pytestmark = [pytest.mark.real, needs_network]

BRIDGED = {"type": "nic", "nictype": "bridged", "parent": "br0"}


@pytest.fixture(autouse=True)
def network():
    with namespace():
        ip("link", "add", "br0", "type", "bridge")
        ip("addr", "add", "10.99.0.1/24", "dev", "br0")
        ip("link", "set", "br0", "up")
        yield


@pytest.fixture
async def running(lxc_machine: Machine, network: None) -> InstanceSpec:
    spec = await lxc_machine.create("g1-nics")
    spec = replace(
        spec,
        devices={"eth0": BRIDGED},
        config={"volatile.eth0.hwaddr": "10:66:6a:00:00:01", "volatile.eth0.name": "eth0"},
    )
    lxc_machine.specs[:] = [spec]
    await lxc_machine.driver.start(spec)
    return spec


async def interfaces(machine: Machine, spec: InstanceSpec) -> dict[str, str]:
    """Return name → MAC address inside."""
    state = await machine.driver.state(spec)
    return {name: nic.hwaddr for name, nic in (state.network or {}).items() if name != "lo"}


def links() -> set[str]:
    return {link["ifname"] for link in json.loads(ip("-j", "link"))} - {"lo", "br0"}


def tables() -> str:
    return subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True, text=True).stdout


async def sh(machine: Machine, spec: InstanceSpec, script: str) -> str:
    code, out, err = await machine.run(spec, "sh", "-c", script)
    assert code == 0, err
    return out.decode()


async def test_a_nic_from_the_start(lxc_machine: Machine, running: InstanceSpec) -> None:
    assert await interfaces(lxc_machine, running) == {"eth0": "10:66:6a:00:00:01"}
    assert links() == {host_interface(running, "eth0")}
    await sh(lxc_machine, running, "ip addr add 10.99.0.5/24 dev eth0 && ping -c1 -W2 10.99.0.1")
    await lxc_machine.driver.stop(running, force=True)
    assert links() == set()


async def test_nics_come_and_go(lxc_machine: Machine, running: InstanceSpec) -> None:
    ip("link", "add", "par0", "type", "veth", "peer", "name", "par1")
    ip("link", "add", "phy0", "type", "veth", "peer", "name", "phy1")
    more = {
        "eth0": BRIDGED,
        "b": {**BRIDGED, "hwaddr": "10:66:6a:00:00:02", "name": "eth1", "mtu": "1400"},
        "m": {"type": "nic", "nictype": "macvlan", "parent": "par0", "hwaddr": "10:66:6a:00:00:03"},
        "p": {"type": "nic", "nictype": "p2p", "ipv4.routes": "10.77.0.0/24"},
        "x": {"type": "nic", "nictype": "physical", "parent": "phy0", "name": "phys"},
    }
    spec = replace(running, devices=more)
    await lxc_machine.driver.update_devices(spec)
    await lxc_machine.driver.update_devices(spec)  # nothing is done twice
    found = await interfaces(lxc_machine, spec)
    assert set(found) == {"eth0", "eth1", "m", "p", "phys"}
    assert (found["eth1"], found["m"]) == ("10:66:6a:00:00:02", "10:66:6a:00:00:03")
    assert "phy0" not in links()
    assert "10.77.0.0/24" in ip("route")
    assert "mtu 1400" in await sh(lxc_machine, spec, "ip link show eth1")
    assert "UP" in await sh(lxc_machine, spec, "ip link show m")
    await sh(lxc_machine, spec, "ip addr add 10.99.0.6/24 dev eth1 && ping -c1 -W2 10.99.0.1")

    later = LxcDriver(lxc_machine.directory)  # the daemon was restarted
    assert await later.recover([spec]) == [spec]
    await later.update_devices(replace(spec, devices={"x": more["x"]}))
    assert set(await interfaces(lxc_machine, spec)) == {"phys"}
    assert links() == {"par0", "par1", "phy1"}
    await later.update_devices(replace(spec, devices={}))
    assert links() == {"par0", "par1", "phy0", "phy1"}
    await later.close()


async def test_a_macvlan_changes_while_the_container_runs(lxc_machine: Machine, running: InstanceSpec) -> None:
    ip("link", "add", "par0", "type", "veth", "peer", "name", "par1")
    device = {"type": "nic", "nictype": "macvlan", "parent": "par0", "name": "m"}
    spec = replace(running, devices={"m": device})
    await lxc_machine.driver.update_devices(spec)
    before = await sh(lxc_machine, spec, "cat /sys/class/net/m/ifindex")
    told = {**spec.config, "volatile.m.host_name": "mac00000001"}  # what is shown of it
    await lxc_machine.driver.update_devices(replace(spec, config=told))
    assert await sh(lxc_machine, spec, "cat /sys/class/net/m/ifindex") == before
    assert ((await lxc_machine.driver.state(spec)).network or {})["m"].host_name == ""
    spec = replace(spec, config=told, devices={"m": {**device, "mtu": "1400"}})
    await lxc_machine.driver.update_devices(spec)
    assert "mtu 1400" in await sh(lxc_machine, spec, "ip link show m")


async def test_a_plugged_interface_of_the_host_comes_back(lxc_machine: Machine, running: InstanceSpec) -> None:
    ip("link", "add", "phy0", "type", "veth", "peer", "name", "phy1")
    device = {"type": "nic", "nictype": "physical", "parent": "phy0", "name": "eth1"}
    await lxc_machine.driver.update_devices(replace(running, devices={**running.devices, "x": device}))
    assert "phy0" not in links()
    await lxc_machine.driver.stop(running, force=True)
    assert "phy0" in links()


@pytest.mark.parametrize("plugged", [True, False])
async def test_an_interface_of_the_host_is_as_it_was_afterwards(
    lxc_machine: Machine, running: InstanceSpec, plugged: bool
) -> None:
    ip("link", "add", "phy0", "address", "02:00:00:00:00:07", "type", "veth", "peer", "name", "phy1")
    device = {"type": "nic", "nictype": "physical", "parent": "phy0", "hwaddr": "00:16:3e:00:00:77", "mtu": "1400"}
    spec = replace(running, devices={"x": {**device, "name": "eth1"}})
    if plugged:
        await lxc_machine.driver.update_devices(spec)
    else:
        await lxc_machine.driver.stop(running, force=True)
        await lxc_machine.driver.start(spec)
        await lxc_machine.driver.update_devices(spec)  # nothing is done twice
    inside = await sh(lxc_machine, spec, "ip link show eth1")
    assert "mtu 1400" in inside
    assert "00:16:3e:00:00:77" in inside
    if plugged:
        await lxc_machine.driver.update_devices(running)
    else:
        await lxc_machine.driver.stop(spec, force=True)
    outside = ip("link", "show", "phy0")
    assert "mtu 1500" in outside
    assert "02:00:00:00:00:07" in outside


async def test_what_cannot_be_plugged_leaves_nothing(lxc_machine: Machine, running: InstanceSpec) -> None:
    before = links()
    for device, reason in (
        ({**BRIDGED, "parent": "nobr"}, 'Parent device "nobr" doesn\'t exist'),
        ({"type": "nic", "nictype": "macvlan", "parent": "nopar"}, "Parent device 'nopar' doesn't exist"),
        ({**BRIDGED, "host_name": "br0"}, 'Failed to create the veth interfaces "br0" and "in[0-9a-f]+": File exists'),
        ({**BRIDGED, "name": "eth0"}, "File exists"),
    ):
        spec = replace(running, devices={**running.devices, "new": device})
        with pytest.raises(DriverError, match=f'^Failed to start device "new": .*{reason}'):
            await lxc_machine.driver.update_devices(spec)
        await lxc_machine.driver.update_devices(running)
    assert links() == before
    assert set(await interfaces(lxc_machine, running)) == {"eth0"}


async def test_rates_and_filters(lxc_machine: Machine, running: InstanceSpec) -> None:
    end = host_interface(running, "eth0")
    limited = {
        **BRIDGED,
        "limits.ingress": "8Mbit",
        "limits.egress": "4Mbit",
        "security.mac_filtering": "true",
        "security.ipv4_filtering": "true",
        "ipv4.address": "10.99.0.5",
    }
    spec = replace(running, devices={"eth0": limited})
    await lxc_machine.driver.update_devices(spec)
    assert "rate 8Mbit" in subprocess.run(["tc", "qdisc", "show", "dev", end], capture_output=True, text=True).stdout
    assert "limit rate over 500000 bytes/second" in tables()
    await sh(lxc_machine, spec, "ip addr add 10.99.0.5/24 dev eth0 && ping -c1 -W2 10.99.0.1")
    lies = "ip addr flush dev eth0; ip addr add 10.99.0.6/24 dev eth0; ping -c1 -W1 10.99.0.1"
    code, _, _ = await lxc_machine.run(spec, "sh", "-c", lies)
    assert code != 0
    await lxc_machine.driver.update_devices(running)
    assert ("tbf" in subprocess.run(["tc", "qdisc"], capture_output=True, text=True).stdout, "nic" in tables()) == (
        False,
        False,
    )
    await sh(lxc_machine, spec, "ping -c1 -W2 10.99.0.1")
    await lxc_machine.driver.update_devices(spec)
    await lxc_machine.driver.stop(spec, force=True)
    assert "nic" not in tables()
    assert lxc_nics.noted(spec) == {}


async def test_what_is_behind_a_bridged_nic_is_reached_over_its_bridge(
    lxc_machine: Machine, running: InstanceSpec
) -> None:
    ip("route", "add", "10.78.0.0/24", "dev", "br0", "proto", "static")  # of the network itself
    spec = replace(running, devices={"eth0": {**BRIDGED, "ipv4.routes": "10.77.0.0/24"}})
    await lxc_machine.driver.update_devices(spec)
    await sh(lxc_machine, spec, "ip addr add 10.99.0.5/24 dev eth0; ip addr add 10.77.0.1/32 dev eth0")
    with pytest.raises(ConnectionRefusedError):  # by the container
        socket.create_connection(("10.77.0.1", 9), timeout=3)
    spec = replace(running, devices={"eth0": {**BRIDGED, "ipv4.routes": "10.76.0.0/24", "ipv6.routes": "fd77::/64"}})
    await lxc_machine.driver.update_devices(spec)
    assert ("10.77" in ip("route"), "10.76" in ip("route"), "fd77" in ip("-6", "route")) == (False, True, True)
    assert "10.76.0.0/24 dev br0 scope link" in ip("route")
    await lxc_machine.driver.update_devices(replace(running, devices={}))
    assert ("10.76" in ip("route"), "fd77" in ip("-6", "route")) == (False, False)
    await lxc_machine.driver.update_devices(spec)
    await lxc_machine.driver.stop(spec, force=True)
    assert ("10.76" in ip("route"), "fd77" in ip("-6", "route"), "10.78" in ip("route")) == (False, False, True)


async def test_a_filtered_nic_still_reaches_the_bridge_by_ipv6(lxc_machine: Machine, running: InstanceSpec) -> None:
    ip("addr", "add", "fd77::1/64", "dev", "br0", "nodad")
    own = "fd77::1266:6aff:fe00:1"
    six = {**BRIDGED, "security.ipv6_filtering": "true", "ipv6.address": own}
    spec = replace(running, devices={"eth0": six})
    await lxc_machine.driver.update_devices(spec)
    await sh(lxc_machine, spec, "echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad")
    await sh(lxc_machine, spec, f"ip -6 addr add {own}/64 dev eth0; ip -6 addr add fd77::9/64 dev eth0")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((own, 9), timeout=3)
    with pytest.raises(OSError, match=r"timed out|No route to host"):
        socket.create_connection(("fd77::9", 9), timeout=1)


async def test_isolation_queues_and_priorities(lxc_machine: Machine, running: InstanceSpec) -> None:
    end = host_interface(running, "eth0")
    more = {"security.port_isolation": "true", "queue.tx.length": "500", "limits.priority": "3"}
    spec = replace(running, devices={"eth0": {**BRIDGED, **more}})
    await lxc_machine.driver.update_devices(spec)
    assert "isolated on" in ip("-d", "link", "show", end)
    assert "qlen 500" in ip("link", "show", end)
    assert "qlen 500" in await sh(lxc_machine, spec, "ip link show eth0")
    assert "meta priority set 0:3" in tables()
    await lxc_machine.driver.update_devices(running)
    assert "isolated off" in ip("-d", "link", "show", end)
    assert ("qlen 500" in ip("link", "show", end), "priority set" in tables()) == (False, False)


def test_rules_of_one_nic() -> None:
    nic = {"host_name": "veth1", "nictype": "bridged", "limits.max": "80Mbit", "hwaddr": "10:66:6a:00:00:01"}
    assert lxc_nics.rates_bytes(nic) == (10_000_000, 10_000_000)
    assert lxc_nics.rates_bytes({**nic, "limits.ingress": "8Mbit"}) == (10_000_000, 10_000_000)  # as in Incus
    text = lxc_nics.nic_rules({**nic, "security.ipv6_filtering": "true", "ipv6.address": "fd42::5"})
    assert 'iifname "veth1" ether saddr != 10:66:6a:00:00:01 drop' in text
    assert "ip6 saddr != { fd42::5, ::, fe80::/10 } drop" in text
    assert "nd-neighbor-advert @nh,528,48 != 0x10666a000001 drop" in text  # by whose name it is told
    assert "@nh,384,10 != 0x3fa @nh,384,128 != 0xfd420000000000000000000000000005 drop" in text
    filtered = {**nic, "security.ipv4_filtering": "true", "ipv4.routes": "10.7.0.0/24"}
    text = lxc_nics.nic_rules({**filtered, "ipv4.address": "10.9.0.5"})
    assert "ether type ip ip saddr != { 10.9.0.5, 10.7.0.0/24 } drop" in text
    text = lxc_nics.nic_rules({**filtered, "ipv4.address": "none"})
    assert "ether type ip drop" in text
    assert "ether type arp drop" in text
    assert "policy" not in lxc_nics.nic_rules({"host_name": "veth1", "nictype": "bridged"})
