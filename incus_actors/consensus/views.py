"""Read-only views of the core for status, metrics and the role policy.

Owns plain copies; called from Core. Must never hand out anything that lets a caller change the core.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from incus_actors.consensus.node import Node
from incus_actors.consensus.policy import MemberHealth
from incus_actors.consensus.progress import Progress
from incus_actors.consensus.types import Index, MemberId

if TYPE_CHECKING:
    from incus_actors.consensus.leader import Leadership


@dataclass(frozen=True, slots=True)
class PeerView:
    """The leader's view of one other member. Times in milliseconds."""

    id: MemberId
    match: Index
    next: Index
    state: str  #: probe, replicate, snapshot, excluded; disputed: its state differs, and no majority has judged it
    contact_age_ms: int
    round_trip_ms: float
    in_flight: int
    applied: Index
    free_kib: int
    caught_up: bool
    link: bool


CAUGHT_UP_ROUNDS = 3


def peers(node: Node) -> tuple[PeerView, ...]:
    """Return one view per other member, sorted by id; empty unless leading."""
    if node.leadership is None:
        return ()
    return tuple(
        PeerView(
            progress.id,
            progress.match,
            progress.next,
            _state(node.leadership, progress),
            node.now - progress.contact_ms,
            progress.round_trip_ms,
            len(progress.in_flight),
            progress.applied,
            progress.free_kib,
            caught_up(node, progress),
            node.link_up(progress.id),
        )
        for progress in node.leadership.progress.values()
    )


def _state(leadership: Leadership, progress: Progress) -> str:
    if progress.excluded:
        return "excluded"
    return "disputed" if leadership.disputed(progress.id) else progress.state.value


def caught_up(node: Node, progress: Progress) -> bool:
    """Return whether a member may be made a voter (CONSENSUS 3.9): near the end of the log for some heartbeats, its
    last catch-up round took less than the shortest election timeout, and its state is not in question."""
    return (
        progress.caught_up_rounds >= CAUGHT_UP_ROUNDS
        and not progress.excluded
        and not (node.leadership is not None and node.leadership.disputed(progress.id))
        and progress.catch_up_ms(node.now) < node.timing.election_min_ms
    )


def health(node: Node) -> dict[MemberId, MemberHealth]:
    """Return the health of every member as the leader sees it, for policy.plan; empty unless leading."""
    if node.leadership is None:
        return {}
    found = {
        view.id: MemberHealth(view.contact_age_ms, max(0, node.commit - view.match), view.caught_up)
        for view in peers(node)
    }
    found[node.id] = MemberHealth(0, 0, True)
    return dict(sorted(found.items()))
