"""A join that is killed on either side, at many moments, and tried again (WANTS 20): nothing is left of the failure."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest

from incus_actors.lab.client import RequestFailedError
from incus_actors.lab.cluster import LabCluster, wait_for

#: a join takes a quarter of a second here; the last moments are behind its end on a fast machine
MOMENTS_MS = (0, 10, 20, 35, 50, 75, 100, 150, 200, 300)


@pytest.fixture(scope="module")
def three_and_one():
    lab = LabCluster.in_namespaces(4, prefix="ajk")
    try:
        lab.form(joiners=2)
        yield lab
    finally:
        lab.destroy()


def attempt(lab: LabCluster) -> threading.Thread:
    """Let the fourth server join in the background, come what may."""

    def join() -> None:
        # Somebody is killed meanwhile: that is what is tried here.
        with contextlib.suppress(OSError, RequestFailedError, TimeoutError, ValueError):
            lab.join(lab.members[3])

    thread = threading.Thread(target=join)
    thread.start()
    return thread


def names(lab: LabCluster) -> list[str]:
    return sorted(row["server_name"] for row in lab.members[0].client.get("/1.0/cluster/members?recursion=1"))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("side", ["the joiner", "the member that is asked", "the leader"])
def test_g20_killed_and_tried_again(three_and_one: LabCluster, incus_on, side: str) -> None:
    lab = three_and_one
    joiner = lab.members[3]
    for moment_ms in MOMENTS_MS:
        asked = lab.members[0]
        leader = wait_for(lab.leader, "a leader")
        victim = {"the joiner": joiner, "the member that is asked": asked, "the leader": leader}[side]
        joining = attempt(lab)
        time.sleep(moment_ms / 1000)
        victim.kill()
        joining.join(60)
        assert not joining.is_alive(), f"the join still hangs a minute after {side} was killed at {moment_ms} ms"
        victim.start()
        victim.wait_until_ready(60)
        wait_for(lambda: names(lab), "a quorum")
        if "server_clustered: true" not in incus_on(joiner)("info"):
            lab.join(joiner)
        where = f"{side}, {moment_ms} ms"
        wait_for(lambda: names(lab) == ["m1", "m2", "m3", "m4"], f"four members ({where})")
        lab.wait_until_healthy()
        assert not list(joiner.directory.glob("database.*")), where
        assert not (joiner.directory / "join.json").exists(), where
        sql = incus_on(asked)("admin", "sql", "global", "SELECT state, COUNT(*) FROM nodes GROUP BY state")
        assert "| 0     | 4        |" in sql, f"{where}:\n{sql}"
        certificates = asked.client.get("/1.0/certificates?recursion=1")
        assert sorted(c["name"] for c in certificates) == ["m1", "m2", "m3", "m4"], where
        asked.client.run("DELETE", "/1.0/cluster/members/m4")
        wait_for(lambda: names(lab) == ["m1", "m2", "m3"], f"the fourth has left ({where})")
        wait_for(
            lambda: "server_clustered: false" in incus_on(joiner)("info"), f"the fourth is on its own again ({where})"
        )
