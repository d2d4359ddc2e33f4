"""The trust store: who may talk to this cluster, and the tokens that let somebody in once (CONTRACT 7.2, 6.5).

Owns the rules of /1.0/certificates with Incus' texts; called by rest/certificate_routes.py. A token works once: what
it gives and its end are one transaction. Must never compare a secret with `==` or put one into a log or an error.
"""

from __future__ import annotations

import base64
import binascii
import logging
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec

from incus_actors.consensus.api import Consensus
from incus_actors.domain import transactions_trust as transactions
from incus_actors.domain.members import parse_rfc3339_ns, rfc3339
from incus_actors.domain.transactions_trust import NewCertificate, NewToken
from incus_actors.errors import (
    ApiError,
    BadRequestError,
    ClientError,
    ConflictError,
    ForbiddenError,
    MemberError,
    NotFoundError,
)
from incus_actors.identity import Identity
from incus_actors.model.config_values import parse_expiry_s
from incus_actors.model.resources import Certificate, CertificatePut, CertificatesPost
from incus_actors.security import certificates as security
from incus_actors.security import tokens
from incus_actors.services.proposing import (
    DuplicateError,
    Expect,
    TransactionConflictError,
    propose,
    until_unchanged,
)
from incus_actors.services.trust_password import TrustPassword
from incus_actors.state.queries import certificates as queries
from incus_actors.state.queries.certificates import TYPE_NUMBERS, CertificateRow, TokenRow
from incus_actors.state.reader import Reader

_log = logging.getLogger(__name__)

_NO_TOKEN: Final = "No matching certificate add operation found"  # noqa: S105  # a text
_NOT_FOUND: Final = "Certificate not found"


class JoinTokenRedeemer(Protocol):
    """services.join_tokens.JoinTokens: what happens with a token that is a joining server's."""

    async def trust_certificate(self, text: str, fingerprint: str, certificate_pem: str) -> str:
        """Use the token up, trust the certificate as a server's; return its name. Raises ApiError."""


