"""What a member does for a server that becomes, or again becomes, a member: the leader accepts it, we answer.

Owns the asking and the answer, which hands over the cluster's private key; called by JoinService and ReplaceService after
they have proved who asks. Must never be reached before that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from incus_actors.actors.leader import leader_ref
from incus_actors.actors.leader_messages import Accepted, AcceptMember, ReplaceMember
from incus_actors.actors.system import ActorSystem
from incus_actors.consensus.api import Consensus
from incus_actors.errors import MemberError, UnavailableError
from incus_actors.model.cluster import AcceptAnswer
from incus_actors.security import certificates

Wish = TypeVar("Wish", AcceptMember, ReplaceMember)


async def ask_leader(
    actors: ActorSystem,
    consensus: Consensus,
    wish: Wish,
    *,
    deadline_s: float,
    pause_s: float,
    again: Callable[[Wish], Awaitable[Wish]] | None = None,
) -> Accepted:
    """Ask the leader; a change of leader meanwhile is no reason to fail. `again` tells what to ask another time.

    Raises ApiError.
    """
    deadline = asyncio.get_running_loop().time() + deadline_s
    while True:
        try:
            answer = await leader_ref(actors, consensus).ask(wish, deadline_s=deadline_s)
        except UnavailableError:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(pause_s)
            if again is not None:
                wish = await again(wish)
        else:
            if not isinstance(answer, Accepted):
                raise MemberError("The leader's answer is not understood")
            return answer


def answer_to(accepted: Accepted, directory: Path) -> AcceptAnswer:
    """Return what the new member starts from; `directory` has the cluster's certificate. Raises MemberError."""
    pair = certificates.load_pair(directory, certificates.CLUSTER)
    if pair is None:
        raise MemberError("This member has no cluster certificate")
    return AcceptAnswer(
        member_id=accepted.member_id,
        cluster_id=accepted.cluster_id,
        epoch=accepted.epoch,
        configuration=accepted.configuration.decode(),
        cluster_certificate=pair.certificate_pem,
        cluster_certificate_key=pair.key_pem,
    )
