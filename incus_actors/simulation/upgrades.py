"""Mixed releases: machines are upgraded, at times taken back, and the leader switches on what all of them can apply.

Owns what `consensus/upgrade.py` and an operator do in a real cluster, against the core of whoever leads now, and what
must hold of it (P-FEATURE): a level is logged only when every member has said that it can apply it, and who can't apply
it after all, since it was taken back meanwhile, stops there. Called by the world, the hosts and the nemesis.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from incus_actors.consensus import events as ev
from incus_actors.consensus.features import known_levels
from incus_actors.consensus.types import Configuration, Entry, EntryKind
from incus_actors.model.features import decode_level, encode_level
from incus_actors.simulation.machine import Image

if TYPE_CHECKING:
    from incus_actors.simulation.host import Host
    from incus_actors.simulation.world import World

OLD, NEW = 1, 2
LOOK_US = 400_000
HASTY = 0.1  #: how often somebody asks for the new level without looking who has it
AGAIN_US = 700_000  #: until an operator has upgraded a machine that stopped
PROPOSER = 0xFFFFFFFF  #: where the ids of clients have their number


class Upgrades:
    """All machines begin with the old release if the plan has upgrades, else nothing ever changes."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.asked = 0
        if world.plan.upgrades:
            world.after(LOOK_US, self.look)

    @property
    def first_release(self) -> int:
        """What the machines of the beginning run."""
        return OLD if self.world.plan.upgrades else NEW

    # -- what an operator does --------------------------------------------------------------------------------------

    def install(self, host: Host, features: int, ms: int) -> str:
        """Stop a machine, and start it again with another release. Nobody goes back behind what is switched on."""
        if features < host.disk.machine.level or features == host.disk.features:
            return ""
        host.stop()
        host.disk.features = features
        self.world.after(ms * 1_000, host.start)
        return f"member {host.id} to feature level {features}"

    def finish(self) -> None:
        """The operator upgrades whatever is left."""
        for host in list(self.world.hosts.values()):
            if host.disk.features != NEW:
                host.stop()
                host.disk.features = NEW

    # -- what the leader does ---------------------------------------------------------------------------------------

    def look(self) -> None:
        """Ask whoever leads to switch on what all can apply; at times more than that, which must be refused."""
        world = self.world
        world.after(LOOK_US, self.look)
        leader = world.leader()
        if leader is None or leader.core is None or leader.frozen:
            return
        level = min(known_levels(leader.core).values())
        if self.rng.random() < HASTY:
            level = NEW
        if level > leader.disk.machine.level:
            self._propose(leader, level)

    def _propose(self, leader: Host, level: int) -> None:
        self.asked += 1
        latest = max(host.wall_ms() for host in self.world.hosts.values())  # the daemon asks the state for its horizon
        wall = (latest & 0xFFFFFFFFFFFF).to_bytes(6, "big")
        key = wall + PROPOSER.to_bytes(4, "big") + self.asked.to_bytes(6, "big")
        deadline_ms = leader.local_ms() + 2_000
        event = ev.Propose(key, EntryKind.FEATURE, encode_level(level), leader.wall_ms(), deadline_ms)

        def answer(status: str, outcome: object, index: int) -> None:
            self.world.note("answer", leader.id, f"feature level {level}: {status}")

        leader.request(key, event, answer)

    def done(self) -> bool:
        """Whether every running member of the leader's configuration uses the new level."""
        leader = self.world.leader()
        if not self.world.plan.upgrades or leader is None or leader.core is None:
            return not self.world.plan.upgrades
        hosts = [self.world.hosts[member] for member in leader.core.configuration.members()]
        return all(host.disk.machine.level == NEW for host in hosts if not host.burnt and host.running)

    # -- what must hold ---------------------------------------------------------------------------------------------

    def missing(self, configuration: Configuration, entry: Entry) -> list[int]:
        """Return the members that never said that they can apply this FEATURE entry."""
        level = decode_level(entry.body)
        return [member for member in configuration.members() if self.world.hosts[member].said < level]

    @staticmethod
    def first_too_new(host: Host, entries: tuple[Entry, ...]) -> int | None:
        """Return the place of the first entry that the release of this machine can't apply, None if it can all."""
        for place, entry in enumerate(entries):
            if entry.kind is EntryKind.FEATURE and decode_level(entry.body) > host.disk.features:
                return place
        return None

    @staticmethod
    def image_too_new(host: Host, image: Image) -> bool:
        """Whether the release of this machine can't go on from an image."""
        return image.level > host.disk.features

    def stop(self, host: Host, what: str) -> None:
        """A machine has found something that its release can't apply: it stops, and somebody upgrades it."""
        self.world.monitor.too_new(host, what)
        self.world.note("too_new", host.id, what)
        host.stop()
        host.disk.features = NEW
        self.world.after(self.rng.randint(50_000, AGAIN_US), host.start)
