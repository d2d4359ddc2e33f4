"""P-STALE of CONSENSUS 4.2: what a member reads locally, at any moment, is a state that the cluster once had.

Owns the values of every key at every index, told by whoever applies an entry first; clients compare with it what they
find on any running member, however far that one lags. Must not read machines itself: the history is one of answers.
"""

from __future__ import annotations

from bisect import bisect_right

from incus_actors.consensus.types import Entry, Index
from incus_actors.simulation.machine import Command, Outcome, Value


class Versions:
    """All values of all keys. `commands` by proposal id, kept by the clients."""

    def __init__(self) -> None:
        self.commands: dict[bytes, Command] = {}
        self.last: Index = 0
        self._at: dict[str, list[Index]] = {}
        self._values: dict[str, list[Value]] = {}

    def applied(self, entries: tuple[Entry, ...], outcomes: list[Outcome | None]) -> None:
        """Somebody has applied these; what is not new is skipped."""
        for entry, outcome in zip(entries, outcomes, strict=True):
            if entry.index != self.last + 1:
                continue
            self.last = entry.index
            command = self.commands.get(entry.proposal_id)
            if command is None or outcome is None or outcome[0] != "applied" or outcome[2] != entry.index:
                continue
            for action, value in zip(command.actions, outcome[1], strict=True):
                if action.kind != "get":
                    self._at.setdefault(action.key, []).append(entry.index)
                    self._values.setdefault(action.key, []).append(value)

    def at(self, index: Index, keys: tuple[str, ...]) -> tuple[Value, ...]:
        """Return the values of some keys in the state at `index`."""
        return tuple(self._one(index, key) for key in keys)

    def _one(self, index: Index, key: str) -> Value:
        count = bisect_right(self._at.get(key, ()), index)
        return self._values[key][count - 1] if count else None
