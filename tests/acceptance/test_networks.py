"""Networks over three members with the stock client: DHCP, DNS and NAT are real, nics come and go while containers run."""

from __future__ import annotations

import json
import re
import subprocess
import time

import pytest

from incus_actors.lab.cluster import LabCluster, wait_for

DHCP = "udhcpc -i eth0 -n -q -t 8 -T 1 -s /etc/udhcpc.sh"
SCRIPT = """#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr flush dev $interface
ip addr add $ip/$mask dev $interface
ip route replace default via $router dev $interface
: > /etc/resolv.conf
for d in $dns; do echo nameserver $d >> /etc/resolv.conf; done
[ -z "$domain" ] || echo search $domain >> /etc/resolv.conf
"""
OUTSIDE = "192.0.2.1"  #: an address on the lab's bridge, beyond the members: reached only through NAT


@pytest.fixture(scope="module")
def lab():
    found = LabCluster.in_namespaces(3, prefix="anw")
    try:
        found.form()
        found.wait_until_healthy()
        assert found.network is not None
        gateway = f"{found.network.subnet}.254"
        subprocess.run(["ip", "addr", "add", f"{OUTSIDE}/32", "dev", found.network.bridge], check=True)
        for number in range(1, 4):
            enter = found.network.enter(number)
            subprocess.run([*enter, "ip", "route", "add", "default", "via", gateway], check=True)
        yield found
    finally:
        for member in found.online():
            for instance in member.client.get("/1.0/instances"):
                subprocess.run(
                    ["incus", "delete", "-f", instance.rsplit("/", 1)[1]],
                    env={"INCUS_DIR": str(member.directory), "PATH": "/usr/bin:/bin", "HOME": "/root"},
                    check=False,
                    capture_output=True,
                )
            break
        found.destroy()


@pytest.fixture(scope="module")
def incus(lab, incus_on, unified):
    client = incus_on(lab.members[0])
    client("image", "import", str(unified), "--alias", "tiny")
    begin = time.monotonic()
    client("network", "create", "br0", "ipv4.address=10.140.0.1/24", "ipv4.nat=true", "ipv6.address=none")
    print(f"network over three members made in {time.monotonic() - begin:.2f} s (the goal is 0.5)")
    client("network", "attach-profile", "br0", "default", "eth0")
    return client


def dressed(incus, name: str) -> None:
    """Give a container the script that udhcpc needs, and an address."""
    incus("exec", name, "--", "sh", "-c", "cat > /etc/udhcpc.sh; chmod +x /etc/udhcpc.sh", input=SCRIPT)
    said = incus("exec", name, "--", "sh", "-c", f"{DHCP} 2>&1")
    assert "obtained" in said


def address(incus, name: str) -> str:
    state = json.loads(incus("query", f"/1.0/instances/{name}/state"))
    found = [a["address"] for a in state["network"]["eth0"]["addresses"] if a["family"] == "inet"]
    return found[0] if found else ""


def test_dhcp_dns_and_nat_on_every_member(incus, lab, incus_on) -> None:
    assert "  eth0:\n    network: br0\n    type: nic\n" in incus("profile", "show", "default")
    for number, member in enumerate(lab.members, 1):
        for part in "ab":
            incus("launch", "tiny", f"n{number}{part}", "--target", member.name)
            dressed(incus, f"n{number}{part}")
    for number, member in enumerate(lab.members, 1):
        first, second = f"n{number}a", f"n{number}b"
        assert address(incus, first).startswith("10.140.0.")
        # by name, through the DNS of the network
        assert "1 packets received" in incus("exec", first, "--", "ping", "-c1", "-W2", second)
        # through NAT: the far end has no route back to 10.140.0.0/24
        assert "1 packets received" in incus("exec", first, "--", "ping", "-c1", "-W2", OUTSIDE)
        leases = json.loads(incus_on(member)("network", "list-leases", "br0", "-f", "json"))
        there = {lease["hostname"]: lease["location"] for lease in leases if lease["type"].upper() == "DYNAMIC"}
        assert there[first] == member.name
    rows = json.loads(incus("list", "-f", "json"))
    assert all(row["state"]["network"]["eth0"]["counters"]["bytes_sent"] > 0 for row in rows)
    table = incus("list", "-c", "n4", "-f", "csv")
    assert re.search(r"^n1a,10\.140\.0\.\d+ \(eth0\)$", table, re.MULTILINE)
    config = json.loads(incus("query", "/1.0/instances/n1a"))["config"]
    assert re.fullmatch(r"10:66:6a(:[0-9a-f]{2}){3}", config["volatile.eth0.hwaddr"])
    assert config["volatile.eth0.host_name"].startswith("veth")


def test_a_static_address(incus) -> None:
    incus("config", "device", "override", "n2b", "eth0", "ipv4.address=10.140.0.200")
    incus("exec", "n2b", "--", "sh", "-c", f"{DHCP} 2>&1")
    assert address(incus, "n2b") == "10.140.0.200"
    said = incus.fails("config", "device", "set", "n2b", "eth0", "ipv4.address=10.9.0.1")
    assert said == (
        'Error: Invalid devices: Device validation failed for "eth0": '
        'Device IP address "10.9.0.1" not within network "br0" subnet'
    )
    incus("create", "tiny", "same", "-d", "eth0,ipv4.address=10.140.0.200", "--target", "m2")
    try:
        assert incus.fails("start", "same").startswith(
            'Error: Failed start validation for device "eth0": IP address "10.140.0.200" already defined on another NIC'
        )
    finally:
        incus("delete", "same")


