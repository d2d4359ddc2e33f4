"""Faults of daemons as processes, beyond those of nemesis.py: many at once, the leader for a moment, listeners that the kernel
closes, descriptors that outlive their daemon.

Owns these classes; schedule.py chooses among them and the others. Must never leave a process stopped, nor one that keeps a
dead daemon's descriptors.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from typing import ClassVar

from incus_actors.lab.cluster import wait_for
from incus_actors.lab.nemesis import Pause, Stage, kill_at_once
from incus_actors.lab.processes import LabMember
from incus_actors.lab.tracing import last_file, traced

HOLDER = (sys.executable, "-m", "incus_actors.lab.descriptor_holder")
ENDS_S = 20.0


class KillMany:
    """SIGKILL of a majority at once; they come back one after the other."""

    lasts_s: ClassVar = (0.1, 3.0)

    def begin(self, stage: Stage) -> str:
        """See Fault."""
        self.killed = stage.majority()
        kill_at_once(self.killed)
        return f"kill {', '.join(m.name for m in self.killed)}"

    def end(self, stage: Stage) -> None:
        """See Fault."""
        for member in self.killed:
            member.start()
            time.sleep(stage.rng.random() * 1.5)


class KillInCall:
    """SIGKILL of one member at a system call: before it writes, syncs, cuts or removes a file, or before it sends. The crash
    points of etcd's robustness tests, at every place instead of at named ones."""

    lasts_s: ClassVar = (0.1, 3.0)
    LONGEST_S: ClassVar = 6.0
    CALLS: ClassVar = (("pwrite64", 60), ("fdatasync", 12), ("sendto", 300), ("ftruncate,unlink,rename", 1))

    def begin(self, stage: Stage) -> str:
        """See Fault."""
        self.member = member = stage.victim()
        calls, most = stage.rng.choice(self.CALLS)
        number = stage.rng.randint(1, most)
        with traced(member, calls, f"signal=KILL:when={number}") as record:
            deadline = time.monotonic() + self.LONGEST_S
            while member.running and time.monotonic() < deadline:
                time.sleep(0.02)
        if member.running:
            member.kill()
            return f"kill {member.name}, which made no {calls} number {number}"
        return f"kill {member.name} at {calls} number {number} of a thread, {last_file(record.read_text())}"

    def end(self, stage: Stage) -> None:
        """See Fault."""
        self.member.start()


class PauseMany(Pause):
    """SIGSTOP and SIGCONT of a majority, or of everybody: as when a hypervisor is migrated."""

    lasts_s: ClassVar = (0.2, 4.0)

    def chosen(self, stage: Stage) -> list[LabMember]:
        """Return who is paused."""
        return stage.majority() if stage.rng.random() < 0.6 else list(stage.members)


class PauseLeader:
    """The leader alone stops for less than, about, or much more than an election takes; at times again and again."""

    lasts_s: ClassVar = (0.0, 0.2)
    STOPS_S: ClassVar = (0.3, 0.7, 3.0)  #: CONSENSUS 4.3

    def begin(self, stage: Stage) -> str:
        """See Fault."""
        done = []
        for _ in range(stage.rng.randint(1, 3)):
            leader = stage.cluster.leader()
            if leader is None:
                continue
            stop_s = stage.rng.choice(self.STOPS_S)
            leader.signal(signal.SIGSTOP)
            time.sleep(stop_s)
            leader.signal(signal.SIGCONT)
            done.append(f"{leader.name} for {stop_s} s")
        return f"the leader is paused: {', '.join(done) or 'nobody leads'}"

    def end(self, stage: Stage) -> None:
        """See Fault."""


class CloseListener:
    """The kernel closes a listener of a living daemon. That of HTTPS must be opened again; without that of consensus libzmq
    aborts, and the service manager starts the daemon again."""

    lasts_s: ClassVar = (0.0, 1.0)

    def begin(self, stage: Stage) -> str:
        """See Fault."""
        self.member = member = stage.victim()
        number = stage.number(member)
        if stage.rng.random() < 0.5:
            stage.network.close_listeners(number, f"sport = :{member.port}")
            wait_for(
                lambda: member.port in stage.network.listening(number),
                f"{member.name} listens for HTTPS again",
                timeout_s=ENDS_S,
            )
            return f"the HTTPS listener of {member.name} was closed"
        stage.network.close_listeners(number, f"sport != :{member.port}")
        wait_for(lambda: not member.running, f"{member.name} ends without its listeners", timeout_s=ENDS_S)
        return f"the consensus listeners of {member.name} were closed: it ended with {member.stop()}"

    def end(self, stage: Stage) -> None:
        """See Fault."""
        if not self.member.running:
            self.member.start()


class HoldDescriptors:
    """A killed daemon's descriptors live on, as in a child that inherited them: its locks are held, its connections stand, its
    listeners take connections, and nobody reads. A start must refuse until they are gone."""

    lasts_s: ClassVar = (0.5, 6.0)

    def begin(self, stage: Stage) -> str:
        """See Fault."""
        self.member = member = stage.victim()
        assert member.process is not None
        kinds = stage.rng.choice(["all", "sockets"])
        member.signal(signal.SIGSTOP)  # what is copied and what is killed are the same
        try:
            self.holder = subprocess.Popen(
                [*HOLDER, str(member.process.pid), kinds], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            assert self.holder.stdout is not None
            count = int(self.holder.stdout.readline())
        finally:
            member.kill()
        return f"kill {member.name}, while {count} of its descriptors ({kinds}) live on"

    def end(self, stage: Stage) -> None:
        """See Fault."""
        try:
            self.member.start()
            wait_for(lambda: not self.member.running, f"{self.member.name} refuses to start", timeout_s=ENDS_S)
        finally:
            self.holder.communicate(timeout=10)  # the end of its input is its end
        self.member.start()
