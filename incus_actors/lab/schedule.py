"""Which faults a nemesis run strikes with: how often each, and which go together.

Owns the weights; chaos.py draws from them by its seed. Must never combine faults that could cost a majority its disks.
"""

from __future__ import annotations

import random
from collections.abc import Collection

from incus_actors.lab import disk_faults as disks
from incus_actors.lab import member_faults as membership
from incus_actors.lab import nemesis
from incus_actors.lab import network_faults as network
from incus_actors.lab import process_faults as processes
from incus_actors.lab.nemesis import Fault

#: How often each is chosen. Those that need a whole cluster are never combined with another.
WEIGHTS: dict[type[Fault], int] = {
    nemesis.Kill: 6,
    nemesis.PowerLoss: 1,
    nemesis.Stop: 3,
    nemesis.Pause: 5,
    processes.KillMany: 2,
    processes.KillInCall: 3,
    processes.PauseMany: 2,
    processes.PauseLeader: 2,
    processes.CloseListener: 2,
    processes.HoldDescriptors: 2,
    network.CutLink: 4,
    network.Partition: 5,
    network.ResetStorm: 3,
    network.LossyLink: 3,
    network.SlowLink: 2,
    network.DelayLink: 3,
    network.CorruptPackets: 2,
    network.RefusedConnections: 2,
    nemesis.ClockJump: 2,
    nemesis.FullDisk: 3,
    nemesis.BusyCpu: 2,
    membership.RemoveMember: 1,
    membership.ReplaceDisk: 1,
    membership.ReplaceEverybody: 1,
    membership.RotateCertificate: 1,
    disks.ForgetWrites: 1,
    disks.FlipBit: 1,
    disks.DamageState: 1,
    disks.HungDisk: 3,
    disks.FailedDisk: 1,
    disks.FailSync: 1,
}
ALONE: frozenset[type[Fault]] = frozenset(
    {
        nemesis.PowerLoss,
        processes.KillMany,
        membership.RemoveMember,
        membership.ReplaceDisk,
        membership.ReplaceEverybody,
        membership.RotateCertificate,
        disks.ForgetWrites,
        disks.FlipBit,
        disks.DamageState,
        disks.HungDisk,
        disks.FailedDisk,
        disks.FailSync,
    }
)
#: Faults of the process, of which two at once would only undo each other.
PROCESS: frozenset[type[Fault]] = frozenset(
    {
        nemesis.Kill,
        nemesis.Stop,
        nemesis.Pause,
        network.ResetStorm,
        processes.KillInCall,
        processes.PauseMany,
        processes.PauseLeader,
        processes.CloseListener,
        processes.HoldDescriptors,
    }
)
#: Those that need a disk of which a lab can say when it answers.
NEED_LOOP: frozenset[type[Fault]] = frozenset({disks.HungDisk, disks.FailedDisk})
#: Those that need strace.
NEED_TRACE: frozenset[type[Fault]] = frozenset({processes.KillInCall, disks.FailSync})


def choose(rng: random.Random, *, without: Collection[type[Fault]] = ()) -> list[type[Fault]]:
    """Return one fault, at times two of different kinds that go together; none of `without`."""
    weights = {kind: weight for kind, weight in WEIGHTS.items() if kind not in without}
    first = rng.choices(list(weights), list(weights.values()))[0]
    if first in ALONE or rng.random() < 0.7:
        return [first]
    second = rng.choices(list(weights), list(weights.values()))[0]
    if second in ALONE or second is first or {first, second} <= PROCESS:
        return [first]
    return [first, second]
