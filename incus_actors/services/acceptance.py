"""Letting a server in: the side of the cluster, which any of its members takes (the other one: join.py).

Owns the proof of who asks (a token or a trusted certificate), the asking of the leader and the answer; replace.py shares
the latter two. Called by rest/cluster_routes.py. Must never answer, which hands over the cluster's private key, before
that proof.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from incus_actors.actors.leader import leader_ref
from incus_actors.actors.leader_messages import Accepted, AcceptMember, RemoveMember, ReplaceMember
from incus_actors.actors.system import ActorSystem
from incus_actors.consensus.api import Consensus
from incus_actors.domain.members import rfc3339
from incus_actors.errors import BadRequestError, ForbiddenError, MemberError, UnavailableError
from incus_actors.identity import Identity
from incus_actors.model.cluster import AcceptAnswer, AcceptRequest, StandingAnswer, WithdrawRequest
from incus_actors.security import certificates
from incus_actors.services import addresses
from incus_actors.services.cluster import check_member_name
from incus_actors.services.join_standing import standing
from incus_actors.services.join_tokens import JoinTokens
from incus_actors.state.queries import cluster as queries
from incus_actors.state.reader import Reader
from incus_actors.state.schema import current_version
from incus_actors.transport.address import AddressError, parse_address

ACCEPT_PATH = "/internal/cluster/accept"
WITHDRAW_PATH = "/internal/cluster/withdraw"
ACCEPT_TIMEOUT_S = 30.0

Wish = TypeVar("Wish", AcceptMember, ReplaceMember)


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a joining server says of itself."""

    version: str
    schema: int
    api_extensions: int
    architecture: int
    storage_root: str


@dataclass(frozen=True, slots=True)
class Applicant:
    """Who asks to be accepted, as the TLS handshake proved it."""

    fingerprint: str
    certificate_pem: str
    trusted_name: str | None  #: name of its server certificate in the trust store


class AcceptService:
    """Lets servers into this cluster."""

    def __init__(
        self,
        *,
        directory: Path,
        identity: Identity,
        consensus: Consensus,
        database: Reader,
        tokens: JoinTokens,
        actors: ActorSystem,
        facts: ServerFacts,
        wall_ns: Callable[[], int],
    ) -> None:
        self._directory = directory
        self._identity = identity
        self._consensus = consensus
        self._database = database
        self._tokens = tokens
        self._actors = actors
        self._facts = facts
        self._wall_ns = wall_ns

    async def accept(self, request: AcceptRequest, applicant: Applicant) -> AcceptAnswer:
        """Let a server in as a pending member. Raises ForbiddenError (token, trust), BadRequestError, MemberError."""
        if not self._identity.clustered:
            raise BadRequestError("This server is not clustered")
        self._check_request(request)
        token_uuid = ""
        if request.token:
            token_uuid = self._tokens.check(request.token, request.name).uuid
        elif applicant.trusted_name != request.name:
            raise ForbiddenError
        # A newer one may come: what only it knows waits until all do. An older one could not apply what is in use, or what
        # the leader switches on just now, as everybody has it.
        status = self._consensus.status()
        used = max(status.feature_level, status.level_of_all())
        if request.features < used or request.schema < current_version(self._database):
            raise MemberError(
                "The joining server version doesn't match "
                f"(expected {self._facts.version} with schema {self._facts.schema})"
            )
        accepted = await ask_leader(
            self._actors,
            self._consensus,
            AcceptMember(
                name=request.name,
                address=request.address,
                core_address=request.core_address,
                transport=request.transport,
                fingerprint=applicant.fingerprint,
                certificate=applicant.certificate_pem,
                architecture=request.architecture,
                schema=request.schema,
                api_extensions=request.api_extensions,
                storage_root=request.storage_root,
                token_uuid=token_uuid,
                now=rfc3339(self._wall_ns()),
                member_config=tuple((e.entity, e.name, e.key, e.value) for e in request.member_config),
            ),
            deadline_s=ACCEPT_TIMEOUT_S - 5,
            pause_s=0.1,
            again=self._without_used_token,
        )
        return answer_to(accepted, self._directory)

    @staticmethod
    def _check_request(request: AcceptRequest) -> None:
        check_member_name(request.name)
        if addresses.is_wildcard(request.address):
            raise BadRequestError(f"Cannot use a wildcard address for a member: {request.address}")
        try:
            parse_address(request.transport)
        except AddressError as error:
            raise BadRequestError(f"Invalid transport address: {error}") from error
        if request.architecture <= 0 or not request.storage_root.startswith("/"):
            raise BadRequestError("Invalid request of a joining server")

    async def _without_used_token(self, wish: AcceptMember) -> AcceptMember:
        """If the first try was committed and only its answer got lost, the certificate is trusted by now."""
        await self._consensus.read_barrier()
        trusted = self._database.scalar(
            "SELECT COUNT(*) FROM certificates WHERE fingerprint = ? AND type = 2 AND name = ?",
            (wish.fingerprint, wish.name),
        )
        return msgspec.structs.replace(wish, token_uuid="") if trusted else wish

    async def standing(self, member_id: int, applicant: Applicant) -> StandingAnswer:
        """Tell a server whether it is still joining. Raises UnavailableError."""
        return await standing(self._consensus, self._database, member_id, applicant.fingerprint)

    async def withdraw(self, request: WithdrawRequest, applicant: Applicant) -> None:
        """Undo an acceptance at the wish of the server that was accepted. Raises ForbiddenError, ApiError."""
        pending = {member_id: name for member_id, name, _ in queries.pending_members(self._database)}
        name = pending.get(request.member_id)
        if name is None:
            return
        if applicant.trusted_name != name:
            raise ForbiddenError
        wish = RemoveMember(request.member_id, name, only_pending=True)
        await leader_ref(self._actors, self._consensus).ask(wish, deadline_s=10)


async def ask_leader(
    actors: ActorSystem,
    consensus: Consensus,
    wish: Wish,
    *,
    deadline_s: float,
    pause_s: float,
    again: Callable[[Wish], Awaitable[Wish]] | None = None,
) -> Accepted:
    """Ask the leader; a change of leader meanwhile is no reason to fail. `again` tells what to ask another time.

    Raises ApiError.
    """
    deadline = asyncio.get_running_loop().time() + deadline_s
    while True:
        try:
            answer = await leader_ref(actors, consensus).ask(wish, deadline_s=deadline_s)
        except UnavailableError:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(pause_s)
            if again is not None:
                wish = await again(wish)
        else:
            if not isinstance(answer, Accepted):
                raise MemberError("The leader's answer is not understood")
            return answer


def answer_to(accepted: Accepted, directory: Path) -> AcceptAnswer:
    """Return what the new member starts from; `directory` has the cluster's certificate. Raises MemberError."""
    pair = certificates.load_pair(directory, certificates.CLUSTER)
    if pair is None:
        raise MemberError("This member has no cluster certificate")
    return AcceptAnswer(
        member_id=accepted.member_id,
        cluster_id=accepted.cluster_id,
        epoch=accepted.epoch,
        configuration=accepted.configuration.decode(),
        cluster_certificate=pair.certificate_pem,
        cluster_certificate_key=pair.key_pem,
    )
