"""What every member can apply: the leader's side of FEATURE entries (CONSENSUS 3.13).

Owns who has said which feature level in its Hello, and the rule that a level is switched on only when everybody has it,
spares too; called for proposals and from the leader's tick. It must never look at what is switched on already: that is
in the state, which the core does not read.
"""

from __future__ import annotations

from incus_actors.consensus.node import Node
from incus_actors.consensus.suspicion import greeting
from incus_actors.consensus.types import MemberId
from incus_actors.model.features import FeatureBodyError, decode_level

ASK_EVERY_MS = 1000


def refusal(node: Node, body: bytes) -> str:
    """Return why a FEATURE entry with this body may not be logged, "" if every member of the configuration, whatever
    its role, has said that it can apply this level.

    What a member said stands until its next process says something else: one that is away does not hold up the
    others for ever, and if it comes back older than it left, it stops at the entry.
    """
    try:
        level = decode_level(body)
    except FeatureBodyError:
        return "invalid"
    return "" if min(known_levels(node).values()) >= level else "unsupported"


def known_levels(node: Node) -> dict[MemberId, int]:
    """Return the level of every member of the configuration; 0 for one that has not said any."""
    members = node.log.configuration.members()
    return {member: node.features if member == node.id else node.features_of.get(member, 0) for member in members}


def ask_unknown(node: Node) -> None:
    """Greet again who is reachable and has never said what it is: its Hello, or ours, was lost."""
    for member in node.log.configuration.members():
        if member != node.id and member not in node.features_of and node.link_up(member):
            node.send(member, greeting(node))
