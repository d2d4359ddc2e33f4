"""Clients of the cluster with the stock client: added by token at any member, limited to projects, changed, removed."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import pytest

from incus_actors.lab.cluster import LabCluster, wait_for


class Remote:
    """A client with a configuration of its own, which reaches the cluster over HTTPS."""

    def __init__(self, incus, directory: Path) -> None:
        self.incus = type(incus)(incus.member, directory)

    def __call__(self, *arguments: str) -> str:
        return self.incus(*arguments)

    def fails(self, *arguments: str) -> str:
        return self.incus.fails(*arguments)


@pytest.fixture
def stranger(incus_on, tmp_path):
    def make(name: str, cluster: LabCluster) -> Remote:
        directory = tmp_path / name
        directory.mkdir()
        return Remote(incus_on(cluster.members[0]), directory)

    yield make
    shutil.rmtree(tmp_path, ignore_errors=True)


def token_of(answer: str) -> str:
    return answer.splitlines()[-1].strip()


def test_a_token_is_good_at_any_member_and_under_any_leader(fresh_cluster: LabCluster, incus_on, stranger) -> None:
    leader = fresh_cluster.leader()
    assert leader is not None
    follower, other = (m for m in fresh_cluster.members if m is not leader)
    token = token_of(incus_on(follower)("config", "trust", "add", "alice"))
    facts = json.loads(base64.b64decode(token))
    assert facts["addresses"] == [follower.https_address]
    facts["addresses"] = [other.https_address]  # whoever issued it: any member takes it
    token = base64.b64encode(json.dumps(facts).encode()).decode()
    leader.kill()
    wait_for(lambda: fresh_cluster.leader() not in (None, leader), "another leader", timeout_s=15)
    alice = stranger("alice", fresh_cluster)
    alice("remote", "add", "far", token)
    assert "m1" in alice("cluster", "list", "far:")
    assert "certificate add" in stranger("again", fresh_cluster).fails("remote", "add", "far", token)
    rows = json.loads(incus_on(follower)("config", "trust", "list", "-f", "json"))
    fingerprint = next(row["fingerprint"] for row in rows if row["name"] == "alice")
    incus_on(follower)("config", "trust", "remove", fingerprint[:12])
    assert "not authorized" in alice.fails("cluster", "list", "far:").lower() or alice.fails("config", "show", "far:")


def test_a_client_limited_to_a_project(cluster: LabCluster, incus_on, stranger) -> None:
    incus = incus_on(cluster.members[1])
    incus("project", "create", "web")
    try:
        token = token_of(incus("config", "trust", "add", "bob", "--restricted", "--projects", "web"))
        bob = stranger("bob", cluster)
        bob("remote", "add", "far", token, "--project", "web")
        assert [p["name"] for p in json.loads(bob("project", "list", "far:", "-f", "json"))] == ["web"]
        assert bob("profile", "create", "far:mine") is not None
        assert "mine" in bob("profile", "list", "far:", "-f", "csv")
        for command in (
            ("list", "far:", "--project", "default"),
            ("config", "set", "far:", "user.x=1"),
            ("project", "create", "far:mine"),
            ("cluster", "remove", "far:m3"),
            ("cluster", "add", "far:m9"),
            ("warning", "list", "far:"),
            ("profile", "create", "far:other", "--project", "default"),
        ):
            refusal = bob.fails(*command)
            assert "Certificate is restricted" in refusal or "does not have permissions" in refusal, command
        rows = json.loads(incus("config", "trust", "list", "-f", "json"))
        found = next(row for row in rows if row["name"] == "bob")
        assert (found["restricted"], found["projects"]) == (True, ["web"])
        edited = {**found, "projects": [], "restricted": False}
        incus("config", "trust", "edit", found["fingerprint"], input=json.dumps(edited))
        assert bob("config", "set", "far:", "user.x=1") == ""
        incus("config", "unset", "user.x")
        incus("config", "trust", "remove", found["fingerprint"])
    finally:
        incus("profile", "delete", "mine", "--project", "web")
        incus("project", "delete", "web")