def test_the_kernel_leads_to_a_static_address(incus, lab) -> None:
    server = "(while true; do echo hello | nc -l -p 80; done) >/dev/null 2>&1 &"
    incus("exec", "n2b", "--", "sh", "-c", server)
    device = ("web", "proxy", "listen=tcp:10.140.0.1:8090", "connect=tcp:0.0.0.0:80", "nat=true")
    incus("config", "device", "add", "n2b", *device)
    script = "exec 3<>/dev/tcp/10.140.0.1/8090 && head -1 <&3"
    found = subprocess.run([*lab.members[1].enter, "bash", "-c", script], capture_output=True, timeout=10, check=False)
    assert found.stdout == b"hello\n"
    assert "Instance has no static IPv4 address" in incus.fails("config", "device", "add", "n1a", *device)


def test_a_change_that_is_rolled_back_leaves_no_warning(incus) -> None:
    assert "bad option" in incus.fails("network", "set", "br0", "raw.dnsmasq=nonsense")

    def resolved() -> bool:
        warnings = json.loads(incus("warning", "list", "--all", "-f", "json"))
        return all(one["status"] == "resolved" for one in warnings if one["type"] == "Network unavailable")

    wait_for(resolved, "the warning is resolved", timeout_s=5)


def test_nics_come_and_go_while_it_runs(incus) -> None:
    def inside() -> str:
        return incus("exec", "n1a", "--", "ip", "-o", "link")

    assert incus.fails("network", "attach", "br0", "n1a", "more", "eth7") == (
        'Error: Failed add validation for device "more": Instance DNS name "n1a" conflict between "more" and "eth0"'
        " because both are connected to same network"
    )
    incus("network", "create", "br2", "ipv4.address=none", "ipv6.address=none")
    incus("network", "attach", "br2", "n1a", "more", "eth7")
    assert "eth7" in inside()
    incus("config", "device", "set", "n1a", "more", "limits.max=8Mbit")
    incus("network", "detach", "br2", "n1a", "more")
    assert "eth7" not in inside()
    incus("network", "delete", "br2")
    incus("config", "device", "add", "n1a", "p", "nic", "nictype=p2p", "name=p0")
    assert "p0" in inside()
    config = json.loads(incus("query", "/1.0/instances/n1a"))["config"]
    assert config["volatile.p.host_name"]
    incus("config", "device", "remove", "n1a", "p")
    config = json.loads(incus("query", "/1.0/instances/n1a"))["config"]
    assert not [key for key in config if key.startswith(("volatile.p.", "volatile.more."))]
    assert "1 packets received" in incus("exec", "n1a", "--", "ping", "-c1", "-W2", "10.140.0.1")


def test_a_restart_of_the_daemon_interrupts_no_traffic(incus, lab, incus_on) -> None:
    member = lab.members[1]
    command = ["incus", "exec", "n2a", "--", "sh", "-c", "ping -i 0.2 -c 40 -W 1 n2b > /tmp/pings 2>&1 &"]
    subprocess.run(command, env=incus_on(member).environment, check=True, timeout=20, stdin=subprocess.DEVNULL)
    member.kill()
    member.start()
    member.wait_until_ready(60)
    wait_for(lambda: "packets transmitted" in incus_on(member)("exec", "n2a", "--", "cat", "/tmp/pings"), "40 pings")
    assert "40 packets transmitted, 40 packets received" in incus_on(member)("exec", "n2a", "--", "cat", "/tmp/pings")
    lab.wait_until_healthy()
    incus("exec", "n2a", "--", "sh", "-c", f"{DHCP} 2>&1")  # and DHCP still answers
    incus("restart", "n2a", "-f")
    dressed(incus, "n2a")


def test_what_is_used_stays_and_bad_input_changes_nothing(incus) -> None:
    assert incus.fails("network", "delete", "br0") == "Error: The network is currently in use"
    used = json.loads(incus("query", "/1.0/networks/br0"))["used_by"]
    assert "/1.0/profiles/default" in used
    assert "/1.0/instances/n1a" in used
    before = incus("network", "list", "-f", "csv")
    for arguments in (
        ("br1", "ipv4.address=10.140.0.1/24"),
        ("br1", "ipv4.address=bogus"),
        ("a/b",),
        ("abcdefghijklmnop",),
        ("br1", "--type", "nope"),
        ("br1", "foo=bar"),
        ("br1", "bridge.external_interfaces=eth5"),
    ):
        assert incus.fails("network", "create", *arguments).startswith("Error: "), arguments
    assert incus("network", "list", "-f", "csv") == before
    assert "Network not found" in incus.fails("launch", "tiny", "bad", "-n", "nope")
    for device in ("nictype=bridged", "network=nope", "network=br0 mtu=x", "network=br0 nope=1"):
        assert incus.fails("config", "device", "add", "n1a", "x", "nic", *device.split()).startswith("Error: "), device


def test_gone_without_a_trace(incus, lab) -> None:
    names = [f"n{number}{part}" for number in (1, 2, 3) for part in "ab"]
    incus("delete", "-f", *names)
    incus("profile", "device", "remove", "default", "eth0")
    incus("network", "delete", "br0")
    assert lab.network is not None
    for number in range(1, 4):
        enter = lab.network.enter(number)
        links = subprocess.run([*enter, "ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
        assert len(links.splitlines()) == 2, links  # loopback and the uplink
        tables = subprocess.run([*enter, "nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
        assert not tables, tables
