"""Joining this server to a cluster: tokens, the other side's certificate, trust, and the request to our daemon.

Owns what the client does before the daemon joins (CONTRACT 6.3, 6.4); called by the questions, by preseeds and by
discovery. Must never trust a certificate whose fingerprint was neither in the token nor confirmed, and never leave a
certificate of ours in a cluster that we did not join.
"""

from __future__ import annotations

import base64
import binascii
import json
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from incus_actors.cli.api_client import (
    ApiClient,
    ApiFailureError,
    UnreachableError,
    reason,
    server_certificate,
    tls_client,
    url,
)
from incus_actors.errors import BadRequestError
from incus_actors.services.addresses import normalise
from incus_actors.settings import incus_directory

_TOKEN_FIELDS = {"server_name": str, "fingerprint": str, "addresses": list, "secret": str}


class JoiningError(Exception):
    """It cannot go on; the text is what the user reads."""


class RefusedError(JoiningError):
    """The cluster does not let us in."""


@dataclass(frozen=True, slots=True)
class Token:
    """A join token that looks right; whether it is valid only the cluster knows."""

    text: str
    server_name: str
    fingerprint: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the cluster that answers, with the certificate that was checked."""

    address: str
    der: bytes

    @property
    def pem(self) -> str:
        """Its certificate."""
        return ssl.DER_cert_to_PEM_cert(self.der)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its certificate, 64 hex digits."""
        return fingerprint(self.der)


def fingerprint(der: bytes) -> str:
    """Return the SHA-256 of a certificate, 64 hex digits."""
    import hashlib

    return hashlib.sha256(der).hexdigest()


def decode_token(text: str) -> Token:
    """Return what a join token says. Raises JoiningError with the reason alone."""
    try:
        raw = json.loads(base64.b64decode("".join(text.split()), validate=True))
    except (binascii.Error, ValueError) as problem:
        if isinstance(problem, json.JSONDecodeError | UnicodeDecodeError):
            raise JoiningError("it does not hold JSON") from None
        raise JoiningError("illegal base64 data") from None
    if not isinstance(raw, dict) or any(not isinstance(raw.get(f), kind) for f, kind in _TOKEN_FIELDS.items()):
        raise JoiningError("it is no join token of a cluster")
    addresses = [str(each) for each in raw["addresses"]]
    if not (raw["server_name"] and raw["secret"] and raw["fingerprint"]):
        raise JoiningError("No server name, secret or fingerprint in it")
    if not addresses:
        raise JoiningError("No cluster member addresses in it")
    try:
        normal = tuple(normalise(each) for each in addresses)
    except BadRequestError as problem:
        raise JoiningError(str(problem)) from None
    return Token(text.strip(), raw["server_name"], raw["fingerprint"].lower(), normal)


def member_of(token: Token) -> Member:
    """Return the first member of the token's cluster that answers; who does not is named on stderr.

    Raises JoiningError: another certificate than the token's, or nobody there.
    """
    for address in token.addresses:
        try:
            der = server_certificate(address)
        except OSError as problem:
            click.echo(f'Error connecting to existing cluster member "{address}": {reason(problem)}', err=True)
            continue
        if fingerprint(der) != token.fingerprint:
            raise JoiningError(f'Certificate fingerprint mismatch between join token and cluster member "{address}"')
        return Member(address, der)
    raise JoiningError("Unable to connect to any of the cluster members specified in join token")


def member_at(address: str) -> Member:
    """Return whoever answers there; its fingerprint has to be confirmed. Raises JoiningError."""
    try:
        normal = normalise(address)
        return Member(normal, server_certificate(normal))
    except BadRequestError as problem:
        raise JoiningError(str(problem)) from None
    except OSError as problem:
        raise JoiningError(f'Error connecting to existing cluster member "{address}": {reason(problem)}') from None


