"""The leader's chores: what never ended is undone, and a deposed leader can do nothing any more."""

from __future__ import annotations

import pytest
from cluster_kit import Server, servers, until

from incus_actors.actors import leader
from incus_actors.actors.leader_messages import Nudge, RemoveMember, RemoveRaftNode
from incus_actors.consensus.policy import VOTER_OFFLINE_AFTER_MS
from incus_actors.consensus.types import Configuration, RaftRole, Role
from incus_actors.domain import transactions_cluster as cluster_tx
from incus_actors.errors import ApiError, MemberError
from incus_actors.security import certificates
from incus_actors.services.acceptance import ACCEPT_PATH


@pytest.fixture
async def pair(tmp_path):
    async with servers(tmp_path, 2) as (first, second):
        await first.bootstrap()
        yield first, second


def names(server: Server) -> list[str]:
    return [row[0] for row in server.database.query("SELECT name FROM nodes ORDER BY id")]


async def test_the_work_is_there_only_while_leading(tmp_path):
    async with servers(tmp_path, 3, clustered=True) as (first, second, third):
        await until(lambda: sum("database" in m.roles for m in third.cases.members.members()) == 3)

        def working() -> list[int]:
            return [s.number for s in (first, second, third) if s.actors.find("leader/work") is not None]

        await until(lambda: working() == [1])
        assert await first.consensus.transfer_leadership(2)
        await until(lambda: working() == [2])
        await leader.leader_ref(third.actors, third.consensus).ask(Nudge(), deadline_s=5)


async def test_a_join_that_never_ends_is_undone(pair, monkeypatch):
    first, second = pair
    second.peers.lose = lambda path: MemberError("lost") if path == ACCEPT_PATH else None
    with pytest.raises(MemberError, match=r"lost"):
        await second.join(first, "node2")
    assert names(first) == ["node1", "node2"]
    monkeypatch.setattr(leader, "PENDING_GRACE_S", 0.2)
    await until(lambda: names(first) == ["node1"])
    await until(lambda: first.consensus.status().configuration.members().keys() == {1})
    assert first.database.scalar("SELECT COUNT(*) FROM certificates") == 1
    second.peers.lose = lambda _path: None
    monkeypatch.undo()
    await second.join(first, "node2")


async def test_a_trusted_certificate_without_a_join_is_forgotten(pair, monkeypatch):
    first, second = pair
    own = second.cases.bootstrap.server_certificate()
    await first.cases.tokens.trust_certificate(await first.token("node2"), own.fingerprint, own.certificate_pem)
    monkeypatch.setattr(leader, "ORPHAN_GRACE_S", 0.2)
    await until(lambda: first.database.scalar("SELECT COUNT(*) FROM certificates") == 1)
    assert first.database.scalar("SELECT name FROM certificates") == "node1"


async def test_only_pending_members_are_withdrawn(tmp_path):
    async with servers(tmp_path, 2, clustered=True) as (first, second):
        ask = leader.leader_ref(second.actors, second.consensus).ask
        with pytest.raises(ApiError, match=r"can't be removed: state"):
            await ask(RemoveMember(2, "node2", only_pending=True), deadline_s=5)
        assert names(first) == ["node1", "node2"]


async def test_what_another_term_wanted_is_refused(pair):
    first, _second = pair
    pem, _ = certificates.make_certificate("x")
    newcomer = cluster_tx.Newcomer(
        server=cluster_tx.TrustedServer("node2", certificates.fingerprint_pem(pem), pem),
        address="10.0.0.9:8443",
        architecture=2,
        schema=1,
        api_extensions=1,
        storage_root="/x",
    )
    term = first.consensus.status().term
    transaction = cluster_tx.accept(newcomer, token_uuid=None, pools=[], now="", fence_term=term + 1)
    assert (await first.consensus.propose(transaction)).label == "fence"
    assert names(first) == ["node1"]


async def test_an_offline_voter_is_replaced_by_the_standby(tmp_path):
    async with servers(tmp_path, 4, clustered=True) as made:
        first = made[0]
        await until(lambda: sum("database" in m.roles for m in first.cases.members.members()) == 3, 40)
        await until(lambda: "database-standby" in first.cases.members.get("node4").roles)
        made[1].cut_off()
        await until(lambda: "database" in first.cases.members.get("node4").roles, 40)
        assert "database" not in first.cases.members.get("node2").roles


@pytest.mark.parametrize("message", [RemoveMember(2, "node2"), RemoveRaftNode(2)])
async def test_a_removed_voter_is_replaced_in_the_same_step(tmp_path, message):
    async with servers(tmp_path, 4, clustered=True) as made:
        first = made[0]

        def settled() -> bool:
            status = first.consensus.status()
            ready = 4 in status.health() and status.health()[4].caught_up
            return ready and [m.role for m in status.configuration.old] == [*[Role.VOTER] * 3, Role.STANDBY]

        await until(settled, 40)
        seen: list[Configuration] = []
        first.consensus.subscribe_configuration(seen.append)
        await leader.leader_ref(first.actors, first.consensus).ask(message, deadline_s=20)
        await until(lambda: first.consensus.status().configuration.members().keys() == {1, 3, 4}, 20)
        voters = {voters for found in seen for voters in found.voter_sets()}
        assert voters == {frozenset({1, 2, 3}), frozenset({1, 3, 4})}


async def test_nobody_is_removed_without_whom_the_voters_have_no_majority(tmp_path):
    """One of three is away: without the other one the leader could not decide anything, not even to take it back."""
    async with servers(tmp_path, 3, clustered=True) as made:
        first = made[0]
        await until(lambda: sum("database" in m.roles for m in first.cases.members.members()) == 3, 40)
        made[2].cut_off()
        await until(lambda: first.consensus.status().health()[3].contact_age_ms > VOTER_OFFLINE_AFTER_MS, 20)
        ask = leader.leader_ref(first.actors, first.consensus).ask
        with pytest.raises(ApiError, match=r"Too few of the other voters"):
            await ask(RemoveMember(2, "node2"), deadline_s=20)
        assert names(first) == ["node1", "node2", "node3"]
        assert first.consensus.status().role is RaftRole.LEADER
        await ask(RemoveMember(3, "node3"), deadline_s=20)
        assert names(first) == ["node1", "node2"]
