"""Turns the core's refusals into errors that a user can act on.

Owns the texts for "no leader" and its relatives, in Incus' words where Incus has them (CONTRACT 18); used by
runtime.py. Must never call something refused that may have happened.
"""

from __future__ import annotations

from incus_actors.consensus.api import ConsensusStatus
from incus_actors.consensus.effects import Resolve
from incus_actors.errors import ApiError, BadRequestError, OutcomeUnknownError, UnavailableError


def refusal(answer: Resolve, status: ConsensusStatus) -> ApiError:
    """Return the error for an answer that is not "applied"."""
    detail = f": {answer.detail}" if answer.detail else ""
    match answer.status:
        case "unknown":
            return OutcomeUnknownError(
                f"Failed to commit transaction: its outcome is not known{detail}",
                remedy="It may have happened. Look before repeating it.",
            )
        case "busy":
            return UnavailableError("Failed to begin transaction: too many transactions are waiting")
        case "too_large" | "invalid":
            return BadRequestError(f"Failed to begin transaction: {answer.status.replace('_', ' ')}{detail}")
        case "unsupported":
            return UnavailableError(
                "Failed to begin transaction: not every member of the cluster can apply it yet",
                remedy="Upgrade the other members first; `incus-actors raft status` shows who has what.",
            )
        case "disk_full":
            return UnavailableError(
                "Failed to begin transaction: the disk of the database is full",
                remedy="Free space below the state directory of a majority of the database members; deletions still work.",
            )
        case _:
            return no_leader(status)


def own_disk_full(what: str) -> UnavailableError:
    """Return the error for what this member alone can't do because its disk is full."""
    return UnavailableError(
        f"Failed to begin transaction: the disk of the database is full on this member ({what})",
        remedy="Free space below its state directory; meanwhile ask another member.",
    )


def no_leader(status: ConsensusStatus) -> UnavailableError:
    """Return the error for a cluster that nobody leads, with who is missing."""
    links = {peer.id for peer in status.peers if peer.link} | {status.member_id}
    members = status.configuration.members()
    lacking: list[str] = []
    for voters in status.configuration.voter_sets():
        needed = len(voters) // 2 + 1
        away = ", ".join(f"{m} ({members[m].address.split('?')[0]})" for m in sorted(voters - links))
        reachable = len(voters & links)
        text = f"{needed} of {len(voters)} database members needed, {reachable} reachable"
        lacking.append(text + (f" (not reachable: {away})" if away else ""))
    return UnavailableError(
        f"Failed to begin transaction: no leader of the database: {'; '.join(lacking)}",
        remedy="Start the members that are not reachable, or check the network between them.",
    )
