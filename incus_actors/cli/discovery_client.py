"""The asking side of discovery: find servers that wait, and prove to one that its code was read and typed here.

Owns browsing, checking what was heard against what is there, and the four requests of a pairing; used by
cluster_discovery.py and init_discover.py. Must never show or use a certificate that was only claimed.
"""

from __future__ import annotations

import secrets
import socket
from dataclasses import dataclass
from typing import Any

from incus_actors.cli import joining
from incus_actors.cli.api_client import ApiFailureError, UnreachableError, reason, server_certificate, tls_client
from incus_actors.security import pairing
from incus_actors.security.pairing import Transcript
from incus_actors.services.addresses import join_host
from incus_actors.services.local_network import LocalInterface
from incus_actors.settings import incus_directory
from incus_actors.transport.mdns import Heard, browse

JOIN_TIMEOUT_S = 150.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A server that waits, with the certificate that it really shows."""

    name: str
    host: str
    port: int
    interface: str
    der: bytes

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its certificate, 64 hex digits."""
        return joining.fingerprint(self.der)


@dataclass(frozen=True, slots=True)
class Found:
    """Who waits, and which answers were refused and why."""

    candidates: list[Candidate]
    refused: list[str]


def search(interfaces: list[LocalInterface], *, timeout_s: float, enough: int = 0, own: str = "") -> Found:
    """Look for waiting servers for `timeout_s` seconds; `own` is our fingerprint, which is left out.

    Raises transport.mdns.MdnsError.
    """
    addresses = [address for interface in interfaces for address in interface.addresses]
    found = Found([], [])
    for heard in browse(addresses, timeout_s=timeout_s, enough=enough):
        if heard.fingerprint == own:
            continue
        candidate = _checked(heard, interfaces, found.refused)
        if candidate is not None and candidate.fingerprint not in {each.fingerprint for each in found.candidates}:
            found.candidates.append(candidate)
    found.candidates.sort(key=lambda each: (each.name, each.host))
    return found


def _checked(heard: Heard, interfaces: list[LocalInterface], refused: list[str]) -> Candidate | None:
    why = "nobody answers there"
    for host in heard.addresses:
        try:
            der = server_certificate(join_host(host, heard.port))
        except OSError as problem:
            why = reason(problem)
            continue
        if joining.fingerprint(der) != heard.fingerprint:
            why = f"it shows the certificate {joining.fingerprint(der)[:12]}, but announces {heard.fingerprint[:12]}"
            continue
        return Candidate(heard.name, host, heard.port, _interface_to(host, interfaces), der)
    refused.append(f"{heard.name} ({', '.join(heard.addresses)}): {why}")
    return None


def _interface_to(host: str, interfaces: list[LocalInterface]) -> str:
    """Return the interface through which we reach a host."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect((host, 9))
            own = str(asking.getsockname()[0])
        except OSError:
            return ""
    return next((each.name for each in interfaces if own in each.addresses), "")


class Pairing:
    """One conversation with a waiting server. Raises JoiningError from every step."""

    def __init__(self, candidate: Candidate, own_fingerprint: str) -> None:
        directory = incus_directory()
        self.candidate = candidate
        self._own = own_fingerprint
        self._client = tls_client(
            join_host(candidate.host, candidate.port),
            expected_der=candidate.der,
            certificate=(directory / "server.crt", directory / "server.key"),
        )
        self._transcript: Transcript | None = None

    def _post(self, step: str, body: dict[str, Any], *, timeout_s: float = 20.0) -> Any:
        try:
            return self._client.request("POST", f"/discovery/1/{step}", body, timeout_s=timeout_s).metadata
        except ApiFailureError as failure:
            raise joining.RefusedError(str(failure)) from None
        except UnreachableError as failure:
            raise joining.JoiningError(str(failure)) from None

    def ask(self, own_name: str) -> None:
        """Make the server show a code for us."""
        nonce = secrets.token_hex(pairing.NONCE_BYTES)
        answer = self._post("ask", {"name": own_name, "nonce": nonce})
        self._transcript = Transcript(self._own, self.candidate.fingerprint, nonce, str(answer["session"]))

    def confirm(self, code: str) -> None:
        """Prove that `code` (normal form) was typed, and that the server knows it too. Raises RefusedError."""
        assert self._transcript is not None
        key = pairing.derive(code, self._transcript)
        body = {"session": self._transcript.session, "proof": pairing.asker_proof(key)}
        answer = self._post("confirm", body)
        if not pairing.same(pairing.waiting_proof(key), str(answer.get("proof", ""))):
            raise joining.JoiningError(f"{self.candidate.name} does not know the code it shows: somebody is in between")

    def facts(self) -> dict[str, Any]:
        """Return what the server has: address, disks, storage drivers, interfaces."""
        assert self._transcript is not None
        return dict(self._post("facts", {"session": self._transcript.session}))

    def join(self, put: dict[str, Any]) -> None:
        """Make the server join; returns when it is a member."""
        assert self._transcript is not None
        body = {"session": self._transcript.session, "put": put}
        self._post("join", body, timeout_s=JOIN_TIMEOUT_S)
