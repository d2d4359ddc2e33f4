"""Joining: what both sides have afterwards, and that every failure and every kill leaves a next try that works."""

from __future__ import annotations

import asyncio
import base64
import errno
import json
import re

import pytest
from cluster_kit import Server, WireLane, servers, until

from incus_actors.consensus import log_store
from incus_actors.errors import ApiError, ForbiddenError, MemberError
from incus_actors.model.cluster import ClusterPut, MemberConfigKey
from incus_actors.model.features import SUPPORTED
from incus_actors.model.transaction import Statement, Transaction
from incus_actors.security import certificates
from incus_actors.services import join_journal
from incus_actors.services.acceptance import ACCEPT_PATH, WITHDRAW_PATH, Applicant

NO_MATCH = (
    "Failed to setup cluster trust: Failed to add server cert to cluster: No matching cluster join operation found"
)


class Killed(BaseException):
    """The process ends here: nothing after it runs, not even undoing."""


def altered(token: str, **changes: object) -> str:
    facts = json.loads(base64.b64decode(token))
    facts.update(changes)
    return base64.b64encode(json.dumps(facts).encode()).decode()


@pytest.fixture
async def pair(tmp_path):
    """A bootstrapped server and a standalone one."""
    async with servers(tmp_path, 2) as (first, second):
        await first.bootstrap()
        yield first, second


async def rows(server: Server, sql: str) -> list[tuple[object, ...]]:
    await server.consensus.read_barrier()
    return [tuple(row) for row in server.database.query(sql)]


async def assert_clean(first: Server, second: Server) -> None:
    """Nothing is left of a join on either side."""
    await first.consensus.read_barrier()
    assert await rows(first, "SELECT name FROM nodes") == [("node1",)]
    assert await rows(first, "SELECT name FROM certificates") == [("node1",)]
    await until(lambda: len(first.consensus.status().configuration.old) == 1)
    assert not second.identity.clustered
    assert certificates.load_pair(second.directory, "cluster") is None
    assert await rows(second, "SELECT name FROM nodes") == [("none",)]
    assert {p.name for p in second.directory.iterdir()} <= {"database", "server.crt", "server.key"}


async def test_both_sides_after_a_join(pair):
    first, second = pair
    await second.join(first, "node2")
    assert second.identity.clustered
    assert (second.identity.member_id, second.identity.name) == (2, "node2")
    for server in pair:
        assert await rows(server, "SELECT id, name, address, state FROM nodes ORDER BY id") == [
            (1, "node1", "10.0.0.1:8443", 0),
            (2, "node2", "10.0.0.2:8443", 0),
        ]
        assert await rows(server, "SELECT COUNT(*) FROM cluster_tokens") == [(0,)]
        assert await rows(server, "SELECT type, name FROM certificates ORDER BY id") == [(2, "node1"), (2, "node2")]
        assert [m.groups for m in server.cases.members.members()] == [["default"], ["default"]]
        assert await rows(server, "SELECT node_id, key, value FROM node_server_config WHERE node_id = 2") == [
            (2, "cluster.https_address", "10.0.0.2:8443"),
            (2, "core.https_address", "10.0.0.2:8443"),
        ]
    one, two = (certificates.load_pair(server.directory, "cluster") for server in pair)
    assert one is not None
    assert two is not None
    assert (one.certificate_pem, one.key_pem) == (two.certificate_pem, two.key_pem)
    assert sorted(p.name for p in second.directory.iterdir()) == [
        "cluster.crt",
        "cluster.key",
        "database",
        "server.crt",
        "server.key",
    ]
    assert second.done[-2:] == ["own_pools_ready", "reload_listeners"]


async def test_roles_as_incus_shows_them(tmp_path):
    """One database with two members (the second stands by), three from the third on."""
    async with servers(tmp_path, 3, clustered=True) as made:
        members = made[2].cases.members
        await until(lambda: sum("database" in m.roles for m in members.members()) == 3)
        shown = {m.server_name: m for m in members.members()}
        assert shown["node1"].roles == ["database-leader", "database"]
        assert shown["node3"].roles == ["database"]
        assert all(m.database and m.status == "Online" for m in shown.values())


async def test_the_second_member_stands_by(pair):
    first, second = pair
    await second.join(first, "node2")
    await until(lambda: second.cases.members.get("node2").roles == ["database-standby"])
    assert second.cases.members.get("node2").database


