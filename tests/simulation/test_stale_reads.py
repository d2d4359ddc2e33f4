"""P-STALE: the history of values, and a member whose local state is none of them."""

from __future__ import annotations

import pytest

from incus_actors.consensus.types import Entry, EntryKind
from incus_actors.simulation.machine import Action, Command, MemoryMachine, Value
from incus_actors.simulation.runner import run_seed
from incus_actors.simulation.stale_reads import Versions

SET = Command((Action("set", "r1", "a"), Action("append", "l1", 7)))
MORE = Command((Action("get", "r1"), Action("append", "l1", 8)))
GUARDED = Command((Action("set", "r1", "never"),), (("r1", "something else"),))


def entries(machine: MemoryMachine, *commands: tuple[bytes, Command]) -> tuple[Entry, ...]:
    return tuple(
        Entry(index, 1, EntryKind.SQL, 0, proposal_id, machine.encode(command), b"c")
        for index, (proposal_id, command) in enumerate(commands, 1)
    )


def test_every_state_is_known_and_told_once() -> None:
    versions, machine = Versions(), MemoryMachine()
    ids = [bytes([255, number]) + bytes(14) for number in range(3)]
    versions.commands.update(zip(ids, (SET, MORE, GUARDED), strict=True))
    log = entries(machine, (ids[0], SET), (ids[1], MORE), (ids[0], SET), (ids[2], GUARDED))
    outcomes = machine.apply(log)
    versions.applied(log[:3], outcomes[:3])
    versions.applied(log[1:], outcomes[1:])  # another member, later
    assert versions.last == 4
    keys = ("r1", "l1", "l2")
    assert versions.at(0, keys) == (None, None, None)
    assert versions.at(1, keys) == ("a", (7,), None)
    assert versions.at(2, keys) == ("a", (7, 8), None)
    assert versions.at(4, keys) == ("a", (7, 8), None)
    assert machine.read(keys) == versions.at(machine.index, keys)


def test_a_member_that_shows_what_never_was_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = MemoryMachine.read

    def half(self: MemoryMachine, keys: tuple[str, ...]) -> tuple[Value, ...]:
        """The newest list as it was one append ago: half of a batch."""
        return tuple(v[:-1] or None if isinstance(v, tuple) else v for v in honest(self, keys))

    monkeypatch.setattr(MemoryMachine, "read", half)
    found = next(result.failure for seed in range(10) if (result := run_seed(seed, 2_000)).failure)
    assert found is not None
    assert found.name == "P-STALE", found
