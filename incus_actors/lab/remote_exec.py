"""Run one command in an instance through a member's unix socket, as the stock client does (CONTRACT 9.1).

Called by the demo; must never be used by the daemon.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import aiohttp


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What the command wrote and how it ended."""

    exit_code: int
    stdout: str
    stderr: str


async def _collect(session: aiohttp.ClientSession, url: str) -> bytes:
    parts = []
    async with session.ws_connect(url) as socket:
        async for message in socket:
            if message.type is aiohttp.WSMsgType.BINARY:
                parts.append(message.data)
            elif message.type is aiohttp.WSMsgType.TEXT and message.data == "":
                break
    return b"".join(parts)


async def _stdin_at_end(session: aiohttp.ClientSession, url: str) -> None:
    async with session.ws_connect(url) as socket:
        await socket.send_str("")
        async for _ in socket:
            continue


async def _run(socket: Path, instance: str, argv: list[str]) -> ExecResult:
    connector = aiohttp.UnixConnector(str(socket))
    async with aiohttp.ClientSession("http://unix.socket", connector=connector) as session:
        body = {"command": argv, "wait-for-websocket": True, "interactive": False, "environment": {}}
        async with session.post(f"/1.0/instances/{instance}/exec", json=body) as answer:
            envelope = await answer.json()
        if envelope["type"] == "error":
            raise RuntimeError(envelope["error"])
        operation = envelope["metadata"]
        secrets, base = operation["metadata"]["fds"], f"/1.0/operations/{operation['id']}"
        url = {fd: f"{base}/websocket?secret={secret}" for fd, secret in secrets.items()}
        async with asyncio.TaskGroup() as group:
            stdin = group.create_task(_stdin_at_end(session, url["0"]))
            stdout = group.create_task(_collect(session, url["1"]))
            stderr = group.create_task(_collect(session, url["2"]))
            await stdout
            await stderr
            stdin.cancel()
        async with session.get(f"{base}/wait?timeout=10") as answer:
            ended = (await answer.json())["metadata"]
    return ExecResult(int(ended["metadata"]["return"]), stdout.result().decode(), stderr.result().decode())


def run(socket: Path, instance: str, argv: list[str]) -> ExecResult:
    """Run and wait. Raises RuntimeError with the member's words.

    On a thread of its own: asyncio.run on the main thread would take an interrupt for itself and may lose it.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(_run(socket, instance, argv))).result()
