"""Quorum is lost for good: one member is recovered with the stock client's words; the others can't diverge."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import yaml

from incus_actors.lab.cluster import LabCluster, wait_for
from incus_actors.lab.processes import LabMember

Admin = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def admin(incus_on, tmp_path_factory: pytest.TempPathFactory) -> Admin:
    """`incus admin cluster …` of the stock client; it finds our incusd in PATH."""
    place = tmp_path_factory.mktemp("bin")
    shim = place / "incusd"
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m incus_actors.cli.incusd "$@"\n')
    shim.chmod(0o755)

    def run(member: LabMember, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
        environment = {**incus_on(member).environment, "PATH": f"{place}:{os.environ['PATH']}"}
        return subprocess.run(
            ["incus", "admin", "cluster", *arguments],
            env=environment,
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def database(admin: Admin, member: LabMember) -> list[str]:
    """The addresses of `list-database`."""
    lines = admin(member, "list-database").stdout.splitlines()
    return [line.strip("| ") for line in lines[3:] if line.startswith("|")]


def test_looking_at_a_running_cluster(cluster: LabCluster, admin: Admin) -> None:
    addresses = [member.https_address for member in cluster.members]
    assert database(admin, cluster.members[1]) == addresses
    shown = admin(cluster.members[2], "show").stdout
    assert shown.startswith("# Latest dqlite segment ID: ")
    rows = yaml.safe_load(shown)["members"]
    assert [row["address"] for row in rows] == addresses
    assert [row["role"] for row in rows] == ["voter"] * 3
    for command in ("edit", "recover-from-quorum-loss"):
        refused = admin(cluster.members[0], command, text="yes\n")
        assert (refused.returncode, refused.stderr) == (1, "Error: The daemon is running, please stop it first.\n")
    missing = admin(cluster.members[0], "remove-raft-node", "10.67.0.9:8443", text="yes\n")
    assert missing.stderr == 'Error: No raft node with address "10.67.0.9:8443"\n'


def test_one_member_is_recovered_and_the_others_are_refused(fresh_cluster, admin: Admin, incus_on) -> None:
    first, second, third = fresh_cluster.members
    incus_on(first)("config", "set", "user.before=1")
    for member in fresh_cluster.members:
        member.kill()
    asked = admin(second, "recover-from-quorum-loss", text="no\n")
    assert asked.stderr == "Error: Recover operation aborted\n"
    assert asked.stdout.endswith("Do you want to proceed? (yes/no): ")
    assert admin(second, "recover-from-quorum-loss", text="yes\n").returncode == 0
    assert list(second.directory.glob("database.backup-*"))
    second.start()
    second.wait_until_ready()
    incus = incus_on(second)
    wait_for(lambda: incus.run("config", "set", "user.after=2").returncode == 0, "writes go on")
    assert incus("config", "get", "user.before").strip() == "1"
    assert database(admin, second) == [second.https_address]
    assert all(m.name in incus("cluster", "list", "-f", "csv") for m in fresh_cluster.members)

    for member in (first, third):  # a majority of the old cluster comes back
        member.start()
        member.wait_until_ready()
    for member in (first, third):
        wait_for(
            lambda member=member: member.client.get("/internal/raft")["status"]["halted"], f"{member.name} is told"
        )
        refused = incus_on(member).fails("config", "set", "user.split=brain")
        assert "epoch 1 of its cluster" in refused
        assert 'run "incus-actorsd cluster rejoin"' in refused
        assert "epoch 1 of its cluster" in member.log.read_text()
        assert "m2" in incus_on(member)("cluster", "list", "-f", "csv")
    assert incus("config", "get", "user.split").strip() == ""

    incus("cluster", "remove", "m3", "--force", "--yes")
    first.stop()
    assert admin(first, "rejoin", text="yes\n").returncode == 0
    first.start()
    first.wait_until_ready()
    assert incus_on(first)("config", "get", "user.after").strip() == "2"
    assert incus("cluster", "list", "-f", "csv", "-c", "n").split() == ["m1", "m2"]
    status = first.client.get("/internal/raft")["status"]
    assert (status["epoch"], status["member_id"], status["halted"]) == (2, 4, "")


def test_a_raft_node_is_removed_while_its_cluster_runs(fresh_cluster, admin: Admin) -> None:
    first, _, third = fresh_cluster.members
    third.kill()
    done = admin(first, "remove-raft-node", third.https_address, text="yes\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert third.https_address not in database(admin, first)
