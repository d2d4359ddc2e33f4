"""Cluster groups, with Incus' texts."""

from __future__ import annotations

import pytest
from cluster_kit import servers

from incus_actors.errors import ApiError, ForbiddenError, MemberError, NotFoundError
from incus_actors.model.cluster import ClusterGroupPost, ClusterGroupPut


async def test_groups(tmp_path):
    async with servers(tmp_path, 2, clustered=True) as (first, second):
        groups = first.cases.groups
        await groups.create(ClusterGroupPost(name="g1", description="grp one"))
        with pytest.raises(MemberError) as caught:
            await groups.create(ClusterGroupPost(name="g1"))
        assert str(caught.value) == (
            'Failed to create "cluster_groups" entry: UNIQUE constraint failed: cluster_groups.name'
        )
        await second.consensus.read_barrier()
        assert [(g.name, g.description, g.members) for g in second.cases.groups.groups()] == [
            ("default", "Default cluster group", ["node1", "node2"]),
            ("g1", "grp one", []),
        ]
        await groups.put("g1", ClusterGroupPut(description="edited", members=["node2"]))
        assert first.cases.members.get("node2").groups == ["default", "g1"]
        with pytest.raises(MemberError, match=r"^Only empty cluster groups can be removed$"):
            await groups.delete("g1")
        with pytest.raises(ApiError, match=r"^Cluster members need to belong to at least one group$"):
            await groups.put("default", ClusterGroupPut(members=["node2"]))
        await groups.patch("g1", ClusterGroupPut(members=[]))
        assert groups.get("g1").description == "edited"
        await groups.rename("g1", "g2")
        await groups.delete("g2")
        with pytest.raises(NotFoundError, match=r"^Cluster_group not found$"):
            groups.get("g2")
        with pytest.raises(ForbiddenError, match=r"^The 'default' cluster group cannot be deleted$"):
            await groups.delete("default")
