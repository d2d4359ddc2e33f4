"""Listening: stale and live sockets, modes, activation, re-binding without dropping, address planning."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from gateway_kit import TestMember, client_pair, free_port, running_member, whoami

from incus_actors.errors import ApiError, MemberError
from incus_actors.rest import listeners
from incus_actors.rest.http import RouteSpec
from incus_actors.rest.listeners import parse_listen_address, plan_addresses, unix_socket

ROUTES = [RouteSpec("GET", "/1.0", whoami, access="untrusted")]


@pytest.fixture
async def member(tmp_path: Path) -> AsyncIterator[TestMember]:
    async with running_member(tmp_path / "m1", ROUTES) as found:
        yield found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (":8443", ("", 8443)),
        ("[::]:8443", ("", 8443)),
        ("0.0.0.0:8443", ("0.0.0.0", 8443)),
        ("10.0.0.1", ("10.0.0.1", 8443)),
        ("10.0.0.1:1", ("10.0.0.1", 1)),
        ("[fd00::1]:99", ("fd00::1", 99)),
        ("[fd00::1]", ("fd00::1", 8443)),
        ("fd00::1", ("fd00::1", 8443)),
        ("host.example:8443", ("host.example", 8443)),
    ],
)
def test_addresses_as_users_write_them(text: str, expected: tuple[str, int]) -> None:
    assert parse_listen_address(text) == expected


@pytest.mark.parametrize("text", ["a:b", "a:0", "a:65536", "a:-1", "a:"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(ApiError, match="Invalid listen address"):
        parse_listen_address(text)


@pytest.mark.parametrize(
    ("configured", "expected"),
    [
        (("", ""), []),
        (("10.0.0.1:8443", "10.0.0.1:8443"), [("10.0.0.1", 8443)]),
        ((":8443", "10.0.0.1:8443"), [("", 8443)]),
        (("0.0.0.0:8443", "10.0.0.1:8443"), [("0.0.0.0", 8443)]),
        (("0.0.0.0:8443", "[fd00::1]:8443"), [("0.0.0.0", 8443), ("fd00::1", 8443)]),
        ((":8443", "10.0.0.1:8444"), [("", 8443), ("10.0.0.1", 8444)]),
        (("", "10.0.0.1:8443"), [("10.0.0.1", 8443)]),
    ],
)
def test_no_address_is_listened_on_twice(configured: tuple[str, str], expected: list[tuple[str, int]]) -> None:
    assert plan_addresses(*configured) == expected


def test_the_socket_has_mode_and_group_and_replaces_a_stale_one(tmp_path: Path) -> None:
    path = tmp_path / "unix.socket"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    found = unix_socket(path, "root" if os.geteuid() == 0 else None)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    with pytest.raises(MemberError, match="already listening"):
        unix_socket(path, None)
    found.close()
    with pytest.raises(MemberError, match='Group "no-such-group" doesn\'t exist'):
        unix_socket(path, "no-such-group")
    with pytest.raises(MemberError, match="too long"):
        unix_socket(tmp_path / ("x" * 120), None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["unix.socket"]


async def status_of(address: str) -> int:
    connector = aiohttp.TCPConnector(ssl=False, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session, session.get(f"https://{address}/1.0") as response:
        return response.status


async def test_listening_moves_at_run_time_and_open_event_sockets_stay(member: TestMember, tmp_path: Path) -> None:
    pair = client_pair(tmp_path / "clients", "watcher")
    member.database.add_certificate(pair.certificate_pem, 1)
    member.gateway.access.refresh()
    async with member.tls_session(pair) as session, session.ws_connect("/1.0/events") as ws:
        new = f"127.0.0.1:{free_port()}"
        await member.listeners.set_https(new)
        assert member.listeners.https_addresses == [new]
        assert await status_of(new) == 200
        with pytest.raises(aiohttp.ClientConnectorError):
            await status_of(member.address)
        shown = client_pair(tmp_path / "clients", "another")
        member.listeners.use_certificate(shown.certificate_path, shown.key_path)
        await member.listeners.set_https()
        member.gateway.events.lifecycle("config-updated", "/1.0")
        assert "config-updated" in (await ws.receive(timeout=5)).data


async def test_an_address_that_is_taken_changes_nothing(member: TestMember) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(MemberError, match=f"Failed to listen on {address}: address already in use"):
            await member.listeners.set_https(address)
    assert member.listeners.https_addresses == [member.address]
    assert await status_of(member.address) == 200


async def test_an_address_widens_to_everywhere_on_its_port(member: TestMember) -> None:
    port = member.address.rpartition(":")[2]
    await member.listeners.set_https(f":{port}")
    assert await status_of(member.address) == 200
    await member.listeners.set_https(member.address)
    assert await status_of(member.address) == 200


def close_as_the_kernel_does(member: TestMember) -> None:
    """What `ss -K` does to a listener: the descriptor stays, nobody listens."""
    (server,) = member.listeners._https.values()
    with socket.socket(fileno=os.dup(server.sockets[0].fileno())) as twin:
        twin.shutdown(socket.SHUT_RDWR)


async def answers(address: str) -> None:
    """Until somebody listens there."""
    async with asyncio.timeout(5):
        while True:
            try:
                assert await status_of(address) == 200
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.02)
            else:
                return


async def test_a_listener_that_the_kernel_closed_is_opened_again(
    member: TestMember, caplog: pytest.LogCaptureFixture
) -> None:
    close_as_the_kernel_does(member)
    await answers(member.address)
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
        f"The kernel has closed the listener on {member.address}"
    ]
    assert member.listeners.https_addresses == [member.address]


async def test_a_closed_listener_is_opened_as_soon_as_its_port_is_free(
    member: TestMember, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "LISTEN_AGAIN_S", 0.05)
    close_as_the_kernel_does(member)
    with socket.create_server(("127.0.0.1", int(member.address.rpartition(":")[2]))):
        async with asyncio.timeout(5):
            while "Failed to listen" not in caplog.text:
                await asyncio.sleep(0.02)
    await answers(member.address)


async def test_a_closed_listener_stays_closed_where_nothing_shall_listen_any_more(member: TestMember) -> None:
    close_as_the_kernel_does(member)
    new = f"127.0.0.1:{free_port()}"
    await member.listeners.set_https(new)
    await answers(new)
    with pytest.raises(aiohttp.ClientConnectorError):
        await status_of(member.address)
    assert member.listeners.https_addresses == [new]


async def test_a_passed_socket_is_served_and_left_in_place(member: TestMember, tmp_path: Path) -> None:
    path = tmp_path / "activated.socket"
    passed = socket.socket(socket.AF_UNIX)
    passed.bind(str(path))
    passed.listen()
    passed.setblocking(False)
    member.listeners.stop_accepting()
    assert not (member.directory / "unix.socket").exists()
    await member.listeners.open_unix(member.directory / "unix.socket", passed=passed)
    connector = aiohttp.UnixConnector(str(path), force_close=True)
    async with aiohttp.ClientSession("http://x", connector=connector) as session, session.get("/1.0") as response:
        assert response.status == 200
    member.listeners.stop_accepting()
    assert path.exists()


async def test_closing_lets_a_running_request_end(tmp_path: Path) -> None:
    from aiohttp import web

    from incus_actors.rest.http import sync

    arrived = asyncio.Event()

    async def slow(_request: web.Request) -> web.StreamResponse:
        arrived.set()
        await asyncio.sleep(0.2)
        return sync("done")

    async with (
        running_member(tmp_path / "m", [RouteSpec("GET", "/1.0/slow", slow)]) as member,
        member.unix_session() as session,
        asyncio.TaskGroup() as group,
    ):
        answer = group.create_task(session.get("/1.0/slow"))  # type: ignore[arg-type]
        await arrived.wait()
        await member.listeners.close()
        assert (await (await answer).json())["metadata"] == "done"


async def test_closing_goes_on_when_the_disk_of_the_socket_has_failed(
    member: TestMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path, *, missing_ok: bool = False) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(Path, "unlink", fails)
    await member.listeners.close()
    with pytest.raises(aiohttp.ClientConnectorError):
        async with member.unix_session() as session:
            await session.get("/1.0")
