"""A rolling upgrade of real daemons: the previous release as an installed package beside this one (CONSENSUS 3.13).

The previous release is a commit of this repository. When a release raises the feature level, PREVIOUS moves to the last
commit that has the level before.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from incus_actors.lab.client import RequestFailedError
from incus_actors.lab.cluster import LabCluster, wait_for
from incus_actors.lab.processes import LabMember
from incus_actors.model.features import SUPPORTED

PREVIOUS = "cb9c2cf39c8ae7e75df998cbfd90bc2644aec90a"
PREVIOUS_LEVEL = 1
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which a daemon is one of the previous release."""
    archive = subprocess.run(
        ["git", "-C", str(REPOSITORY), "archive", PREVIOUS, "incus_actors", "pyproject.toml", "README.md"],
        capture_output=True,
        check=False,
    )
    if archive.returncode:
        pytest.skip(f"the previous release {PREVIOUS} is not in this clone: {archive.stderr.decode().strip()}")
    source, installed = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("previous")
    subprocess.run(["tar", "-x", "-C", str(source)], input=archive.stdout, check=True)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(installed), str(source)]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    installed.parent.chmod(0o755)
    installed.chmod(0o755)
    return {"PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}  # not the checkout that the tests run in


@pytest.fixture
def old_cluster(previous: dict[str, str]) -> Iterator[LabCluster]:
    """Four servers of the previous release, three of them one cluster."""
    lab = LabCluster.in_namespaces(4, prefix="upg", environment=dict(previous))
    try:
        lab.form(joiners=2)
        spare = lab.members.pop()
        lab.wait_until_healthy()
        lab.members.append(spare)
        yield lab
    finally:
        lab.destroy()


class Writer:
    """Writes one key after the other through whoever answers; remembers what was acknowledged."""

    def __init__(self, members: list[LabMember]) -> None:
        self.members = members
        self.acknowledged: set[str] = set()
        self.refused: list[str] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        number = 0
        while not self._stopping.wait(0.02):
            number += 1
            member = self.members[number % len(self.members)]
            key = f"user.write-{number}"
            try:
                member.client.run("PATCH", "/1.0", {"config": {key: "1"}}, timeout_s=10)
            except (OSError, RequestFailedError, ValueError) as problem:
                if member.running:
                    self.refused.append(f"{key} at {member.name}: {problem}")
            else:
                self.acknowledged.add(key)


def raft(member: LabMember) -> dict:
    return member.client.get("/internal/raft")["status"]


def replace(member: LabMember, release: dict[str, str]) -> None:
    """Stop the daemon as a package manager does, and start it with another release."""
    assert member.stop() == 0, member.log_tail()
    member.environment = release
    member.start()
    member.wait_until_ready()


def heard(members: list[LabMember], levels: list[int]) -> bool:
    """Whether every member knows what every other one can apply."""
    for member in members:
        status = raft(member)
        known = {status["member_id"]: status["features"]} | {peer["id"]: peer["features"] for peer in status["peers"]}
        if [known[number] for number in sorted(known)] != levels:
            return False
    return True


@pytest.mark.may_skip
@pytest.mark.timeout(300)  # installs a release, and waits longer than a leader between two looks
def test_members_are_upgraded_one_by_one_while_the_cluster_works(
    old_cluster: LabCluster, previous: dict[str, str], incus_on
) -> None:
    *members, outsider = old_cluster.members
    first, second, third = members
    old_cluster.members.remove(outsider)
    assert all(raft(member)["feature_level"] == PREVIOUS_LEVEL for member in members)
    with Writer(members) as writer:
        replace(third, {})
        wait_for(lambda: heard(members, [PREVIOUS_LEVEL, PREVIOUS_LEVEL, SUPPORTED]), "levels are known")
        replace(third, previous)  # nothing new is in use: the way back is open
        replace(third, {})
        replace(second, {})
        wait_for(lambda: heard(members, [PREVIOUS_LEVEL, SUPPORTED, SUPPORTED]), "levels are known")
        old_cluster.wait_until_healthy()
        time.sleep(16)  # longer than between two looks of the leader: with one old member nothing is switched on
        assert [raft(member)["feature_level"] for member in members] == [PREVIOUS_LEVEL] * 3
        replace(first, {})
        wait_for(lambda: [raft(m)["feature_level"] for m in members] == [SUPPORTED] * 3, "the new level", timeout_s=40)
        time.sleep(1)
    assert len(writer.acknowledged) > 100
    missing = writer.acknowledged - first.client.get("/1.0")["config"].keys()
    assert not missing, f"acknowledged and lost: {sorted(missing)[:5]}"

    member_count = len(incus_on(second)("cluster", "list", "-f", "csv").splitlines())
    assert member_count == 3
    first.client.request("POST", "/internal/raft/check", {})
    third.stop()
    third.environment = dict(previous)
    third.start()
    assert third.process is not None
    assert third.process.wait(timeout=30) != 0
    advice = f"The cluster uses feature level {SUPPORTED}, this release knows {PREVIOUS_LEVEL}: upgrade incus_actors"
    assert advice in third.log.read_text()
    incus_on(first)("config", "set", "user.without=third")
    third.environment = {}
    third.start()
    third.wait_until_ready()
    old_cluster.wait_until_healthy()
    assert third.client.get("/1.0")["config"]["user.without"] == "third"
    assert not raft(first)["counters"].get("digest_mismatches")

    with pytest.raises(RequestFailedError, match="The joining server version doesn't match"):
        old_cluster.join(outsider, through=first)
    replace(outsider, {})
    old_cluster.join(outsider, through=first)
    old_cluster.members.append(outsider)
    old_cluster.wait_until_healthy()
    assert raft(outsider)["feature_level"] == SUPPORTED