class TrustService:
    """`addresses` are where clients reach the cluster, `fingerprint` that of the certificate its listeners show,
    `new_operation_id` makes the id under which a token is seen, `config` reads one of the server's keys."""

    def __init__(
        self,
        *,
        consensus: Consensus,
        database: Reader,
        identity: Identity,
        join_tokens: JoinTokenRedeemer,
        addresses: Callable[[], list[str]],
        fingerprint: Callable[[], str],
        config: Callable[[str], str],
        new_operation_id: Callable[[], str],
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._consensus = consensus
        self._database = database
        self._identity = identity
        self._join_tokens = join_tokens
        self._addresses = addresses
        self._fingerprint = fingerprint
        self._config = config
        self._new_operation_id = new_operation_id
        self._clock_ns = clock_ns
        self.password = TrustPassword(database)

    # -- reading ------------------------------------------------------------------------------------------------------

    def list(self) -> list[Certificate]:
        """Return all trusted certificates."""
        return [_shown(row) for row in queries.certificates(self._database)]

    def get(self, fingerprint: str) -> Certificate:
        """Return the certificate with that fingerprint or unique beginning of one. Raises NotFoundError."""
        return _shown(self._row(fingerprint))

    def _row(self, fingerprint: str) -> CertificateRow:
        rows = queries.certificates(self._database, fingerprint.lower()) if fingerprint else []
        if len(rows) > 1:
            raise BadRequestError("More than one certificate matches")
        if not rows:
            raise NotFoundError(_NOT_FOUND)
        return rows[0]

    # -- trusting -----------------------------------------------------------------------------------------------------

    async def add(self, post: CertificatesPost) -> str:
        """Trust the certificate in `post`, asked for by a trusted caller; return its fingerprint.

        Raises BadRequestError, NotFoundError (project), ConflictError (known).
        """
        if not post.certificate:
            raise BadRequestError("Client is already trusted")
        pem, fingerprint = _from_base64(post.certificate)
        type_ = TYPE_NUMBERS.get(post.type)
        if type_ is None:
            raise BadRequestError("Invalid certificate type")
        new = NewCertificate(
            fingerprint=fingerprint,
            type=type_,
            name=post.name or security_name(pem),
            pem=pem,
            restricted=post.restricted,
            description=post.description,
            projects=tuple(post.projects or ()),
        )
        await self._add(new, None)
        return fingerprint

    async def _add(self, new: NewCertificate, token_uuid: str | None) -> None:
        try:
            await propose(self._consensus, transactions.add_certificate(new, token_uuid=token_uuid))
        except DuplicateError:
            raise ConflictError("Certificate already in trust store") from None
        except TransactionConflictError as conflict:
            if conflict.label == "token":
                raise ForbiddenError(_NO_TOKEN) from None
            raise NotFoundError("Project not found") from None

    async def admit(self, post: CertificatesPost, peer_pem: str | None, password: str, address: str) -> str:
        """Trust a stranger at `address` who knows the trust password; return the fingerprint. A certificate of type
        "server" is that of a server that wants to join under the name in `post`.

        Raises ForbiddenError, ClientError (429), BadRequestError, ConflictError, MemberError (the name is taken).
        """
        await self._consensus.read_barrier()  # it may have been taken away on another member a moment ago
        await self.password.admit(password, address)
        if post.type not in ("client", "server"):
            raise BadRequestError("Invalid certificate type")
        if post.certificate:
            pem, fingerprint = _from_base64(post.certificate)
        elif peer_pem:
            pem, fingerprint = peer_pem, security.fingerprint_pem(peer_pem)
        else:
            raise BadRequestError("No client certificate provided")
        if post.type == "server":
            if not self._identity.clustered:
                raise BadRequestError("This server is not clustered")
            if not post.name:
                raise BadRequestError("No name provided")
            if self._is_member(post.name):
                raise MemberError(f"The cluster already has a member with name: {post.name}")
        name = post.name or security_name(pem)
        await self._add(
            NewCertificate(
                fingerprint=fingerprint,
                type=TYPE_NUMBERS[post.type],
                name=name,
                pem=pem,
                restricted=post.restricted,
                description=post.description,
                projects=tuple(post.projects or ()),
            ),
            None,
        )
        _log.info("%s at %s is trusted now, by password: %s %s", name, address, post.type, fingerprint[:12])
        return fingerprint

    async def redeem(self, post: CertificatesPost, peer_pem: str | None) -> str:
        """Trust a stranger who shows a token; return the fingerprint. `peer_pem` is the TLS peer's certificate.

        Raises ForbiddenError (403 with Incus' texts), BadRequestError, ConflictError.
        """
        try:
            shown = tokens.decode(post.trust_token)
        except tokens.TokenError:
            raise ForbiddenError from None
        await self._consensus.read_barrier()  # a token may have been made on another member a moment ago
        if post.certificate:
            pem, fingerprint = _from_base64(post.certificate)
        elif peer_pem:
            pem, fingerprint = peer_pem, security.fingerprint_pem(peer_pem)
        else:
            raise BadRequestError("No client certificate provided")
        if isinstance(shown, tokens.JoinToken):
            await self._join_tokens.trust_certificate(post.trust_token, fingerprint, pem)
            return fingerprint
        row = self._live_token(shown.secret)
        request = msgspec.convert(row.request, CertificatesPost)
        new = NewCertificate(
            fingerprint=fingerprint,
            type=TYPE_NUMBERS.get(request.type, TYPE_NUMBERS["client"]),
            name=row.name,
            pem=pem,
            restricted=request.restricted,
            description=request.description,
            projects=tuple(request.projects or ()),
        )
        await self._add(new, row.uuid)
        return fingerprint

    def _live_token(self, secret: str) -> TokenRow:
        found = None
        for row in queries.tokens(self._database, transactions.TOKEN_CERTIFICATE):
            if tokens.equal(row.secret, secret):
                found = row
        if found is None:
            raise ForbiddenError(_NO_TOKEN)
        if found.expires_at and parse_rfc3339_ns(found.expires_at) < self._clock_ns():
            raise ForbiddenError("Token has expired")
        return found

    async def issue_token(self, post: CertificatesPost) -> dict[str, Any]:
        """Make a token for what `post` asks; return it as an operation object of class "token".

        Raises BadRequestError (not a client, not listening), NotFoundError (project).
        """
        if post.type != "client":
            raise BadRequestError("Tokens can only be issued for client certificates")
        addresses = self._addresses()
        if not addresses:
            raise BadRequestError("Can't issue token when server isn't listening on network")
        self._check_projects(post)
        now_ns = self._clock_ns()
        lifetime_s = parse_expiry_s(self._config("core.remote_token_expiry"))
        expires_at = rfc3339(now_ns + lifetime_s * 1_000_000_000) if lifetime_s else None
        request = msgspec.to_builtins(msgspec.structs.replace(post, projects=list(post.projects or ())))
        metadata: dict[str, Any] = {
            "addresses": addresses,
            "fingerprint": self._fingerprint(),
            "request": request,
            "secret": tokens.make_secret(),
        }
        if expires_at:
            metadata["expiresAt"] = expires_at
        new = NewToken(
            uuid=self._new_operation_id(),
            name=post.name,
            secret=metadata["secret"],
            created_at=rfc3339(now_ns),
            expires_at=expires_at,
            member_id=self._identity.member_id,
            request=_json(request),
            metadata=_json(metadata),
        )
        await propose(self._consensus, transactions.add_token(new))
        return _operation(new, metadata, self._identity.location)

    def _check_projects(self, post: CertificatesPost) -> None:
        for project in post.projects or ():
            if not self._database.scalar("SELECT COUNT(*) FROM projects WHERE name = ?", (project,)):
                raise NotFoundError("Project not found")

    # -- changing -----------------------------------------------------------------------------------------------------

    async def update(
        self, fingerprint: str, put: CertificatePut, *, patch: bool = False, expect: Expect | None = None
    ) -> None:
        """Replace or merge name, description, restriction and certificate; the type stays.

        Raises NotFoundError, BadRequestError, PreconditionFailedError,
        MemberError (500, as Incus: another entry has that certificate).
        """

        async def attempt() -> None:
            row = self._row(fingerprint)
            if expect is not None:
                expect(_shown(row))
            await propose(
                self._consensus,
                transactions.replace_certificate(row.id, _stored(row), _changed(row, put, patch=patch)),
            )

        try:
            await until_unchanged(attempt)
        except TransactionConflictError:
            raise NotFoundError("Project not found") from None
        except DuplicateError as duplicate:
            text = f'Update "certificates" entry failed: UNIQUE constraint failed: {duplicate.column}'
            raise MemberError(text) from None

    async def remove(self, fingerprint: str) -> str:
        """Trust it no more; return the whole fingerprint. Raises NotFoundError, ClientError (a member's)."""
        row = self._row(fingerprint)
        if row.type == "server" and self._identity.clustered and self._is_member(row.name):
            raise ClientError("The certificate of a cluster member cannot be removed", status=400)
        try:
            await propose(self._consensus, transactions.delete_certificate(row.id))
        except TransactionConflictError:
            raise NotFoundError(_NOT_FOUND) from None
        return row.fingerprint

    def _is_member(self, name: str) -> bool:
        return bool(self._database.scalar("SELECT COUNT(*) FROM nodes WHERE name = ?", (name,)))


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _from_base64(text: str) -> tuple[str, str]:
    """Return (PEM, fingerprint) of a base64 DER certificate. Raises BadRequestError with Go's texts."""
    try:
        der = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadRequestError("illegal base64 data at input byte 0") from None
    pem = security.der_to_pem(der)
    security_name(pem)
    return pem, security.fingerprint_der(der)


def security_name(pem: str) -> str:
    """Return the common name in a certificate. Raises BadRequestError if it can't be read."""
    from cryptography.x509 import load_pem_x509_certificate
    from cryptography.x509.oid import NameOID

    try:
        names = load_pem_x509_certificate(pem.encode()).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except ValueError:
        raise BadRequestError("Invalid certificate material: x509: malformed certificate") from None
    return str(names[0].value) if names else ""


def _shown(row: CertificateRow) -> Certificate:
    return Certificate(
        name=row.name,
        type=row.type,
        restricted=row.restricted,
        projects=list(row.projects),
        certificate=row.certificate,
        description=row.description,
        fingerprint=row.fingerprint,
    )


def _stored(row: CertificateRow) -> NewCertificate:
    return NewCertificate(
        fingerprint=row.fingerprint,
        type=TYPE_NUMBERS[row.type],
        name=row.name,
        pem=row.certificate,
        restricted=row.restricted,
        description=row.description,
        projects=row.projects,
    )


def _changed(row: CertificateRow, put: CertificatePut, *, patch: bool) -> NewCertificate:
    """Return what the entry will be. Raises BadRequestError."""
    old = _stored(row)
    if put.type != row.type and not (patch and put.type is None):
        raise BadRequestError("The certificate type cannot be changed")
    pem, fingerprint = old.pem, old.fingerprint
    if put.certificate and put.certificate != old.pem:
        try:
            fingerprint = security.fingerprint_pem(put.certificate)
            pem = put.certificate
            security_name(pem)
        except ApiError:
            raise BadRequestError("Invalid PEM encoded certificate") from None
    empty = NewCertificate("", 0, "", "")
    keep = old if patch else empty
    return NewCertificate(
        fingerprint=fingerprint,
        type=old.type,
        name=keep.name if put.name is None else put.name,
        pem=pem,
        restricted=keep.restricted if put.restricted is None else put.restricted,
        description=keep.description if put.description is None else put.description,
        projects=keep.projects if put.projects is None else tuple(put.projects),
    )


def _operation(token: NewToken, metadata: dict[str, Any], location: str) -> dict[str, Any]:
    return {
        "id": token.uuid,
        "class": "token",
        "description": "Executing operation",
        "created_at": token.created_at,
        "updated_at": token.created_at,
        "status": "Running",
        "status_code": 103,
        "resources": {},
        "metadata": metadata,
        "may_cancel": True,
        "err": "",
        "location": location,
    }
