"""Warns of members that have fallen silent, and takes the warning back when they are heard again.

Owns the warnings of kind "Offline cluster member". One on every member, idle but on the leader; what it decides is in
the database, so the next leader goes on where this one was cut off. Must never touch anything else of a member:
offline is a display and a placement rule.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import replace

import msgspec

from incus_actors.actors.actor import Actor
from incus_actors.actors.heartbeat import HeartbeatTable
from incus_actors.consensus.api import Consensus
from incus_actors.consensus.types import RaftRole
from incus_actors.domain.members import go_duration, rfc3339
from incus_actors.domain.transactions_warnings import Occurrence, raise_warning, resolve_warnings
from incus_actors.errors import ApiError
from incus_actors.model.transaction import Transaction
from incus_actors.state.queries import cluster as queries
from incus_actors.state.queries.warnings import warned_members
from incus_actors.state.reader import Reader

log = logging.getLogger(__name__)

PATH = "offline"
TICK_S = 1.0
OFFLINE_MEMBER = 20  #: Incus' number of the kind


class Tick(msgspec.Struct, frozen=True):
    """A second has passed."""


class OfflineWatchActor(Actor):
    """See the module."""

    def __init__(
        self,
        *,
        consensus: Consensus,
        database: Reader,
        heartbeats: HeartbeatTable,
        wall_ns: Callable[[], int] = time.time_ns,
        tick_s: float = TICK_S,
    ) -> None:
        self._consensus = consensus
        self._database = database
        self._heartbeats = heartbeats
        self._wall_ns = wall_ns
        self._tick_s = tick_s

    async def started(self) -> None:
        """Begin to tick."""
        self.context.tell_every(self._tick_s, Tick())

    async def receive(self, message: object) -> object:
        """Compare what is warned of with what is so."""
        if not isinstance(message, Tick):
            return self.unhandled(message)
        status = self._consensus.status()
        if status.role is RaftRole.LEADER:
            try:
                await self._compare(status.term)
            except ApiError as error:  # the next tick tries again
                log.info("warnings about offline members must wait: %s", error)
        return None

    async def _compare(self, term: int) -> None:
        members = queries.members(self._database)
        if len(members) < 2:
            return
        own = self._consensus.member_id
        threshold_s = queries.settings(self._database).offline_threshold_s
        warned = warned_members(self._database, OFFLINE_MEMBER)
        for facts in members:
            sighting = self._heartbeats.sighting(facts.id, own)
            offline = sighting.age_s > threshold_s
            if offline and facts.id not in warned:
                text = f"Member {facts.name} is offline: no heartbeat for {go_duration(int(sighting.age_s) * 10**9)}"
                log.warning(text)
                await self._propose(
                    raise_warning(Occurrence(OFFLINE_MEMBER, text, facts.id), str(uuid.uuid4()), self._now()), term
                )
            elif not offline and facts.id in warned:
                log.info("member %s is back", facts.name)
                await self._propose(resolve_warnings(OFFLINE_MEMBER, facts.id, self._now()), term)

    async def _propose(self, transaction: Transaction, term: int) -> None:
        await self._consensus.propose(replace(transaction, fence_term=term))

    def _now(self) -> str:
        return rfc3339(self._wall_ns())