async def test_pools_get_a_share_for_the_new_member(pair):
    first, second = pair
    await first.consensus.propose(
        Transaction(
            (
                Statement(
                    "INSERT INTO storage_pools (name, driver, state) VALUES ('local', 'dir', 1), ('big', 'dir', 1)"
                ),
                Statement("INSERT INTO storage_pools (name, driver, state) VALUES ('half', 'dir', 0)"),
            )
        )
    )
    put = second.join_request(first, "node2", await first.token("node2"))
    put.member_config = [
        MemberConfigKey(entity="storage-pool", name="big", key="source", value="/big"),
        MemberConfigKey(entity="storage-pool", name="local", key="source", value=""),
        MemberConfigKey(entity="storage-pool", name="dummy", key="source", value="/x"),
        MemberConfigKey(entity="storage-pool", name="local", key="rsync.bwlimit", value="7"),
    ]
    await second.cases.join.join(put)
    assert await rows(
        second,
        "SELECT p.name, c.key, c.value FROM storage_pools_config c JOIN storage_pools p ON p.id = c.storage_pool_id"
        " WHERE c.node_id = 2 ORDER BY p.name",
    ) == [("big", "source", "/big"), ("local", "source", "/var/lib/incus-actors/storage-pools/local")]
    assert await rows(
        second,
        "SELECT p.name, n.state FROM storage_pools_nodes n JOIN storage_pools p ON p.id = n.storage_pool_id"
        " WHERE n.node_id = 2 ORDER BY p.name",
    ) == [("big", 1), ("local", 1)]


async def test_g21_a_token_works_at_another_member_after_its_issuer_died(tmp_path):
    async with servers(tmp_path, 4) as made:
        await made[0].bootstrap()
        await made[1].join(made[0], "node2")
        await made[2].join(made[0], "node3")
        await until(lambda: sum("database" in m.roles for m in made[1].cases.members.members()) == 3)
        token = await made[0].token("node4")
        await made[0].stop()
        await made[3].join(made[1], "node4", token)
        assert [m.server_name for m in made[3].cases.members.members()] == ["node1", "node2", "node3", "node4"]


@pytest.mark.parametrize(
    ("change", "name", "text"),
    [
        ({"secret": "0" * 64}, "node2", NO_MATCH),
        ({"server_name": "other"}, "other", NO_MATCH),
        ({}, "other", NO_MATCH),
        ({"fingerprint": "0" * 64}, "node2", 'Certificate fingerprint mismatch .* "10.0.0.1:8443"'),
    ],
)
async def test_wrong_tokens_are_refused_and_change_nothing(pair, change, name, text):
    first, second = pair
    token = altered(await first.token("node2"), **change)
    with pytest.raises(MemberError, match=text):
        await second.join(first, name, token)
    await assert_clean(first, second)
    assert await rows(first, "SELECT COUNT(*) FROM cluster_tokens") == [(1,)]


@pytest.mark.parametrize("token", ["AAAA", "garbage!"])
async def test_garbled_tokens(pair, token):
    first, second = pair
    with pytest.raises(MemberError, match=r"Failed to add server cert to cluster: not authorized$"):
        await second.join(first, "node2", token)
    await assert_clean(first, second)


async def test_a_revoked_token_is_no_token(pair):
    first, second = pair
    token = await first.token("node2")
    (operation,) = first.cases.token_operations.list_tokens()
    assert await first.cases.token_operations.revoke_token(operation["id"])
    assert not await first.cases.token_operations.revoke_token(operation["id"])
    with pytest.raises(MemberError, match=NO_MATCH):
        await second.join(first, "node2", token)


async def test_an_expired_token(pair):
    first, second = pair
    token = await first.token("node2")
    first.cases.tokens._wall_ns = lambda: 2**62
    with pytest.raises(MemberError, match=r"Failed to add server cert to cluster: Token has expired$"):
        await second.join(first, "node2", token)
    await assert_clean(first, second)


async def test_a_token_works_once(tmp_path):
    async with servers(tmp_path, 3) as (first, second, third):
        await first.bootstrap()
        token = await first.token("node2")
        results = await asyncio.gather(
            second.join(first, "node2", token), third.join(first, "node2", token), return_exceptions=True
        )
        assert sorted(type(r).__name__ for r in results) == ["MemberError", "NoneType"]
        assert [m.server_name for m in first.cases.members.members()] == ["node1", "node2"]


async def test_a_new_token_replaces_the_older_one(pair):
    first, second = pair
    old = await first.token("node2")
    new = await first.token("node2")
    assert len(first.cases.token_operations.list_tokens()) == 1
    with pytest.raises(MemberError, match=NO_MATCH):
        await second.join(first, "node2", old)
    await second.join(first, "node2", new)


