"""Targets, groups, evacuated members, and many instances at once."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from cluster_kit import until
from instance_kit import machines

from incus_actors.actors import placement
from incus_actors.errors import BadRequestError, ForbiddenError, NotFoundError


async def test_targets_of_a_standalone_server(tmp_path):
    async with machines(tmp_path, 1) as (machine,):
        placer = machine.instances.placer
        assert await placer.place("", "c1") == [1]
        with pytest.raises(BadRequestError, match=r"^Target only allowed when clustered$"):
            await placer.place("m2", "c1")


async def test_placement_in_a_cluster(tmp_path):
    async with machines(tmp_path, 2, clustered=True) as (first, second):
        await first.add_image()
        placer = first.instances.placer
        assert (await placer.place("", "c1"))[0] == 1
        await first.create("c1")
        await second.server.consensus.read_barrier()
        assert await placer.place("", "c2") == [2, 1]
        assert await placer.place("", "c2") == [2, 1]  # asked again for the same instance: it counts once
        assert (await placer.place("@default", "c2"))[0] == 2
        assert await placer.place("node1", "c3") == [1]
        with pytest.raises(NotFoundError, match=r'^Cluster member "nodezz" not found$'):
            await placer.place("nodezz", "c3")
        with pytest.raises(BadRequestError, match=r'^Cluster group "nope" doesn\'t exist$'):
            await placer.place("@nope", "c3")
        first.members.offline = {2}
        assert await placer.place("", "c3") == [1]
        await first.execute("UPDATE nodes SET state = 2 WHERE id = 2")
        with pytest.raises(ForbiddenError, match=r"^Cluster member is evacuated$"):
            await placer.place("node2", "c3")


async def test_instances_that_are_asked_for_at_once_are_spread(tmp_path):
    """Asked through every member, none of them has a row yet."""
    async with machines(tmp_path, 3, clustered=True) as members:
        wishes = [m.instances.placer.place("", f"c{i}") for i, m in enumerate(members * 12)]
        places = await asyncio.gather(*wishes)
    assert Counter(place[0] for place in places) == {1: 12, 2: 12, 3: 12}


async def test_a_member_that_does_not_answer_the_leader_comes_last(tmp_path, monkeypatch):
    """Its own heartbeats may still reach who asks, but it could not write what it has made."""
    monkeypatch.setattr(placement, "AWAY_AFTER_MS", 500)
    async with machines(tmp_path, 3, clustered=True) as (first, second, third):
        assert (await second.instances.placer.place("", "c1"))[0] == 1
        assert (await second.instances.placer.place("", "c2"))[0] == 2
        third.server.cut_off()
        await until(lambda: any(p.last_contact_ms > 500 for p in first.server.consensus.status().peers))
        assert await second.instances.placer.place("", "c3") == [1, 2, 3]


async def test_without_a_leader_the_known_rows_decide(tmp_path):
    async with machines(tmp_path, 2, clustered=True) as (first, second):
        await first.server.actors.stop_child("leader")
        assert await second.instances.placer.place("", "c1") == [1, 2]
