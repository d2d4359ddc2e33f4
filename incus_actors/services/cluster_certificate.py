"""`incus cluster update-certificate`: another certificate on all members, without dropping the cluster.

Owns the order of its steps; rest/cluster_routes.py calls it. The pair goes to every member that can be reached, over
HTTPS (DESIGN D9), and waits there; one transaction then says which certificate counts, and each member that applies
it changes over by itself. Who was away, or lost it, fetches it from another member. The private key must never be in
the log, in the database or in a message between actors.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import msgspec

from incus_actors.consensus.api import Consensus
from incus_actors.domain.members import rfc3339
from incus_actors.domain.transactions_cluster_certificate import TOPIC, replace_certificate
from incus_actors.errors import ApiError, ConflictError, MemberError, NotFoundError, UnavailableError
from incus_actors.identity import Identity
from incus_actors.model.cluster import ClusterCertificatePut
from incus_actors.security import certificates
from incus_actors.security.cluster_files import ClusterFiles
from incus_actors.services.members import require_cluster
from incus_actors.services.peer_client import PeerClient, PeerRefusedError
from incus_actors.services.proposing import TransactionConflictError, propose
from incus_actors.state.queries import cluster as cluster_queries
from incus_actors.state.queries.cluster_certificate import WantedCertificate, wanted_certificate
from incus_actors.state.reader import Reader
from incus_actors.tasks import spawn

log = logging.getLogger(__name__)

KEEP_PATH = "/internal/cluster/certificate/keep"
FETCH_PATH = "/internal/cluster/certificate/fetch"
PEER_TIMEOUT_S = 5.0
RETRY_S = (0.2, 0.5, 1.0, 2.0, 5.0)


class ClusterCertificateService:
    """`online` says whether a member was heard of lately; `reload` makes the listeners show the files of now."""

    def __init__(
        self,
        *,
        files: ClusterFiles,
        identity: Identity,
        consensus: Consensus,
        database: Reader,
        peers: PeerClient,
        online: Callable[[int], bool],
        reload: Callable[[], Awaitable[None]],
        wall_ns: Callable[[], int],
    ) -> None:
        self._files = files
        self._identity = identity
        self._consensus = consensus
        self._database = database
        self._peers = peers
        self._online = online
        self._reload = reload
        self._wall_ns = wall_ns
        self._following = asyncio.Lock()

    # -- every member ---------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Before anything listens: end a change-over that a kill has interrupted between its two files."""
        wanted = self._wanted()
        if wanted is not None:
            self._files.choose(wanted.fingerprint)

    def start(self) -> None:
        """Follow the log from now on, and catch up with what was decided while we were away."""
        self._consensus.subscribe_applied(self._applied)
        self._look()

    def _applied(self, _index: int, topics: frozenset[str]) -> None:
        if TOPIC in topics or "members" in topics:  # a joining server gets the state at once, by a snapshot
            self._look()

    def _wanted(self) -> WantedCertificate | None:
        if not self._identity.clustered:
            return None
        try:
            return wanted_certificate(self._database)
        except UnavailableError:
            return None

    def _behind(self) -> WantedCertificate | None:
        """What we should show and don't."""
        wanted = self._wanted()
        shown = self._files.shown()
        return None if wanted is None or (shown and shown.fingerprint == wanted.fingerprint) else wanted

    def _look(self) -> None:
        if not self._following.locked() and self._behind() is not None:
            spawn(self._follow(), name="change the cluster certificate")

    async def _follow(self) -> None:
        """Show what the database says, for as long as it takes."""
        async with self._following:
            tries = 0
            while (wanted := self._behind()) is not None:
                if self._files.choose(wanted.fingerprint):
                    await self._reload()
                    log.info("the listeners show the cluster certificate %s", wanted.fingerprint[:12])
                elif not await self._fetch(wanted):
                    await asyncio.sleep(RETRY_S[min(tries, len(RETRY_S) - 1)])
                    tries += 1

    async def _fetch(self, wanted: WantedCertificate) -> bool:
        """Get the pair from a member that shows it already; whether that worked."""
        for facts in cluster_queries.members(self._database):
            if facts.id == self._identity.member_id or not self._online(facts.id):
                continue
            try:
                answer = await self._peers.post(
                    facts.address,
                    FETCH_PATH,
                    {"fingerprint": wanted.fingerprint},
                    certificate_pem=wanted.pem,
                    timeout_s=PEER_TIMEOUT_S,
                )
                put = msgspec.convert(answer, ClusterCertificatePut)
                if self._files.put(put.cluster_certificate, put.cluster_certificate_key) == wanted.fingerprint:
                    return True
            except (ApiError, msgspec.ValidationError) as error:
                log.info("%s can't give the cluster certificate: %s", facts.name, error)
        return False

    # -- members among themselves ---------------------------------------------------------------------------------

    def keep(self, put: ClusterCertificatePut) -> None:
        """Another member sends a pair that may count in a moment. Raises BadRequestError."""
        require_cluster(self._identity)
        self._files.put(put.cluster_certificate, put.cluster_certificate_key)

    def give(self, fingerprint: str) -> ClusterCertificatePut:
        """Another member needs the pair that counts. Raises NotFoundError."""
        wanted = self._wanted()
        pair = self._files.find(fingerprint) if wanted is not None and wanted.fingerprint == fingerprint else None
        if pair is None:
            raise NotFoundError("No such cluster certificate")
        return ClusterCertificatePut(cluster_certificate=pair.certificate_pem, cluster_certificate_key=pair.key_pem)

    # -- the member that was asked --------------------------------------------------------------------------------

    async def replace(self, put: ClusterCertificatePut) -> None:
        """PUT /1.0/cluster/certificate: returns when this member shows it; the others do within moments.

        A member that can't be reached gets it when it is back. Raises BadRequestError (500 as in Incus: no pair),
        ConflictError (replaced by others meanwhile), MemberError (a member refused it; nothing has changed).
        """
        require_cluster(self._identity)
        certificates.check_pair(put.cluster_certificate, put.cluster_certificate_key)
        before = wanted_certificate(self._database)
        fingerprint = self._files.put(put.cluster_certificate, put.cluster_certificate_key)
        shown = self._files.shown()
        if shown is None:
            raise MemberError("This member has no cluster certificate")
        if shown.fingerprint == fingerprint and (before is None or before.fingerprint == fingerprint):
            self._files.drop(fingerprint)
            return
        try:
            await self._hand_out(put, shown.certificate_pem)
            pem = put.cluster_certificate
            now = rfc3339(self._wall_ns())
            known = None if before is None else before.fingerprint
            await propose(self._consensus, replace_certificate(fingerprint, pem, now, before=known))
        except TransactionConflictError:
            self._files.drop(fingerprint)
            raise ConflictError("The cluster certificate was replaced by somebody else at the same time") from None
        except PeerRefusedError:
            self._files.drop(fingerprint)
            raise
        await self._shown_here(fingerprint)

    async def _hand_out(self, put: ClusterCertificatePut, pin: str) -> None:
        """Have every member that can be reached keep the pair. Raises PeerRefusedError naming who did not want it."""

        async def to(name: str, address: str) -> None:
            try:
                body = msgspec.to_builtins(put)
                await self._peers.post(address, KEEP_PATH, body, certificate_pem=pin, timeout_s=PEER_TIMEOUT_S)
            except PeerRefusedError as error:
                raise PeerRefusedError(f"Failed to update the certificate of member {name}: {error}") from error
            except ApiError as error:  # it fetches it when it is back
                log.warning("%s gets the new cluster certificate later: %s", name, error)

        others = [m for m in cluster_queries.members(self._database) if m.id != self._identity.member_id]
        results = await asyncio.gather(
            *(to(m.name, m.address) for m in others if self._online(m.id)), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _shown_here(self, fingerprint: str) -> None:
        """Whoever asks next must find the new certificate here."""
        deadline = asyncio.get_running_loop().time() + PEER_TIMEOUT_S
        while asyncio.get_running_loop().time() < deadline:
            self._look()
            shown = self._files.shown()
            if shown is not None and shown.fingerprint == fingerprint and not self._following.locked():
                return
            await asyncio.sleep(0.01)
