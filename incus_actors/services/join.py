"""Joining a cluster: the side of the server that wants to become a member (the other one: acceptance.py).

Owns the order of steps and their undoing; rest/cluster_routes.py calls it. The cluster's side is one transaction
(member, certificate, used token) that the leader makes; ours is one exchange of the database, kept in a journal. Must
never leave half a member on either side: any failure, and any kill, ends in the old server or in a full member.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from incus_actors.consensus.api import Consensus
from incus_actors.consensus.bootstrap import replace_database
from incus_actors.consensus.configuration import decode_configuration
from incus_actors.domain import transactions_cluster as cluster_tx
from incus_actors.domain.members import MemberState
from incus_actors.errors import (
    BadRequestError,
    MemberError,
    UnavailableError,
)
from incus_actors.identity import Identity
from incus_actors.model.cluster import AcceptAnswer, AcceptRequest, ClusterPut, WithdrawRequest
from incus_actors.security import certificates
from incus_actors.security.tokens import TokenError, decode_join
from incus_actors.services import addresses
from incus_actors.services.acceptance import ACCEPT_PATH, ACCEPT_TIMEOUT_S, WITHDRAW_PATH, ServerFacts
from incus_actors.services.cluster import ClusterHooks, check_member_name
from incus_actors.services.join_journal import JoinJournal
from incus_actors.services.join_standing import given_up
from incus_actors.services.peer_client import PeerClient, PeerRefusedError
from incus_actors.state.queries import cluster as queries
from incus_actors.state.reader import Reader

T = TypeVar("T")

log = logging.getLogger(__name__)

CATCH_UP_S = 60.0
ASK_EVERY_S = 2.0  #: while a confirmation gets no answer through the log, members are asked whether to go on waiting
GIVEN_UP = "The cluster has given up on this server's join meanwhile; try again with a new token"


class JoinService:
    """Joins this server to a cluster."""

    def __init__(
        self,
        *,
        directory: Path,
        identity: Identity,
        consensus: Consensus,
        database: Reader,
        hooks: ClusterHooks,
        peers: PeerClient,
        facts: ServerFacts,
        config: Callable[[str], str],
    ) -> None:
        self._directory = directory
        self._identity = identity
        self._consensus = consensus
        self._database = database
        self._hooks = hooks
        self._peers = peers
        self._facts = facts
        self._config = config
        self._journal = JoinJournal(directory)
        self._joining = False

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
            transport = await self._open_lanes(address)
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

    async def _open_lanes(self, address: str) -> str:
        """Return where other members reach ours. Raises MemberError for an address that isn't here."""
        try:
            return await self._hooks.open_lanes(address)
        except OSError as error:
            reason = os.strerror(error.errno or 0).lower()
            raise MemberError(
                f'Cannot listen on network HTTPS socket "{address}": listen tcp {address}: bind: {reason}',
                remedy="server_address must be an address of this machine",
            ) from error

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
            features=self._consensus.status().features,
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


async def _carefully(step: Callable[[], Awaitable[None]]) -> None:
    """Undo one step; what can't be undone here is undone by the leader or at the next start."""
    try:
        await step()
    except Exception:  # one step that fails must not keep the others from being tried
        log.exception("undoing a join")
