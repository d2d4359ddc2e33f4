"""What breaks a cluster of real daemons, and mends it again: one class per fault.

Owns the plain faults of processes and machines, and what all faults have in common; more of processes are in
process_faults.py, those of disks in disk_faults.py, of the network in network_faults.py, of membership in member_faults.py,
and schedule.py says how often each strikes. Each says what it did, and `end` always leaves
the machine as it was. Must never break more than a cluster can survive: a majority of disks stays honest.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from incus_actors.lab.clock_daemon import offset_file, set_offset
from incus_actors.lab.cluster import LabCluster
from incus_actors.lab.disks import FreezableDisk, SmallDisk
from incus_actors.lab.network import NetworkLab
from incus_actors.lab.processes import LabMember

BURNER = "while True: pass"
DAY_S = 86_400


@dataclass
class Stage:
    """What a fault works on."""

    cluster: LabCluster
    network: NetworkLab
    rng: random.Random
    disks: dict[str, SmallDisk | FreezableDisk] = field(default_factory=dict)
    say: Callable[[str], None] = print
    retire: Callable[[LabMember], None] = lambda _member: None  #: no client may ask it any more
    readmit: Callable[[LabMember], None] = lambda _member: None
    inside: set[str] = field(default_factory=set)  #: the names of those that are members now

    def __post_init__(self) -> None:
        """Everybody is a member at first."""
        self.inside.update(member.name for member in self.members)

    @property
    def members(self) -> list[LabMember]:
        """All of them."""
        return self.cluster.members

    def number(self, member: LabMember) -> int:
        """The number of a member in the network."""
        return self.cluster.members.index(member) + 1

    def victim(self) -> LabMember:
        """One member: every other time the leader, if there is one."""
        leader = self.cluster.leader() if self.rng.random() < 0.5 else None
        return leader or self.rng.choice(self.members)

    def minority(self) -> list[LabMember]:
        """Fewer than half of the members."""
        return self.rng.sample(self.members, self.rng.randint(1, (len(self.members) - 1) // 2))

    def majority(self) -> list[LabMember]:
        """As few as are more than half of the members."""
        return self.rng.sample(self.members, len(self.members) // 2 + 1)


class Fault(Protocol):
    """Begins, lasts for some seconds, ends."""

    lasts_s: ClassVar[tuple[float, float]]

    def begin(self, stage: Stage) -> str:
        """Break something; return what, for the record."""

    def end(self, stage: Stage) -> None:
        """Mend it."""


class Kill:
    """SIGKILL of one member, and its start some time later."""

    lasts_s: ClassVar = (0.1, 4.0)

    def begin(self, stage: Stage) -> str:
        """See Fault."""
        self.member = stage.victim()
        self.member.kill()
        return f"kill {self.member.name}"

    def end(self, stage: Stage) -> None:
        """See Fault."""
        self.member.start()


def kill_at_once(members: Sequence[LabMember]) -> None:
    """SIGKILL all before waiting for the first."""
    for member in members:
        member.signal(signal.SIGKILL)
    for member in members:
        member.kill()


class PowerLoss:
    """SIGKILL of everybody at once."""

    lasts_s: ClassVar = (0.1, 1.0)

    def begin(self, stage: Stage) -> str:
        """See Fault."""
        kill_at_once(stage.members)
        return "power loss"

    def end(self, stage: Stage) -> None:
        """See Fault."""
        for member in stage.members:
            member.start()


class Stop:
    """SIGTERM with handover, and a start."""

    lasts_s: ClassVar = (0.1, 2.0)

    def begin(self, stage: Stage) -> str:
        """See Fault."""
        self.member = stage.victim()
        begin = time.monotonic()
        code = self.member.stop(timeout_s=30)
        return f"stop {self.member.name} (exit code {code} after {time.monotonic() - begin:.1f} s)"

    def end(self, stage: Stage) -> None:
        """See Fault."""
        self.member.start()


class Pause:
    """SIGSTOP and SIGCONT, of one member or of a minority."""

    lasts_s: ClassVar = (0.2, 5.0)

    def chosen(self, stage: Stage) -> list[LabMember]:
        """Return who is paused."""
        return [stage.victim()] if stage.rng.random() < 0.7 else stage.minority()

    def begin(self, stage: Stage) -> str:
        """See Fault."""
        self.paused = self.chosen(stage)
        for member in self.paused:
            member.signal(signal.SIGSTOP)
        return f"pause {', '.join(m.name for m in self.paused)}"

    def end(self, stage: Stage) -> None:
        """See Fault."""
        for member in self.paused:
            if member.running:
                member.signal(signal.SIGCONT)


class ClockJump:
    """A member's wall clock is set forward or back, by a second or by decades: only its own, see clock_daemon.py."""

    lasts_s: ClassVar = (0.5, 8.0)

    def begin(self, stage: Stage) -> str:
        """See Fault."""
        member = stage.victim()
        self.offset = offset_file(member.directory)
        by_s = stage.rng.choice((1, 60, 3600, 2 * DAY_S, -1, -60, -3600, -2 * DAY_S, -50 * 365 * DAY_S))
        set_offset(self.offset, by_s)
        return f"the clock of {member.name} jumps by {by_s} s"

    def end(self, stage: Stage) -> None:
        """See Fault."""
        set_offset(self.offset, 0)


class FullDisk:
    """A member's disk runs full; at times a majority's."""

    lasts_s: ClassVar = (1.0, 6.0)

    def begin(self, stage: Stage) -> str:
        """See Fault."""
        count = len(stage.members) // 2 + 1 if stage.rng.random() < 0.3 else 1
        self.full = [stage.victim()] if count == 1 else stage.rng.sample(stage.members, count)
        for member in self.full:
            stage.disks[member.name].fill()
        return f"disk full at {', '.join(m.name for m in self.full)}"

    def end(self, stage: Stage) -> None:
        """See Fault."""
        for member in self.full:
            stage.disks[member.name].free()


class BusyCpu:
    """Busy loops beside the daemons."""

    lasts_s: ClassVar = (2.0, 6.0)

    def begin(self, stage: Stage) -> str:
        """See Fault."""
        self.burners = [subprocess.Popen([sys.executable, "-c", BURNER], stdin=subprocess.DEVNULL) for _ in range(4)]
        return f"{len(self.burners)} busy loops"

    def end(self, stage: Stage) -> None:
        """See Fault."""
        for burner in self.burners:
            burner.kill()
            burner.wait(timeout=10)
