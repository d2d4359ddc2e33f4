"""Calls to other members go over TLS to exactly the certificate that we were told of, and show ours."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from aiohttp import web

from incus_actors.security import certificates
from incus_actors.security.tls import TrustAnyClientContext
from incus_actors.services.peer_client import PeerClient, PeerRefusedError, PeerUnreachableError


@contextlib.asynccontextmanager
async def listening(directory, handler):
    pair = certificates.load_or_create(directory, "cluster", "peer")
    app = web.Application()
    app.router.add_post("/x", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=TrustAnyClientContext(pair.certificate_path, pair.key_path))
    await site.start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}", pair.certificate_pem
    finally:
        await runner.cleanup()


@pytest.fixture
def client(tmp_path):
    pair = certificates.load_or_create(tmp_path, "server", "us")
    return PeerClient(pair.certificate_path, pair.key_path)


async def test_answer_and_proof_of_who_we_are(tmp_path, client):
    seen = []

    async def handler(request: web.Request) -> web.Response:
        ssl_object = request.transport.get_extra_info("ssl_object")
        seen.append((certificates.fingerprint_der(ssl_object.getpeercert(True)), await request.json()))
        return web.json_response({"type": "sync", "metadata": {"answer": 42}})

    async with listening(tmp_path, handler) as (address, pem):
        assert await client.post(address, "/x", {"a": 1}, certificate_pem=pem, timeout_s=5) == {"answer": 42}
    own = certificates.load_pair(tmp_path, "server")
    assert own is not None
    assert seen == [(own.fingerprint, {"a": 1})]


async def test_refusals_carry_text_and_status(tmp_path, client):
    async def handler(_request: web.Request) -> web.Response:
        return web.json_response({"type": "error", "error": "Token has expired", "error_code": 403}, status=403)

    async with listening(tmp_path, handler) as (address, pem):
        with pytest.raises(PeerRefusedError, match=r"^Token has expired$") as caught:
            await client.post(address, "/x", {}, certificate_pem=pem, timeout_s=5)
        assert caught.value.status == 403
        with pytest.raises(PeerUnreachableError, match=r"Failed to connect to target cluster node"):
            await client.post(address, "/nope", {}, certificate_pem=pem, timeout_s=5)


async def test_another_certificate_is_not_talked_to(tmp_path, client):
    asked = []

    async def handler(request: web.Request) -> web.Response:
        asked.append(request)
        return web.json_response({})

    other, _ = certificates.make_certificate("peer")
    async with listening(tmp_path, handler) as (address, _pem):
        with pytest.raises(PeerUnreachableError, match=r"Certificate fingerprint mismatch"):
            await client.post(address, "/x", {"secret": 1}, certificate_pem=other, timeout_s=5)
    assert asked == []


async def test_nobody_there_and_nobody_answers(tmp_path, client):
    pem, _ = certificates.make_certificate("peer")
    with pytest.raises(PeerUnreachableError, match=r'"127.0.0.1:1": Connection refused$'):
        await client.post("127.0.0.1:1", "/x", {}, certificate_pem=pem, timeout_s=5)

    async def handler(_request: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    async with listening(tmp_path, handler) as (address, shown):
        with pytest.raises(PeerUnreachableError, match=r"no answer in time$"):
            await client.post(address, "/x", {}, certificate_pem=shown, timeout_s=0.3)
