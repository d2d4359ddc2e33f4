"""Who gets the next instance, when many are asked for at once and through any member.

Owns the reservations of one term; a child of LeadershipActor beside LeaderActor, whose chores can take seconds. Asked by
services/instance_placement.py. Must never keep anything that the next leader would need: rows are in the database, and
a reservation that is lost only makes a choice less even.
"""

from __future__ import annotations

from collections.abc import Callable

from incus_actors.actors.actor import Actor
from incus_actors.actors.leader_messages import Placed, PlaceInstance
from incus_actors.consensus.api import Consensus
from incus_actors.domain.placement import Reservations
from incus_actors.state.queries import cluster as cluster_queries
from incus_actors.state.queries import instances as instance_queries
from incus_actors.state.reader import Reader

AWAY_AFTER_MS = 2_500  #: spares answer once a second


class PlacementActor(Actor):
    """Chooses among members that the asker has found fit."""

    def __init__(self, consensus: Consensus, database: Reader, monotonic_s: Callable[[], float]) -> None:
        self._consensus = consensus
        self._database = database
        self._monotonic_s = monotonic_s
        self._reservations = Reservations()
        self._unsubscribe: Callable[[], None] | None = None

    async def started(self) -> None:
        """Follow the rows."""
        self._unsubscribe = self._consensus.subscribe_applied(self._applied)

    async def stopped(self, reason: str) -> None:
        """Follow them no more."""
        if self._unsubscribe is not None:
            self._unsubscribe()

    def _applied(self, _index: int, topics: frozenset[str]) -> None:
        if "instances" in topics:
            self._reservations.settle(has_row=self._has_row, now_s=self._monotonic_s())

    def _has_row(self, key: tuple[str, str]) -> bool:
        return instance_queries.place(self._database, *key) is not None

    async def receive(self, message: object) -> object:
        """Answer PlaceInstance."""
        if not isinstance(message, PlaceInstance):
            return self.unhandled(message)
        order = self._reservations.choose(
            (message.project, message.name),
            message.members,
            cluster_queries.instance_counts(self._database),
            has_row=self._has_row,
            now_s=self._monotonic_s(),
        )
        # A member that only the asker can reach would refuse: it can't write what it has made.
        away = {peer.id for peer in self._consensus.status().peers if peer.last_contact_ms > AWAY_AFTER_MS}
        return Placed(tuple(sorted(order, key=lambda member: member in away)))
