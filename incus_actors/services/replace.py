"""Letting a member in again under a new id: the side of the cluster (CONSENSUS 3.5).

Owns the proof that it is that member (its trusted server certificate and its transport key); LeaderActor does the rest.
Called by rest/cluster_routes.py. Must never give an id to somebody who only knows a name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from incus_actors.actors.leader_messages import ReplaceMember
from incus_actors.actors.system import ActorSystem
from incus_actors.consensus.api import Consensus
from incus_actors.domain.members import rfc3339
from incus_actors.errors import BadRequestError, ForbiddenError
from incus_actors.identity import Identity
from incus_actors.model.cluster import AcceptAnswer, ReplaceRequest
from incus_actors.services.acceptance import Applicant, answer_to, ask_leader
from incus_actors.state.queries import cluster as queries
from incus_actors.state.reader import Reader
from incus_actors.transport.address import AddressError, parse_address

REPLACE_PATH = "/internal/cluster/replace"
REPLACE_TIMEOUT_S = 30.0


class ReplaceService:
    """Answers members that have lost their database."""

    def __init__(
        self,
        *,
        directory: Path,
        identity: Identity,
        consensus: Consensus,
        database: Reader,
        actors: ActorSystem,
        wall_ns: Callable[[], int],
    ) -> None:
        self._directory = directory
        self._identity = identity
        self._consensus = consensus
        self._database = database
        self._actors = actors
        self._wall_ns = wall_ns

    async def replace(self, request: ReplaceRequest, applicant: Applicant) -> AcceptAnswer:
        """Return what the member starts anew from. Raises ForbiddenError, BadRequestError, UnavailableError."""
        if not self._identity.clustered:
            raise BadRequestError("This server is not clustered")
        if not applicant.trusted_name or applicant.trusted_name != request.name:
            raise ForbiddenError
        self._check_key(request)
        accepted = await ask_leader(
            self._actors,
            self._consensus,
            ReplaceMember(
                request.name, request.transport, request.schema, request.api_extensions, rfc3339(self._wall_ns())
            ),
            deadline_s=REPLACE_TIMEOUT_S - 5,
            pause_s=0.2,
        )
        return answer_to(accepted, self._directory)

    def _check_key(self, request: ReplaceRequest) -> None:
        """The transport key must be the one that the member had, as long as its old id is known to the log."""
        try:
            shown = parse_address(request.transport)
        except AddressError as error:
            raise BadRequestError(f"Invalid transport address: {error}") from error
        facts = queries.member(self._database, request.name)
        known = None if facts is None else self._consensus.status().configuration.members().get(facts.id)
        if known is not None and parse_address(known.address).public_key_hex != shown.public_key_hex:
            raise ForbiddenError(
                f"Member {request.name} has another transport key; remove it with --force and join it anew"
            )
