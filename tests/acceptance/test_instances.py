"""Instances from any member on any member, with the stock client."""

from __future__ import annotations

import json
import signal
import subprocess
import time

import pexpect
import pytest


@pytest.fixture
def incus(cluster, incus_on, image):
    """The stock client at the first member; instances of the test are removed."""
    client = incus_on(cluster.members[0])
    yield client
    names = client("list", "-f", "csv", "-c", "n").split()
    if names:
        client("delete", "-f", *names)


def test_launch_spreads_over_the_members_and_every_member_can_use_them(incus, cluster, incus_on) -> None:
    for number in range(6):
        incus("launch", "tiny", f"c{number}")
    rows = json.loads(incus("list", "-f", "json"))
    places = sorted(row["location"] for row in rows)
    assert places == ["m1", "m1", "m2", "m2", "m3", "m3"]
    assert all(row["status"] == "Running" for row in rows)
    table = incus("list")
    for heading in ("NAME", "STATE", "IPV4", "IPV6", "TYPE", "SNAPSHOTS", "LOCATION"):
        assert heading in table
    for member in cluster.members:
        other = incus_on(member)
        for row in rows:
            assert other("exec", row["name"], "--", "hostname").strip() == row["name"]
    assert "Status: RUNNING" in incus_on(cluster.members[2])("info", "c0")


def test_a_name_is_made_up_wherever_the_instance_goes(incus, cluster) -> None:
    for _ in cluster.members:
        incus("init", "tiny")
    for member in cluster.members:
        incus("init", "tiny", "--target", member.name)
    rows = json.loads(incus("list", "-f", "json"))
    assert sorted(row["location"] for row in rows) == ["m1", "m1", "m2", "m2", "m3", "m3"]
    assert len({row["name"] for row in rows}) == 6


@pytest.mark.parametrize("place", ["m1", "m2"])
def test_the_life_of_an_instance(incus, place) -> None:
    incus("init", "tiny", "life", "--target", place, "-c", "limits.memory=64MiB", "-c", "user.colour=blue")
    assert incus("list", "-f", "csv", "-c", "nsL").strip() == f"life,STOPPED,{place}"
    assert incus.fails("exec", "life", "--", "true") == "Error: Instance is not running"
    incus("start", "life")
    assert "already running" in incus.fails("start", "life")
    assert incus("config", "get", "life", "user.colour").strip() == "blue"
    state = json.loads(incus("query", "/1.0/instances/life/state"))
    assert state["status"] == "Running"
    assert state["pid"] > 0
    assert state["processes"] >= 1
    assert state["memory"]["usage"] > 0
    incus("restart", "life", "--force")
    assert json.loads(incus("query", "/1.0/instances/life/state"))["pid"] != state["pid"]
    assert "currently running" in incus.fails("delete", "life")
    incus("stop", "life", "--force")
    assert "already stopped" in incus.fails("stop", "life")
    incus("delete", "life")
    assert incus.fails("info", "life") == "Error: Instance not found"


def test_a_clean_stop_ends_init(incus) -> None:
    incus("launch", "tiny", "clean")
    incus("stop", "clean", timeout=40)
    assert incus("list", "-f", "csv", "-c", "s").strip() == "STOPPED"


def test_limits_are_real(incus) -> None:
    incus("launch", "tiny", "lim", "-c", "limits.memory=32MiB", "-c", "limits.processes=50", "-c", "limits.cpu=1")
    pid = json.loads(incus("query", "/1.0/instances/lim/state"))["pid"]
    groups = {line.split(":")[1]: line.strip().split(":")[2] for line in open(f"/proc/{pid}/cgroup") if line.strip()}
    if "memory" in groups:  # cgroup v1
        limit = open(f"/sys/fs/cgroup/memory{groups['memory']}/memory.limit_in_bytes").read()
        processes = open(f"/sys/fs/cgroup/pids{groups['pids']}/pids.max").read()
    else:
        limit = open(f"/sys/fs/cgroup{groups['']}/memory.max").read()
        processes = open(f"/sys/fs/cgroup{groups['']}/pids.max").read()
    assert int(limit) == 32 << 20
    assert int(processes) == 50


def test_containers_are_unprivileged_by_default(incus) -> None:
    incus("launch", "tiny", "unp")
    pid = json.loads(incus("query", "/1.0/instances/unp/state"))["pid"]
    uid_map = open(f"/proc/{pid}/uid_map").read().split()
    assert int(uid_map[0]) == 0
    assert int(uid_map[1]) >= 100000


