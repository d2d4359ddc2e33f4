"""Joining a cluster, both sides: the server that wants to become a member, and the member that lets it in.

Owns the order of steps and their undoing; rest/cluster_routes.py calls it. The cluster's side is one transaction
(member, certificate, used token) that the leader makes; ours is one exchange of the database, kept in a journal. Must
never leave half a member on either side: any failure, and any kill, ends in the old server or in a full member.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from incus_actors.actors.leader import leader_ref
from incus_actors.actors.leader_messages import AcceptMember, RemoveMember
from incus_actors.actors.system import ActorSystem
from incus_actors.consensus.api import Consensus
from incus_actors.consensus.bootstrap import replace_database
from incus_actors.consensus.configuration import decode_configuration
from incus_actors.domain import transactions_cluster as cluster_tx
from incus_actors.domain.members import MemberState, rfc3339
from incus_actors.errors import (
    BadRequestError,
    ForbiddenError,
    MemberError,
    UnavailableError,
)
from incus_actors.identity import Identity
from incus_actors.model.cluster import AcceptAnswer, AcceptRequest, ClusterPut, StandingAnswer, WithdrawRequest
from incus_actors.security import certificates
from incus_actors.security.tokens import TokenError, decode_join
from incus_actors.services import addresses
from incus_actors.services.acceptance import answer_to, ask_leader
from incus_actors.services.cluster import ClusterHooks, check_member_name
from incus_actors.services.join_journal import JoinJournal
from incus_actors.services.join_standing import given_up, standing
from incus_actors.services.join_tokens import JoinTokens
from incus_actors.services.peer_client import PeerClient, PeerRefusedError
from incus_actors.state.queries import cluster as queries
from incus_actors.state.reader import Reader
from incus_actors.transport.address import AddressError, parse_address

T = TypeVar("T")

log = logging.getLogger(__name__)

ACCEPT_PATH = "/internal/cluster/accept"
WITHDRAW_PATH = "/internal/cluster/withdraw"
ACCEPT_TIMEOUT_S = 30.0
CATCH_UP_S = 60.0
ASK_EVERY_S = 2.0  #: while a confirmation gets no answer through the log, members are asked whether to go on waiting
GIVEN_UP = "The cluster has given up on this server's join meanwhile; try again with a new token"


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


class JoinService:
    """Joins this server to a cluster, and lets others into ours."""

    def __init__(
        self,
        *,
        directory: Path,
        identity: Identity,
        consensus: Consensus,
        database: Reader,
        hooks: ClusterHooks,
        peers: PeerClient,
        tokens: JoinTokens,
        actors: ActorSystem,
        facts: ServerFacts,
        config: Callable[[str], str],
        wall_ns: Callable[[], int],
    ) -> None:
        self._directory = directory
        self._identity = identity
        self._consensus = consensus
        self._database = database
        self._hooks = hooks
        self._peers = peers
        self._tokens = tokens
        self._actors = actors
        self._facts = facts
        self._config = config
        self._wall_ns = wall_ns
        self._journal = JoinJournal(directory)
        self._joining = False

    # -- the joining server ---------------------------------------------------------------------------------------

    def check_join(self, put: ClusterPut) -> None:
        """Raise BadRequestError for what can be refused before anything is tried."""
        if self._identity.clustered:
            raise BadRequestError("This server is already clustered")
        if self._joining:
            raise BadRequestError("This server is already joining a cluster")
        if not put.server_address:
            raise BadRequestError("No server address provided for this member")
        if not put.cluster_address:
            raise BadRequestError("No target cluster member address provided")
        if not put.cluster_certificate:
            raise BadRequestError("No target cluster member certificate provided")
        if not put.server_name:
            raise BadRequestError("ServerName is required when enabling clustering")
        check_member_name(put.server_name)
        if addresses.is_wildcard(put.server_address):
            raise BadRequestError(f"Cannot use a wildcard address for this member: {put.server_address}")
        addresses.normalise(put.cluster_address)
        certificates.pem_to_der(put.cluster_certificate)

    async def join(self, put: ClusterPut) -> None:
        """Become a member; run as the operation "Joining cluster". All or nothing. Raises ApiError."""
        self.check_join(put)
        self._joining = True
        try:
            await self._join(put)
        finally:
            self._joining = False

    async def _join(self, put: ClusterPut) -> None:
        self._check_fingerprint(put)
        address = addresses.normalise(put.server_address)
        undo: list[Callable[[], Awaitable[None]]] = []
        try:
            transport = await self._hooks.open_lanes(address)
            undo.append(self._hooks.close_lanes)
            answer = await self._ask_for_acceptance(put, address, transport)
            undo.append(lambda: self._withdraw(put, answer.member_id))
            undo.append(self._go_back)
            await self._switch(answer)
            await self._catch_up(answer.member_id)
            await self._hooks.own_pools_ready()
            await self._confirm(answer.member_id)
        except BaseException as error:
            if self._journal.phase() == "confirming":
                # We may be a member already: nothing may be undone. resume() goes on at the next start.
                log.error("the join of this server is not confirmed yet: %s", error)
                raise
            log.warning("joining failed, undoing it: %s", error)
            for step in reversed(undo):
                await _carefully(step)
            raise
        await self._finish()

    def _check_fingerprint(self, put: ClusterPut) -> None:
        """The member that the client found must be one of the token's cluster."""
        if not put.cluster_token:
            return
        try:
            token = decode_join(put.cluster_token)
        except TokenError:
            return  # the cluster says what it thinks of it
        if token.fingerprint != certificates.fingerprint_pem(put.cluster_certificate):
            raise MemberError(
                "Certificate fingerprint mismatch between join token and cluster member "
                f'"{addresses.normalise(put.cluster_address)}"'
            )

    async def _ask_for_acceptance(self, put: ClusterPut, address: str, transport: str) -> AcceptAnswer:
        core_address = self._config("core.https_address")
        request = AcceptRequest(
            name=put.server_name,
            address=address,
            transport=transport,
            architecture=self._facts.architecture,
            version=self._facts.version,
            schema=self._facts.schema,
            api_extensions=self._facts.api_extensions,
            token=put.cluster_token,
            core_address=core_address,
            storage_root=self._facts.storage_root,
            member_config=put.member_config or [],
        )
        try:
            metadata = await self._peers.post(
                addresses.normalise(put.cluster_address),
                ACCEPT_PATH,
                msgspec.to_builtins(request),
                certificate_pem=put.cluster_certificate,
                timeout_s=ACCEPT_TIMEOUT_S,
            )
        except PeerRefusedError as error:
            if error.status == 403:
                raise MemberError(
                    f"Failed to setup cluster trust: Failed to add server cert to cluster: {error}"
                ) from error
            raise MemberError(str(error)) from error
        try:
            return msgspec.convert(metadata, AcceptAnswer)
        except msgspec.ValidationError as error:
            raise MemberError(f"The cluster answered something that is not understood: {error}") from error

    async def _switch(self, answer: AcceptAnswer) -> None:
        """Exchange the database for an empty one that knows the cluster, and put the cluster certificate in place."""
        configuration = decode_configuration(answer.configuration.encode())
        self._journal.write("switching", answer.member_id)
        certificates.write_pair(
            self._directory, certificates.CLUSTER, answer.cluster_certificate, answer.cluster_certificate_key
        )

        def exchange() -> None:
            replace_database(
                self._directory / "database",
                cluster_id=uuid.UUID(answer.cluster_id).bytes,
                epoch=answer.epoch,
                member_id=answer.member_id,
                configuration=configuration,
            )

        await self._hooks.restart_consensus(exchange)

    async def _catch_up(self, member_id: int) -> None:
        """Wait until our own row has come to us through the log."""
        applied = asyncio.Event()
        unsubscribe = self._consensus.subscribe_applied(lambda _index, _topics: applied.set())
        deadline = asyncio.get_running_loop().time() + CATCH_UP_S
        try:
            while self._own_state(member_id) is None:
                if asyncio.get_running_loop().time() > deadline:
                    raise MemberError(
                        f"The cluster's database did not reach this server within {CATCH_UP_S:.0f} seconds",
                        remedy="Are the ZeroMQ ports of the members reachable from here, and ours from there?",
                    )
                with contextlib.suppress(TimeoutError):  # a snapshot brings no topics: look now and then anyway
                    await asyncio.wait_for(applied.wait(), 0.1)
                applied.clear()
        finally:
            unsubscribe()

    def _own_state(self, member_id: int) -> int | None:
        """`nodes.state` of our row; None while there is no row, no table or no database yet."""
        try:
            return queries.member_state(self._database, member_id)
        except (UnavailableError, sqlite3.OperationalError):
            return None

    async def _confirm(self, member_id: int) -> None:
        """Say that we are ready. From the moment that this is tried there is no way back but a definite no."""
        self._journal.write("confirming", member_id)
        confirmed = cluster_tx.created(member_id, version=(self._facts.schema, self._facts.api_extensions))
        outcome = await self._patiently(member_id, lambda: self._consensus.propose(confirmed))
        if not outcome.applied:
            self._journal.write("switching", member_id)
            raise MemberError(GIVEN_UP)

    async def _patiently(self, member_id: int, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask the cluster until it answers: a proposal may have been applied, and only asking again tells.

        Raises MemberError when the cluster knows this server no more; the journal then says that all may be undone.
        """
        loop = asyncio.get_running_loop()
        look_at = loop.time() + ASK_EVERY_S
        while True:
            try:
                return await ask()
            except UnavailableError as error:
                log.warning("waiting for the cluster to confirm this member: %s", error)
            if loop.time() >= look_at:
                if await self._given_up(member_id):
                    self._journal.write("switching", member_id)
                    raise MemberError(GIVEN_UP)
                look_at = loop.time() + ASK_EVERY_S
            await asyncio.sleep(0.5)

    async def _given_up(self, member_id: int) -> bool:
        pair = certificates.load_pair(self._directory, certificates.CLUSTER)
        if pair is None:
            return False
        others = [facts.address for facts in queries.members(self._database) if facts.id != member_id]
        return await given_up(self._peers, others, pair.certificate_pem, member_id)

    async def _finish(self) -> None:
        self._identity.refresh()
        await asyncio.to_thread(self._journal.finish)
        await self._hooks.reload_listeners()
        log.info("this server is now member %s", self._identity.name)

    async def _go_back(self) -> None:
        """Be the server that we were."""
        await self._hooks.restart_consensus(self._journal.put_back)
        certificates.remove_pair(self._directory, certificates.CLUSTER)
        await asyncio.to_thread(self._journal.finish)
        self._identity.refresh()
        await self._hooks.reload_listeners()

    async def _withdraw(self, put: ClusterPut, member_id: int) -> None:
        await self._peers.post(
            addresses.normalise(put.cluster_address),
            WITHDRAW_PATH,
            msgspec.to_builtins(WithdrawRequest(member_id=member_id)),
            certificate_pem=put.cluster_certificate,
            timeout_s=10,
        )

    async def resume(self) -> None:
        """At start, when `join_journal.recover` said "confirming": go on until we know.

        If the cluster has given up on us meanwhile, this is the standalone server again that it was, and can join anew.
        """
        member_id = self._consensus.member_id
        try:
            await self._patiently(member_id, self._consensus.read_barrier)
            if self._own_state(member_id) != MemberState.CREATED:
                await self._confirm(member_id)
        except MemberError as error:
            if self._journal.phase() == "confirming":
                raise
            log.error("%s", error)
            await self._hooks.close_lanes()
            await self._go_back()
            return
        await self._hooks.own_pools_ready()
        await self._finish()

    # -- the member that is asked ---------------------------------------------------------------------------------

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
        if self._facts.schema != request.schema:
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


async def _carefully(step: Callable[[], Awaitable[None]]) -> None:
    """Undo one step; what can't be undone here is undone by the leader or at the next start."""
    try:
        await step()
    except Exception:  # one step that fails must not keep the others from being tried
        log.exception("undoing a join")
