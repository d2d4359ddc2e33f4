"""Commands over websockets: streams, end markers, codes, signals."""

from __future__ import annotations

import asyncio
import json
import os

import pytest
from aiohttp import WSMsgType
from instance_kit import machines, served

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacks images with owners: run as root")


@pytest.fixture
async def api(tmp_path):
    async with machines(tmp_path) as (machine,):
        await machine.add_image()
        await machine.create(start=True)
        async with served(machine) as found:
            found.machine = machine
            yield found


async def begin(api, *command, **rest):
    body = {"command": list(command), "wait-for-websocket": True, "environment": {"TERM": "xterm"}, **rest}
    async with api.session.post("/1.0/instances/c1/exec", json=body) as response:
        answer = await response.json()
    assert response.status == 202, answer
    return answer["metadata"]


async def connect(api, operation):
    sockets = {}
    for name in ("control", "0", "1", "2"):
        secret = operation["metadata"]["fds"][name]
        sockets[name] = await api.session.ws_connect(f"/1.0/operations/{operation['id']}/websocket?secret={secret}")
    return sockets


async def read(socket):
    """Everything up to the end marker, an empty text frame."""
    data = b""
    while True:
        message = await socket.receive()
        if message.type is WSMsgType.TEXT:
            assert message.data == ""
            return data
        assert message.type is WSMsgType.BINARY, message
        data += message.data


async def test_streams_and_exit_code(api):
    operation = await begin(api, "/bin/sh", "-c", "cat; echo err >&2; exit 3")
    assert operation["class"] == "websocket"
    assert operation["description"] == "Executing command"
    assert operation["metadata"]["environment"]["HOME"] == "/root"
    sockets = await connect(api, operation)
    payload = os.urandom(300_000)
    await sockets["0"].send_bytes(payload)
    await sockets["0"].send_str("")
    out, err = await asyncio.gather(read(sockets["1"]), read(sockets["2"]))
    assert (out, err) == (payload, b"err\n")
    status, ended = await api.end_of(operation["id"])
    assert (status, ended["metadata"]["return"]) == (200, 3)


async def test_a_signal_ends_it(api):
    operation = await begin(api, "/bin/sleep", "100")
    sockets = await connect(api, operation)
    await sockets["control"].send_str(json.dumps({"command": "signal", "args": None, "signal": 15}))
    assert await read(sockets["1"]) == b""
    status, ended = await api.end_of(operation["id"])
    assert (status, ended["metadata"]["return"]) == (200, 143)


async def test_a_client_that_vanishes_takes_its_process_with_it(api):
    operation = await begin(api, "/bin/sleep", "100")
    for socket in (await connect(api, operation)).values():
        await socket.close()
    status, ended = await api.end_of(operation["id"])
    assert (status, ended["metadata"]["return"]) == (200, 137)


async def test_a_command_that_is_not_there(api):
    operation = await begin(api, "/nonexistent")
    sockets = await connect(api, operation)
    assert await read(sockets["1"]) == b""
    status, ended = await api.end_of(operation["id"])
    assert (status, ended["err"], ended["metadata"]["return"]) == (400, "Command not found", 127)


async def test_nothing_runs_before_its_sockets_are_there(api):
    await begin(api, "/bin/true")
    await asyncio.sleep(0.05)
    assert "exec c1" not in api.machine.driver.calls


async def test_without_websockets(api):
    status, ended = await api("POST", "/1.0/instances/c1/exec", {"command": ["/bin/sh", "-c", "echo x; exit 4"]})
    assert (status, ended["metadata"]["return"]) == (200, 4)


async def test_refused(api):
    assert await api("POST", "/1.0/instances/nope/exec", {"command": ["ls"]}) == (404, "Instance not found")
    assert (await api("POST", "/1.0/instances/c1/exec", {"command": ["ls"], "record-output": True}))[0] == 501
    api.machine.driver.running.clear()
    assert await api("POST", "/1.0/instances/c1/exec", {"command": ["ls"]}) == (400, "Instance is not running")
