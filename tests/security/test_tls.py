"""Handshakes with no, unknown and known certificates over real sockets; TLS 1.3 only; certificate changes."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from OpenSSL import SSL

from incus_actors.security.certificates import KeyPair, make_certificate, write_pair
from incus_actors.security.tls import BioTLSObject, PeerIdentity, TrustAnyClientContext, client_context


class Server:
    def __init__(self, context: TrustAnyClientContext) -> None:
        self.context = context
        self.peers: list[PeerIdentity | None] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tls = writer.get_extra_info("ssl_object")
        assert isinstance(tls, BioTLSObject)
        self.peers.append(tls.peer_identity())
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()


@pytest.fixture
def pair(tmp_path: Path) -> KeyPair:
    return write_pair(tmp_path, "server", *make_certificate("server"))


@pytest.fixture
async def server(pair: KeyPair) -> AsyncIterator[Server]:
    found = Server(TrustAnyClientContext(pair.certificate_path, pair.key_path))
    listener = await asyncio.start_server(found.serve, "127.0.0.1", 0, ssl=found.context)
    found.port = listener.sockets[0].getsockname()[1]
    yield found
    listener.close()


def anonymous() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def exchange(port: int, context: ssl.SSLContext, payload: bytes = b"hello") -> tuple[bytes, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    tls = writer.get_extra_info("ssl_object")
    shown = hashlib.sha256(tls.getpeercert(True)).hexdigest()

    async def send() -> None:
        writer.write(payload)
        await writer.drain()

    sending = asyncio.gather(send())
    answer = await reader.readexactly(len(payload))
    await sending
    writer.close()
    return answer, shown


async def test_a_client_without_certificate_is_served(server: Server, pair: KeyPair) -> None:
    assert await exchange(server.port, anonymous()) == (b"hello", pair.fingerprint)
    assert server.peers == [None]


async def test_an_unknown_self_signed_certificate_is_served_and_seen(server: Server, tmp_path: Path) -> None:
    stranger = write_pair(tmp_path, "stranger", *make_certificate("stranger"))
    answer, _ = await exchange(server.port, client_context(stranger.certificate_path, stranger.key_path))
    assert answer == b"hello"
    peer = server.peers[0]
    assert peer is not None
    assert peer.fingerprint == stranger.fingerprint
    assert peer.pem == stranger.certificate_pem
    assert peer.not_after > 2e9


async def test_a_megabyte_goes_through_unharmed(server: Server) -> None:
    payload = bytes(range(256)) * 4096 * 3
    answer, _ = await exchange(server.port, anonymous(), payload)
    assert answer == payload


async def test_tls_1_2_is_refused(server: Server) -> None:
    context = anonymous()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol version"):
        await exchange(server.port, context)


async def test_sessions_are_never_resumed(server: Server) -> None:
    context = anonymous()
    _, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=context)
    writer.write(b"x")
    await writer.drain()
    session = writer.get_extra_info("ssl_object").session
    writer.close()
    assert session is None or not session.has_ticket


async def test_a_replaced_certificate_shows_from_the_next_handshake_and_keeps_connections(
    server: Server, pair: KeyPair, tmp_path: Path
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=anonymous())
    new = write_pair(tmp_path, "new", *make_certificate("new"))
    server.context.reload(new.certificate_path, new.key_path)
    _, shown = await exchange(server.port, anonymous())
    assert shown == new.fingerprint
    writer.write(b"still here")
    assert await reader.readexactly(10) == b"still here"
    writer.close()


async def test_a_key_that_does_not_fit_is_refused(pair: KeyPair, tmp_path: Path) -> None:
    other = write_pair(tmp_path, "other", *make_certificate("other"))
    with pytest.raises(SSL.Error):
        TrustAnyClientContext(pair.certificate_path, other.key_path)


async def test_garbage_instead_of_a_handshake_only_ends_that_connection(server: Server) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    assert not (await reader.read(1024)).startswith(b"HTTP")
    writer.close()
    assert (await exchange(server.port, anonymous()))[0] == b"hello"


async def test_a_client_that_vanishes_ends_the_stream(server: Server) -> None:
    ended = asyncio.Event()
    serve = server.serve

    async def watched(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except ConnectionError:
            pass
        finally:
            ended.set()

    listener = await asyncio.start_server(watched, "127.0.0.1", 0, ssl=server.context)
    _, writer = await asyncio.open_connection("127.0.0.1", listener.sockets[0].getsockname()[1], ssl=anonymous())
    writer.transport.abort()
    async with asyncio.timeout(5):
        await ended.wait()
    listener.close()