def pinned_member(address: str, pem: str) -> Member:
    """Return the member at `address` with the certificate that a preseed gives. Raises JoiningError."""
    try:
        begin = pem.index(ssl.PEM_HEADER)
        end = pem.index(ssl.PEM_FOOTER, begin) + len(ssl.PEM_FOOTER)
        return Member(normalise(address), ssl.PEM_cert_to_DER_cert(pem[begin:end]))
    except ValueError:
        raise JoiningError("the cluster certificate is no PEM certificate") from None
    except BadRequestError as problem:
        raise JoiningError(str(problem)) from None


class Introduction:
    """This server's certificate in the trust store of a cluster that it wants to join.

    Call `introduce`, then use it as a context manager: the certificate is taken back unless `keep` was called.
    """

    def __init__(self, member: Member, name: str, *, token: str = "", password: str = "") -> None:
        directory = incus_directory()
        self._pair = (directory / "server.crt", directory / "server.key")
        self._member = member
        self._name = name
        self._given = {"trust_token": token} if token else {"trust_token": "", "password": password}
        self._added = False
        self.cluster = tls_client(member.address, expected_der=member.der, certificate=self._pair)

    def introduce(self) -> Introduction:
        """Show our certificate with the token or password; return self. Raises RefusedError, JoiningError."""
        stranger = tls_client(self._member.address, expected_der=self._member.der, certificate=None)
        body = {
            "name": self._name,
            "type": "server",
            "restricted": False,
            "projects": None,
            "certificate": self._certificate(),
            "description": "",
            "token": False,
            **self._given,
        }
        try:
            stranger.post(url("certificates"), body)
            self._added = True
        except ApiFailureError as failure:
            if failure.status != 409:
                raise RefusedError(f"Failed to setup trust with the cluster: {failure}") from None
        except UnreachableError as failure:
            raise JoiningError(str(failure)) from None
        return self

    def _certificate(self) -> str:
        try:
            pem = self._pair[0].read_text()
            der = ssl.PEM_cert_to_DER_cert(pem)
        except (OSError, ValueError) as problem:
            raise JoiningError(f"the certificate of this server can't be read: {problem}") from None
        self._fingerprint = fingerprint(der)
        return base64.b64encode(der).decode()

    def member_config(self) -> list[dict[str, Any]]:
        """Return what the cluster asks of each joining member. Raises JoiningError."""
        try:
            return list(self.cluster.get(url("cluster"))["member_config"] or [])
        except (ApiFailureError, UnreachableError) as failure:
            raise JoiningError(f"Failed to retrieve cluster information: {failure}") from None

    def keep(self) -> None:
        """We are a member: the certificate stays."""
        self._added = False

    def __enter__(self) -> Introduction:
        """Return self."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Take the certificate back."""
        if not self._added:
            return
        self._added = False
        try:
            self.cluster.delete(url("certificates", self._fingerprint))
        except (ApiFailureError, UnreachableError) as failure:
            click.echo(
                f"The certificate of this server is still trusted by {self._member.address}: {failure}", err=True
            )


def join(client: ApiClient, member: Member, *, name: str, server_address: str, token: str, config: Any) -> None:
    """Ask our daemon to join, and wait. Raises JoiningError; the daemon is then what it was before."""
    body = {
        "server_name": name,
        "enabled": True,
        "member_config": config,
        "cluster_address": member.address,
        "cluster_certificate": member.pem,
        "server_address": server_address,
        "cluster_token": token,
    }
    try:
        client.run("PUT", url("cluster"), body)
    except (ApiFailureError, UnreachableError) as failure:
        raise JoiningError(f"Failed to join cluster: {failure}") from None


def read_certificate(path: str) -> str:
    """Return the text of a certificate file named in a preseed. Raises JoiningError."""
    file = Path(path)
    if not file.exists():
        raise JoiningError(f"Path {path} doesn't exist")
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as problem:
        raise JoiningError(f"{path}: {problem}") from None


def takes_password(member: Member) -> bool:
    """Return whether the cluster lets servers in by a trust password. Raises JoiningError."""
    stranger = tls_client(member.address, expected_der=member.der, certificate=None)
    try:
        return "password" in (stranger.get("/1.0").get("auth_methods") or [])
    except (ApiFailureError, UnreachableError) as failure:
        raise JoiningError(str(failure)) from None
