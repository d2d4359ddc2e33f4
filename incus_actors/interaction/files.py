"""Snapshot files and compaction of a script: what snapshot_files.py does in the daemon, as jobs that can be held.

Owns the jobs that a core has asked for and the contents of transfer snapshots; the world runs them when the script
says so. Must never decide when.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from incus_actors.consensus import effects as fx
from incus_actors.consensus import events as ev
from incus_actors.consensus.types import MemberId
from incus_actors.interaction.errors import StepFailedError
from incus_actors.interaction.machine import State
from incus_actors.interaction.safety import broken

if TYPE_CHECKING:
    from incus_actors.interaction.world import World

Job: TypeAlias = fx.Compact | fx.TakeSnapshot | fx.ReadSnapshotChunk | fx.StoreSnapshotChunk | fx.InstallSnapshot
NAMES: dict[str, type] = {
    "compact": fx.Compact,
    "take": fx.TakeSnapshot,
    "read": fx.ReadSnapshotChunk,
    "store": fx.StoreSnapshotChunk,
    "install": fx.InstallSnapshot,
}
SNAPSHOT_BYTES = 1000  #: size of every transfer snapshot of a script


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    """A transfer snapshot."""

    state: State


def job_name(job: Job) -> str:
    """Return what scripts call this job."""
    return next(name for name, kind in NAMES.items() if type(job) is kind)


def run(world: World, member: MemberId, job: Job) -> None:
    """Do one job and report it to the core."""
    machine = world.machines[member]
    match job:
        case fx.Compact():
            machine.compact(min(job.index, machine.state.index))
            world.step(member, ev.Compacted(job.index))
        case fx.TakeSnapshot():
            mark = machine.mark_at(machine.state.index)
            name = f"snap-{member}-{mark.index}"
            world.snapshots[name] = SnapshotFile(machine.state.copy())
            world.step(
                member,
                ev.SnapshotReady(
                    job.peer, name, mark.index, mark.term, mark.chain, mark.configuration,
                    mark.configuration_index, SNAPSHOT_BYTES, machine.state.digest(),
                ),
            )  # fmt: skip
        case fx.ReadSnapshotChunk():
            data = bytes(job.length)
            world.step(member, ev.SnapshotChunkRead(job.peer, job.snapshot_id, job.offset, data, 0))
        case fx.StoreSnapshotChunk():
            _store(world, member, job)
        case fx.InstallSnapshot():
            _install(world, member, job)


def _store(world: World, member: MemberId, job: fx.StoreSnapshotChunk) -> None:
    key, end = (member, job.offer.snapshot_id), job.offset + len(job.data)
    if job.offset == 0:
        world.stored[key] = 0
    if world.stored.get(key) == job.offset:
        world.stored[key] = end
    world.step(member, ev.SnapshotChunkStored(job.offer.snapshot_id, end))


def _install(world: World, member: MemberId, job: fx.InstallSnapshot) -> None:
    offer = job.offer
    found = world.snapshots.get(offer.snapshot_id)
    if found is None:
        world.step(member, ev.SnapshotFailed(member, offer.snapshot_id, "no such snapshot"))
        return
    if world.stored.pop((member, offer.snapshot_id), 0) != offer.size:
        raise broken("R-SNAP", f"member {member} installs {offer.snapshot_id}, of which it does not have all")
    logging = any(write.entries or write.truncate_from is not None for write in world.writes[member])
    if logging or world.applies[member]:  # a vote may be on its way to the disk: what is committed knows no terms
        raise broken("R-SNAP", f"member {member} installs a snapshot while something is being written or applied")
    machine = world.machines[member]
    machine.install(offer, found.state, keep_suffix=job.keep_suffix)
    world.step(member, ev.SnapshotInstalled(offer.snapshot_id, offer.index, machine.state.digest()))


def fail(world: World, member: MemberId, job: Job, reason: str) -> None:
    """Report that a job did not work."""
    match job:
        case fx.TakeSnapshot():
            world.step(member, ev.SnapshotFailed(job.peer, "", reason))
        case fx.ReadSnapshotChunk():
            world.step(member, ev.SnapshotFailed(job.peer, job.snapshot_id, reason))
        case fx.StoreSnapshotChunk() | fx.InstallSnapshot():
            world.step(member, ev.SnapshotFailed(member, job.offer.snapshot_id, reason))
        case _:
            raise StepFailedError("a compaction does not fail: it is only tried again later")
