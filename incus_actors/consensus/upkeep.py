"""What a leader does about the state from time to time: let everybody forget answers, compare, and use what is new.

Owns when this is due (CONSENSUS 3.11: answers live for a day, whole states are compared once a day at an agreed
index; 3.13: upgrade.py looks whether every member can apply more). It only proposes entries; what they do is in
state/apply.py. Must never end because nobody leads just now.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from incus_actors.clock import Clock
from incus_actors.consensus import sessions
from incus_actors.consensus.api import ConsensusStatus, StateCheck
from incus_actors.consensus.types import EntryKind, Index, RaftRole
from incus_actors.consensus.upgrade import Upgrade
from incus_actors.errors import UnavailableError
from incus_actors.model.transaction import Outcome
from incus_actors.state.codec import encode_expire
from incus_actors.state.reader import Reader

log = logging.getLogger(__name__)

LOOK_EVERY_S = 15.0
PAUSE_S = 0.1  #: between two portions to forget: the writes of others go on
CHECK_EVERY_MS = 24 * 3600 * 1000


class Upkeep:
    """Runs on every member and acts on the one that leads. `propose` raises UnavailableError."""

    def __init__(
        self,
        database: Reader,
        clock: Clock,
        status: Callable[[], ConsensusStatus],
        propose: Callable[[EntryKind, bytes], Awaitable[Outcome]],
    ) -> None:
        self._database, self._clock, self._status, self._propose = database, clock, status, propose
        self.upgrade = Upgrade(database, clock, status, propose)
        self._applied: deque[tuple[int, Index]] = deque()  #: when we had applied what, the youngest last
        self._checked_ms = clock.monotonic_ms()  # by this process: after a change of leader one check may come early

    async def run(self) -> None:
        """Look every few seconds, until cancelled. Each run is one database: what was applied before says nothing."""
        self._applied.clear()
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            for duty in (self._note_for_later, self.forget_due, self.check_if_due, self.upgrade.if_due):
                try:
                    await duty()
                except UnavailableError as exc:  # a low disk refuses a migration, and the others help
                    log.info("upkeep of the database is put off: %s", exc)

    async def _note_for_later(self) -> None:
        """Every member does, for it may lead later."""
        self.note()

    def note(self) -> Index:
        """Remember what is applied now, and return it."""
        applied = Index(self._database.scalar("SELECT MAX(applied_index) FROM _raft") or 0)  # a status may be behind
        self._applied.append((self._clock.monotonic_ms(), applied))
        self.settled(sessions.KEEP_MS)  # what is older than needed goes; a member that never leads does not ask
        return applied

    def settled(self, keep_ms: int) -> Index:
        """Return an index that this process had applied `keep_ms` ago or earlier; 0 if it has not run for so long."""
        noted, before = self._applied, self._clock.monotonic_ms() - keep_ms
        while len(noted) > 1 and noted[1][0] <= before:
            noted.popleft()
        return noted[0][1] if noted and noted[0][0] <= before else 0

    async def forget_due(
        self,
        *,
        life_ms: int = sessions.LIFE_MS,
        keep_ms: int = sessions.KEEP_MS,
        limit: int = sessions.LIMIT,
        portion: int = sessions.PORTION,
    ) -> None:
        """Expire sessions until nothing is due: under load more come between two looks than one portion has.

        A portion that is not full was the last; to go on until none is due would never end, for each adds its own
        answer. Raises UnavailableError.
        """
        while True:
            forgotten = await self.expire_sessions(life_ms=life_ms, keep_ms=keep_ms, limit=limit, portion=portion)
            if forgotten < portion:
                return
            await asyncio.sleep(PAUSE_S)

    async def expire_sessions(
        self,
        *,
        life_ms: int = sessions.LIFE_MS,
        keep_ms: int = sessions.KEEP_MS,
        limit: int = sessions.LIMIT,
        portion: int = sessions.PORTION,
    ) -> int:
        """If this member leads: forget answers older than `life_ms`, or the oldest ones beyond `limit`, at most about
        `portion` of them, and none that was given less than `keep_ms` ago by our own monotonic clock; return how many.

        The ages in ids are told by the clocks of their makers, and those can be wrong by years: an id from 1970 is the
        oldest of all while it is on its way. Raises UnavailableError.
        """
        if self._status().role is not RaftRole.LEADER:
            return 0
        applied = self.note()
        settled = self.settled(keep_ms)
        cutoff_ms = sessions.expiry_cutoff(
            self._database,
            now_ms=self._clock.wall_ms(),
            applied=applied,
            settled=settled,
            life_ms=life_ms,
            limit=limit,
            portion=portion,
        )
        if cutoff_ms is None:
            return 0
        outcome = await self._propose(EntryKind.EXPIRE, encode_expire(cutoff_ms, settled))
        return sum(outcome.changed)

    async def check_if_due(self) -> bool:
        """If this member leads and a day has passed: compare. Raises UnavailableError."""
        due = self._clock.monotonic_ms() - self._checked_ms >= CHECK_EVERY_MS
        if not due or self._status().role is not RaftRole.LEADER:
            return False
        await self.check()
        return True

    async def check(self) -> StateCheck:
        """Let every member hash its whole state at one index; the digests then show whose differs. Raises
        UnavailableError."""
        outcome = await self._propose(EntryKind.CHECK, b"")
        self._checked_ms = self._clock.monotonic_ms()
        found = outcome.rows[0][0][0]
        if not isinstance(found, bytes):
            raise TypeError(f"a check of the state has answered {outcome}")
        return StateCheck(outcome.index, found)