async def test_taken_names_and_addresses(tmp_path):
    async with servers(tmp_path, 3) as (first, second, third):
        await first.bootstrap()
        token = await first.token("node3")
        await second.join(first, "node2")
        with pytest.raises(MemberError, match=r"^The cluster already has a member with name: node2$"):
            await first.token("node2")
        await first.cases.members.rename("node2", "node3")
        with pytest.raises(MemberError, match=r"^The cluster already has a member with name: node3$"):
            await third.join(first, "node3", token)
        third.address = second.address
        with pytest.raises(MemberError, match=r"^The cluster already has a member with address: 10.0.0.2:8443$"):
            await third.join(first, "node4")
        third.address = "10.0.0.3:8443"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"server_address": ""}, "No server address provided for this member"),
        ({"cluster_certificate": ""}, "No target cluster member certificate provided"),
        ({"server_name": ""}, "ServerName is required when enabling clustering"),
        ({"server_address": "0.0.0.0:8443"}, "wildcard"),
        ({"server_address": "[::]"}, "wildcard"),
        ({"cluster_certificate": "no pem"}, "Certificate must be base64"),
        ({"cluster_address": "10.0.0.1:99999"}, "Invalid address"),
    ],
)
async def test_bad_requests(pair, change, text):
    first, second = pair
    put = second.join_request(first, "node2", "")
    for key, value in change.items():
        setattr(put, key, value)
    with pytest.raises(ApiError, match=text) as caught:
        second.cases.join.check_join(put)
    assert caught.value.status == 400


async def test_a_member_can_not_join_again(pair):
    first, second = pair
    await second.join(first, "node2")
    with pytest.raises(ApiError, match=r"^This server is already clustered$"):
        second.cases.join.check_join(ClusterPut(enabled=True, server_address="x"))


async def test_interactive_join_by_a_certificate_that_the_token_made_trusted(pair):
    first, second = pair
    own = second.cases.bootstrap.server_certificate()
    token = await first.token("node2")
    assert await first.cases.tokens.trust_certificate(token, own.fingerprint, own.certificate_pem) == "node2"
    with pytest.raises(ForbiddenError, match=r"No matching cluster join operation found"):
        await first.cases.tokens.trust_certificate(token, own.fingerprint, own.certificate_pem)
    with pytest.raises(MemberError, match=r"not authorized$"):  # trusted as node2, not as anybody else
        await second.join(first, "node3", "")
    await second.join(first, "node2", "")
    assert second.identity.name == "node2"


async def test_a_server_without_token_and_trust_is_refused(pair):
    first, second = pair
    with pytest.raises(MemberError, match=r"Failed to add server cert to cluster: not authorized$"):
        await second.join(first, "node2", "")
    await assert_clean(first, second)


# -- G20: interrupted at every step -----------------------------------------------------------------------------

HOOKS = ("open_lanes", "restart_consensus", "restarted_consensus", "own_pools_ready")


@pytest.mark.parametrize("hook", HOOKS)
async def test_g20_a_failing_step_is_undone_and_the_next_try_works(pair, hook):
    first, second = pair
    failures = [MemberError("it broke")]
    second.fail_hook = lambda name: failures.pop() if name == hook and failures else None
    with pytest.raises(MemberError, match=r"it broke"):
        await second.join(first, "node2")
    await assert_clean(first, second)
    await second.join(first, "node2")
    assert second.identity.name == "node2"


async def test_an_address_that_is_not_here_is_said_in_incus_words(pair):
    first, second = pair
    second.fail_hook = lambda name: (
        OSError(errno.EADDRNOTAVAIL, "can't listen on tcp://…") if name == "open_lanes" else None
    )
    with pytest.raises(MemberError) as caught:
        await second.join(first, "node2")
    where = r"[0-9.]+:[0-9]+"
    assert re.fullmatch(
        f'Cannot listen on network HTTPS socket "{where}": listen tcp {where}: bind: cannot assign requested address',
        str(caught.value),
    )
    second.fail_hook = lambda _name: None
    await assert_clean(first, second)


async def test_g20_an_answer_that_gets_lost_leaves_a_pending_member_that_the_next_try_replaces(pair):
    first, second = pair
    losses = [MemberError("lost")]
    second.peers.lose = lambda path: losses.pop() if path == ACCEPT_PATH and losses else None
    with pytest.raises(MemberError, match=r"lost"):
        await second.join(first, "node2")
    assert await rows(first, "SELECT name, state FROM nodes WHERE id > 1") == [("node2", 1)]
    assert [m.server_name for m in first.cases.members.members()] == ["node1"]
    await second.join(first, "node2")
    assert second.identity.member_id == 3
    assert [m.id for m in first.consensus.status().configuration.target] == [1, 3]
    assert await rows(first, "SELECT name FROM certificates ORDER BY name") == [("node1",), ("node2",)]


async def kill_at(joiner, member, hook, monkeypatch):
    """Let a server die at one step of its join: nothing is undone, nothing is told to anybody."""
    write = join_journal.JoinJournal.write

    def write_or_die(self, phase, member_id):
        write(self, phase, member_id)
        if phase == hook:
            raise Killed

    joiner.fail_hook = lambda name: Killed() if name == hook else None
    with monkeypatch.context() as patched:
        patched.setattr("incus_actors.services.join._carefully", _nothing)
        patched.setattr(join_journal.JoinJournal, "write", write_or_die)
        with pytest.raises(Killed):
            await joiner.join(member, "node2")
    joiner.fail_hook = lambda _name: None


