"""Bootstrap: nothing is lost, all or nothing, and what is refused says why."""

from __future__ import annotations

import pytest
from cluster_kit import Server, servers, until

from incus_actors.errors import ApiError, MemberError
from incus_actors.model.cluster import ClusterPut
from incus_actors.model.transaction import Statement, Transaction
from incus_actors.security import certificates


@pytest.fixture
async def server(tmp_path):
    async with servers(tmp_path, 1) as (one,):
        yield one


async def add_things(server: Server) -> None:
    outcome = await server.consensus.propose(
        Transaction(
            (
                Statement("INSERT INTO storage_pools (name, driver, state) VALUES ('local', 'dir', 1)"),
                Statement("INSERT INTO storage_pools_nodes (storage_pool_id, node_id, state) VALUES (1, 1, 1)"),
                Statement(
                    "INSERT INTO storage_pools_config (storage_pool_id, node_id, key, value)"
                    " VALUES (1, 1, 'source', '/data/local')"
                ),
                Statement(
                    "INSERT INTO instances (node_id, name, architecture, type, creation_date, project_id)"
                    " VALUES (1, 'c1', 2, 0, '', 1)"
                ),
            )
        )
    )
    assert outcome.applied, outcome


async def test_bootstrap_keeps_everything_and_makes_the_first_member(server):
    await add_things(server)
    assert server.cases.bootstrap.view().enabled is False
    await server.bootstrap("node1")
    view = server.cases.bootstrap.view()
    assert (view.enabled, view.server_name) == (True, "node1")
    assert [(k.entity, k.name, k.key, k.value, k.description) for k in view.member_config] == [
        ("storage-pool", "local", "source", "", '"source" property for storage pool "local"')
    ]
    (member,) = server.cases.members.members()
    assert member.roles == ["database-leader", "database"]
    assert (member.server_name, member.url, member.status) == ("node1", "https://10.0.0.1:8443", "Online")
    assert (member.groups, member.failure_domain, member.architecture) == (["default"], "default", "x86_64")
    assert server.database.scalar("SELECT node_id FROM instances WHERE name = 'c1'") == 1
    assert server.identity.clustered
    assert server.identity.server_name == "node1"
    row = server.database.one("SELECT type, name, fingerprint FROM certificates")
    assert tuple(row) == (2, "node1", server.cases.bootstrap.server_certificate().fingerprint)
    assert certificates.load_pair(server.directory, "cluster") is not None
    assert server.cases.bootstrap.certificate().fingerprint != row["fingerprint"]
    assert server.consensus.status().configuration.old[0].address == server.transport
    assert server.done == ["open_lanes", "reload_listeners"]


async def test_bootstrap_twice_is_refused(server):
    await server.bootstrap()
    with pytest.raises(ApiError, match=r"^This server is already clustered$") as caught:
        await server.bootstrap("other")
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("address", "name", "text"),
    [
        ("", "n", "core.https_address is not set"),
        (":8443", "n", "Cannot use wildcard core.https_address"),
        ("[::]:8443", "n", "Cannot use wildcard core.https_address"),
        ("0.0.0.0", "n", "Cannot use wildcard core.https_address"),
        ("10.0.0.1:8443", "", "ServerName is required when enabling clustering"),
        ("10.0.0.1:8443", "none", "Invalid server name"),
    ],
)
async def test_refusals_change_nothing(server, address, name, text):
    server.config["core.https_address"] = address
    before = server.consensus.status().applied
    with pytest.raises(ApiError, match=text):
        await server.cases.bootstrap.bootstrap(ClusterPut(server_name=name, enabled=True))
    assert server.consensus.status().applied == before
    assert not server.identity.clustered
    assert server.done == []


@pytest.mark.parametrize("hook", ["open_lanes", "reload_listeners"])
async def test_a_failed_bootstrap_leaves_the_standalone_server_and_can_be_repeated(server, hook):
    failures = [MemberError("no such address")]
    server.fail_hook = lambda name: failures.pop() if name == hook and failures else None
    with pytest.raises(MemberError, match=r"no such address"):
        await server.bootstrap()
    assert not server.identity.clustered
    assert certificates.load_pair(server.directory, "cluster") is None
    assert server.database.scalar("SELECT COUNT(*) FROM certificates") == 0
    await server.bootstrap()
    assert server.identity.clustered


async def test_a_bootstrap_killed_after_its_transaction_is_finished_at_the_next_start(server):
    server.cases.bootstrap._announce = None  # type: ignore[method-assign, assignment]

    async def undo(*_: object) -> None:
        """The process is gone before it can."""

    server.cases.bootstrap._undo_bootstrap = undo  # type: ignore[method-assign]
    with pytest.raises(TypeError):
        await server.bootstrap()
    await server.stop()
    await server.start()
    assert server.identity.clustered
    await until(lambda: server.consensus.status().configuration.old[0].address == server.transport)
