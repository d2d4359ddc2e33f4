"""The unmodified `incus` client against our gateways: query, operations, monitor, remote add over TLS, exec."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from gateway_kit import TestMember, extras, running_member

from incus_actors.gateway.operations import Operation
from incus_actors.gateway.websockets import SocketSet, pump_stream_to_ws, pump_ws_to_stream
from incus_actors.rest.context import caller, gateway
from incus_actors.rest.http import RouteSpec, accepted, created, read_json, sync

pytestmark = [
    pytest.mark.real,
    pytest.mark.may_skip,
    pytest.mark.skipif(shutil.which("incus") is None, reason="the incus client is not installed"),
]
EXTENSIONS = ["operations_get_query_all_projects", "instances", "container_exec_user_group_cwd"]


async def server(request: web.Request) -> web.StreamResponse:
    who = caller(request)
    found = {
        "config": {},
        "api_extensions": EXTENSIONS,
        "api_status": "stable",
        "api_version": "1.0",
        "auth": "trusted" if who.trusted else "untrusted",
        "public": False,
        "auth_methods": ["tls"],
    }
    if who.trusted:
        found["environment"] = {"server": "incus", "server_name": "node1", "server_version": "6.0.4"}
    return sync(found)


async def add_certificate(request: web.Request) -> web.StreamResponse:
    pem = caller(request).certificate_pem
    assert pem is not None
    extras(request)["database"].add_certificate(pem, 1)
    gateway(request).access.refresh()
    await read_json(request, dict)
    return created("/1.0/certificates/x")


async def exec_(request: web.Request) -> web.StreamResponse:
    asked = await read_json(request, dict)
    sockets = SocketSet.for_exec(interactive=False)

    async def run(operation: Operation) -> None:
        connected = await sockets.wait_required()
        process = await asyncio.create_subprocess_exec(*asked["command"], stdin=-1, stdout=-1, stderr=-1)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        stdin = asyncio.gather(pump_ws_to_stream(connected["0"], process.stdin))
        await asyncio.gather(
            pump_stream_to_ws(process.stdout, connected["1"]), pump_stream_to_ws(process.stderr, connected["2"])
        )
        operation.update({"return": await process.wait()})
        stdin.cancel()

    operation = gateway(request).operations.create(
        kind="websocket",
        description="Executing command",
        project="default",
        metadata={"fds": sockets.fds(), "command": asked["command"]},
        sockets=sockets,
        run=run,
    )
    return accepted(operation)


async def work(request: web.Request) -> web.StreamResponse:
    async def run(operation: Operation) -> None:
        await asyncio.sleep(0.2)

    made = gateway(request).operations.create(
        kind="task", description="Working hard", project="default", run=run, caller=caller(request)
    )
    return accepted(made)


ROUTES = [
    RouteSpec("GET", "/1.0", server, access="untrusted", consistency="fallback"),
    RouteSpec("POST", "/1.0/certificates", add_certificate, access="untrusted"),
    RouteSpec("POST", "/1.0/instances/{name}/exec", exec_),
    RouteSpec("POST", "/1.0/work", work),
]


@pytest.fixture
async def member(tmp_path: Path) -> AsyncIterator[TestMember]:
    async with running_member(tmp_path / "m1", ROUTES) as found:
        found.consensus.extras["database"] = found.database
        yield found


async def incus(member: TestMember, *arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
    process = await start_incus(member, *arguments)
    out, err = await asyncio.wait_for(process.communicate(stdin), 30)
    return process.returncode or 0, out.decode(), err.decode()


async def start_incus(member: TestMember, *arguments: str) -> asyncio.subprocess.Process:
    directory = member.directory
    environment = {**os.environ, "INCUS_DIR": str(directory), "INCUS_CONF": str(directory / "client")}
    return await asyncio.create_subprocess_exec("incus", *arguments, stdin=-1, stdout=-1, stderr=-1, env=environment)


async def test_query_and_its_errors(member: TestMember) -> None:
    code, out, _ = await incus(member, "query", "/1.0")
    assert (code, json.loads(out)["auth"]) == (0, "trusted")
    code, _, err = await incus(member, "query", "/1.0/nope")
    assert (code, err) == (1, "Error: not found\n")
    code, _, err = await incus(member, "query", "-X", "DELETE", "/1.0")
    assert (code, err) == (1, "Error: not implemented\n")
    code, out, _ = await incus(member, "query", "-X", "POST", "--wait", "/1.0/work")
    assert (code, json.loads(out)["status"]) == (0, "Success")


async def test_operation_list_and_show(member: TestMember) -> None:
    _, out, _ = await incus(member, "query", "-X", "POST", "--raw", "/1.0/work")
    operation = json.loads(out)["metadata"]
    code, out, err = await incus(member, "operation", "list", "--format", "csv")
    assert (code, err) == (0, "")
    assert out.startswith(f"{operation['id']},TASK,Working hard,")
    code, out, _ = await incus(member, "operation", "show", operation["id"])
    assert code == 0
    assert f"id: {operation['id']}" in out
    code, _, err = await incus(member, "operation", "delete", operation["id"])
    assert (code, err) == (1, "Error: This operation can't be cancelled\n")


async def test_monitor_shows_operations_and_lifecycle(member: TestMember) -> None:
    monitor = await start_incus(member, "monitor", "--format", "json")
    async with asyncio.timeout(10):
        while not member.gateway.events.has_subscribers("operation"):
            await asyncio.sleep(0.02)
    member.gateway.events.lifecycle("config-updated", "/1.0", caller={"username": "root", "protocol": "unix"})
    await incus(member, "query", "-X", "POST", "--wait", "/1.0/work")
    assert monitor.stdout is not None
    seen: list[dict[str, Any]] = []
    while len(seen) < 4:
        line = await asyncio.wait_for(monitor.stdout.readline(), 10)
        seen += [json.loads(line)] if line.strip() else []
    monitor.terminate()
    await monitor.communicate()
    assert seen[0]["metadata"]["action"] == "config-updated"
    assert sorted(e["metadata"]["status"] for e in seen[1:]) == ["Pending", "Running", "Success"]  # the client shuffles


async def test_remote_add_and_exec_over_tls_and_over_the_socket(member: TestMember) -> None:
    code, _, err = await incus(
        member, "remote", "add", "far", f"https://{member.address}", "--accept-certificate", "--token=x"
    )
    assert code == 0, err
    payload = bytes(range(256)) * 3000
    for name in ("c1", "far:c1"):
        process = await start_incus(member, "exec", name, "--", "sh", "-c", "cat; echo problem >&2; exit 3")
        out, err_bytes = await asyncio.wait_for(process.communicate(payload), 30)
        assert (out == payload, err_bytes, process.returncode) == (True, b"problem\n", 3)
        process = await start_incus(member, "exec", "-n", name, "--", "echo", "hello")
        out, _ = await asyncio.wait_for(process.communicate(), 30)
        assert (out, process.returncode) == (b"hello\n", 0)


async def test_shutdown_answers_and_then_exits(member: TestMember) -> None:
    code, _, err = await incus(member, "admin", "waitready", "--timeout", "5")
    assert code == 0, err
    asyncio.get_running_loop().call_later(1.0, member.listeners.stop_accepting)  # the client waits for our end
    code, _, err = await incus(member, "admin", "shutdown", "--timeout", "5")
    assert code == 0, err
    assert member.exited == [True]
