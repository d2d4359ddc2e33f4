"""Join tokens: issuing, checking, using up; and all tokens of the database seen as operations.

Owns the rules of CONTRACT 6.5 for joining servers. Tokens are rows, so any member issues, lists, revokes and accepts
them, and a new leader changes nothing. A token works once: whoever uses it deletes it in the same transaction. Must
never log a secret or compare one with `==`.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from typing import Any

from incus_actors.actors.heartbeat import HeartbeatTable
from incus_actors.consensus.api import Consensus
from incus_actors.domain import transactions_cluster as cluster_tx
from incus_actors.domain.members import MemberState, parse_rfc3339_ns, rfc3339
from incus_actors.errors import BadRequestError, ForbiddenError, MemberError
from incus_actors.identity import Identity
from incus_actors.security.tokens import JoinToken, TokenError, decode_join, equal, make_secret
from incus_actors.services.cluster import check_member_name
from incus_actors.state.queries import cluster as queries
from incus_actors.state.queries.cluster import Token
from incus_actors.state.reader import Reader

NO_MATCH = "No matching cluster join operation found"
EXPIRED = "Token has expired"


class JoinTokens:
    """`fingerprint` gives that of the certificate that the cluster's listeners show."""

    def __init__(
        self,
        *,
        identity: Identity,
        consensus: Consensus,
        database: Reader,
        heartbeats: HeartbeatTable,
        fingerprint: Callable[[], str],
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._identity = identity
        self._consensus = consensus
        self._database = database
        self._heartbeats = heartbeats
        self._fingerprint = fingerprint
        self._wall_ns = wall_ns

    async def issue(self, server_name: str) -> dict[str, Any]:
        """Make a token for a server of that name, in place of an older one; return it as an operation object.

        Raises BadRequestError, MemberError (the name is taken).
        """
        if not self._identity.clustered:
            raise BadRequestError("This server is not clustered")
        check_member_name(server_name)
        now = self._wall_ns()
        expires_at = rfc3339(now + queries.token_lifetime_s(self._database) * 1_000_000_000)
        metadata = {
            "addresses": self._addresses(),
            "expiresAt": expires_at,
            "fingerprint": self._fingerprint(),
            "secret": make_secret(),
            "serverName": server_name,
        }
        token_uuid = _operation_uuid(self._identity.member_id)
        outcome = await self._consensus.propose(
            cluster_tx.add_join_token(
                token_uuid,
                server_name,
                str(metadata["secret"]),
                rfc3339(now),
                expires_at,
                self._identity.member_id,
                json.dumps(metadata),
            )
        )
        if outcome.label == "exists":
            raise MemberError(f"The cluster already has a member with name: {server_name}")
        if not outcome.applied:
            raise MemberError(f"Failed to store the token: {outcome.error or outcome.label}")
        created = rfc3339(now)
        return _operation(token_uuid, created, {"cluster": None}, metadata, self._identity.name)

    def _addresses(self) -> list[str]:
        """Where a joining server may knock: members that are neither offline nor evacuated, ourselves first."""
        threshold_s = queries.settings(self._database).offline_threshold_s
        own = self._identity.member_id
        found = [
            facts
            for facts in queries.members(self._database)
            if facts.state == MemberState.CREATED and self._heartbeats.online(facts.id, own, threshold_s)
        ]
        return [facts.address for facts in sorted(found, key=lambda facts: (facts.id != own, facts.id))]

    def check(self, text: str, server_name: str | None = None) -> Token:
        """Return the row of the token that a joining server shows.

        `server_name`: what it calls itself; the token must be for that name. Raises ForbiddenError with Incus'
        texts: not a token, used or revoked or for another name, expired.
        """
        try:
            shown = decode_join(text)
        except TokenError as error:
            raise ForbiddenError from error
        return self._match(shown, server_name)

    def _match(self, shown: JoinToken, server_name: str | None) -> Token:
        if server_name is not None and server_name != shown.server_name:
            raise ForbiddenError(NO_MATCH)
        found = None
        for token in queries.tokens(self._database, cluster_tx.TOKEN_JOIN):
            if equal(token.secret, shown.secret) and token.name == shown.server_name:
                found = token
        if found is None:
            raise ForbiddenError(NO_MATCH)
        if found.expires_at and parse_rfc3339_ns(found.expires_at) < self._wall_ns():
            raise ForbiddenError(EXPIRED)
        return found

    async def trust_certificate(self, text: str, fingerprint: str, certificate_pem: str) -> str:
        """Use up a token to trust a server certificate under the token's name, which is returned.

        For POST /1.0/certificates of the interactive join. Raises ForbiddenError, MemberError.
        """
        token = self.check(text)
        server = cluster_tx.TrustedServer(token.name, fingerprint, certificate_pem)
        outcome = await self._consensus.propose(cluster_tx.use_token_for_certificate(token.uuid, server))
        if outcome.label == "token":
            raise ForbiddenError(NO_MATCH)
        if outcome.label == "name":
            raise MemberError(f"The cluster already has a member with name: {token.name}")
        if not outcome.applied:
            raise MemberError(f"Failed to trust the certificate: {outcome.error or outcome.label}")
        return token.name


class TokenOperations:
    """Every token of the database (join and trust) as an operation of class "token": gateway.operations.TokenSource."""

    def __init__(
        self,
        *,
        consensus: Consensus,
        database: Reader,
        identity: Identity,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._consensus = consensus
        self._database = database
        self._identity = identity
        self._wall_ns = wall_ns

    def list_tokens(self) -> list[dict[str, Any]]:
        """Return every token that can still be used, the same on every member."""
        names = {facts.id: facts.name for facts in queries.members(self._database)}
        now = self._wall_ns()
        return [
            _operation(
                token.uuid,
                token.created_at,
                {"cluster": None} if kind == cluster_tx.TOKEN_JOIN else {},
                token.metadata,
                names.get(token.member_id or 0, self._identity.name),
            )
            for kind in (cluster_tx.TOKEN_JOIN, "certificate")
            for token in queries.tokens(self._database, kind)
            if not _expired(token, now)
        ]

    def get_token(self, operation_id: str) -> dict[str, Any] | None:
        """Return one token as an operation object."""
        return next((token for token in self.list_tokens() if token["id"] == operation_id), None)

    async def revoke_token(self, operation_id: str) -> bool:
        """Delete it for ever; False if there is none (any more)."""
        outcome = await self._consensus.propose(cluster_tx.delete_tokens([operation_id]))
        return outcome.applied and outcome.changed[:1] == (1,)


def _expired(token: Token, now_ns: int) -> bool:
    if not token.expires_at or token.expires_at.startswith("0001"):
        return False
    return parse_rfc3339_ns(token.expires_at) < now_ns


def _operation_uuid(member_id: int) -> str:
    """A random UUID whose last group begins with the member's id (docs/architecture.md)."""
    raw = uuid.uuid4().hex
    return str(uuid.UUID(f"{raw[:20]}{member_id & 0xFFFF:04x}{raw[24:]}"))


def _operation(
    token_uuid: str, created_at: str, resources: dict[str, Any], metadata: dict[str, Any], location: str
) -> dict[str, Any]:
    return {
        "id": token_uuid,
        "class": "token",
        "description": "Executing operation",
        "created_at": created_at,
        "updated_at": created_at,
        "status": "Running",
        "status_code": 103,
        "resources": resources,
        "metadata": metadata,
        "may_cancel": True,
        "err": "",
        "location": location,
    }
