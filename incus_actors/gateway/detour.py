"""Which member to go through while the leader is out of this one's reach, but not out of that one's (CONSENSUS 3.12).

Owns the choice, from the links of consensus and from what members last said in their heartbeats. Called by the REST
middleware after a read barrier that failed, so before anything was proposed, and by forwarding.py. A wrong choice does
no harm: the member that is asked makes its own barrier. Must never choose while this member can work by itself.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from incus_actors.actors.heartbeat import HeartbeatTable

if TYPE_CHECKING:
    from incus_actors.consensus.api import Consensus

_log = logging.getLogger(__name__)

HEARD_WITHIN_S = 2.5  #: a heartbeat comes each second


@dataclass
class Detours:
    """The way around a cut link. It is one hop long: a member that was chosen chooses no other."""

    consensus: Consensus
    heartbeats: HeartbeatTable
    _last: int = 0

    def to_leader(self) -> int:
        """Return the member to ask instead of us: of those in reach that follow a leader who is not, the one that has
        applied most. 0 if there is none, or if we can work by ourselves or nobody could for us."""
        status = self.consensus.status()
        linked = {peer.id for peer in status.peers if peer.link}
        own = status.member_id
        if status.halted or status.disk_full or status.leader == own or status.leader in linked:
            return self._chosen(0)
        following = [
            (-health.beat.applied, member_id)
            for member_id, health in self.heartbeats.view().items()
            if member_id in linked
            and health.beat is not None
            and health.beat.leader not in (0, own, *linked)
            and self.heartbeats.online(member_id, own, HEARD_WITHIN_S)
        ]
        return self._chosen(min(following)[1] if following else 0)

    def around(self, member_id: int) -> int:
        """Return the member to go through to `member_id`, 0 for the straight way."""
        if any(peer.id == member_id and peer.link for peer in self.consensus.status().peers):
            return 0
        chosen = self.to_leader()
        return 0 if chosen == member_id else chosen

    def _chosen(self, member_id: int) -> int:
        if member_id and member_id != self._last:
            _log.warning("the leader is out of reach: member %d is asked for what needs it", member_id)
        self._last = member_id
        return member_id
