"""Whether waiting for other members still makes sense.

Owns the answer for services that wait until each member has done its share; an address that refuses connections is
refused at once by Incus, too. Must never give a member up that is only restarting or slow: both links have to be
away for GRACE_S without a break.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Final

from incus_actors.consensus.api import Consensus
from incus_actors.errors import MemberError

GRACE_S: Final = 2.0


class Absence:
    """One wait for the members of the cluster."""

    def __init__(
        self, consensus: Consensus, *, grace_s: float = GRACE_S, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._consensus = consensus
        self._grace_s = grace_s
        self._monotonic_s = monotonic_s
        self._since_s: dict[int, float] = {}  #: member → since when it is out of reach

    @property
    def away(self) -> Collection[int]:
        """Those that were out of reach at the last look."""
        return self._since_s.keys()

    def gone(self, member_ids: Collection[int]) -> list[int]:
        """Return which of them have been out of reach for GRACE_S, by this and the earlier calls; to be called twice
        a second or more often."""
        status = self._consensus.status()
        linked = {peer.id for peer in status.peers if peer.link} | {status.member_id}
        now_s = self._monotonic_s()
        self._since_s = {
            member: self._since_s.get(member, now_s) for member in sorted(member_ids) if member not in linked
        }
        return [member for member, since_s in self._since_s.items() if now_s - since_s >= self._grace_s]


def peer_failed(address: object, reason: object) -> MemberError:
    """Return what Incus says of a member that could not do its share (500)."""
    return MemberError(f"failed to notify peer {address}: {reason}")


def peer_down(address: object) -> MemberError:
    """Return what Incus says of a member that doesn't answer (500)."""
    return MemberError(f"peer node {address} is down")