def test_bad_instances_are_refused_in_incus_words(incus) -> None:
    before = incus("list", "-f", "csv")
    assert "Invalid instance name" in incus.fails("launch", "tiny", "bad_name")
    assert "nodezz" in incus.fails("launch", "tiny", "okname", "--target", "nodezz")
    assert 'Image "nope" not found' in incus.fails("launch", "nope", "okname")
    assert "Unknown configuration key: foo.bar" in incus.fails("launch", "tiny", "okname", "-c", "foo.bar=1")
    assert incus("list", "-f", "csv") == before
    incus("init", "tiny", "twice")
    assert "UNIQUE constraint failed: instances.project_id, instances.name" in incus.fails("init", "tiny", "twice")


@pytest.mark.parametrize("place", ["m1", "m3"])
def test_exec_passes_streams_codes_and_environment(incus, place) -> None:
    incus("launch", "tiny", "ex", "--target", place)
    done = incus.run("exec", "ex", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert incus("exec", "ex", "--", "sh", "-c", "echo $container") == "lxc\n"
    assert incus("exec", "ex", "--", "ls", "/dev/fuse", "/dev/net/tun") == "/dev/fuse\n/dev/net/tun\n"
    assert incus.run("exec", "ex", "--", "cat", input="through stdin\n").stdout == "through stdin\n"
    big = "x" * 3_000_000
    assert incus.run("exec", "ex", "--", "cat", input=big).stdout == big
    assert (
        incus("exec", "ex", "--env", "COLOUR=red", "--cwd", "/tmp", "--", "sh", "-c", "echo $COLOUR $PWD")
        == "red /tmp\n"
    )
    assert incus("exec", "ex", "--user", "1000", "--group", "1000", "--", "id", "-u").strip() == "1000"
    done = incus.run("exec", "ex", "--", "no-such-program")
    assert done.returncode == 127
    assert "Command not found" in done.stderr
    assert incus.run("exec", "ex", "--", "sh", "-c", "kill -TERM $$").returncode == 143


@pytest.mark.parametrize("place", ["m1", "m2"])
def test_interactive_exec_has_a_terminal(incus, place) -> None:
    incus("launch", "tiny", "tty", "--target", place)
    child = pexpect.spawn("incus", ["exec", "tty", "--", "sh"], env=incus.environment, dimensions=(31, 97), timeout=20)
    child.expect("# ")
    child.sendline("stty size; tty")
    child.expect("31 97")
    child.expect("/dev/pts/")
    child.setwinsize(40, 120)
    time.sleep(0.3)
    child.sendline("stty size")
    child.expect("40 120")
    child.sendline("sleep 100")
    time.sleep(0.3)
    child.sendintr()
    child.expect("# ")
    child.sendline("exit 5")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 5


def test_signals_reach_a_command_that_is_not_interactive(incus) -> None:
    incus("launch", "tiny", "sig", "--target", "m2")
    process = subprocess.Popen(
        [
            "incus",
            "exec",
            "sig",
            "--",
            "sh",
            "-c",
            "trap 'echo got it; exit 3' TERM; echo ready; while :; do sleep 0.1; done",
        ],
        env=incus.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 3
    assert process.stdout.read() == "got it\n"


def test_operations_and_events_of_other_members_are_seen(incus, cluster, incus_on) -> None:
    here, there = incus_on(cluster.members[0]), incus_on(cluster.members[1])
    here("launch", "tiny", "ev", "--target", "m3")
    monitor = subprocess.Popen(
        ["incus", "monitor", "-f", "json"],
        env=there.environment,
        stdout=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    time.sleep(0.7)
    sleeper = subprocess.Popen(
        ["incus", "exec", "ev", "--", "sleep", "3"], env=here.environment, stdin=subprocess.DEVNULL
    )
    time.sleep(1)
    for member in cluster.members:
        rows = json.loads(incus_on(member)("operation", "list", "-f", "json"))
        mine = [r for r in rows if r["description"] == "Executing command" and r["status"] == "Running"]
        assert mine, member.name
        assert mine[0]["location"] == "m3"
        shown = incus_on(member)("operation", "show", mine[0]["id"])
        assert "status: Running" in shown
    assert sleeper.wait(timeout=20) == 0
    here("stop", "ev", "--force")
    time.sleep(0.5)
    monitor.kill()
    assert monitor.stdout is not None
    events = [json.loads(line) for line in monitor.stdout.read().splitlines() if line]
    actions = {e["metadata"].get("action") for e in events if e["type"] == "lifecycle"}
    assert {"instance-exec", "instance-stopped"} <= actions
    assert any(e["type"] == "operation" and e["metadata"]["status"] == "Success" for e in events)
