"""Disks that are full, hang or fail: writes are refused with a reason or go on elsewhere; none that was answered is lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from incus_actors.consensus.log_format import SUSPECT_NAME
from incus_actors.daemon import DISK_FAILED
from incus_actors.lab import debris
from incus_actors.lab.client import RequestFailedError
from incus_actors.lab.cluster import LabCluster, wait_for
from incus_actors.lab.disks import FreezableDisk, SmallDisk, can_loop
from incus_actors.lab.processes import LabMember
from incus_actors.lab.writers import Writer, longest_gap_ns, lost_writes

FULL = "the disk of the database is full"


def destroy(lab: LabCluster) -> None:
    directory = lab.directory
    lab.destroy()
    if directory is not None:
        debris.remove(directory)


def started(lab: LabCluster) -> list[Writer]:
    # Longer than a write waits for a leader: the answer counts, not that it took long.
    writers = [Writer(member, f"user.through-{member.name}", timeout_s=10) for member in lab.members]
    for writer in writers:
        writer.start()
    return writers


def accepted(writer: Writer) -> int:
    return sum(attempt.acknowledged for attempt in writer.history)


def goes_on(writer: Writer) -> None:
    before = accepted(writer)
    wait_for(lambda: accepted(writer) > before + 3, f"writes through {writer.member.name}", timeout_s=20)


def refused(writer: Writer, *reasons: str) -> None:
    def said() -> bool:
        if any(reason in writer.history[-1].error for reason in reasons):
            return True
        raise ValueError(f"{len(writer.history)} attempts, the last: {writer.history[-1]}")  # shown if it stays so

    wait_for(said, f"a refusal through {writer.member.name}", timeout_s=30)


@pytest.fixture
def small() -> Iterator[tuple[LabCluster, dict[str, SmallDisk]]]:
    lab = LabCluster.in_namespaces(3, prefix="acd")
    disks = {member.name: SmallDisk(member.directory) for member in lab.members}
    try:
        for disk in disks.values():
            disk.mount()
        lab.form()
        lab.wait_until_healthy()
        yield lab, disks
    finally:
        destroy(lab)


def test_a_full_disk_refuses_writes_and_hands_leadership_on(small) -> None:
    lab, disks = small
    leader = lab.leader()
    writers = {writer.member.name: writer for writer in started(lab)}
    for writer in writers.values():
        goes_on(writer)
    disks[leader.name].fill()
    second = wait_for(lambda: (found := lab.leader()) is not leader and found, "another leader", timeout_s=20)
    third = next(member for member in lab.members if member not in (leader, second))
    goes_on(writers[second.name])
    goes_on(writers[third.name])
    refused(writers[leader.name], FULL)
    with pytest.raises(RequestFailedError, match="full on this member"):
        leader.client.request("PATCH", "/1.0", {"config": {"user.x": "1"}})

    disks[second.name].fill()  # now a majority has no space
    # Who leads says that it is full; once it can't even vote nobody leads, and the voters say why they elect nobody.
    refused(writers[third.name], FULL, "no available leader found")
    assert all(member.running for member in lab.members)

    for disk in disks.values():
        disk.free()
    for writer in writers.values():
        goes_on(writer)
    histories = [writer.finish() for writer in writers.values()]
    lab.wait_until_healthy()
    for member in lab.members:
        assert lost_writes(histories, member.client.get("/1.0")["config"]) == []


def written_to(
    lab: LabCluster, disks: Mapping[str, FreezableDisk]
) -> tuple[LabMember, list[LabMember], dict[str, Writer]]:
    """Form the cluster on these disks and write through every member; return the leader, the others, the writers."""
    for disk in disks.values():
        disk.mount()
    lab.form()
    lab.wait_until_healthy()
    leader = lab.leader()
    writers = {writer.member.name: writer for writer in started(lab)}
    for writer in writers.values():
        goes_on(writer)
    return leader, [member for member in lab.members if member is not leader], writers


@pytest.mark.skipif(not can_loop(), reason="no loop devices")
@pytest.mark.may_skip
def test_a_leader_whose_disk_hangs_steps_down_while_writes_go_on() -> None:
    lab = LabCluster.in_namespaces(3, prefix="ach")
    disks = {m.name: FreezableDisk(m.directory, m.directory.with_suffix(".img")) for m in lab.members}
    try:
        leader, others, writers = written_to(lab, disks)
        begin = writers[others[0].name].history[-1].end_ns
        disks[leader.name].freeze()
        for member in others:
            status = wait_for(
                lambda member=member: (
                    (found := member.client.get("/internal/raft")["status"])["leader"] not in (0, 1) and found
                ),
                "another leader",
                timeout_s=20,
            )
            assert status["term"] >= 3
        for member in others:
            goes_on(writers[member.name])
        disks[leader.name].thaw()
        goes_on(writers[leader.name])
        histories = [writer.finish() for writer in writers.values()]
        outside = [history for history in histories if history[0].through != leader.name]
        assert longest_gap_ns(outside, begin, outside[0][-1].end_ns) < 2e9
        lab.wait_until_healthy()
        for member in lab.members:
            assert lost_writes(histories, member.client.get("/1.0")["config"]) == []
        journal = leader.client.get("/internal/raft")["journal"]
        assert "disk" in {row["cause"] for row in journal}
    finally:
        for disk in disks.values():
            disk.thaw()
        destroy(lab)


@pytest.mark.skipif(not can_loop(), reason="no loop devices")
@pytest.mark.may_skip
def test_a_member_whose_fsync_fails_ends_with_its_own_code_and_comes_back() -> None:
    lab = LabCluster.in_namespaces(3, prefix="acx")
    disks = {m.name: FreezableDisk(m.directory, m.directory.with_suffix(".img")) for m in lab.members}
    try:
        leader, others, writers = written_to(lab, disks)
        disks[leader.name].fail()
        wait_for(lambda: not leader.running, "the daemon without a disk ends", timeout_s=30)
        assert leader.process.returncode == DISK_FAILED
        assert "has failed: what is written there is lost" in leader.log.read_text()
        for member in others:
            goes_on(writers[member.name])
        disks[leader.name].replace_cable()
        # This disk took nothing at all, so not the marker either; one that fails for some blocks only would have it.
        (leader.directory / "database" / SUSPECT_NAME).write_text("fsync failed\n")
        leader.start()
        leader.wait_until_ready()
        assert "log.db was rewritten after an error of the disk" in leader.log.read_text()
        goes_on(writers[leader.name])
        histories = [writer.finish() for writer in writers.values()]
        lab.wait_until_healthy()
        for member in lab.members:
            assert lost_writes(histories, member.client.get("/1.0")["config"]) == []
        assert {m["id"] for m in leader.client.get("/internal/raft")["status"]["configuration"]["old"]} == {1, 2, 3}
    finally:
        destroy(lab)
