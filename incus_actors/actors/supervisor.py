"""Supervisors: actors whose only work is to keep other actors alive.

Owns the static kind (a list of specifications, started in order); what happens at the death of a child is decided
in `cell.py`, for every actor with children. Must never do work of its own in `receive`.
"""

from __future__ import annotations

from collections.abc import Sequence

from incus_actors.actors.actor import Actor, ChildSpec, Strategy


class Supervisor(Actor):
    """Starts its children in order and stops them in reverse.

    When a child dies and is to be restarted: "one_for_one" restarts it alone, "rest_for_one" it and those started
    after it, "one_for_all" all. Others are stopped in reverse order first, then started in order. Too many
    restarts (see ChildSpec) crash the supervisor, and its own supervisor decides; at the root the daemon exits.
    """

    def __init__(self, children: Sequence[ChildSpec] = (), *, strategy: Strategy = "one_for_one") -> None:
        self.strategy = strategy
        self._specs = tuple(children)

    async def started(self) -> None:
        """Start the children, each after the one before is ready. Raises ActorStartError if one does not start."""
        for spec in self._specs:
            await self.context.spawn_child(spec)


def supervisor(name: str, children: Sequence[ChildSpec], *, strategy: Strategy = "one_for_one") -> ChildSpec:
    """Return the specification of a supervisor with these children: trees are data."""
    return ChildSpec(name, lambda: Supervisor(children, strategy=strategy), shutdown_s=5)
