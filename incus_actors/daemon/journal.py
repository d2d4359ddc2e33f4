"""The journal of role changes: what the survivors of a failover remember, for `/internal/raft`.

Times are CLOCK_MONOTONIC in ns, which an observer on the same machine shares.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from incus_actors.consensus.api import RoleChange

KEPT = 256


class RoleJournal:
    """The last role changes of this member."""

    def __init__(self) -> None:
        self._changes: deque[RoleChange] = deque(maxlen=KEPT)

    def record(self, change: RoleChange) -> None:
        """Subscribe this to consensus."""
        self._changes.append(change)

    def rows(self) -> list[dict[str, Any]]:
        """Return them as plain data, oldest first."""
        return [
            {
                "monotonic_ns": change.monotonic_ns,
                "role": change.role.value,
                "term": change.term,
                "leader": change.leader,
                "cause": change.cause,
            }
            for change in self._changes
        ]
