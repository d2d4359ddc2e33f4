"""Waiting until each member has done its share of what the rows say.

Owns the wait: it looks again whenever the rows change, and gives up members that are away or silent for too long. Called
by PoolKeeper and NetworkShares, which know what the rows mean; must never change one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from incus_actors.consensus.api import Consensus
from incus_actors.services.absence import Absence, peer_down
from incus_actors.state.queries.cluster import member_address
from incus_actors.state.reader import Reader


def _everyone(_member_id: int) -> bool:
    return True


class MemberWait:
    """`topic` is that of the rows; the members have `members_s`; `reachable` tells whether one was heard of lately."""

    def __init__(
        self,
        *,
        consensus: Consensus,
        database: Reader,
        topic: str,
        members_s: float,
        reachable: Callable[[int], bool] = _everyone,
    ) -> None:
        self._consensus = consensus
        self._database = database
        self._topic = topic
        self._members_s = members_s
        self._reachable = reachable

    async def until(self, missing: Callable[[], Sequence[int] | None]) -> None:
        """Return once `missing` returns None. It returns the members that have yet to do their share, and may raise
        why one of them never will.

        Raises MemberError when all that are missing are away, or one is silent for too long.
        """
        wake = asyncio.Event()

        def applied(_index: int, topics: frozenset[str]) -> None:
            if self._topic in topics:
                wake.set()

        unsubscribe = self._consensus.subscribe_applied(applied)
        deadline_s = time.monotonic() + self._members_s
        absence = Absence(self._consensus)
        try:
            while True:
                wake.clear()
                waited_for = missing()
                if waited_for is None:
                    return
                left_s = deadline_s - time.monotonic()
                gone = absence.gone(waited_for)
                given_up = [id_ for id_ in waited_for if id_ in gone or not self._reachable(id_)]
                if left_s <= 0 or (given_up and len(given_up) == len(waited_for)):
                    raise peer_down(member_address(self._database, waited_for[0]) if waited_for else "?")
                try:
                    await asyncio.wait_for(wake.wait(), min(left_s, 0.25))
                except TimeoutError:
                    continue
        finally:
            unsubscribe()
