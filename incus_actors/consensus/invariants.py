"""What must hold of a core between two steps (CONSENSUS 3.1).

Owns the checks, which are cheap: no loop over entries. Core runs them after every step; a driver that hears of an
InvariantError stops the process before a promise is broken. Must never change anything.
"""

from __future__ import annotations

from incus_actors.consensus.node import Node
from incus_actors.consensus.types import Configuration, MemberId, RaftRole


class InvariantError(AssertionError):
    """The core contradicts itself: stop before a promise is broken."""


class Invariants:
    """The checks of one core."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._checked: Configuration | None = None  #: its voter sets are known
        self._checked_sets: tuple[frozenset[MemberId], ...] = ()

    def check(self) -> None:
        """Raise InvariantError if the state contradicts itself."""
        node = self._node
        broken = self._broken_log() or self._broken_roles()
        if broken:
            raise InvariantError(f"member {node.id} term {node.term}: {broken}")
        if node.leadership is not None:
            last = node.log.last
            for progress in node.leadership.progress.values():
                if not progress.match < progress.next or progress.match > last:
                    raise InvariantError(f"progress of {progress.id}: match {progress.match} next {progress.next}")
                if progress.in_flight_bytes and not progress.in_flight:
                    raise InvariantError(f"progress of {progress.id}: {progress.in_flight_bytes} bytes in no message")

    def _broken_log(self) -> str:
        """Return what does not hold of log, commit and applied."""
        node, log = self._node, self._node.log
        last, commit = log.last, node.commit
        if log.durable > last:
            return "durable <= last"
        if commit > last:
            return "commit <= last"
        if log.mark.index > commit:
            return "snapshot <= commit"
        if node.applied > node.apply_sent:
            return "applied <= handed over"
        if node.apply_sent > commit or node.apply_sent > log.durable:
            return "R-APPLY: applied <= min(commit, durable)"
        if last - log.first + 1 != len(log.entries):
            return "entries are contiguous"
        if not log.mark.configuration_index <= log.configuration_index <= last:
            return "configurations match the log"
        return ""

    def _broken_roles(self) -> str:
        """Return what does not hold of role, term and voters."""
        node = self._node
        configuration = node.log.configuration
        if configuration is not self._checked:
            self._checked, self._checked_sets = configuration, configuration.voter_sets()
        if node.voter_sets != self._checked_sets:
            return "voters are those of the active configuration"
        leads = node.role is RaftRole.LEADER
        if leads != (node.leadership is not None):
            return "leadership belongs to leaders"
        if leads and node.leader != node.id:
            return "a leader knows itself"
        if node.durable_hard.term > node.term:
            return "durable term <= term"
        return ""
