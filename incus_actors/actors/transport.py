"""TransportActor: the actors' way to other members.

Owns the bulk lane while it lives; its peers follow the active Raft configuration, and it is the RemoteSender of the
actor system. The daemon puts it right after RaftActor. Must never do slow work in its mailbox: a removed member's
key has to go at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from incus_actors.actors.actor import Actor, ChildSpec
from incus_actors.consensus.api import Consensus
from incus_actors.consensus.types import Configuration
from incus_actors.transport.bulk_lane import BulkLane
from incus_actors.transport.frames import ActorFrame
from incus_actors.transport.lanes import Lanes

log = logging.getLogger(__name__)

PATH = "transport"


@dataclass(frozen=True, slots=True)
class PeersChanged:
    """The active configuration is now this."""

    configuration: Configuration


class TransportActor(Actor):
    """See the module."""

    mailbox_limit = 256

    def __init__(self, lanes: Lanes, consensus: Consensus, linked: Callable[[int], None]) -> None:
        self._lanes = lanes
        self._linked = linked
        self._consensus = consensus
        self._lane: BulkLane | None = None
        self._unsubscribe: Callable[[], None] | None = None

    async def started(self) -> None:
        """Bind, begin to follow the configuration, and carry the frames of the actor system."""
        lane = self._lanes.bulk_lane()
        try:
            await lane.start(self)
        except BaseException:
            await lane.close()
            raise
        self._lane = lane
        self.context.system.remoting.sender = self
        own = self.context.self_ref
        self._unsubscribe = self._consensus.subscribe_configuration(lambda c: own.tell(PeersChanged(c)))

    async def stopped(self, reason: str) -> None:
        """Break every link."""
        if self._unsubscribe is not None:
            self._unsubscribe()
        remoting = self.context.system.remoting
        if remoting.sender is self:
            remoting.sender = None
        lane, self._lane = self._lane, None
        if lane is not None:
            for member in lane.links():
                remoting.member_down(member)
            await lane.close()

    async def receive(self, message: object) -> object:
        """PeersChanged."""
        match message:
            case PeersChanged(configuration):
                if self._lane is not None:
                    self._lane.set_peers(configuration.members().values(), self._consensus.member_id)
                return None
            case _:
                return self.unhandled(message)

    # -- RemoteSender ----------------------------------------------------------------------------------------------

    def send_frame(self, member: int, frame: ActorFrame) -> str:
        """See RemoteSender."""
        return "remote_down" if self._lane is None else self._lane.send_frame(member, frame)

    # -- BulkListener ----------------------------------------------------------------------------------------------

    def on_actor_frame(self, member: int, frame: ActorFrame) -> None:
        """See BulkListener."""
        self.context.system.remoting.receive(member, frame)

    def on_link_up(self, member: int) -> None:
        """See BulkListener."""
        self.context.system.remoting.link_remade(member)
        self._linked(member)

    def on_link_down(self, member: int, evidence: str) -> None:
        """See BulkListener."""
        log.info("member %d can't be reached by actors (%s)", member, evidence)
        self.context.system.remoting.member_down(member)


def transport_spec(
    lanes: Lanes, consensus: Consensus, linked: Callable[[int], None] = lambda _member: None
) -> ChildSpec:
    """Return how to run it: at path "transport", restarted when it fails. `linked(member)`: a member can be told
    things, for the first time or again; must be quick."""
    return ChildSpec(PATH, lambda: TransportActor(lanes, consensus, linked), backoff_s=0.05)
