"""Faults of the network between real daemons: cut, partitioned, lossy, slow, corrupting, refusing.

Owns these classes; schedule.py chooses among them and those of nemesis.py. The kernel here has no netem: loss and corruption
are rules of nftables, a slow link is a token bucket with a queue, delay and disorder are made by a process that carries frames
(delay_relay.py). Must never touch what does not belong to the lab's namespaces and links.
"""

from __future__ import annotations

import time
from typing import ClassVar

from incus_actors.lab.delay_relay import WAYS
from incus_actors.lab.nemesis import Stage

WORDS = {"late": "70 ms late", "disorder": "out of order", "twice": "twice at times"}


class CutLink:
    """A member's cable is pulled: silence in both directions."""

    lasts_s: ClassVar = (0.3, 6.0)

    def begin(self, stage: Stage) -> str:
        """See Fault."""
        self.member = stage.victim()
        stage.network.cut(stage.number(self.member))
        return f"cut {self.member.name}"

    def end(self, stage: Stage) -> None:
        """See Fault."""
        stage.network.heal(stage.number(self.member))


class Partition:
    """Packets between some members are dropped: two halves, a ring of overlapping majorities, or one way only."""

    lasts_s: ClassVar = (0.3, 6.0)

    def begin(self, stage: Stage) -> str:
        """See Fault."""
        names = list(range(1, len(stage.members) + 1))
        stage.rng.shuffle(names)
        kind = stage.rng.choice(["halves", "one-way", "ring" if len(names) > 3 else "bridge"])
        self.blocked: dict[int, list[int]] = {}  #: by number: whom it doesn't hear
        if kind == "halves":
            cut = len(names) // 2
            for one in names[:cut]:
                for other in names[cut:]:
                    self._block(one, other)
                    self._block(other, one)
        elif kind == "one-way":
            for other in names[1:] if stage.rng.random() < 0.5 else names[1:2]:
                self._block(names[0], other)
        elif kind == "ring":
            for position, member in enumerate(names):
                self._block(member, names[(position + 2) % len(names)])
                self._block(names[(position + 2) % len(names)], member)
        else:
            self._block(names[0], names[1])
            self._block(names[1], names[0])
        for member, sources in self.blocked.items():
            stage.network.drop_from(member, sources)
        what = "; ".join(f"m{m} hears nothing of {', '.join(f'm{s}' for s in ss)}" for m, ss in self.blocked.items())
        return f"partition ({kind}): {what}"

    def _block(self, member: int, source: int) -> None:
        sources = self.blocked.setdefault(member, [])
        if source not in sources:
            sources.append(source)

    def end(self, stage: Stage) -> None:
        """See Fault."""
        for member in self.blocked:
            stage.network.hear_all(member)


class ResetStorm:
    """All connections of one member, or of everybody, are reset several times, while all live."""

    lasts_s: ClassVar = (0.0, 0.2)

    def begin(self, stage: Stage) -> str:
        """See Fault."""
        struck = [stage.victim()] if stage.rng.random() < 0.6 else list(stage.members)
        for _ in range(stage.rng.randint(1, 6)):
            for member in struck:
                stage.network.reset_connections(stage.number(member))
            time.sleep(stage.rng.random() * 0.3)
        return f"resets at {', '.join(m.name for m in struck)}"

    def end(self, stage: Stage) -> None:
        """See Fault."""


class LossyLink:
    """Packets that arrive at a member are lost at random, in streaks of repetitions longer and longer."""

    lasts_s: ClassVar = (1.0, 6.0)

    def begin(self, stage: Stage) -> str:
        """See Fault."""
        member = stage.victim()
        self.number = stage.number(member)
        percent = stage.rng.choice((5, 20, 40))
        stage.network.lose(self.number, percent)
        return f"{member.name} misses {percent} % of the packets to it"

    def end(self, stage: Stage) -> None:
        """See Fault."""
        stage.network.lose_nothing(self.number)


class SlowLink:
    """Whatever goes to a member queues before a narrow link: hundreds of milliseconds late, and lost when it is too much."""

    lasts_s: ClassVar = (1.0, 6.0)

    def begin(self, stage: Stage) -> str:
        """See Fault."""
        member = stage.victim()
        self.number = stage.number(member)
        kbit = stage.rng.choice((128, 512, 2048))
        stage.network.slow(self.number, kbit)
        return f"the link to {member.name} takes {kbit} kbit/s"

    def end(self, stage: Stage) -> None:
        """See Fault."""
        stage.network.fast(self.number)


class DelayLink:
    """Whatever goes to and from a member comes 70 ms later, or overtakes what was sent before, or comes twice."""

    lasts_s: ClassVar = (1.0, 6.0)

    def begin(self, stage: Stage) -> str:
        """See Fault."""
        member = stage.victim()
        self.number = stage.number(member)
        how = stage.rng.choice(list(WAYS))
        stage.network.delay(self.number, how)
        return f"the packets to and from {member.name} come {WORDS[how]}"

    def end(self, stage: Stage) -> None:
        """See Fault."""
        stage.network.delay_nothing(self.number)


class CorruptPackets:
    """A byte of some packets to a member is another, with a checksum that fits: CURVE and TLS must see it."""

    lasts_s: ClassVar = (1.0, 5.0)

    def begin(self, stage: Stage) -> str:
        """See Fault."""
        member = stage.victim()
        self.number = stage.number(member)
        every, offset = stage.rng.choice((3, 30, 200)), stage.rng.choice((0, 9, 60))
        stage.network.corrupt(self.number, every=every, offset=offset)
        return f"one in {every} packets to {member.name} is altered at byte {offset}"

    def end(self, stage: Stage) -> None:
        """See Fault."""
        stage.network.corrupt_nothing(self.number)


class RefusedConnections:
    """A member lives, but its connections are reset and new ones to it refused, as if nothing listened there any more."""

    lasts_s: ClassVar = (0.3, 4.0)

    def begin(self, stage: Stage) -> str:
        """See Fault."""
        member = stage.victim()
        self.number = stage.number(member)
        stage.network.refuse(self.number)
        stage.network.reset_connections(self.number)
        return f"{member.name} refuses connections"

    def end(self, stage: Stage) -> None:
        """See Fault."""
        stage.network.refuse_nothing(self.number)
