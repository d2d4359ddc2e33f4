"""RaftActor: the life of the consensus runtime.

Owns start, stop and restart of the runtime; the daemon puts it first in the tree, so that everything else stops before
it. Must never restart by itself what has failed fatally: going on could break a promise, so the daemon exits cleanly.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from incus_actors.actors.actor import Actor, ChildSpec
from incus_actors.consensus.api import ConsensusStatus

log = logging.getLogger(__name__)

PATH = "raft"


class ConsensusFatalError(Exception):
    """The runtime has stopped because going on could break a promise."""


class RunningConsensus(Protocol):
    """What of `consensus.runtime.ConsensusRuntime` concerns its life."""

    on_fatal: Callable[[str], None] | None  #: called on the main loop

    async def start(self) -> None:
        """Open the files, start the threads."""

    async def stop(self, *, handover: bool = True) -> None:
        """Hand leadership over if asked, stop the threads, close the files."""

    async def restart(self, change: Callable[[], object] | None = None) -> object:
        """Stop, run `change` in a thread, start again on the same object."""

    def status(self) -> ConsensusStatus:
        """See Consensus."""


@dataclass(frozen=True, slots=True)
class GetRaftStatus:
    """Ask for a ConsensusStatus."""


@dataclass(frozen=True, slots=True)
class RestartConsensus:
    """Ask to stop the runtime, run `change` in a thread (it may replace files), and start the runtime again.

    It is started again even if `change` raises, which is then the answer if it is an ApiError, else crashes.
    """

    change: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Fatal:
    """The runtime says that it is over."""

    reason: str


class RaftActor(Actor):
    """See the module. `runtime` stays the same object over restarts: services hold it."""

    def __init__(self, runtime: RunningConsensus) -> None:
        self._runtime = runtime

    async def started(self) -> None:
        """Start the runtime."""
        own = self.context.self_ref
        self._runtime.on_fatal = lambda reason: own.tell(Fatal(reason))
        await self._runtime.start()

    async def stopped(self, reason: str) -> None:
        """Stop the runtime; with a handover unless it failed."""
        self._runtime.on_fatal = None
        await self._runtime.stop(handover=not reason.startswith("crashed"))

    async def receive(self, message: object) -> object:
        """GetRaftStatus, RestartConsensus, Fatal."""
        match message:
            case GetRaftStatus():
                return self._runtime.status()
            case RestartConsensus(change):
                await self._runtime.restart(change)
                return None
            case Fatal(reason):
                raise ConsensusFatalError(reason)
            case _:
                return self.unhandled(message)


def raft_spec(runtime: RunningConsensus) -> ChildSpec:
    """Return how to run it: at path "raft", never restarted; its failure goes up and ends the daemon cleanly."""
    return ChildSpec(PATH, lambda: RaftActor(runtime), max_restarts=0, shutdown_s=15, start_s=120)
