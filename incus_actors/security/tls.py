"""TLS as Incus needs it: a server that accepts any client certificate, a client that pins one fingerprint.

Owns the adapter between pyOpenSSL (whose verify callback Python's `ssl` lacks, DESIGN D13) and asyncio. Used by the
HTTPS listeners and by connections between members. A handshake proves only that the peer owns its key: it must never
be taken for trust, which gateway/access.py decides per request by fingerprint.
"""

from __future__ import annotations

import calendar
import hashlib
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from OpenSSL import SSL, crypto

T = TypeVar("T")

_RECORD_BYTES = 16 << 10  #: a TLS record decrypts to no more
_FLUSH_BYTES = 64 << 10
_SSL_MODE_ENABLE_PARTIAL_WRITE = 1


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """The certificate whose key the peer has proven to own. `not_after` is Unix time (infinite if unreadable)."""

    fingerprint: str  #: SHA-256 of the DER form, 64 lower-case hex digits
    der: bytes
    not_after: float

    @property
    def pem(self) -> str:
        """The certificate as PEM."""
        return ssl.DER_cert_to_PEM_cert(self.der)


def _accept_any(_connection: SSL.Connection, _certificate: crypto.X509, _error: int, _depth: int, _ok: int) -> bool:
    return True


class BioTLSObject:
    """What asyncio's SSLProtocol expects of an `ssl.SSLObject`, over an `OpenSSL.SSL.Connection`.

    asyncio owns two memory BIOs; ciphertext is moved between them and the connection's own pair.
    """

    def __init__(
        self,
        connection: SSL.Connection,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        context: TrustAnyClientContext,
    ) -> None:
        self._connection = connection
        self._incoming = incoming
        self._outgoing = outgoing
        self.context = context
        self.server_side = True
        self.server_hostname = None
        self.session = None
        self.session_reused = False
        self._undecrypted = False  # ciphertext may still sit in the connection's own BIO
        self._peer: PeerIdentity | None = None
        self._failure: ssl.SSLError | None = None

    # -- ciphertext -----------------------------------------------------------------------------------------------

    def _pull(self) -> None:
        data = self._incoming.read()
        if data:
            view = memoryview(data)
            while view:
                view = view[self._connection.bio_write(view) :]
            self._undecrypted = True
        if self._incoming.eof:
            self._connection.bio_shutdown()

    def _push(self) -> None:
        try:
            while True:
                self._outgoing.write(self._connection.bio_read(_FLUSH_BYTES))
        except SSL.WantReadError:
            return

    def _call(self, function: Callable[..., T], *args: Any) -> T:
        self._pull()
        try:
            return function(*args)
        except SSL.WantReadError:
            self._undecrypted = False
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "want read") from None
        except SSL.WantWriteError:
            raise ssl.SSLWantWriteError(ssl.SSL_ERROR_WANT_WRITE, "want write") from None
        except SSL.ZeroReturnError:
            raise ssl.SSLZeroReturnError(ssl.SSL_ERROR_ZERO_RETURN, "closed") from None
        except SSL.SysCallError as error:
            raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, str(error)) from None
        except SSL.Error as error:
            reasons = [part[-1] for part in error.args[0]] if error.args and isinstance(error.args[0], list) else []
            if "unexpected eof while reading" in reasons:
                raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "EOF occurred in violation of protocol") from None
            raise ssl.SSLError(ssl.SSL_ERROR_SSL, ", ".join(map(str, reasons)) or "TLS error") from None
        finally:
            self._push()

    # -- the surface that asyncio.sslproto uses -----------------------------------------------------------------------

    def do_handshake(self) -> None:
        """Raise SSLWantReadError until it is complete, SSLError when it failed.

        asyncio flushes only while we want more, so a failure is told one call late: the client gets its alert
        ("protocol version" for TLS 1.2) instead of a reset.
        """
        if self._failure is not None:
            raise self._failure
        try:
            self._call(self._connection.do_handshake)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLEOFError):
            raise
        except ssl.SSLError as error:
            if not self._outgoing.pending:
                raise
            self._failure = error
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "the alert goes out first") from error

    def read(self, n: int = 1024, buffer: Any = None) -> bytes | int:
        """Return decrypted bytes, or their number when they went into `buffer`; nothing after close_notify."""
        try:
            if buffer is not None:
                return self._call(self._connection.recv_into, buffer, n)
            return self._call(self._connection.recv, min(n, _RECORD_BYTES))
        except ssl.SSLZeroReturnError:
            return 0 if buffer is not None else b""

    def write(self, data: Any) -> int:
        """Encrypt some of `data`; return how much."""
        return self._call(self._connection.send, data)

    def unwrap(self) -> None:
        """Send close_notify; raise SSLWantReadError until the peer's has come."""
        if not self._call(self._connection.shutdown):
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "want close_notify")

    def pending(self) -> int:
        """Return how many bytes may be read without more from the network.

        Ciphertext that was moved out of `incoming` counts too: uvloop reads only while something is pending, and with
        TLS 1.3 the first request rides in the same flight as the client's Finished.
        """
        return self._connection.pending() or (_RECORD_BYTES if self._undecrypted else 0)

    def peer_identity(self) -> PeerIdentity | None:
        """Return the peer's certificate, None if it showed none. Parsed once per connection."""
        if self._peer is None:
            certificate = self._connection.get_peer_certificate()
            if certificate is not None:
                der = crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)
                self._peer = PeerIdentity(hashlib.sha256(der).hexdigest(), der, _not_after(certificate))
        return self._peer

    def getpeercert(self, binary_form: bool = False) -> bytes | dict[str, Any] | None:
        """Return the peer's certificate as DER; in the dict form nothing is decoded."""
        peer = self.peer_identity()
        if peer is None:
            return None
        return peer.der if binary_form else {}

    def cipher(self) -> tuple[str, str, int] | None:
        """Return (name, protocol, bits), None before the handshake."""
        name = self._connection.get_cipher_name()
        version, bits = self._connection.get_cipher_version(), self._connection.get_cipher_bits()
        return (name, version, bits) if name is not None and version is not None and bits is not None else None

    def version(self) -> str:
        """Return "TLSv1.3"."""
        return self._connection.get_protocol_version_name()

    def compression(self) -> None:
        """There never is any."""

    def selected_alpn_protocol(self) -> str | None:
        """Return "http/1.1" if the client offered it."""
        return self._connection.get_alpn_proto_negotiated().decode() or None


