"""What crosses between the main loop and the consensus loop.

Owns the notices that the driver tells (to runtime.py) and the union of what its inbox takes (from runtime.py and
the disk threads). Must never carry anything mutable: two threads see it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from incus_actors.consensus import effects as fx
from incus_actors.consensus import events as ev
from incus_actors.consensus.api import ConsensusStatus, RoleChange
from incus_actors.consensus.apply_thread import ApplyDone, ApplyTrouble
from incus_actors.consensus.log_thread import JobDone, LogDone, LogTrouble
from incus_actors.consensus.types import Index


@dataclass(frozen=True, slots=True)
class StartedNotice:
    """Told to the main loop before anything else: consensus runs, with the state in this file."""

    status: ConsensusStatus
    path: Path


@dataclass(frozen=True, slots=True)
class AppliedNotice:
    """Told to the main loop: the state has got this far, and these topics were touched."""

    index: Index
    topics: frozenset[str]


@dataclass(frozen=True, slots=True)
class FatalNotice:
    """Told to the main loop: consensus has stopped for good."""

    reason: str
    kind: str


@dataclass(frozen=True, slots=True)
class GenerationNotice:
    """Told to the main loop: the state is in another file now."""

    path: Path


Notice: TypeAlias = (
    StartedNotice | fx.Resolve | RoleChange | fx.ConfigurationChanged | AppliedNotice | FatalNotice | GenerationNotice
)
Incoming: TypeAlias = (
    ev.Propose
    | ev.ReadIndex
    | ev.ChangeConfiguration
    | ev.Transfer
    | ev.Shutdown
    | LogDone
    | LogTrouble
    | ApplyDone
    | ApplyTrouble
    | JobDone
)
