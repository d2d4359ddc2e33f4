"""Faults of membership: members leave, come back with an empty disk, and all of them are replaced, while clients write.

Owns these classes; schedule.py chooses among them and those of nemesis.py. Each waits until the cluster is whole before, and
takes a member from the clients before it is another server. Must never remove one while another is being lost.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import ClassVar

from incus_actors.lab.cluster import wait_for
from incus_actors.lab.nemesis import Stage
from incus_actors.lab.processes import LabMember
from incus_actors.security.certificates import make_certificate

HEAL_S = 60.0


def empty(directory: Path) -> None:
    """Remove everything in a directory that may be a mount point."""
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def remove(stage: Stage, member: LabMember, *, force: bool = False) -> None:
    """Have another member remove this one."""
    other = next(m for m in stage.members if m is not member and m.name in stage.inside)
    suffix = "?force=1" if force else ""
    other.client.run("DELETE", f"/1.0/cluster/members/{member.name}{suffix}", timeout_s=60)
    stage.inside.discard(member.name)


def standalone(member: LabMember) -> None:
    """Wait until a server belongs to no cluster."""
    wait_for(lambda: not member.client.get("/1.0")["environment"]["server_clustered"], f"{member.name} is standalone")


def join(stage: Stage, member: LabMember) -> None:
    """Make a standalone server a member again, through one that is."""
    standalone(member)
    stage.cluster.join(member, through=next(m for m in stage.members if m.name in stage.inside))
    stage.inside.add(member.name)


class RemoveMember:
    """A member is removed and joins again with a token; at times its disk is emptied meanwhile."""

    lasts_s: ClassVar = (0.5, 2.0)

    def begin(self, stage: Stage) -> str:
        """See Fault."""
        stage.cluster.wait_until_healthy(HEAL_S)
        self.member = stage.victim()
        stage.retire(self.member)
        remove(stage, self.member)
        if stage.rng.random() < 0.5:
            return f"remove {self.member.name}"
        self.member.kill()
        empty(self.member.directory)
        self.member.start()
        return f"remove {self.member.name}, kill it and empty its disk"

    def end(self, stage: Stage) -> None:
        """See Fault."""
        join(stage, self.member)
        stage.cluster.wait_until_healthy(HEAL_S)
        stage.readmit(self.member)


class ReplaceDisk:
    """A member's machine comes back with an empty disk, still a member to the others: it is removed by force, and joins."""

    lasts_s: ClassVar = (0.0, 5.0)

    def begin(self, stage: Stage) -> str:
        """See Fault."""
        stage.cluster.wait_until_healthy(HEAL_S)
        self.member = stage.victim()
        self.member.kill()
        stage.retire(self.member)
        empty(self.member.directory)
        self.member.start()
        return f"{self.member.name} killed; its disk is replaced by an empty one"

    def end(self, stage: Stage) -> None:
        """See Fault."""
        remove(stage, self.member, force=True)
        join(stage, self.member)
        stage.cluster.wait_until_healthy(HEAL_S)
        stage.readmit(self.member)


class RotateCertificate:
    """The certificate and key of the cluster are replaced, once or twice, at times while a member is down: it must learn of it."""

    lasts_s: ClassVar = (0.0, 3.0)

    def begin(self, stage: Stage) -> str:
        """See Fault."""
        stage.cluster.wait_until_healthy(HEAL_S)
        self.away = stage.victim() if stage.rng.random() < 0.5 else None
        if self.away is not None:
            self.away.kill()
        through = stage.rng.choice([m for m in stage.members if m is not self.away])
        count = stage.rng.randint(1, 2)
        for _ in range(count):
            self._replace(through)
        missed = f", which {self.away.name} can't hear of: it is killed" if self.away is not None else ""
        return f"{count} other certificate(s) of the cluster through {through.name}{missed}"

    def _replace(self, through: LabMember) -> None:
        """Again, while nobody leads."""
        self.certificate, key = make_certificate("cluster")
        pair = {"cluster_certificate": self.certificate, "cluster_certificate_key": key}

        def put() -> bool:
            through.client.request("PUT", "/1.0/cluster/certificate", pair, timeout_s=30)
            return True

        wait_for(put, f"{through.name} takes another certificate", timeout_s=HEAL_S)

    def end(self, stage: Stage) -> None:
        """See Fault."""
        if self.away is not None:
            self.away.start()
        wait_for(
            lambda: all(self._shown(member) for member in stage.members),
            "all members show the last certificate",
            timeout_s=HEAL_S,
        )
        stage.cluster.wait_until_healthy(HEAL_S)

    def _shown(self, member: LabMember) -> bool:
        shown: str = member.client.get("/1.0")["environment"]["certificate"]
        return shown.strip() == self.certificate.strip()


class ReplaceEverybody:
    """Every member leaves and joins again under a new id: one after the other, or the cluster shrinks to one and grows again."""

    lasts_s: ClassVar = (0.0, 0.2)

    def begin(self, stage: Stage) -> str:
        """See Fault."""
        stage.cluster.wait_until_healthy(HEAL_S)
        order = stage.rng.sample(stage.members, len(stage.members))
        if stage.rng.random() < 0.5:
            for member in order:
                self._away(stage, member)
                self._back(stage, member)
                stage.cluster.wait_until_healthy(HEAL_S)
            return f"replace {', '.join(m.name for m in order)}, one after the other"
        for member in order[1:]:
            self._away(stage, member)
        for member in order[1:]:
            self._back(stage, member)
        stage.cluster.wait_until_healthy(HEAL_S)
        return f"shrink to {order[0].name}: {', '.join(m.name for m in order[1:])} go, and come back"

    @staticmethod
    def _away(stage: Stage, member: LabMember) -> None:
        stage.retire(member)
        remove(stage, member)

    @staticmethod
    def _back(stage: Stage, member: LabMember) -> None:
        join(stage, member)
        stage.readmit(member)

    def end(self, stage: Stage) -> None:
        """See Fault."""
