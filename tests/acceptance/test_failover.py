"""A leader dies, is cut off, is stopped: work goes on and no acknowledged write is lost."""

from __future__ import annotations

import random

import pytest

from incus_actors.lab.failover import run_round


@pytest.mark.parametrize("how", ["kill", "cut", "stop"])
def test_no_acknowledged_write_is_lost(fresh_cluster, how: str) -> None:
    rng = random.Random(how)
    for number in (1, 2):
        result = run_round(fresh_cluster, how, number, rng, limit_s=30)
        assert not result.failure
        assert result.acknowledged > 0
        assert result.lost == 0


def test_a_configuration_key_is_visible_on_every_member_at_once(cluster, incus_on) -> None:
    clients = [incus_on(m) for m in cluster.members]
    for round_, writer in enumerate(clients):
        writer("config", "set", f"user.everywhere={round_}")
        for reader in clients:
            assert reader("config", "get", "user.everywhere").strip() == str(round_)


def test_a_minority_refuses_writes_with_a_reason_and_still_shows_the_cluster(fresh_cluster, incus_on) -> None:
    first, second, third = fresh_cluster.members
    second.kill()
    third.kill()
    incus = incus_on(first)
    error = incus.fails("config", "set", "user.lonely=1")
    assert "needs 2 of 3" in error
    assert first.name in error
    listed = incus("cluster", "list", "-f", "csv")
    assert all(m.name in listed for m in fresh_cluster.members)
    second.start()
    second.wait_until_ready()
    incus("config", "set", "user.lonely=2", timeout=60)
    third.start()
    third.wait_until_ready()
    fresh_cluster.wait_until_healthy()
    assert incus_on(third)("config", "get", "user.lonely").strip() == "2"


def test_instances_of_a_dead_member_are_shown_as_error_and_come_back(fresh_cluster, incus_on, unified) -> None:
    incus = incus_on(fresh_cluster.members[0])
    incus("image", "import", str(unified), "--alias", "tiny")
    incus("launch", "tiny", "c3", "--target", "m3")
    incus("launch", "tiny", "c1", "--target", "m1")
    fresh_cluster.members[2].kill()
    rows = incus("list", "-f", "csv", "-c", "nsL", timeout=30).split()
    assert rows == ["c1,RUNNING,m1", "c3,ERROR,m3"]
    fresh_cluster.members[2].start()
    fresh_cluster.wait_until_healthy()
    assert incus("list", "-f", "csv", "-c", "nsL").split() == ["c1,RUNNING,m1", "c3,RUNNING,m3"]
    incus("delete", "-f", "c1", "c3")
