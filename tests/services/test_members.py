"""Members and groups: changes with Incus' texts, offline members, removal."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from cluster_kit import Server, servers, until

from incus_actors.errors import ApiError, ConflictError, MemberError, NotFoundError
from incus_actors.model.cluster import ClusterMemberPatch, ClusterMemberPut
from incus_actors.model.transaction import Statement, Transaction
from incus_actors.security import certificates


@pytest.fixture
async def pair(tmp_path):
    async with servers(tmp_path, 2, clustered=True) as made:
        await until(lambda: "database-standby" in made[0].cases.members.get("node2").roles)
        yield made


async def settled(server: Server) -> None:
    await server.consensus.read_barrier()


async def test_standalone_servers_have_no_members(tmp_path):
    async with servers(tmp_path, 1) as (server,):
        for ask in (server.cases.members.members, server.cases.groups.groups):
            with pytest.raises(ApiError, match=r"^This server is not clustered$") as caught:
                ask()
            assert caught.value.status == 400
        with pytest.raises(ApiError, match=r"^This server is not clustered$"):
            await server.cases.tokens.issue("x")


async def test_put_replaces_and_reaches_the_other_member(pair):
    first, second = pair
    put = ClusterMemberPut(
        roles=["event-hub"],
        failure_domain="rack1",
        description="my member",
        config={"scheduler.instance": "manual", "user.x": "1", "user.y": ""},
        groups=["default"],
    )
    await second.cases.members.put("node2", put)
    await settled(first)
    shown = first.cases.members.get("node2")
    assert (shown.failure_domain, shown.description) == ("rack1", "my member")
    assert shown.config == {"scheduler.instance": "manual", "user.x": "1"}
    assert shown.roles == ["event-hub", "database-standby"]
    await until(lambda: first.consensus.status().configuration.members()[2].domain == "rack1")
    (_, candidate) = first.cases.members.candidates()
    assert candidate.scheduler == "manual"
    assert candidate.architectures == {"x86_64", "i686"}
    await first.cases.members.patch("node2", ClusterMemberPatch(config={"user.x": ""}))
    assert first.cases.members.get("node2").config == {"scheduler.instance": "manual"}
    assert first.cases.members.get("node2").description == "my member"


async def test_rename(pair):
    first, second = pair
    with pytest.raises(ConflictError, match=r"^Conflict$"):
        await first.cases.members.rename("node2", "node1")
    with pytest.raises(NotFoundError, match=r"^Cluster member not found$"):
        await first.cases.members.rename("nope", "x")
    await first.cases.members.rename("node2", "node2b")
    await settled(second)
    assert second.identity.name == "node2b"
    assert second.database.scalar("SELECT COUNT(*) FROM certificates WHERE name = 'node2b' AND type = 2") == 1


async def test_a_silent_member_is_offline_after_the_threshold(pair):
    first, second = pair
    await first.consensus.propose(
        Transaction((Statement("INSERT INTO config (key, value) VALUES ('cluster.offline_threshold', '1')"),))
    )
    second.cut_off()
    await until(lambda: first.cases.members.get("node2").status == "Offline")
    shown = first.cases.members.get("node2")
    assert shown.message.startswith("No heartbeat for 1.")
    assert shown.roles == ["database-standby"]
    assert not first.cases.members.candidates()[1].online
    assert (await first.cases.tokens.issue("node3"))["metadata"]["addresses"] == [first.address]
    with pytest.raises(MemberError, match=r"offline"):
        await first.cases.members.remove("node2", force=False)
    second.cut_off(False)
    await until(lambda: first.cases.members.get("node2").status == "Online")
    await until(lambda: first.heartbeats.view()[2].skew_ms is not None)  # the first beat may echo nothing yet


async def test_tokens_look_like_operations_on_every_member(pair):
    first, second = pair
    made = await first.cases.tokens.issue("node3")
    await settled(second)
    (seen,) = second.cases.token_operations.list_tokens()
    assert seen == made
    assert list(seen) == [
        "id",
        "class",
        "description",
        "created_at",
        "updated_at",
        "status",
        "status_code",
        "resources",
        "metadata",
        "may_cancel",
        "err",
        "location",
    ]
    assert (seen["class"], seen["description"], seen["resources"]) == (
        "token",
        "Executing operation",
        {"cluster": None},
    )
    assert sorted(seen["metadata"]) == ["addresses", "expiresAt", "fingerprint", "secret", "serverName"]
    assert seen["metadata"]["addresses"] == ["10.0.0.1:8443", "10.0.0.2:8443"]
    assert seen["location"] == "node1"
    assert second.cases.token_operations.get_token(seen["id"]) == seen
    assert await second.cases.token_operations.revoke_token(seen["id"])
    await settled(first)
    assert first.cases.token_operations.list_tokens() == []


async def test_the_leader_drops_expired_tokens(pair):
    first, _second = pair
    await first.consensus.propose(
        Transaction((Statement("INSERT INTO config (key, value) VALUES ('cluster.join_token_expiry', '1S')"),))
    )
    await first.cases.tokens.issue("node3")
    assert len(first.cases.token_operations.list_tokens()) == 1
    await until(lambda: first.database.scalar("SELECT COUNT(*) FROM cluster_tokens") == 0)


async def test_state(pair):
    first, _second = pair
    state = await first.cases.members.state()
    assert state.sysinfo.total_ram > 0
    assert len(state.sysinfo.load_averages) == 3
    assert state.storage_pools == {}


async def test_the_only_member_can_not_be_removed(tmp_path):
    async with servers(tmp_path, 1, clustered=True) as (server,):
        for force in (False, True):
            with pytest.raises(MemberError, match=r"^Member is the only member in the cluster$"):
                await server.cases.members.remove("node1", force=force)


async def test_a_member_with_instances_is_not_removed(pair):
    first, _second = pair
    for name in ("ci2", "c2"):
        await first.consensus.propose(
            Transaction(
                (
                    Statement(
                        "INSERT INTO instances (node_id, name, architecture, type, creation_date, project_id)"
                        " VALUES (2, ?, 2, 0, '', 1)",
                        (name,),
                    ),
                )
            )
        )
    with pytest.raises(MemberError, match=r"^Node still has the following instances: c2, ci2$"):
        await first.cases.members.remove("node2", force=False)


async def test_a_member_does_not_remove_itself(tmp_path):
    async with servers(tmp_path, 3, clustered=True) as (first, second, third):
        with pytest.raises(MemberError, match=r"^Another member must be asked to remove this one$"):
            await second.cases.members.remove("node2", force=False)
        assert await second.cases.members.other_remover("node2") == 1
        assert await second.cases.members.other_remover("node1") is None
        await until(lambda: sum("database" in m.roles for m in third.cases.members.members()) == 3)
        assert await first.cases.members.other_remover("node1") in (2, 3)


async def test_the_leader_of_two_members_hands_over_to_the_one_that_stood_by(pair):
    first, second = pair
    assert await first.cases.members.other_remover("node1") == 2
    removed = await second.cases.members.remove("node1", force=False)
    await second.cases.leave.tell(removed)
    await until(lambda: "become_standalone" in first.done and first.identity.location == "none")
    (left,) = second.cases.members.members()
    assert left.roles == ["database-leader", "database"]


async def test_a_removed_member_is_a_standalone_server_that_may_join_again(pair):
    first, second = pair
    removed = await first.cases.members.remove("node2", force=False)
    assert (removed.member_id, removed.online) == (2, True)
    await first.cases.leave.tell(removed)
    assert "become_standalone" in second.done
    assert not second.identity.clustered
    assert [m.server_name for m in first.cases.members.members()] == ["node1"]
    assert first.consensus.status().configuration.members().keys() == {1}
    assert first.database.scalar("SELECT COUNT(*) FROM certificates") == 1
    await second.join(first, "node2")
    assert second.identity.member_id == 3, "an id is never used twice"


async def test_a_member_learns_of_its_removal_from_the_log(tmp_path):
    async with servers(tmp_path, 3, clustered=True) as (first, second, third):
        await until(lambda: sum("database" in m.roles for m in third.cases.members.members()) == 3)
        await first.cases.members.remove("node2", force=False)
        await until(lambda: second.consensus.member_id == 1 and "become_standalone" in second.done)
        await until(lambda: certificates.load_pair(second.directory, "cluster") is None)
        assert not second.identity.clustered
        kept = "SELECT value FROM node_server_config WHERE node_id = 1 AND key = 'core.https_address'"
        await until(lambda: second.database.scalar(kept) == second.address)
        await second.join(first, "node2")
        assert second.identity.member_id == 4


async def test_a_member_removed_by_force_while_it_was_away(tmp_path):
    """It can't hear of it, so it stays what it is until it is told."""
    async with servers(tmp_path, 3, clustered=True) as (first, second, third):
        await until(lambda: sum("database" in m.roles for m in third.cases.members.members()) == 3)
        second.cut_off()
        removed = await first.cases.members.remove("node2", force=True)
        second.cut_off(False)
        await first.cases.leave.tell(removed)
        await until(lambda: not second.identity.clustered)
        assert "become_standalone" in second.done


