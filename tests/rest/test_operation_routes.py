"""Operations and events as the client sees them: life cycle, wait, cancel, lists, websockets, forwarding."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType, web
from gateway_kit import TestMember, client_pair, running_member

from incus_actors.errors import BadRequestError
from incus_actors.gateway.operations import Operation, member_of, new_operation_id
from incus_actors.gateway.websockets import SocketSet, pump_stream_to_ws, pump_ws_to_stream
from incus_actors.rest.context import caller, gateway
from incus_actors.rest.http import RouteSpec, accepted
from incus_actors.tasks import spawn


async def start(request: web.Request) -> web.StreamResponse:
    """POST /1.0/work?seconds=&fail=&cancel=: an operation to play with."""
    seconds = float(request.query.get("seconds", "0"))

    async def run(operation: Operation) -> None:
        operation.progress("fs", 10, 1000, "Copying: 10% (1kB/s)")
        await asyncio.sleep(seconds)
        operation.update({"fingerprint": "abc"})
        if "fail" in request.query:
            raise BadRequestError("It went wrong")
        if "crash" in request.query:
            raise ZeroDivisionError

    operation = gateway(request).operations.create(
        kind="task",
        description="Working",
        project=request.query.get("project", "default"),
        resources={"instances": ["/1.0/instances/c1"]},
        run=run,
        may_cancel="cancel" in request.query,
        caller=caller(request),
    )
    return accepted(operation)


async def shout(request: web.Request) -> web.StreamResponse:
    """POST /1.0/shout: runs `cat` with the sockets of exec."""
    sockets = SocketSet.for_exec(interactive=False)

    async def run(operation: Operation) -> None:
        connected = await sockets.wait_required()
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", "cat; echo done >&2", stdin=-1, stdout=-1, stderr=-1, start_new_session=True
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        await asyncio.gather(
            pump_ws_to_stream(connected["0"], process.stdin),
            pump_stream_to_ws(process.stdout, connected["1"]),
            pump_stream_to_ws(process.stderr, connected["2"]),
        )
        operation.update({"return": await process.wait()})

    operation = gateway(request).operations.create(
        kind="websocket",
        description="Executing command",
        project="default",
        metadata={"fds": sockets.fds()},
        sockets=sockets,
        run=run,
    )
    return accepted(operation)


ROUTES = [
    RouteSpec("POST", "/1.0/work", start),
    RouteSpec("POST", "/1.0/shout", shout),
    RouteSpec("POST", "/1.0/instances/{name}/shout", shout, forward="instance"),
]


@pytest.fixture
async def member(tmp_path: Path) -> AsyncIterator[TestMember]:
    async with running_member(tmp_path / "m1", ROUTES) as found:
        yield found


async def ask(member: TestMember, method: str, path: str) -> tuple[int, Any]:
    async with member.unix_session() as session, session.request(method, path) as response:
        body = json.loads(await response.read())
        return response.status, body["metadata"] if body["type"] != "error" else body["error"]


@contextlib.asynccontextmanager
async def events(member: TestMember, query: str = "") -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    async with (
        member.unix_session() as session,
        session.ws_connect(f"/1.0/events{query}", autoping=False) as ws,
    ):
        first = await ws.receive(timeout=5)
        assert (first.type, bytes(first.data)) == (WSMsgType.PING, b"keepalive")
        yield ws


async def next_event(ws: aiohttp.ClientWebSocketResponse, timeout_s: float = 5) -> dict[str, Any]:
    while True:
        message = await ws.receive(timeout=timeout_s)
        if message.type is WSMsgType.PING:
            continue
        assert message.type is WSMsgType.TEXT, message
        return json.loads(message.data)


def test_the_id_carries_the_member() -> None:
    import uuid

    for member_id in (1, 2, 65535):
        found = new_operation_id(member_id)
        assert member_of(found) == member_id
        assert uuid.UUID(found).version == 4
    assert member_of("nonsense") is None


async def test_an_operation_from_post_to_its_end(member: TestMember) -> None:
    async with events(member) as ws, member.unix_session() as session:
        async with session.post("/1.0/work?seconds=0.05") as response:
            assert response.status == 202
            body = await response.json()
            assert response.headers["Location"] == body["operation"]
        assert (body["type"], body["status"], body["status_code"]) == ("async", "Operation created", 100)
        operation = body["metadata"]
        assert set(operation) == {
            "id", "class", "description", "created_at", "updated_at", "status", "status_code", "resources",
            "metadata", "may_cancel", "err", "location",
        }  # fmt: skip
        assert (operation["status"], operation["status_code"], operation["class"]) == ("Running", 103, "task")
        assert operation["location"] == "node1"
        seen = []
        while not seen or seen[-1]["metadata"]["status_code"] < 200:
            seen.append(await next_event(ws))
        assert [e["metadata"]["status"] for e in seen] == ["Pending", "Running", "Running", "Running", "Success"]
        assert {e["metadata"]["id"] for e in seen} == {operation["id"]}
        assert (seen[0]["type"], seen[0]["location"], seen[0]["project"]) == ("operation", "node1", "default")
        assert seen[2]["metadata"]["metadata"] == {
            "fs_progress": "Copying: 10% (1kB/s)",
            "progress": {"stage": "fs", "percent": "10", "speed": "1000"},
        }
        assert seen[-1]["metadata"]["metadata"]["fingerprint"] == "abc"
        status, final = await ask(member, "GET", f"/1.0/operations/{operation['id']}")
        assert (status, final) == (200, seen[-1]["metadata"])


@pytest.mark.parametrize(("query", "err"), [("fail", "It went wrong"), ("crash", "ZeroDivisionError")])
async def test_a_failure_carries_its_text(member: TestMember, query: str, err: str) -> None:
    _, operation = await ask(member, "POST", f"/1.0/work?{query}=1")
    status, final = await ask(member, "GET", f"/1.0/operations/{operation['id']}/wait?timeout=-1")
    assert (status, final["status"], final["status_code"], final["err"]) == (200, "Failure", 400, err)


async def test_waiting_ends_in_time(member: TestMember) -> None:
    _, operation = await ask(member, "POST", "/1.0/work?seconds=30")
    status, still = await ask(member, "GET", f"/1.0/operations/{operation['id']}/wait?timeout=0")
    assert (status, still["status"]) == (200, "Running")
    assert await ask(member, "GET", f"/1.0/operations/{operation['id']}/wait?timeout=soon") == (
        500, 'strconv.Atoi: parsing "soon": invalid syntax',
    )  # fmt: skip


async def test_cancel_only_what_may_be_cancelled(member: TestMember) -> None:
    _, fixed = await ask(member, "POST", "/1.0/work?seconds=30")
    assert await ask(member, "DELETE", f"/1.0/operations/{fixed['id']}") == (400, "This operation can't be cancelled")
    _, loose = await ask(member, "POST", "/1.0/work?seconds=30&cancel=1")
    assert await ask(member, "DELETE", f"/1.0/operations/{loose['id']}") == (200, {})
    _, final = await ask(member, "GET", f"/1.0/operations/{loose['id']}/wait")
    assert (final["status"], final["status_code"], final["err"]) == ("Cancelled", 401, "Operation cancelled")


async def test_unknown_operations_are_404(member: TestMember) -> None:
    for operation_id in ("6f10dd4e-fcf7-4291-b920-4bfcf3fc4464", "nonsense", new_operation_id(9)):
        for path in ("", "/wait?timeout=1", "/websocket?secret=x"):
            assert await ask(member, "GET", f"/1.0/operations/{operation_id}{path}") == (404, "Operation not found")
        assert await ask(member, "DELETE", f"/1.0/operations/{operation_id}") == (404, "Operation not found")


async def test_the_list_is_a_map_of_statuses(member: TestMember) -> None:
    assert await ask(member, "GET", "/1.0/operations") == (200, {})
    _, blue = await ask(member, "POST", "/1.0/work?seconds=30&project=blue")
    _, failed = await ask(member, "POST", "/1.0/work?fail=1")
    await ask(member, "GET", f"/1.0/operations/{failed['id']}/wait")
    assert await ask(member, "GET", "/1.0/operations") == (200, {"failure": [f"/1.0/operations/{failed['id']}"]})
    _, everything = await ask(member, "GET", "/1.0/operations?recursion=1&all-projects=true")
    assert {status: [o["id"] for o in found] for status, found in everything.items()} == {
        "running": [blue["id"]],
        "failure": [failed["id"]],
    }
    status, text = await ask(member, "GET", "/1.0/operations?project=blue&all-projects=true")
    assert (status, text) == (400, "Cannot specify a project when requesting all projects")


async def test_tokens_are_operations_until_they_are_revoked(member: TestMember) -> None:
    token = {"id": new_operation_id(77), "class": "token", "status": "Running", "status_code": 103}

    class Tokens:
        def list_tokens(self) -> list[dict[str, Any]]:
            return [token] if token else []

        def get_token(self, operation_id: str) -> dict[str, Any] | None:
            return token if token and token["id"] == operation_id else None

        async def revoke_token(self, operation_id: str) -> bool:
            found = bool(token)
            token.clear()
            return found

    member.gateway.operations.tokens = Tokens()
    path = f"/1.0/operations/{token['id']}"
    assert (await ask(member, "GET", path))[0] == 200
    assert await ask(member, "GET", "/1.0/operations") == (200, {"running": [path]})
    assert (await ask(member, "GET", f"{path}/wait?timeout=0"))[0] == 200
    assert await ask(member, "DELETE", path) == (200, {})
    assert await ask(member, "DELETE", path) == (404, "Operation not found")


async def test_a_stopping_daemon_ends_operations_visibly(member: TestMember) -> None:
    async with events(member) as ws:
        _, operation = await ask(member, "POST", "/1.0/work?seconds=30")
        assert (await ask(member, "PUT", "/internal/shutdown?force=false"))[0] == 200
        found = await next_event(ws)
        while found["metadata"]["status_code"] < 200:
            found = await next_event(ws)
        assert found["metadata"]["status"] == "Cancelled"
        assert found["metadata"]["err"] == "The daemon is shutting down"
    assert member.exited == [True]
    assert await ask(member, "POST", "/1.0/work") == (503, "Shutting down")
    assert (await ask(member, "GET", f"/1.0/operations/{operation['id']}"))[0] == 200


# -- events -----------------------------------------------------------------------------------------------------------


async def test_events_are_filtered_by_type_and_project(member: TestMember) -> None:
    hub = member.gateway.events
    async with events(member, "?type=lifecycle&project=blue") as ws:
        hub.publish("logging", {"message": "no"})
        hub.lifecycle("instance-created", "/1.0/instances/c1", project="default", name="c1")
        hub.lifecycle("config-updated", "/1.0", caller={"username": "root", "protocol": "unix", "address": "@"})
        hub.lifecycle("instance-started", "/1.0/instances/c2?project=blue", project="blue", name="c2")
        first, second = await next_event(ws), await next_event(ws)
    assert first["metadata"] == {
        "action": "config-updated",
        "source": "/1.0",
        "requestor": {"username": "root", "protocol": "unix", "address": "@"},
    }
    assert "project" not in first
    assert second["metadata"]["name"] == "c2"
    assert second["project"] == "blue"
    assert await ask(member, "GET", "/1.0/events?type=gossip") == (400, '"gossip" isn\'t a supported event type')
    assert (await ask(member, "GET", "/1.0/events"))[0] == 400


async def test_restricted_callers_see_their_projects_events_only(member: TestMember, tmp_path: Path) -> None:
    pair = client_pair(tmp_path / "clients", "limited")
    member.database.add_project("blue")
    member.database.add_certificate(pair.certificate_pem, 1, projects=["blue"])
    member.gateway.access.refresh()
    hub = member.gateway.events
    async with (
        member.tls_session(pair) as session,
        session.ws_connect("/1.0/events?all-projects=true") as ws,
    ):
        hub.lifecycle("config-updated", "/1.0")
        hub.lifecycle("instance-created", "/1.0/instances/c1", project="default")
        hub.lifecycle("instance-created", "/1.0/instances/c2", project="blue")
        assert (await next_event(ws))["metadata"]["source"] == "/1.0/instances/c2"
    _, operation = await ask(member, "POST", "/1.0/work?seconds=9")
    async with member.tls_session(pair) as session:
        for path in ("", "/wait", "/websocket?secret=x"):
            async with session.get(f"/1.0/operations/{operation['id']}{path}") as response:
                assert response.status == 403
        async with session.delete(f"/1.0/operations/{operation['id']}?project=blue") as response:
            assert response.status == 403
        async with session.get("/1.0/operations?all-projects=true") as response:
            assert (await response.json())["metadata"] == {}


async def test_a_client_that_does_not_read_is_dropped_and_nobody_waits_for_it(member: TestMember) -> None:
    async with events(member) as slow, events(member) as quick:
        reading = spawn(count_events(quick, 3000), name="reader")
        for number in range(3000):
            member.gateway.events.lifecycle("config-updated", "/1.0", context={"n": number, "pad": "x" * 8000})
            if number % 50 == 0:
                await asyncio.sleep(0.005)
        assert await reading == list(range(3000))
        with pytest.raises((ConnectionError, AssertionError, aiohttp.ClientError)):
            await count_events(slow, 3000)


async def count_events(ws: aiohttp.ClientWebSocketResponse, wanted: int) -> list[int]:
    return [(await next_event(ws))["metadata"]["context"]["n"] for _ in range(wanted)]


# -- websockets of operations ---------------------------------------------------------------------------------------------


async def run_shout(
    session: aiohttp.ClientSession, operation: dict[str, Any], payload: bytes, *, query: str = ""
) -> tuple[bytes, bytes]:
    fds = operation["metadata"]["fds"]
    assert list(fds) == ["0", "1", "2", "control"]
    sockets = {}
    for name in ("control", "0", "1", "2"):
        ws = await session.ws_connect(f"/1.0/operations/{operation['id']}/websocket?secret={fds[name]}", autoping=False)
        first = await ws.receive(timeout=5)
        assert (first.type, bytes(first.data)) == (WSMsgType.PING, b"keepalive")
        sockets[name] = ws

    async def feed() -> None:
        for begin in range(0, len(payload), 30000):
            await sockets["0"].send_bytes(payload[begin : begin + 30000])
        await sockets["0"].send_str("")

    async def collect(name: str) -> bytes:
        parts = []
        while (message := await sockets[name].receive(timeout=10)).type is not WSMsgType.TEXT:
            if message.type is WSMsgType.PING:
                continue
            assert message.type is WSMsgType.BINARY, message
            parts.append(bytes(message.data))
        assert message.data == ""
        return b"".join(parts)

    _, out, err = await asyncio.gather(feed(), collect("1"), collect("2"))
    after = await sockets["1"].receive(timeout=5)
    assert after.type in (WSMsgType.CLOSED, WSMsgType.CLOSING, WSMsgType.ERROR), after  # no close frame: just the end
    for ws in sockets.values():
        await ws.close()
    return out, err


async def test_exec_sockets_carry_everything_and_end_as_incus_does(member: TestMember) -> None:
    payload = bytes(range(256)) * 8000
    async with member.unix_session() as session:
        _, operation = await ask(member, "POST", "/1.0/shout")
        assert await run_shout(session, operation, payload) == (payload, b"done\n")
    _, final = await ask(member, "GET", f"/1.0/operations/{operation['id']}/wait")
    assert (final["status"], final["metadata"]["return"]) == ("Success", 0)


async def test_a_secret_works_once(member: TestMember) -> None:
    _, operation = await ask(member, "POST", "/1.0/shout")
    secret = operation["metadata"]["fds"]["0"]
    path = f"/1.0/operations/{operation['id']}/websocket?secret="
    async with (
        member.unix_session() as session,
        session.ws_connect(path + secret, timeout=aiohttp.ClientWSTimeout(ws_close=0.1)),
    ):
        assert await ask(member, "GET", path + secret) == (403, "not authorized")
        assert await ask(member, "GET", path + "0" * 64) == (403, "not authorized")
        assert await ask(member, "GET", path) == (403, "not authorized")


async def test_missing_sockets_fail_the_operation(member: TestMember, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "incus_actors.gateway.websockets.SocketSet.__init__.__kwdefaults__", {"required": None, "timeout_s": 0.1}
    )
    _, operation = await ask(member, "POST", "/1.0/shout")
    secret = operation["metadata"]["fds"]["0"]
    async with (
        member.unix_session() as session,
        session.ws_connect(f"/1.0/operations/{operation['id']}/websocket?secret={secret}", autoping=False) as ws,
    ):
        _, final = await ask(member, "GET", f"/1.0/operations/{operation['id']}/wait")
        assert (final["status"], final["err"]) == ("Failure", "Timed out waiting for websockets to connect: 1, 2")
        message = await ws.receive(timeout=5)
        while message.type is WSMsgType.PING:
            message = await ws.receive(timeout=5)
        assert (message.type, message.data) == (WSMsgType.TEXT, "")


# -- operations of another member ----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def two_members(tmp_path: Path) -> AsyncIterator[tuple[TestMember, TestMember]]:
    from gateway_kit import ScratchDatabase, shared_cluster_pair

    shared = ScratchDatabase()
    cluster = shared_cluster_pair(tmp_path / "cluster")
    async with (
        running_member(tmp_path / "m1", ROUTES, database=shared, cluster_pair=cluster) as one,
        running_member(
            tmp_path / "m2", ROUTES, member_id=2, name="node2", database=shared, cluster_pair=cluster
        ) as two,
    ):
        one.gateway.access.refresh()
        yield one, two


async def test_an_operation_of_another_member_is_asked_for_there(tmp_path: Path) -> None:
    async with two_members(tmp_path) as (one, two):
        _, operation = await ask(two, "POST", "/1.0/work?seconds=0.2&cancel=1")
        path = f"/1.0/operations/{operation['id']}"
        status, found = await ask(one, "GET", path)
        assert (status, found["id"], found["location"]) == (200, operation["id"], "node2")
        status, final = await ask(one, "GET", f"{path}/wait?timeout=10")
        assert (status, final["status"]) == (200, "Success")
        assert await ask(one, "DELETE", path) == (400, "This operation can't be cancelled")
        assert await ask(one, "GET", f"/1.0/operations/{new_operation_id(2)}") == (404, "Operation not found")


async def test_exec_on_another_member_goes_through_byte_for_byte(tmp_path: Path) -> None:
    async with two_members(tmp_path) as (one, two):
        one.database.add_instance("c1", 2)
        payload = bytes(range(256)) * 8000
        async with one.unix_session() as session:
            status, operation = await ask(one, "POST", "/1.0/instances/c1/shout")
            assert (status, operation["location"]) == (202, "node2")
            assert await run_shout(session, operation, payload) == (payload, b"done\n")
        secret = operation["metadata"]["fds"]["0"]
        status, text = await ask(one, "GET", f"/1.0/operations/{operation['id']}/websocket?secret={secret}")
        assert (status, text) in [(403, "not authorized"), (400, "Operation has ended")]
        assert two.gateway.operations.running() == []
