"""A member that lost what it promised comes back by itself: new id, old name, old instances."""

from __future__ import annotations

import shutil
import sqlite3

from incus_actors.lab.cluster import LabCluster, wait_for
from incus_actors.lab.processes import LabMember


def raft(member: LabMember) -> dict:
    return member.client.get("/internal/raft")["status"]


def forget_the_end(member: LabMember) -> None:
    """As if the disk had lied about the last writes: SQLite drops them silently."""
    with sqlite3.connect(member.directory / "database" / "log.db") as log:
        last = log.execute("SELECT MAX(idx) FROM entries").fetchone()[0]
        log.execute("DELETE FROM entries WHERE idx > ?", (last - 3,))
        log.execute("DELETE FROM configs WHERE idx > ?", (last - 3,))
    log.close()


def diverge(member: LabMember) -> None:
    """As if a bug or a flipped bit had changed the state of one member, behind the running digest's back."""
    state = next((member.directory / "database").glob("global-*.db"))
    with sqlite3.connect(state) as connection:
        connection.execute("INSERT INTO config (key, value) VALUES ('user.only-here', '1')")
    connection.close()


def garble_the_state(member: LabMember) -> None:
    """As if the first sector of the state had been written over while the daemon was down."""
    state = next((member.directory / "database").glob("global-*.db"))
    connection = sqlite3.connect(state)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    with state.open("r+b") as file:
        file.write(b"\xff" * 512)


def ids(cluster: LabCluster) -> list[int]:
    return sorted(m["id"] for m in raft(cluster.members[0])["configuration"]["old"])


def voters(cluster: LabCluster) -> list[int]:
    return sorted(m["id"] for m in raft(cluster.members[0])["configuration"]["old"] if m["role"] == "voter")


def test_every_way_to_lose_a_database_ends_in_the_same_member_under_a_new_id(
    fresh_cluster: LabCluster, incus_on, unified
) -> None:
    first, second, third = fresh_cluster.members
    incus = incus_on(first)
    incus("image", "import", str(unified), "--alias", "tiny")
    incus("launch", "tiny", "c3", "--target", "m3")

    third.kill()
    forget_the_end(third)
    incus("config", "set", "user.meanwhile=1")
    third.start()
    third.wait_until_ready()
    fresh_cluster.wait_until_healthy()
    assert raft(third)["member_id"] == 4
    assert ids(fresh_cluster) == [1, 2, 4]
    assert incus_on(third)("config", "get", "user.meanwhile").strip() == "1"
    assert incus("list", "-f", "csv", "-c", "nsL").split() == ["c3,RUNNING,m3"]
    assert incus("exec", "c3", "--", "echo", "still here").strip() == "still here"
    assert "it joins its cluster again" in third.log.read_text()
    assert len(list(third.directory.glob("database.damaged-*"))) == 1

    third.kill()
    shutil.rmtree(third.directory / "database")
    third.start()
    third.wait_until_ready()
    fresh_cluster.wait_until_healthy()
    assert raft(third)["member_id"] == 5
    assert incus("list", "-f", "csv", "-c", "nsL").split() == ["c3,RUNNING,m3"]
    incus("delete", "-f", "c3")

    second.kill()
    diverge(second)
    second.start()
    second.wait_until_ready()
    incus("config", "set", "user.digest=1")
    assert raft(second)["member_id"] == 2
    third.client.request("POST", "/internal/raft/check")
    wait_for(lambda: raft(second)["member_id"] == 6, "the diverged member came back by itself")
    fresh_cluster.wait_until_healthy()
    assert ids(fresh_cluster) == voters(fresh_cluster) == [1, 5, 6]
    assert incus_on(second)("config", "get", "user.only-here").strip() == ""
    assert second.process.poll() is None


def test_a_state_that_can_not_be_opened_is_built_again_without_anybody_s_help(fresh_cluster: LabCluster) -> None:
    second = fresh_cluster.members[1]
    second.client.request("PATCH", "/1.0", {"config": {"user.before": "1"}})
    second.stop()
    garble_the_state(second)
    second.start()
    second.wait_until_ready()
    fresh_cluster.wait_until_healthy()
    assert "was damaged: it is built again from the log" in second.log.read_text()
    assert ids(fresh_cluster) == [1, 2, 3]
    assert second.client.get("/1.0")["config"]["user.before"] == "1"
