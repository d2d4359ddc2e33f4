"""One link is cut, between the leader and one other member: that member works on, through the third (CONSENSUS 3.12)."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from incus_actors.lab.cluster import LabCluster, wait_for
from incus_actors.lab.processes import LabMember

SOON_S = 10.0  #: about 1 s and what the client itself takes, which on a busy machine is a lot


def raft(member: LabMember) -> dict:
    return member.client.get("/internal/raft")["status"]


@pytest.fixture
def cut_off(fresh_cluster: LabCluster) -> Iterator[LabCluster]:
    """Leave no rule behind for the clean-up of the lab."""
    yield fresh_cluster
    assert fresh_cluster.network is not None
    for member in (1, 3):
        fresh_cluster.network.hear_all(member)


def test_a_member_cut_off_from_the_leader_only_works_on(cut_off: LabCluster, incus_on, unified) -> None:
    network = cut_off.network
    assert network is not None
    first, _second, third = cut_off.members
    incus = incus_on(third)
    incus("image", "import", str(unified), "--alias", "tiny")
    incus("launch", "tiny", "c1", "--target", "m1")
    assert raft(first)["leader"] == 1
    term = raft(first)["term"]
    network.drop_from(1, [3])
    network.drop_from(3, [1])

    took: dict[str, float] = {}

    def timed(*arguments: str) -> str:
        begin = time.monotonic()
        answer = incus(*arguments, timeout=90)
        took[" ".join(arguments)] = time.monotonic() - begin
        return answer

    timed("config", "set", "user.cut=1")
    assert timed("config", "get", "user.cut").strip() == "1"
    assert "c1,RUNNING,m1" in timed("list", "-f", "csv", "-c", "nsL").split()
    timed("launch", "tiny", "c2", "--target", "m2")
    assert timed("exec", "c2", "--", "echo", "through the second").strip() == "through the second"
    timed("stop", "-f", "c1")
    timed("start", "c1")
    assert timed("exec", "c1", "--", "echo", "by two hops").strip() == "by two hops"
    timed("launch", "tiny", "c3")
    print(took)
    assert raft(first)["term"] == term, "nobody is disturbed"
    assert raft(third)["leader"] == 0, "it is really cut off"

    network.hear_all(1)
    network.hear_all(3)
    wait_for(lambda: raft(third)["leader"] == 1, "the leader is back")
    timed("launch", "tiny", "c4", "--target", "m3")
    assert incus("config", "get", "user.cut").strip() == "1"
    incus("delete", "-f", "c1", "c2", "c3", "c4")
    assert all(seconds < SOON_S for what, seconds in took.items() if not what.startswith("launch")), took
