"""Who asks, and what may they? Fingerprints against the trust store (CONTRACT 1, DESIGN D13).

Owns Caller, the cached trust store and the meaning of the X-Incus-forwarded-* headers. Called by the REST middleware
once per request; must never trust a header of anybody but a member.
"""

from __future__ import annotations

import hmac
import pwd
import re
import socket
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

from aiohttp import web

if TYPE_CHECKING:
    from incus_actors.state.reader import Reader

FORWARDED_ADDRESS = "X-Incus-forwarded-address"
FORWARDED_USERNAME = "X-Incus-forwarded-username"
FORWARDED_PROTOCOL = "X-Incus-forwarded-protocol"
DETOUR = "X-Incus-Actors-Detour"  #: id of the member that passes this on because it is cut off: we stand in for it

CertificateKind = Literal["client", "server", "metrics"]
_KINDS: dict[int, CertificateKind] = {1: "client", 2: "server", 3: "metrics"}
_MEMBER_ID = re.compile(r"[1-9][0-9]{0,17}")
_PEER_CREDENTIALS = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `projects` None means every project; `fingerprint` is of the certificate on this connection.

    protocol: "unix" (this host, or forwarded from another member's socket), "tls" (a client certificate), "member"
    (a member on its own behalf), "untrusted". `username` is the login name, or for tls the fingerprint.
    """

    protocol: Literal["unix", "tls", "member", "untrusted"]
    username: str
    address: str
    fingerprint: str | None = None
    certificate_pem: str | None = None
    projects: frozenset[str] | None = None
    trusted: bool = False
    metrics_only: bool = False
    forwarded: bool = False  #: another member passed this request on: never forward it to a third
    detoured: int = 0  #: the member that was asked and is cut off: we do, or forward, what it should have

    def may_use(self, project: str) -> bool:
        """Return whether this caller may touch things of `project`."""
        return self.trusted and not self.metrics_only and (self.projects is None or project in self.projects)

    def requestor(self) -> dict[str, str]:
        """Return what lifecycle events say about the caller (CONTRACT 3.3)."""
        return {"username": self.username, "protocol": self.protocol, "address": self.address}


@dataclass(frozen=True, slots=True)
class TrustedCertificate:
    """One row of the trust store."""

    fingerprint: str
    name: str
    kind: CertificateKind
    restricted: bool = False
    projects: frozenset[str] = frozenset()


class PeerCertificate(Protocol):
    """What security/tls.py knows of a connection's peer."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the DER form, 64 hex digits."""

    @property
    def pem(self) -> str:
        """The certificate."""

    @property
    def not_after(self) -> float:
        """Unix time."""


def read_trusted_certificates(database: Reader) -> list[TrustedCertificate]:
    """Return the whole trust store as of the applied state."""
    projects: dict[int, set[str]] = {}
    for certificate_id, project in database.query(
        "SELECT cp.certificate_id, p.name FROM certificates_projects cp JOIN projects p ON p.id = cp.project_id"
    ):
        projects.setdefault(certificate_id, set()).add(project)
    return [
        TrustedCertificate(
            fingerprint, name, _KINDS.get(kind, "client"), bool(restricted), frozenset(projects.get(id_, ()))
        )
        for id_, fingerprint, name, kind, restricted in database.query(
            "SELECT id, fingerprint, name, type, restricted FROM certificates"
        )
    ]


class Access:
    """The trust store in memory. `load` is called by `refresh()`: at start and on topics "certificates", "projects"."""

    def __init__(
        self, load: Callable[[], Iterable[TrustedCertificate]], *, clock: Callable[[], float] = time.time
    ) -> None:
        self._load = load
        self._clock = clock
        self._certificates: dict[str, TrustedCertificate] = {}
        self._user_names: dict[int, str] = {}

    def refresh(self) -> None:
        """Read the trust store again; takes effect for the next request of every connection."""
        self._certificates = {c.fingerprint: c for c in self._load()}

    def certificate(self, fingerprint: str) -> TrustedCertificate | None:
        """Return the trusted certificate with exactly this fingerprint."""
        found = self._certificates.get(fingerprint)
        return found if found is not None and hmac.compare_digest(found.fingerprint, fingerprint) else None

    def unix_caller(self, connection: socket.socket) -> Caller:
        """Return the caller at the other end of a unix socket: who may open it is trusted with everything."""
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
        _pid, uid, _gid = _PEER_CREDENTIALS.unpack(raw)
        return Caller("unix", self._user_name(uid), "@", trusted=True)

    def tls_caller(self, peer: PeerCertificate | None, address: str, headers: Mapping[str, str]) -> Caller:
        """Return the caller of a TLS connection, `peer` being the certificate it has proven to own."""
        if peer is None:
            return Caller("untrusted", "", address)
        found = self.certificate(peer.fingerprint)
        stranger = Caller("untrusted", "", address, peer.fingerprint, peer.pem)
        if found is None:
            return stranger
        if found.kind == "server":  # members outlive the dates of their certificates (lxc/incus#2498)
            caller = self._member_caller(found, peer, address, headers)
            asked = headers.get(DETOUR, "")
            return replace(caller, forwarded=False, detoured=int(asked)) if _MEMBER_ID.fullmatch(asked) else caller
        if peer.not_after < self._clock():
            return stranger
        return self._client_caller(found, address, peer.fingerprint, peer.pem)

    def _client_caller(
        self, found: TrustedCertificate, address: str, fingerprint: str, pem: str | None, *, forwarded: bool = False
    ) -> Caller:
        return Caller(
            "tls",
            found.fingerprint,
            address,
            fingerprint,
            pem,
            projects=found.projects if found.restricted else None,
            trusted=True,
            metrics_only=found.kind == "metrics",
            forwarded=forwarded,
        )

    def _member_caller(
        self, member: TrustedCertificate, peer: PeerCertificate, address: str, headers: Mapping[str, str]
    ) -> Caller:
        protocol = headers.get(FORWARDED_PROTOCOL, "")
        username = headers.get(FORWARDED_USERNAME, "")
        original = headers.get(FORWARDED_ADDRESS, address)
        if protocol == "unix":
            return Caller("unix", username, original, peer.fingerprint, trusted=True, forwarded=True)
        if protocol == "tls":
            found = self.certificate(username)
            if found is None or found.kind == "server":  # revoked meanwhile, or a member that pretends
                return Caller("untrusted", username, original, peer.fingerprint, peer.pem, forwarded=True)
            return self._client_caller(found, original, username, None, forwarded=True)
        if protocol:
            return Caller("untrusted", username, original, peer.fingerprint, peer.pem, forwarded=True)
        return Caller("member", member.name, address, peer.fingerprint, peer.pem, trusted=True)

    def _user_name(self, uid: int) -> str:
        if uid not in self._user_names:
            try:
                self._user_names[uid] = pwd.getpwuid(uid).pw_name
            except KeyError:
                self._user_names[uid] = str(uid)
        return self._user_names[uid]


CALLER = web.RequestKey("caller", Caller)


def caller_of(request: web.Request) -> Caller:
    """Return who sent `request`; the middleware has set it before any handler runs."""
    return request[CALLER]


def forwarding_headers(caller: Caller) -> dict[str, str]:
    """Return the headers that tell another member for whom we ask."""
    if caller.protocol == "member":
        return {}
    return {
        FORWARDED_ADDRESS: caller.address,
        FORWARDED_USERNAME: caller.username,
        FORWARDED_PROTOCOL: caller.protocol,
    }
