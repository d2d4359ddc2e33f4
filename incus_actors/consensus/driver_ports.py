"""What the driver needs of its neighbours: the core, the disk threads, the maintenance of snapshots.

Owns the protocols only; driver.py calls them, tests stand in for them. Must never carry behaviour.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

from incus_actors.consensus import effects as fx
from incus_actors.consensus import events as ev
from incus_actors.consensus.types import Entry


class CoreStep(Protocol):
    """The part of core.Core that the driver calls."""

    def step(self, now_ms: int, event: ev.Event, /) -> list[fx.Effect]:
        """Take one event, return what to do."""

    def next_deadline_ms(self) -> int:
        """Return when the next Tick will have something to do."""


class LogWriter(Protocol):
    """The part of LogThread that the driver calls."""

    def submit(self, write: fx.WriteLog) -> None:
        """Queue a write; answered by LogDone or LogTrouble."""

    def depth(self) -> int:
        """Return how many writes wait."""

    def witness_lag(self) -> int:
        """Return how many durable entries the witness would not know of after a power cut."""


class StateWriter(Protocol):
    """The part of ApplyThread that the driver calls."""

    @property
    def feature_level(self) -> int:
        """What the state has switched on."""

    def submit(self, entries: tuple[Entry, ...]) -> None:
        """Queue entries; answered by ApplyDone or ApplyTrouble."""

    def depth(self) -> int:
        """Return how many batches wait."""


class Maintenance(Protocol):
    """Compaction and snapshots (snapshot_files.py); each answers later by an event through `Driver.handle`."""

    def carry_out(self, effect: MaintenanceEffect) -> None:
        """Begin the work."""


MaintenanceEffect: TypeAlias = (
    fx.Compact | fx.TakeSnapshot | fx.ReadSnapshotChunk | fx.StoreSnapshotChunk | fx.InstallSnapshot
)
