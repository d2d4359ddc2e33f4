"""Members come, go and are renamed, with the stock client; clients reach the cluster by one name for all."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from incus_actors.lab.cluster import LabCluster, wait_for


def members_seen(incus: Any) -> dict[str, dict[str, Any]]:
    return {row["server_name"]: row for row in json.loads(incus("cluster", "list", "-f", "json"))}


def names_seen(incus: Any) -> set[str]:
    return set(members_seen(incus))


def test_a_member_leaves_and_its_name_joins_again(fresh_cluster: LabCluster, incus_on, unified: Path) -> None:
    _, two, three = fresh_cluster.members
    incus = incus_on(two)
    incus("image", "import", str(unified), "--alias", "tiny")
    incus("launch", "tiny", "c1", "--target", three.name)
    refusal = incus.fails("cluster", "remove", three.name)
    assert "c1" in refusal or "instances" in refusal, refusal
    assert names_seen(incus) == {"m1", "m2", "m3"}
    incus("delete", "-f", "c1")
    assert incus("cluster", "remove", three.name) == f"Member {three.name} removed\n"
    assert names_seen(incus) == {"m1", "m2"}
    # The removed one is a server of its own again, and may join under the same name.
    wait_for(lambda: not three.client.get("/1.0")["environment"]["server_clustered"], "it is standalone", timeout_s=20)
    fresh_cluster.join(three)
    fresh_cluster.wait_until_healthy()
    # The leader hands over before it goes; writes go on with what is left.
    leader = fresh_cluster.leader()
    assert leader is not None
    others = [m for m in fresh_cluster.members if m is not leader]
    incus = incus_on(others[0])
    incus("cluster", "remove", leader.name)
    assert names_seen(incus) == {m.name for m in others}
    incus("config", "set", "user.after", "the leader left")
    assert incus_on(others[1])("config", "get", "user.after") == "the leader left\n"


def test_a_dead_member_is_removed_by_force_and_replaced(fresh_cluster: LabCluster, incus_on, unified: Path) -> None:
    one, _, three = fresh_cluster.members
    incus = incus_on(one)
    incus("image", "import", str(unified), "--alias", "tiny")
    incus("launch", "tiny", "lost", "--target", three.name)
    incus("config", "set", "cluster.offline_threshold", "1")
    three.kill()
    wait_for(lambda: members_seen(incus)[three.name]["status"] == "Offline", "m3 is offline", timeout_s=20)
    assert incus.run("cluster", "remove", three.name).returncode == 1
    asked = incus.run("cluster", "remove", "--force", three.name, input="no\n")
    assert "Are you really sure" in asked.stdout
    assert names_seen(incus) == {"m1", "m2", "m3"}
    assert f"Member {three.name} removed" in incus("cluster", "remove", "--force", three.name, input="yes\n")
    assert names_seen(incus) == {"m1", "m2"}
    assert "lost" not in incus("list", "-f", "csv")
    # What comes back is no member any more: nobody listens to it, and it can't write.
    three.start()
    three.wait_until_ready()
    assert "no member of its cluster any more" in incus_on(three).fails("config", "set", "user.ghost", "1")
    assert names_seen(incus) == {"m1", "m2"}
    assert incus("config", "get", "user.ghost") == "\n"
    # A new machine takes its place and its name.
    three.kill()
    shutil.rmtree(three.directory)
    three.start()
    three.wait_until_ready()
    fresh_cluster.join(three)
    fresh_cluster.wait_until_healthy()


def test_names_groups_and_domains(fresh_cluster: LabCluster, incus_on, unified: Path) -> None:
    one, two, _ = fresh_cluster.members
    incus, elsewhere = incus_on(one), incus_on(two)
    incus("image", "import", str(unified), "--alias", "tiny")
    incus("cluster", "rename", "m3", "rack-b-1")
    assert names_seen(elsewhere) == {"m1", "m2", "rack-b-1"}
    incus("cluster", "group", "create", "fast")
    elsewhere("cluster", "group", "add", "rack-b-1", "fast")
    incus("launch", "tiny", "g1", "--target", "@fast")
    assert incus("list", "-f", "csv", "-c", "nsL") == "g1,RUNNING,rack-b-1\n"
    incus("cluster", "set", "rack-b-1", "scheduler.instance=manual")
    incus("cluster", "set", "m2", "scheduler.instance=group")
    for name in ("p1", "p2", "p3"):
        incus("launch", "tiny", name)
    assert incus("list", "-f", "csv", "-c", "nL", "p") == "p1,m1\np2,m1\np3,m1\n"
    incus("cluster", "set", "rack-b-1", "--property", "failure_domain=b")
    assert members_seen(elsewhere)["rack-b-1"]["failure_domain"] == "b"
    incus("cluster", "role", "add", "m2", "event-hub")
    assert "event-hub" in members_seen(elsewhere)["m2"]["roles"]
    incus("cluster", "role", "remove", "m2", "event-hub")
    incus("cluster", "role", "add", "m2", "database-standby")  # as Incus: automatic roles are nobody's to give
    assert "database-standby" not in members_seen(elsewhere)["m2"]["roles"]
    incus("delete", "-f", "g1", "p1", "p2", "p3")
    elsewhere("cluster", "group", "remove", "rack-b-1", "fast")
    elsewhere("cluster", "group", "delete", "fast")


def test_a_name_that_stands_for_every_member(
    fresh_cluster: LabCluster, incus_on: Callable[..., Any], tmp_path: Path
) -> None:
    """DNS round robin: clients know one name, whoever of the members still runs answers."""
    name = "cluster.example.test"
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{m.address} {name}\n" for m in fresh_cluster.members))
    configuration = tmp_path / "client"

    def client(*arguments: str) -> str:
        script = 'mount --bind "$1" /etc/hosts && shift && exec incus "$@"'  # in a mount namespace of its own
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, "sh", str(hosts), *arguments],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "INCUS_CONF": str(configuration), "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    token = incus_on(fresh_cluster.members[0])("config", "trust", "add", "laptop", "--quiet").strip()
    client("remote", "add", "all", f"https://{name}:8443", "--accept-certificate", "--token", token)
    client("config", "set", "all:", "user.seen=by name")
    for member in fresh_cluster.members[:2]:
        member.kill()
        assert "m3" in client("cluster", "list", "all:", "-f", "csv")
        member.start()
        member.wait_until_ready()
        fresh_cluster.wait_until_healthy()
    assert client("config", "get", "all:", "user.seen") == "by name\n"
