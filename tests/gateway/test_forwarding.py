"""Requests passed on to another member: status, headers, bodies both ways as streams, upgrades, dead peers."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType, web
from gateway_kit import ScratchDatabase, TestMember, client_pair, extras, running_member, shared_cluster_pair, whoami

from incus_actors.errors import ForbiddenError
from incus_actors.gateway.upgrades import Hijacked, hijack, switching_protocols
from incus_actors.gateway.websockets import accept_websocket
from incus_actors.rest.context import caller, gateway
from incus_actors.rest.http import RouteSpec, etag_of, sync


async def digest(request: web.Request) -> web.StreamResponse:
    total, found = 0, hashlib.sha256()
    async for chunk in request.content.iter_any():
        total += len(chunk)
        found.update(chunk)
    return sync({"bytes": total, "sha256": found.hexdigest(), "type": request.headers.get("Content-Type")}, etag="ab")


async def blob(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
    await response.prepare(request)
    for number in range(int(request.query["mb"]) * 16):
        await response.write(bytes([number % 256]) * 65536)
        if "break" in request.query:
            assert request.transport is not None
            request.transport.abort()
            break
    return response


async def echo(request: web.Request) -> web.StreamResponse:
    ws = await accept_websocket(request)
    await ws.ping(b"keepalive")
    async for message in ws:
        if message.type is WSMsgType.BINARY:
            await ws.send_bytes(message.data)
        elif message.type is WSMsgType.TEXT and message.data == "":
            await ws.send_str("")
            break
        elif message.type is WSMsgType.TEXT:
            await ws.send_str(message.data)
    assert request.transport is not None
    request.transport.close()
    return ws


async def raw(request: web.Request) -> web.StreamResponse:
    if request.match_info["name"] == "closed":
        raise ForbiddenError("Not this one")
    reader, writer = hijack(request, switching_protocols("sftp"))
    while data := await reader.read(65536):
        writer.write(data.upper())
        await writer.drain()
    writer.close()
    return Hijacked()


async def slow(request: web.Request) -> web.StreamResponse:
    extras(request)["arrived"].set()
    try:
        await asyncio.sleep(60)
    finally:
        extras(request)["left"].set()
    return sync()


async def changed(request: web.Request) -> web.StreamResponse:
    """Reads the body and passes another one on."""
    if caller(request).forwarded:
        return await digest(request)
    body = await request.read()
    return await gateway(request).forwarder.forward(request, 2, body=b" " * int(request.query["more"]) + body[::-1])


def instance(method: str, path: str, handler: Any) -> RouteSpec:
    return RouteSpec(method, f"/1.0/instances/{{name}}{path}", handler, forward="instance", project_scoped=True)


ROUTES = [
    RouteSpec("GET", "/1.0", whoami, access="untrusted", forward="target"),
    instance("GET", "", whoami),
    instance("PUT", "", digest),
    RouteSpec("POST", "/1.0/changed", changed),
    instance("GET", "/blob", blob),
    instance("GET", "/echo", echo),
    instance("GET", "/sftp", raw),
    instance("GET", "/slow", slow),
]


@pytest.fixture
async def members(tmp_path: Path) -> AsyncIterator[tuple[TestMember, TestMember]]:
    shared = ScratchDatabase()
    cluster = shared_cluster_pair(tmp_path / "cluster")
    async with contextlib.AsyncExitStack() as stack:
        found = [
            await stack.enter_async_context(
                running_member(
                    tmp_path / f"m{id_}",
                    ROUTES,
                    member_id=id_,
                    name=f"node{id_}",
                    database=shared,
                    cluster_pair=cluster,
                )
            )
            for id_ in (1, 2)
        ]
        for name in ("c2", "closed"):
            shared.add_instance(name, 2)
        shared.add_instance("blue2", 2, "blue")
        for member in found:
            member.gateway.access.refresh()
            member.consensus.extras.update(arrived=asyncio.Event(), left=asyncio.Event())
        yield found[0], found[1]


async def ask(session: aiohttp.ClientSession, method: str, path: str, **options: Any) -> tuple[int, Any]:
    async with session, session.request(method, path, **options) as response:
        body = json.loads(await response.read())
        return response.status, body["metadata"] if body["type"] != "error" else body["error"]


async def test_the_caller_travels_with_the_request(members: tuple[TestMember, TestMember], tmp_path: Path) -> None:
    one, _ = members
    _, found = await ask(one.unix_session(), "GET", "/1.0/instances/c2")
    assert (found["protocol"], found["username"], found["address"], found["forwarded"]) == ("unix", "root", "@", True)
    pair = client_pair(tmp_path / "clients", "limited")
    one.database.add_certificate(pair.certificate_pem, 1, projects=["blue"])
    for member in members:
        member.gateway.access.refresh()
    _, found = await ask(one.tls_session(pair), "GET", "/1.0/instances/blue2?project=blue")
    assert (found["protocol"], found["username"], found["projects"]) == ("tls", pair.fingerprint, ["blue"])
    assert found["address"].startswith("127.0.0.1:")
    refusal = (403, 'User does not have permissions for project "default"')
    assert await ask(one.tls_session(pair), "GET", "/1.0/instances/c2") == refusal


async def test_targets(members: tuple[TestMember, TestMember]) -> None:
    one, _ = members
    assert (await ask(one.unix_session(), "GET", "/1.0?target=node1"))[1]["forwarded"] is False
    assert (await ask(one.unix_session(), "GET", "/1.0?target=node2"))[1]["forwarded"] is True
    assert await ask(one.unix_session(), "GET", "/1.0?target=nowhere") == (404, "Cluster member not found")
    assert await ask(one.unix_session(), "GET", "/1.0/instances/none") == (404, "Instance not found")
    assert await ask(one.unix_session(), "GET", "/1.0/instances/c2?project=blue") == (404, "Instance not found")
    status, found = await ask(one.tls_session(), "GET", "/1.0?target=node2")  # strangers are never passed on
    assert (status, found["trusted"], found["forwarded"]) == (200, False, False)


async def test_bodies_stream_up_with_and_without_a_length(members: tuple[TestMember, TestMember]) -> None:
    one, _ = members
    data = os.urandom(1 << 20) * 12
    expected = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "type": "application/octet-stream"}

    async def chunks() -> AsyncIterator[bytes]:
        for begin in range(0, len(data), 100_000):
            yield data[begin : begin + 100_000]

    for body in (data, chunks()):
        headers = {"Content-Type": "application/octet-stream"}
        async with (
            one.unix_session() as session,
            session.put("/1.0/instances/c2", data=body, headers=headers) as response,
        ):
            assert response.headers["Etag"] == '"ab"'
            assert (await response.json())["metadata"] == expected
    assert etag_of(1)


@pytest.mark.parametrize("more", [0, 1, 5000])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_was_read_and_changed_has_its_own_length(
    members: tuple[TestMember, TestMember], more: int, chunked: bool
) -> None:
    one, _ = members

    async def chunks() -> AsyncIterator[bytes]:
        yield b"abc"
        yield b"def"

    expected = b" " * more + b"fedcba"
    _, found = await ask(
        one.unix_session(),
        "POST",
        f"/1.0/changed?more={more}",
        data=chunks() if chunked else b"abcdef",
        headers={"Content-Type": "application/json"},
    )
    assert found == {
        "bytes": len(expected),
        "sha256": hashlib.sha256(expected).hexdigest(),
        "type": "application/json",
    }


async def test_answers_stream_down(members: tuple[TestMember, TestMember]) -> None:
    one, _ = members
    async with one.unix_session() as session, session.get("/1.0/instances/c2/blob?mb=12") as response:
        assert response.headers["Content-Type"] == "application/octet-stream"
        body = await response.read()
    assert len(body) == 12 << 20
    assert body[::65536] == bytes(range(192))


async def test_an_answer_that_breaks_off_never_looks_whole(members: tuple[TestMember, TestMember]) -> None:
    one, _ = members
    async with one.unix_session() as session:
        with pytest.raises(aiohttp.ClientError):
            async with session.get("/1.0/instances/c2/blob?mb=12&break=1") as response:
                await response.read()


async def test_websockets_keep_frames_pings_and_their_end(members: tuple[TestMember, TestMember]) -> None:
    one, _ = members
    async with one.unix_session() as session, session.ws_connect("/1.0/instances/c2/echo", autoping=False) as ws:
        first = await ws.receive(timeout=5)
        assert (first.type, bytes(first.data)) == (WSMsgType.PING, b"keepalive")
        await ws.send_bytes(b"\0" * 300_000)
        assert (await ws.receive(timeout=5)).data == b"\0" * 300_000
        await ws.send_str("text")
        message = await ws.receive(timeout=5)
        assert (message.type, message.data) == (WSMsgType.TEXT, "text")
        await ws.send_str("")
        message = await ws.receive(timeout=5)
        assert (message.type, message.data) == (WSMsgType.TEXT, "")
        assert (await ws.receive(timeout=5)).type in (WSMsgType.CLOSED, WSMsgType.ERROR)


async def test_raw_upgrades_are_tunnelled_or_refused(members: tuple[TestMember, TestMember]) -> None:
    one, _ = members
    path = str(one.directory / "unix.socket")
    request = "GET /1.0/instances/{} HTTP/1.1\r\nHost: unix.socket\r\nConnection: Upgrade\r\nUpgrade: sftp\r\n\r\n"
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(request.format("c2/sftp").encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    assert head.startswith("HTTP/1.1 101 ")
    assert "\r\nUpgrade: sftp\r\n" in head
    payload = b"abcdefgh" * 200_000
    writer.write(payload)
    assert await reader.readexactly(len(payload)) == payload.upper()
    writer.close()

    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(request.format("closed/sftp").encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    assert head.startswith("HTTP/1.1 403 ")
    assert b'"Not this one"' in await reader.read(1000)
    writer.close()


async def test_a_dead_member_is_told_in_incus_words(members: tuple[TestMember, TestMember]) -> None:
    one, two = members
    await two.listeners.close()
    assert await ask(one.unix_session(), "GET", "/1.0/instances/c2") == (500, "Server isn't ready yet")
    assert await ask(one.unix_session(), "GET", "/1.0/instances/c2/sftp", headers={"Upgrade": "sftp"}) == (
        500,
        "Server isn't ready yet",
    )


async def test_a_member_with_a_foreign_certificate_is_refused(
    members: tuple[TestMember, TestMember], tmp_path: Path
) -> None:
    one, two = members
    impostor = client_pair(tmp_path / "impostor", "impostor")
    two.listeners.use_certificate(impostor.certificate_path, impostor.key_path)
    assert await ask(one.unix_session(), "GET", "/1.0/instances/c2") == (500, "Server isn't ready yet")
    assert await ask(one.unix_session(), "GET", "/1.0/instances/c2/sftp", headers={"Upgrade": "sftp"}) == (
        500,
        "Server isn't ready yet",
    )


async def test_a_request_is_passed_on_once_only(members: tuple[TestMember, TestMember]) -> None:
    one, two = members
    two.gateway.routing.is_here = lambda _member_id: False  # type: ignore[method-assign]
    status, text = await ask(one.unix_session(), "GET", "/1.0/instances/c2")
    assert (status, text) == (500, "Request was forwarded more than once")


async def test_connections_to_members_are_kept(members: tuple[TestMember, TestMember]) -> None:
    one, two = members
    for _ in range(5):
        await ask(one.unix_session(), "GET", "/1.0/instances/c2")
    server = two.listeners._runner.server
    assert server is not None
    assert server.requests_count >= 5
    assert len(server.connections) == 1


async def test_a_client_that_leaves_ends_the_forwarded_request(
    members: tuple[TestMember, TestMember], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("incus_actors.gateway.upgrades.GONE_CHECK_S", 0.05)
    one, two = members
    _, writer = await asyncio.open_unix_connection(str(one.directory / "unix.socket"))
    writer.write(b"GET /1.0/instances/c2/slow HTTP/1.1\r\nHost: unix.socket\r\n\r\n")
    await asyncio.wait_for(two.consensus.extras["arrived"].wait(), 5)
    writer.close()
    session = one.gateway.forwarder.session()
    assert session.connector is not None
    async with asyncio.timeout(5):
        while session.connector._acquired:
            await asyncio.sleep(0.02)