def _not_after(certificate: crypto.X509) -> float:
    text = certificate.get_notAfter()
    try:
        return calendar.timegm(time.strptime((text or b"").decode(), "%Y%m%d%H%M%SZ"))
    except ValueError:
        return float("inf")


def _select_alpn(_connection: SSL.Connection, offered: list[bytes]) -> Any:
    return b"http/1.1" if b"http/1.1" in offered else SSL.NO_OVERLAPPING_PROTOCOLS


def _server_context(certificate_file: Path, key_file: Path) -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.use_certificate_chain_file(str(certificate_file))
    context.use_privatekey_file(str(key_file))
    context.check_privatekey()
    context.set_verify(SSL.VERIFY_PEER, _accept_any)  # ask, never require
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)  # a resumed session would carry a stale identity
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION)
    context.set_mode(_SSL_MODE_ENABLE_PARTIAL_WRITE)
    context.set_alpn_select_callback(_select_alpn)
    return context


class TrustAnyClientContext(ssl.SSLContext):
    """An `ssl.SSLContext` whose server side asks for a client certificate and accepts any, or none.

    TLS 1.3 only, no resumption. It is a subclass because asyncio, uvloop and aiohttp check that. Raises
    `OpenSSL.SSL.Error` when the files don't hold a certificate and its key.
    """

    def __new__(cls, *_args: object, **_kwargs: object) -> TrustAnyClientContext:  # noqa: D102
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, certificate_file: Path, key_file: Path) -> None:
        self._openssl = _server_context(certificate_file, key_file)

    def reload(self, certificate_file: Path, key_file: Path) -> None:
        """Show another certificate from the next handshake on; open connections go on. Raises as the constructor."""
        self._openssl = _server_context(certificate_file, key_file)

    def wrap_bio(  # type: ignore[override]
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: object = None,
    ) -> BioTLSObject:
        """Called by asyncio for each connection."""
        if not server_side:
            raise ValueError("this context is for servers")
        connection = SSL.Connection(self._openssl, None)
        connection.set_accept_state()
        return BioTLSObject(connection, incoming, outgoing, self)


def client_context(certificate_file: Path, key_file: Path) -> ssl.SSLContext:
    """Return a TLS 1.3 client context that shows our certificate and verifies no chain.

    Whoever uses it must check the peer's fingerprint on every connection: with aiohttp,
    `TCPConnector(ssl=aiohttp.Fingerprint(digest))` beside `ssl=` this context on each request.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # pinned by fingerprint instead: dates and names mean nothing (lxc/incus#2498)
    context.load_cert_chain(certificate_file, key_file)
    return context
