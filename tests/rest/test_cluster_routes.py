"""/1.0/cluster over real sockets: shapes as captured, ETags, tokens as operations, a join over real TLS."""

from __future__ import annotations

import contextlib
import json
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest
from cluster_kit import Server, servers, until
from gateway_kit import free_port

from incus_actors.gateway.access import Access, read_trusted_certificates
from incus_actors.gateway.events import EventHub
from incus_actors.gateway.forwarding import Forwarder
from incus_actors.gateway.operations import Operations
from incus_actors.gateway.routing import Routing
from incus_actors.rest import cluster_routes
from incus_actors.rest.app import build_app
from incus_actors.rest.context import Gateway
from incus_actors.rest.listeners import Listeners
from incus_actors.rest.operation_routes import routes as operation_routes
from incus_actors.security import certificates
from incus_actors.security.tls import client_context
from incus_actors.services.peer_client import PeerClient


class Api:
    """The REST API of one Server."""

    def __init__(self, server: Server) -> None:
        self.server = server
        server.address = f"127.0.0.1:{free_port()}"
        server.config["core.https_address"] = server.address
        self.events = EventHub(location=lambda: server.identity.location)
        self.seen: list[dict[str, Any]] = []
        self.events.tap(
            lambda event: self.seen.append(json.loads(event.encoded)) if event.kind == "lifecycle" else None
        )

    async def open(self, stack: contextlib.AsyncExitStack) -> Api:
        server = self.server
        database = server.consensus.database
        pair = server.cases.bootstrap.server_certificate()
        server.cases.join._peers = PeerClient(pair.certificate_path, pair.key_path)
        self.access = Access(lambda: read_trusted_certificates(database))
        self.access.refresh()
        server.consensus.subscribe_applied(
            lambda _i, topics: self.access.refresh() if "certificates" in topics else None
        )
        operations = Operations(
            self.events,
            member_id=lambda: server.identity.member_id,
            location=lambda: server.identity.location,
            tokens=server.cases.token_operations,
        )
        routing = Routing(database=lambda: database, member_id=lambda: server.identity.member_id)
        context = client_context(pair.certificate_path, pair.key_path)
        forwarder = Forwarder(
            address_of=routing.address_of,
            context=lambda: context,
            accepted=lambda: [server.cases.bootstrap.certificate().fingerprint],
        )
        stack.push_async_callback(forwarder.close)
        gateway = Gateway(
            settings=cast(Any, None),
            identity=server.identity,
            access=self.access,
            operations=operations,
            events=self.events,
            forwarder=forwarder,
            routing=routing,
            consensus=server.consensus,
            database=database,
            services=cast(Any, SimpleNamespace(cluster=server.cases, members=server.cases.members)),
            shutdown=cast(Any, None),
            exit=lambda: None,
            phase="ready",
        )
        self.listeners = Listeners(build_app(gateway, [*cluster_routes.routes(), *operation_routes()]))
        await self.listeners.start()
        stack.push_async_callback(self.listeners.close)
        await self.listeners.open_unix(server.directory / "unix.socket")
        await self.show_certificate()
        return self

    async def show_certificate(self) -> None:
        pair = self.server.cases.bootstrap.certificate()
        self.listeners.use_certificate(pair.certificate_path, pair.key_path)
        await self.listeners.set_https(self.server.address)

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, Any]:
        """Return status, envelope and headers."""
        connector = aiohttp.UnixConnector(str(self.server.directory / "unix.socket"), force_close=True)
        async with (
            aiohttp.ClientSession("http://unix.socket", connector=connector) as session,
            session.request(method, path, json=body, headers=headers) as answer,
        ):
            return answer.status, await answer.json(), answer.headers

    async def finished(self, path: str, body: Any) -> dict[str, Any]:
        """PUT something that makes an operation; return the operation when it has ended."""
        status, envelope, headers = await self.call("PUT", path, body)
        assert status == 202, envelope
        _, ended, _ = await self.call("GET", f"{headers['Location']}/wait")
        return cast("dict[str, Any]", ended["metadata"])


@pytest.fixture
async def apis(tmp_path):
    async with contextlib.AsyncExitStack() as stack:
        made = await stack.enter_async_context(servers(tmp_path, 2))
        apis = [Api(server) for server in made]
        for api in apis:
            await api.open(stack)
        yield apis


@pytest.fixture
async def first(apis):
    operation = await apis[0].finished("/1.0/cluster", {"server_name": "node1", "enabled": True})
    assert operation["status"] == "Success", operation
    await apis[0].show_certificate()
    return apis[0]


