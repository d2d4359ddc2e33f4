"""Trust, errors, limits, barriers and fallbacks as a client sees them, over real unix and TLS connections."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from gateway_kit import TestMember, client_pair, running_member, whoami

from incus_actors.errors import ConflictError
from incus_actors.rest.http import RouteSpec, check_etag, created, etag_of, read_json, sync
from incus_actors.security.tls import client_context


class Thing(msgspec.Struct):
    name: str = ""
    config: dict[str, str] = {}
    parts: list[str] = []


async def take_thing(request: web.Request) -> web.StreamResponse:
    return sync(await read_json(request, Thing))


async def editable(request: web.Request) -> web.StreamResponse:
    if request.method == "PUT":
        check_etag(request, {"a": 1})
        return sync()
    return sync({"a": 1}, etag=etag_of({"a": 1}))


async def make(_request: web.Request) -> web.StreamResponse:
    return created("/1.0/things/x")


async def conflict(_request: web.Request) -> web.StreamResponse:
    raise ConflictError("Thing already exists")


async def explode(_request: web.Request) -> web.StreamResponse:
    raise ZeroDivisionError("boom")


async def break_off(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"half of ")
    raise ConflictError("Something went wrong")


ROUTES = [
    RouteSpec("GET", "/1.0/half", break_off),
    RouteSpec("GET", "/1.0", whoami, access="untrusted", consistency="fallback"),
    RouteSpec("POST", "/1.0/certificates", whoami, access="untrusted"),
    RouteSpec("GET", "/1.0/things", whoami),
    RouteSpec("PUT", "/1.0/things", take_thing),
    RouteSpec("POST", "/1.0/things", make),
    RouteSpec("GET", "/1.0/editable", editable),
    RouteSpec("PUT", "/1.0/editable", editable),
    RouteSpec("GET", "/1.0/instances", whoami, project_scoped=True),
    RouteSpec("POST", "/1.0/instances", whoami, project_scoped=True),
    RouteSpec("GET", "/1.0/secrets", whoami, access="admin"),
    RouteSpec("GET", "/1.0/metrics", whoami, access="metrics"),
    RouteSpec("GET", "/1.0/conflict", conflict),
    RouteSpec("GET", "/1.0/explode", explode),
]


@pytest.fixture
async def member(tmp_path: Path) -> AsyncIterator[TestMember]:
    async with running_member(tmp_path / "m1", ROUTES) as found:
        yield found


async def ask(session: Any, method: str, path: str, **options: Any) -> tuple[int, dict[str, Any]]:
    async with session, session.request(method, path, **options) as response:
        return response.status, json.loads(await response.read())


def failure(code: int, text: str) -> tuple[int, dict[str, Any]]:
    return code, {
        "type": "error",
        "status": "",
        "status_code": 0,
        "operation": "",
        "error_code": code,
        "error": text,
        "metadata": None,
    }


async def test_the_unix_socket_is_root_and_trusted(member: TestMember) -> None:
    status, answer = await ask(member.unix_session(), "GET", "/1.0/things")
    assert status == 200
    assert answer["type"] == "sync"
    assert answer["metadata"] == {
        "protocol": "unix",
        "username": "root",
        "address": "@",
        "fingerprint": None,
        "trusted": True,
        "projects": None,
        "forwarded": False,
    }


async def test_envelopes_have_the_fields_of_incus_in_their_order(member: TestMember) -> None:
    async with member.unix_session() as session:
        async with session.get("/1.0/editable") as response:
            assert response.headers["Content-Type"] == "application/json"
            assert (await response.text()).strip() == (
                '{"type":"sync","status":"Success","status_code":200,"operation":"","error_code":0,"error":"",'
                '"metadata":{"a":1}}'
            )
        async with session.post("/1.0/things") as response:
            assert response.status == 201
            assert response.headers["Location"] == "/1.0/things/x"
            assert (await response.json())["metadata"] is None


@pytest.mark.parametrize(
    ("method", "path", "code", "text"),
    [
        ("GET", "/nope", 404, "not found"),
        ("GET", "/1.0/nope", 404, "not found"),
        ("DELETE", "/1.0", 501, "not implemented"),
        ("GET", "/1.0/conflict", 409, "Thing already exists"),
        ("GET", "/1.0/explode", 500, "boom"),
    ],
)
async def test_errors_have_incus_status_and_text(
    member: TestMember, method: str, path: str, code: int, text: str
) -> None:
    assert await ask(member.unix_session(), method, path) == failure(code, text)


@pytest.mark.parametrize("body", ["{", '"text"', '{"name": 3}', "[]", "\xff", "", '{"config": {"a": []}}', "[" * 9999])
async def test_bad_bodies_are_400(member: TestMember, body: str) -> None:
    status, answer = await ask(member.unix_session(), "PUT", "/1.0/things", data=body.encode("latin-1"))
    assert status == 400
    assert answer["error"]


async def test_a_body_above_one_mebibyte_is_413_also_when_chunked(member: TestMember) -> None:
    body = json.dumps({"name": "x" * (1 << 20)}).encode()
    status, answer = await ask(member.unix_session(), "PUT", "/1.0/things", data=body)
    assert (status, answer["error"]) == (413, "Request body is larger than 1024 KiB")

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 60000):
            yield body[start : start + 60000]

    status, answer = await ask(member.unix_session(), "PUT", "/1.0/things", data=chunks())
    assert (status, answer["error"]) == (413, "Request body is larger than 1024 KiB")


async def test_nulls_count_as_absent_and_strange_keys_are_ignored(member: TestMember) -> None:
    body = {"name": None, "config": {"a": None, "b": "1"}, "parts": None, "Config": 5, "x": [1]}
    status, answer = await ask(member.unix_session(), "PUT", "/1.0/things", json=body)
    assert status == 200
    assert answer["metadata"] == {"name": "", "config": {"a": "", "b": "1"}, "parts": []}


async def test_etags(member: TestMember) -> None:
    async with member.unix_session() as session, session.get("/1.0/editable") as response:
        etag = response.headers["Etag"]
    assert etag == f'"{etag_of({"a": 1})}"'
    for given in (etag, etag.strip('"')):
        status, _ = await ask(member.unix_session(), "PUT", "/1.0/editable", headers={"If-Match": given})
        assert status == 200
    answer = await ask(member.unix_session(), "PUT", "/1.0/editable", headers={"If-Match": '"deadbeef"'})
    assert answer == failure(412, f"ETag doesn't match: {etag_of({'a': 1})} vs deadbeef")


# -- trust ------------------------------------------------------------------------------------------------------------


async def test_strangers_see_only_what_the_contract_allows(member: TestMember, tmp_path: Path) -> None:
    stranger = client_pair(tmp_path / "stranger", "stranger")
    for pair in (None, stranger):
        status, answer = await ask(member.tls_session(pair), "GET", "/1.0")
        assert status == 200
        assert answer["metadata"]["trusted"] is False
        assert answer["metadata"]["fingerprint"] == (pair.fingerprint if pair else None)
        assert (await ask(member.tls_session(pair), "POST", "/1.0/certificates"))[0] == 200
        for path in ("/1.0/things", "/1.0/secrets", "/1.0/metrics", "/1.0/events", "/1.0/operations", "/internal/raft"):
            assert await ask(member.tls_session(pair), "GET", path) == failure(403, "not authorized"), path
        assert await ask(member.tls_session(pair), "PUT", "/internal/shutdown") == failure(403, "not authorized")
        assert await ask(member.tls_session(pair), "GET", "/nope") == failure(404, "not found")
    assert not member.exited


async def test_a_stranger_without_certificate_costs_no_barrier(member: TestMember) -> None:
    await ask(member.tls_session(), "GET", "/1.0")
    await ask(member.tls_session(), "GET", "/1.0/things")
    assert member.consensus.barriers == 0


async def test_a_hundred_fast_requests_with_client_certificates(member: TestMember, tmp_path: Path) -> None:
    pairs = [client_pair(tmp_path / "clients", f"c{i}") for i in range(4)]
    for pair in pairs[:2]:
        member.database.add_certificate(pair.certificate_pem, 1)
    member.gateway.access.refresh()

    async def one(i: int) -> None:
        pair = pairs[i % 4]
        _, answer = await ask(member.tls_session(pair), "GET", "/1.0")
        found = answer["metadata"]
        assert (found["fingerprint"], found["trusted"]) == (pair.fingerprint, i % 4 < 2)
        if found["trusted"]:
            assert (found["protocol"], found["username"]) == ("tls", pair.fingerprint)

    for start in range(0, 100, 10):
        await asyncio.gather(*(one(i) for i in range(start, start + 10)))


async def test_a_certificate_added_through_another_member_works_at_once(member: TestMember, tmp_path: Path) -> None:
    pair = client_pair(tmp_path / "clients", "new")
    member.database.add_certificate(pair.certificate_pem, 1)  # applied here, but nobody has called refresh yet
    assert (await ask(member.tls_session(pair), "GET", "/1.0/things"))[0] == 200


async def test_a_revoked_certificate_is_refused_on_an_open_connection(member: TestMember, tmp_path: Path) -> None:
    pair = client_pair(tmp_path / "clients", "gone")
    member.database.add_certificate(pair.certificate_pem, 1)
    member.gateway.access.refresh()
    connector = aiohttp.TCPConnector(ssl=client_context(pair.certificate_path, pair.key_path), limit=1)
    async with aiohttp.ClientSession(f"https://{member.address}", connector=connector) as session:
        async with session.get("/1.0/things") as response:
            assert response.status == 200
        member.database.execute("DELETE FROM certificates WHERE fingerprint = ?", (pair.fingerprint,))
        member.gateway.access.refresh()
        async with session.get("/1.0/things") as response:
            assert response.status == 403


async def test_a_restricted_certificate_keeps_to_its_projects(member: TestMember, tmp_path: Path) -> None:
    pair = client_pair(tmp_path / "clients", "limited")
    member.database.add_project("blue")
    member.database.add_certificate(pair.certificate_pem, 1, projects=["blue"])
    member.gateway.access.refresh()
    expected = {
        ("GET", "/1.0/instances?project=blue"): 200,
        ("POST", "/1.0/instances?project=blue"): 200,
        ("GET", "/1.0/instances?all-projects=true"): 200,
        ("GET", "/1.0/instances"): 403,
        ("POST", "/1.0/instances?project=default"): 403,
        ("POST", "/1.0/instances?all-projects=1&project=red"): 403,
        ("GET", "/1.0/things"): 200,
        ("PUT", "/1.0/things"): 403,
        ("GET", "/1.0/secrets"): 403,
        ("GET", "/internal/raft"): 403,
        ("GET", "/1.0/events"): 403,
    }
    found = {key: (await ask(member.tls_session(pair), *key))[0] for key in expected}
    assert found == expected
    for method, path, text in (
        ("GET", "/1.0/secrets", "Certificate is restricted"),
        ("PUT", "/1.0/things", "Certificate is restricted"),
        ("GET", "/1.0/instances", 'User does not have permissions for project "default"'),
        ("GET", "/internal/raft", "not authorized"),
    ):
        assert await ask(member.tls_session(pair), method, path) == failure(403, text)


async def test_a_metrics_certificate_sees_metrics_only(member: TestMember, tmp_path: Path) -> None:
    pair = client_pair(tmp_path / "clients", "prometheus")
    member.database.add_certificate(pair.certificate_pem, 3)
    member.gateway.access.refresh()
    assert (await ask(member.tls_session(pair), "GET", "/1.0/metrics"))[0] == 200
    for path in ("/1.0/things", "/1.0/instances", "/1.0/secrets", "/1.0/events", "/internal/raft"):
        assert await ask(member.tls_session(pair), "GET", path) == failure(403, "not authorized")


async def test_only_members_may_say_for_whom_they_ask(member: TestMember, tmp_path: Path) -> None:
    headers = {
        "X-Incus-forwarded-protocol": "unix",
        "X-Incus-forwarded-username": "root",
        "X-Incus-forwarded-address": "@",
    }
    client = client_pair(tmp_path / "clients", "liar")
    assert await ask(member.tls_session(client), "GET", "/1.0/things", headers=headers) == failure(
        403, "not authorized"
    )
    member.database.add_certificate(client.certificate_pem, 1)
    member.gateway.access.refresh()
    _, answer = await ask(member.tls_session(client), "GET", "/1.0/things", headers=headers)
    assert (answer["metadata"]["protocol"], answer["metadata"]["forwarded"]) == ("tls", False)

    peer = client_pair(tmp_path / "clients", "node2")
    member.database.add_certificate(peer.certificate_pem, 2, "node2")
    member.gateway.access.refresh()
    _, answer = await ask(member.tls_session(peer), "GET", "/1.0/things", headers=headers)
    assert (answer["metadata"]["protocol"], answer["metadata"]["username"]) == ("unix", "root")
    _, answer = await ask(member.tls_session(peer), "GET", "/1.0/things")
    assert (answer["metadata"]["protocol"], answer["metadata"]["username"]) == ("member", "node2")
    headers["X-Incus-forwarded-protocol"] = "tls"
    headers["X-Incus-forwarded-username"] = "0" * 64  # revoked meanwhile
    assert await ask(member.tls_session(peer), "GET", "/1.0/things", headers=headers) == failure(403, "not authorized")


# -- consistency ------------------------------------------------------------------------------------------------------


async def test_reads_wait_for_a_barrier_unless_stale_is_fine(member: TestMember) -> None:
    async with member.unix_session() as session, session.get("/1.0/things?consistency=stale") as response:
        assert response.headers["X-Incus-Actors-Applied-Index"] == "7"
        assert response.headers["X-Incus-Actors-Age-Ms"] == "1234", "consensus knows it, also before any barrier"
        assert response.headers["X-Incus-Actors-Stale"] == "true"
    assert member.consensus.barriers == 0
    await ask(member.unix_session(), "GET", "/1.0/things")
    assert member.consensus.barriers == 1


async def test_without_a_quorum_reads_fail_within_a_second_and_say_what_is_missing(member: TestMember) -> None:
    member.consensus.quorum = False
    member.database.add_member(2, "node2", "10.0.0.2:8443")
    started = time.monotonic()
    status, answer = await ask(member.unix_session(), "GET", "/1.0/things")
    assert time.monotonic() - started < 5
    assert status == 503
    error = answer["error"]
    assert error.startswith(
        "Failed to begin transaction: no available leader found: needs 2 of 3 voters, reachable: node1 (127.0.0.1:"
    )
    assert error.endswith("; missing: node2 (10.0.0.2:8443), member 3 (no address)")


async def test_a_member_that_was_removed_while_it_was_away_is_told_so(member: TestMember) -> None:
    member.consensus.quorum, member.consensus.refused_by = False, (2,)
    member.database.add_member(2, "node2", "10.0.0.2:8443")
    status, answer = await ask(member.unix_session(), "GET", "/1.0/things")
    assert status == 503
    assert answer["error"] == (
        "Failed to begin transaction: no available leader found: this server is no member of its cluster any more: "
        'refused by node2 (10.0.0.2:8443). If they still list it, run "incus-actorsd cluster rejoin" with this daemon '
        "stopped; if it was removed, move its state directory aside, start it, and let it join with a new token"
    )


async def test_without_a_quorum_some_paths_fall_back_and_say_so(member: TestMember) -> None:
    member.consensus.quorum = False
    async with member.unix_session() as session, session.get("/1.0") as response:
        assert response.status == 200
        assert response.headers["X-Incus-Actors-Stale"] == "true"
    status, _ = await ask(member.unix_session(), "GET", "/1.0/things?consistency=stale")
    assert status == 200
    status, answer = await ask(member.unix_session(), "GET", "/1.0/things?consistency=Stale")
    assert (status, answer["error"]) == (400, 'Invalid consistency "Stale": "stale" reads what this member has')


@pytest.mark.parametrize(("phase", "text"), [("starting", "Daemon is starting up"), ("stopping", "Shutting down")])
async def test_before_and_after_serving_it_is_503(member: TestMember, phase: Any, text: str) -> None:
    member.gateway.phase = phase
    assert await ask(member.unix_session(), "GET", "/1.0/things") == failure(503, text)
    assert (await ask(member.unix_session(), "GET", "/1.0/operations"))[0] == 200
    assert await ask(member.unix_session(), "GET", "/internal/ready") == failure(503, "Daemon not ready yet")


async def test_an_error_after_the_answer_began_breaks_the_connection(member: TestMember) -> None:
    async with member.unix_session() as session:
        with pytest.raises(aiohttp.ClientError):
            async with session.get("/1.0/half") as response:
                assert b"error" not in await response.read()


# -- robustness -------------------------------------------------------------------------------------------------------


async def test_a_get_with_a_body_is_fine(member: TestMember) -> None:
    assert (await ask(member.unix_session(), "GET", "/1.0/things", data='""\n'))[0] == 200


async def test_nonsense_on_the_socket_does_no_harm(member: TestMember) -> None:
    path = str(member.directory / "unix.socket")
    for nonsense in (b"\0" * 100, b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n"):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(raw, path)
            await loop.sock_sendall(raw, nonsense)
            await asyncio.wait_for(loop.sock_recv(raw, 65536), 5)
    assert (await ask(member.unix_session(), "GET", "/1.0/things"))[0] == 200
