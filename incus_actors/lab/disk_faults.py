"""Faults of a member's disk: it lies, is damaged while the daemon is down, hangs or fails.

Owns these classes; schedule.py chooses among them and those of nemesis.py. Those that may cost a copy of the database wait
until the cluster is whole before, and start the member as a service manager does, until it has mended itself. Must never
damage a second disk before the first one is mended.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
from pathlib import Path
from typing import ClassVar

from incus_actors.consensus.log_format import REWRITTEN_NAME
from incus_actors.lab.cluster import wait_for
from incus_actors.lab.disks import FreezableDisk
from incus_actors.lab.nemesis import Stage
from incus_actors.lab.processes import LabMember
from incus_actors.lab.tracing import failed_files, traced

MEND_S = 90.0
STABLE_S = 2.0  #: a start looks at the whole state in the background, and ends again if that is damaged
WAL_HEADER = 32


def killed(stage: Stage) -> LabMember:
    """Kill one member of a whole cluster, so that it may lose what it has: the others have everything."""
    stage.cluster.wait_until_healthy(60)
    member = stage.victim()
    member.kill()
    return member


def mended(stage: Stage, member: LabMember) -> None:
    """Start a member, again when it ends by itself, until the cluster is whole and stays so. Raises TimeoutError."""

    def well() -> bool:
        if not member.running:
            member.start()
            return False
        return stage.cluster.healthy()

    for _ in range(2):
        wait_for(well, f"{member.name} mends itself", timeout_s=MEND_S, every_s=0.2)
        time.sleep(STABLE_S)


class ForgetWrites:
    """A disk that lied: the end of a killed member's log is gone, or its write-ahead log, or all of its database."""

    lasts_s: ClassVar = (0.0, 1.0)

    def begin(self, stage: Stage) -> str:
        """See Fault."""
        self.member = killed(stage)
        database = self.member.directory / "database"
        if stage.rng.random() < 0.3:
            shutil.rmtree(database)
            return f"{self.member.name} lost its database"
        if stage.rng.random() < 0.3:
            (database / "log.db-wal").unlink(missing_ok=True)
            return f"{self.member.name} lost log.db-wal"
        lost = stage.rng.randint(1, 40)
        log = sqlite3.connect(database / "log.db")
        with log:
            last = log.execute("SELECT MAX(idx) FROM entries").fetchone()[0] or 0
            log.execute("DELETE FROM entries WHERE idx > ?", (last - lost,))
            log.execute("DELETE FROM configs WHERE idx > ?", (last - lost,))
        log.close()
        return f"{self.member.name} lost the last {lost} entries of its log"

    def end(self, stage: Stage) -> None:
        """See Fault."""
        mended(stage, self.member)


class FlipBit:
    """One bit of a killed member's log is another: in the write-ahead log, where SQLite drops all that follows."""

    lasts_s: ClassVar = (0.0, 1.0)

    def begin(self, stage: Stage) -> str:
        """See Fault."""
        self.member = killed(stage)
        database = self.member.directory / "database"
        for path in (database / "log.db-wal", database / "log.db"):
            if path.exists() and path.stat().st_size > WAL_HEADER:
                where = flip_bit(path, stage.rng.randrange(WAL_HEADER, path.stat().st_size), stage.rng.randrange(8))
                return f"{self.member.name}: {path.name} is damaged, a bit of byte {where} flipped"
        return f"{self.member.name} killed; its log is empty"

    def end(self, stage: Stage) -> None:
        """See Fault."""
        mended(stage, self.member)


def flip_bit(path: Path, where: int, bit: int) -> int:
    """Make one bit of a file the other; return where."""
    with path.open("r+b") as file:
        file.seek(where)
        byte = file.read(1)[0]
        file.seek(where)
        file.write(bytes((byte ^ 1 << bit,)))
    return where


class DamageState:
    """The state file of a member that is down is deleted, cut, or its first sector written over."""

    lasts_s: ClassVar = (0.0, 1.0)

    def begin(self, stage: Stage) -> str:
        """See Fault."""
        self.member = killed(stage)
        state = max((self.member.directory / "database").glob("global-*.db"), key=lambda path: path.stat().st_mtime)
        how = stage.rng.choice(["deleted", "cut", "garbled"])
        damage_state(state, how)
        return f"{self.member.name}: {state.name} is damaged ({how})"

    def end(self, stage: Stage) -> None:
        """See Fault."""
        mended(stage, self.member)


def damage_state(state: Path, how: str) -> None:
    """Damage a database that nobody has open. Never in a way that only its content tells: that is no honest disk."""
    if how == "deleted":
        for path in state.parent.glob(f"{state.name}*"):
            path.unlink()
        return
    connection = sqlite3.connect(state)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    with state.open("r+b") as file:
        if how == "cut":
            file.truncate(state.stat().st_size // 2)
        else:
            file.write(b"\xff" * 512)


def freezable(stage: Stage) -> tuple[LabMember, FreezableDisk]:
    """Choose a member whose disk can be made to hang or fail: the leader at times."""
    found = {m.name: d for m in stage.members if isinstance(d := stage.disks[m.name], FreezableDisk)}
    victim = stage.victim()
    if victim.name not in found:
        victim = stage.rng.choice([member for member in stage.members if member.name in found])
    return victim, found[victim.name]


class HungDisk:
    """Whoever writes to a member's disk waits, and does not hear that it failed."""

    lasts_s: ClassVar = (0.5, 8.0)

    def begin(self, stage: Stage) -> str:
        """See Fault."""
        member, self.disk = freezable(stage)
        self.disk.freeze()
        return f"the disk of {member.name} hangs"

    def end(self, stage: Stage) -> None:
        """See Fault."""
        self.disk.thaw()


class FailedDisk:
    """Every write and sync of a member's disk fails, and what was not synced is lost; then it is plugged in again."""

    lasts_s: ClassVar = (0.0, 3.0)

    def begin(self, stage: Stage) -> str:
        """See Fault."""
        stage.cluster.wait_until_healthy(60)
        self.member, self.disk = freezable(stage)
        self.disk.fail()
        try:
            wait_for(lambda: not self.member.running, f"{self.member.name} ends without a disk", timeout_s=30)
        except TimeoutError:
            self.member.kill()
            self.disk.replace_cable()
            raise
        return f"the disk of {self.member.name} failed: it ended with {self.member.stop()}"

    def end(self, stage: Stage) -> None:
        """See Fault."""
        self.disk.replace_cable()
        mended(stage, self.member)


class FailSync:
    """One fsync of each thread says "I/O error", once; the next ones succeed, as Linux does when dirty pages are dropped."""

    lasts_s: ClassVar = (0.0, 1.0)

    def begin(self, stage: Stage) -> str:
        """See Fault."""
        stage.cluster.wait_until_healthy(60)
        fresh = [m for m in stage.members if not (m.directory / "database" / REWRITTEN_NAME).exists()]
        self.member = None
        if not fresh:
            return "every disk has failed lately: a second time is another fault"
        victim = stage.victim()
        self.member = member = victim if victim in fresh else stage.rng.choice(fresh)
        with traced(member, "fsync,fdatasync", "error=EIO:when=1") as record:
            wait_for(lambda: not member.running, f"{member.name} ends after a failed fsync", timeout_s=30)
        files = ", ".join(failed_files(record.read_text()))
        return f"an fsync of {member.name} failed ({files}): it ended with {member.stop()}"

    def end(self, stage: Stage) -> None:
        """See Fault."""
        if self.member is not None:
            mended(stage, self.member)