async def test_a_server_that_is_still_a_member_is_not_reset(pair):
    _first, second = pair
    with pytest.raises(ConflictError):
        await second.cases.leave.reset(1)
    assert second.identity.clustered


async def test_the_leader_can_be_removed(tmp_path):
    async with servers(tmp_path, 4, clustered=True) as made:
        first, second = made[:2]
        await until(lambda: sum("database" in m.roles for m in second.cases.members.members()) == 3, 60)
        assert first.consensus.status().leader == 1
        await second.cases.members.remove("node1", force=True)
        assert [m.server_name for m in second.cases.members.members()] == ["node2", "node3", "node4"]
        await until(lambda: 1 not in second.consensus.status().configuration.members())
        await until(lambda: sum("database" in m.roles for m in second.cases.members.members()) == 3, 60)
        await asyncio.sleep(0)


async def test_blocked_is_whose_daemon_is_older_not_who_was_older_when_it_joined(pair):
    first, _ = pair
    # It came with the next release, and ours was upgraded later.
    newer = Statement("UPDATE nodes SET api_extensions = 11 WHERE id = 2")
    assert (await first.consensus.propose(Transaction((newer,)))).applied
    await until(lambda: first.heartbeats.view()[2].beat is not None)
    assert [member.status for member in first.cases.members.members()] == ["Online", "Online"]
    beat = first.heartbeats.view()[2].beat
    assert beat is not None
    first.heartbeats.record(msgspec.structs.replace(beat, api_extensions=11), 1)  # the second of two is upgraded
    assert [member.status for member in first.cases.members.members()] == ["Blocked", "Online"]
