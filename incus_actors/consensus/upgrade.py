"""Switching on what every member can apply: the leader's part in a rolling upgrade (CONSENSUS 3.13).

Owns when a FEATURE entry is proposed, and the migrations of the schema that wait for it. Run by upkeep.py while the
daemon lives, and by daemon/state_setup.py for a new database. Until the entry is committed nothing has happened that an
older release could not apply, so that every member may still be taken back to it. Every step is guarded: two leaders that
do it at once, or one that does it twice, change nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from incus_actors.clock import Clock
from incus_actors.consensus.api import ConsensusStatus
from incus_actors.consensus.types import EntryKind, RaftRole
from incus_actors.domain.members import rfc3339
from incus_actors.errors import UnavailableError
from incus_actors.model.features import encode_level, schema_at
from incus_actors.model.transaction import Outcome
from incus_actors.state.codec import encode_transaction
from incus_actors.state.reader import Reader
from incus_actors.state.schema import current_version, pending_migrations

log = logging.getLogger(__name__)


class Upgrade:
    """`propose` raises UnavailableError."""

    def __init__(
        self,
        database: Reader,
        clock: Clock,
        status: Callable[[], ConsensusStatus],
        propose: Callable[[EntryKind, bytes], Awaitable[Outcome]],
    ) -> None:
        self._database, self._clock, self._status, self._propose = database, clock, status, propose

    async def if_due(self) -> bool:
        """If this member leads: switch on what all can apply, then migrate to what that allows; return whether anything
        was done. Raises UnavailableError."""
        status = self._status()
        if status.role is not RaftRole.LEADER:
            return False
        level, wanted = status.feature_level, status.level_of_all()
        if wanted > level:
            outcome = await self._propose(EntryKind.FEATURE, encode_level(wanted))
            if not outcome.applied:
                raise UnavailableError(f"Feature level {wanted} could not be switched on: {outcome.error}")
            log.info("feature level %d is switched on: every member can apply it", wanted)
        migrated = await self._migrate(max(wanted, level))
        return migrated or wanted > level

    async def _migrate(self, level: int) -> bool:
        version, wanted = current_version(self._database), schema_at(level)
        if version >= wanted:
            return False
        now = rfc3339(self._clock.wall_ms() * 1_000_000)
        for migration in await asyncio.to_thread(pending_migrations, version, now, upto=wanted):
            outcome = await self._propose(EntryKind.SCHEMA, encode_transaction(migration))
            if not outcome.applied and outcome.label != "schema":
                raise UnavailableError(f"The database could not be migrated: {outcome.error or outcome.label}")
            log.info("database schema migrated")
        return True