async def test_bootstrap_is_an_operation_as_captured(apis):
    _, envelope, _ = await apis[0].call("GET", "/1.0/cluster")
    assert envelope["metadata"] == {"server_name": "", "enabled": False, "member_config": []}
    operation = await apis[0].finished(
        "/1.0/cluster",
        {
            "server_name": "node1",
            "enabled": True,
            "member_config": None,
            "cluster_address": "",
            "cluster_certificate": "",
            "server_address": "",
            "cluster_token": "",
        },
    )
    assert {k: operation[k] for k in ("class", "description", "status", "resources", "metadata", "location")} == {
        "class": "task",
        "description": "Creating bootstrap node",
        "status": "Success",
        "resources": {"cluster": None},
        "metadata": None,
        "location": "none",
    }
    assert [event["metadata"]["action"] for event in apis[0].seen] == ["cluster-enabled"]
    assert apis[0].seen[0]["metadata"]["source"] == "/1.0/cluster/node1"
    status, envelope, _ = await apis[0].call("PUT", "/1.0/cluster", {"server_name": "x", "enabled": True})
    assert (status, envelope["error"]) == (400, "This server is already clustered")


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({"enabled": True}, 400, "ServerName is required when enabling clustering"),
        (
            {"enabled": True, "server_name": "x", "cluster_address": "h"},
            400,
            "No server address provided for this member",
        ),
        (
            {"enabled": True, "server_name": "x", "cluster_address": "h", "server_address": "h"},
            400,
            "No target cluster member certificate provided",
        ),
        ({"enabled": "yes"}, 400, "Invalid JSON"),
        ([], 400, "Invalid JSON"),
        ({"enabled": False}, 501, "Clustering can't be disabled"),
    ],
)
async def test_refused_puts(apis, body, status, text):
    got, envelope, _ = await apis[0].call("PUT", "/1.0/cluster", body)
    assert (got, envelope["error"][: len(text)]) == (status, text)


async def test_members_as_captured(first):
    _, envelope, _ = await first.call("GET", "/1.0/cluster/members?recursion=1")
    (member,) = envelope["metadata"]
    assert list(member) == [
        "roles",
        "failure_domain",
        "description",
        "config",
        "groups",
        "server_name",
        "url",
        "database",
        "status",
        "message",
        "architecture",
    ]
    _, envelope, _ = await first.call("GET", "/1.0/cluster/members")
    assert envelope["metadata"] == ["/1.0/cluster/members/node1"]
    status, envelope, _ = await first.call("GET", "/1.0/cluster/members/nope")
    assert (status, envelope["error"]) == (404, "Cluster member not found")
    _, envelope, _ = await first.call("GET", "/1.0/cluster/members/node1/state")
    assert list(envelope["metadata"]) == ["sysinfo", "storage_pools"]
    assert list(envelope["metadata"]["sysinfo"]) == [
        "uptime",
        "load_averages",
        "total_ram",
        "free_ram",
        "shared_ram",
        "buffered_ram",
        "total_swap",
        "free_swap",
        "processes",
    ]


async def test_etags_of_members(first):
    path = "/1.0/cluster/members/node1"
    _, envelope, headers = await first.call("GET", path)
    body = {k: envelope["metadata"][k] for k in ("roles", "failure_domain", "config", "groups")}
    etag = headers["Etag"]
    status, envelope, _ = await first.call("PUT", path, {**body, "description": "mine"}, **{"If-Match": etag})
    assert (status, envelope["metadata"]) == (200, {})
    status, envelope, _ = await first.call("PUT", path, {**body, "description": "no"}, **{"If-Match": etag})
    assert status == 412
    assert envelope["error"].startswith("ETag doesn't match: ")
    status, envelope, _ = await first.call("PUT", path, {**body, "roles": []})
    assert (status, envelope["error"]) == (400, 'The "database" role cannot be dropped at this time')
    status, envelope, _ = await first.call("PATCH", path, {"description": "patched"})
    assert status == 200
    _, envelope, _ = await first.call("GET", path)
    assert envelope["metadata"]["description"] == "patched"


async def test_tokens_are_operations(first):
    status, envelope, headers = await first.call("POST", "/1.0/cluster/members", {"server_name": "node2"})
    assert (status, envelope["type"], envelope["status_code"]) == (202, "async", 100)
    token = envelope["metadata"]
    assert headers["Location"] == f"/1.0/operations/{token['id']}" == envelope["operation"]
    assert (token["class"], token["status"], token["may_cancel"]) == ("token", "Running", True)
    _, envelope, _ = await first.call("GET", "/1.0/operations?recursion=1&project=default")
    assert envelope["metadata"]["running"] == [token]
    status, _, _ = await first.call("DELETE", f"/1.0/operations/{token['id']}")
    assert status == 200
    status, _, _ = await first.call("DELETE", f"/1.0/operations/{token['id']}")
    assert status == 404
    assert [event["metadata"]["action"] for event in first.seen][-1] == "cluster-token-created"
    status, envelope, _ = await first.call("POST", "/1.0/cluster/members", {"server_name": "node1"})
    assert (status, envelope["error"]) == (500, "The cluster already has a member with name: node1")


