"""Before a planned stop: somebody else leads, and with two members somebody else votes (CONSENSUS 3.9, handover).

Owns the order of it; called by runtime.py. What can't be had in time is left: the others elect anyway, and a lone voter is
missed only until it is back.
"""

from __future__ import annotations

import logging

from incus_actors.consensus.api import Consensus
from incus_actors.consensus.policy import vote_given_away
from incus_actors.errors import ApiError

log = logging.getLogger(__name__)

TRANSFER_S = 0.6
GIVE_VOTE_S = 2.0


async def hand_over(consensus: Consensus, *, keep_vote: bool) -> None:
    """On the leader: make another voter lead, or give the only vote away unless it is to be kept."""
    status = consensus.status()
    if status.configuration.voters() - {status.member_id}:
        await consensus.transfer_leadership(timeout_s=TRANSFER_S)
        return
    target = vote_given_away(status.configuration, status.health(), status.member_id)
    if target is None or keep_vote:
        return
    try:
        await consensus.change_configuration(target, timeout_s=GIVE_VOTE_S)
    except ApiError as error:
        log.warning("the only vote could not be given to another member: %s", error)