@pytest.mark.parametrize("hook", [*HOOKS, "confirming", "reload_listeners"])
async def test_g20_kill_the_joiner_at_each_step(pair, hook, monkeypatch):
    """The killed server starts again: either it is the old server and joins anew, or it is a member."""
    first, second = pair
    await kill_at(second, first, hook, monkeypatch)
    await second.stop()
    await second.start()
    if not second.identity.clustered:
        assert hook not in {"confirming", "reload_listeners"}
        await second.join(first, "node2")
    assert second.identity.name == "node2"
    assert second.cases.join._journal.phase() == "none"
    assert not list(second.directory.glob("database.*"))
    for server in pair:
        await server.consensus.read_barrier()
        assert [m.server_name for m in server.cases.members.members()] == ["node1", "node2"]


async def test_a_joiner_that_the_cluster_gave_up_on_is_the_old_server_again(pair, monkeypatch):
    """Killed before it was confirmed, and away for so long that the leader has undone its join."""
    first, second = pair
    await kill_at(second, first, "confirming", monkeypatch)
    await second.stop()
    monkeypatch.setattr("incus_actors.actors.leader.PENDING_GRACE_S", 0.2)
    await until(lambda: first.consensus.status().configuration.members().keys() == {1})
    monkeypatch.setattr("incus_actors.services.join.ASK_EVERY_S", 0.1)
    await second.start()
    assert not second.identity.clustered
    assert second.cases.join._journal.phase() == "none"
    assert not list(second.directory.glob("database.*"))
    monkeypatch.undo()
    await second.join(first, "node2")
    assert [m.server_name for m in first.cases.members.members()] == ["node1", "node2"]


async def test_who_waits_hears_that_it_is_still_joining_and_strangers_hear_nothing(pair, monkeypatch):
    first, second = pair
    await kill_at(second, first, "confirming", monkeypatch)
    own = second.cases.bootstrap.server_certificate()
    applicant = Applicant(own.fingerprint, own.certificate_pem, None)
    assert (await first.cases.acceptance.standing(2, applicant)).known
    assert not (await first.cases.acceptance.standing(1, applicant)).known
    stranger = Applicant("0" * 64, own.certificate_pem, None)
    assert not (await first.cases.acceptance.standing(2, stranger)).known


async def _nothing(_step: object) -> None:
    """What a killed process does."""


async def test_a_withdrawal_needs_the_certificate_of_the_pending_member(tmp_path):
    async with servers(tmp_path, 3) as (first, second, third):
        await first.bootstrap()
        await third.join(first, "node3")
        second.peers.lose = lambda path: MemberError("lost") if path == ACCEPT_PATH else None
        with pytest.raises(MemberError, match=r"lost"):
            await second.join(first, "node2")
        put = third.join_request(first, "x", "")
        with pytest.raises(ApiError, match=r"not authorized"):
            await third.peers.post(
                put.cluster_address,
                WITHDRAW_PATH,
                {"member_id": 3},
                certificate_pem=put.cluster_certificate,
                timeout_s=5,
            )
        assert await rows(first, "SELECT COUNT(*) FROM nodes") == [(3,)]


async def test_the_history_of_the_cluster_does_not_break_the_joiners_links(pair, monkeypatch):
    """Configurations from before the join come through the log; whom the joiner talks to must not follow them."""
    first, second = pair
    seen = []
    set_peers = WireLane.set_peers

    def watched(lane, members, own_id):
        members = list(members)
        seen.append((own_id, [m.id for m in members]))
        set_peers(lane, members, own_id)

    monkeypatch.setattr(WireLane, "set_peers", watched)
    await second.join(first, "node2")
    assert [peers for own_id, peers in seen if own_id == 2 and peers != [1]] == []


async def test_a_server_that_could_not_apply_what_is_about_to_be_used_stays_outside(tmp_path, monkeypatch):
    """Everybody has the next level, so that the leader switches it on at its next look: between the two the new member
    would be accepted, and stop at the entry."""
    monkeypatch.setattr(log_store, "supported_with", lambda version: SUPPORTED - 1)
    async with servers(tmp_path, 2) as (first, second):
        await first.bootstrap()
        monkeypatch.setattr(log_store, "supported_with", lambda version: SUPPORTED)
        await first.consensus.restart()
        await until(lambda: first.consensus.status().level_of_all() == SUPPORTED)
        assert first.consensus.status().feature_level < SUPPORTED
        with pytest.raises(ApiError, match="The joining server version doesn't match"):
            await second.join(first, "node2")
        await assert_clean(first, second)