async def test_tokens_of_a_standalone_server(apis):
    status, envelope, _ = await apis[0].call("POST", "/1.0/cluster/members", {"server_name": "foo"})
    assert (status, envelope["error"]) == (400, "This server is not clustered")


async def test_groups(first):
    status, envelope, headers = await first.call(
        "POST", "/1.0/cluster/groups", {"description": "grp one", "members": None, "name": "g1"}
    )
    assert (status, envelope["metadata"], headers["Location"]) == (201, None, "/1.0/cluster/groups/g1")
    status, _, headers = await first.call("POST", "/1.0/cluster/groups/g1", {"name": "g2"})
    assert (status, headers["Location"]) == (201, "/1.0/cluster/groups/g2")
    _, envelope, _ = await first.call("GET", "/1.0/cluster/groups?recursion=1")
    assert envelope["metadata"] == [
        {"description": "Default cluster group", "members": ["node1"], "name": "default"},
        {"description": "grp one", "members": [], "name": "g2"},
    ]
    status, _, _ = await first.call("PUT", "/1.0/cluster/groups/g2", {"description": "x", "members": ["node1"]})
    assert status == 200
    status, envelope, _ = await first.call("DELETE", "/1.0/cluster/groups/g2")
    assert (status, envelope["error"]) == (500, "Only empty cluster groups can be removed")
    status, _, _ = await first.call("PATCH", "/1.0/cluster/groups/g2", {"members": []})
    assert status == 200
    status, _, _ = await first.call("DELETE", "/1.0/cluster/groups/g2")
    assert status == 200


async def post_tls(api: Api, pair: certificates.KeyPair | None, path: str, body: Any) -> tuple[int, str]:
    """POST as a stranger; return status and error."""
    context: Any = False if pair is None else client_context(pair.certificate_path, pair.key_path)
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
        session.post(f"https://{api.server.address}{path}", json=body) as answer,
    ):
        return answer.status, (await answer.json())["error"]


ACCEPT = {
    "name": "node2",
    "address": "10.0.0.9:8443",
    "transport": f"10.0.0.9:1:2:{'0' * 64}",
    "architecture": 2,
    "version": "0.1",
    "schema": 1,
    "api_extensions": 1,
    "storage_root": "/pools",
}


async def test_strangers_at_the_private_calls(first, tmp_path):
    stranger = certificates.load_or_create(tmp_path, "stranger", "s")
    accept, withdraw, reset = (f"/internal/cluster/{call}" for call in ("accept", "withdraw", "reset"))
    assert await post_tls(first, None, accept, ACCEPT) == (400, "No client certificate provided")
    assert await post_tls(first, stranger, accept, ACCEPT) == (403, "not authorized")
    assert await post_tls(first, stranger, accept, {**ACCEPT, "token": "garbage"}) == (403, "not authorized")
    assert await post_tls(first, stranger, withdraw, {"member_id": 1}) == (403, "not authorized")
    assert await post_tls(first, stranger, reset, {"member_id": 1}) == (403, "not authorized")
    status, _ = await post_tls(first, stranger, accept, {**ACCEPT, "architecture": "x"})
    assert status == 400
    token = await first.server.token("node2")
    for change in ({"transport": "nonsense"}, {"address": "0.0.0.0:1"}, {"storage_root": "x"}, {"name": "a\nb"}):
        status, _ = await post_tls(first, stranger, accept, {**ACCEPT, "token": token, **change})
        assert status == 400
    assert first.server.database.scalar("SELECT COUNT(*) FROM nodes") == 1
    assert first.server.database.scalar("SELECT COUNT(*) FROM cluster_tokens") == 1


async def test_a_join_over_tls(first, apis):
    second = apis[1]
    body = second.server.join_request(first.server, "node2", await first.server.token("node2"))
    request = {
        "server_name": body.server_name,
        "enabled": True,
        "member_config": None,
        "cluster_address": body.cluster_address,
        "cluster_certificate": body.cluster_certificate,
        "server_address": body.server_address,
        "cluster_token": body.cluster_token,
    }
    wrong = await second.finished("/1.0/cluster", {**request, "server_name": "other"})
    assert (wrong["status"], wrong["err"]) == (
        "Failure",
        "Failed to setup cluster trust: Failed to add server cert to cluster: No matching cluster join operation found",
    )
    operation = await second.finished("/1.0/cluster", request)
    assert (operation["description"], operation["status"], operation["err"]) == ("Joining cluster", "Success", "")
    assert second.seen[-1]["metadata"]["action"] == "cluster-member-added"
    await second.show_certificate()
    for api in apis:
        _, envelope, _ = await api.call("GET", "/1.0/cluster/members?recursion=1")
        assert [m["server_name"] for m in envelope["metadata"]] == ["node1", "node2"]
    status, envelope, _ = await second.call("GET", "/1.0/cluster/members/node1/state")
    assert (status, envelope["type"]) == (200, "sync")
    await until(lambda: first.server.cases.members.get("node2").status == "Online")
