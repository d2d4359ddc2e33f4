"""kill -9 of a daemon between any two steps of making and removing pools, networks, volumes, snapshots and instances:
running the command again (or giving up: the opposite) ends it, and nothing is left over. And rounds of volumes and
snapshots leak nothing (200 of them: tests/drivers/test_storage_btrfs.py).

A step is whatever outlives the process (killed_daemon.py). ONLY WITH INCUS_ACTORS_EVERY_STEP=1 (2, 3) IS IT KILLED AT
EVERY STEP, once (twice, three times over, see `_every`): right before the 1st, 2nd, 3rd … one, until the command ends
before the number is reached. That takes about a quarter of an hour each time. WITHOUT IT, AS IN CI, ONE STEP OF EACH
MAKING OR REMOVING IS CHOSEN: making and removing and the kinds of steps (file, program, proposal …) take turns from seed
to seed and from test to test, the step of a kind is drawn. The seed is printed; INCUS_ACTORS_SEED chooses it.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from killed_kit import Death, Mortals, Things, rows_of, things_of

from incus_actors.lab.cluster import LabCluster, wait_for
from incus_actors.lab.processes import LabMember

EVERY = int(os.environ.get("INCUS_ACTORS_EVERY_STEP") or "0")
SEED = int(os.environ.get("INCUS_ACTORS_SEED") or time.time_ns() % 1_000_000)


@pytest.fixture(scope="module")
def mortals(incus_on: Callable[..., Any], unified: Path) -> Iterator[Mortals]:
    """Three members, a pool "base" on btrfs, volumes to make snapshots of, an image."""
    lab = LabCluster.in_namespaces(3, prefix="ask")
    mortals = Mortals(lab)
    try:
        lab.form()
        lab.wait_until_healthy()
        incus = incus_on(lab.members[0])
        incus("config", "set", "cluster.offline_threshold", "2")
        incus("storage", "create", "base", "btrfs")
        incus("image", "import", str(unified), "--alias", "tiny")
        for name in ("m1", "m2"):
            incus("storage", "volume", "create", "base", f"v-{name}", "--target", name)
            incus("storage", "volume", "snapshot", "create", "base", f"v-{name}", "s0")
        yield mortals
        assert mortals.deaths >= mortals.rounds * 0.75, f"{mortals.deaths} deaths in {mortals.rounds} rounds"
    finally:
        lab.destroy()


@dataclass(frozen=True)
class Kind:
    """How one kind of thing is made, found (its list, its name) and removed; NAME is whose steps are counted."""

    make: str
    remove: str
    listed: str
    name: str

    def there(self, member: LabMember, doer: str) -> str:
        """ "" if there is none, else its status."""
        for row in member.client.get(f"{self.listed.replace('NAME', doer)}?recursion=1"):
            if row["name"].rpartition("/")[2] == self.name:
                return str(row.get("status", "Created"))
        return ""


VOLUMES = "/1.0/storage-pools/base/volumes/custom"
KINDS = {
    "btrfs pool": Kind("storage create fast btrfs", "storage delete fast", "/1.0/storage-pools", "fast"),
    "dir pool": Kind("storage create plain dir", "storage delete plain", "/1.0/storage-pools", "plain"),
    "network": Kind(
        "network create br7 ipv4.address=10.77.7.1/24 ipv4.nat=true ipv6.address=none",
        "network delete br7",
        "/1.0/networks",
        "br7",
    ),
    "volume": Kind(
        "storage volume create base v1 size=20MiB --target NAME",
        "storage volume delete base v1",
        VOLUMES,
        "v1",
    ),
    "snapshot": Kind(
        "storage volume snapshot create base v-NAME s1",
        "storage volume snapshot delete base v-NAME s1",
        f"{VOLUMES}/v-NAME/snapshots",
        "s1",
    ),
    "instance": Kind("create tiny c1 -s base --target NAME", "delete c1", "/1.0/instances", "c1"),
    "unpacked instance": Kind("create tiny c1 -s default --target NAME", "delete c1", "/1.0/instances", "c1"),
}

#: The first member has the request. Whose steps are counted, and who dies at one of them.
PLACES = {"coordinator": (0, 0), "executor": (1, 1), "coordinator at a step of the executor": (1, 0)}


class Rounds:
    """One kind of thing and one place: what is there before and after making it, and all the deaths."""

    def __init__(self, mortals: Mortals, client: Any, what: str, place: str) -> None:
        kind, (doer, victim) = KINDS[what], PLACES[place]
        self.mortals, self.client, self.kind, self.where = mortals, client, kind, f"{what} ({place})"
        self.doer, self.victim = mortals.lab.members[doer], mortals.lab.members[victim]
        self.commands = {
            True: kind.make.replace("NAME", self.doer.name).split(),
            False: kind.remove.replace("NAME", self.doer.name).split(),
        }
        self.steps: dict[bool, list[str]] = {}
        self.things: dict[bool, list[Things]] = {}
        self.rows: list[str] = []

    def undisturbed(self) -> None:
        """Make and remove it; the first time twice, since that makes directories that stay, and unpacks the image."""
        known = " ".join(self.commands[True])
        for _ in range(1 if known in self.mortals.known else 2):
            for making in (True, False):
                with self.mortals.armed(self.doer, 0):
                    self.client(*self.commands[making])
                    time.sleep(0.2)
                    self.steps[making] = self.mortals.steps(self.doer)
                self.things[making] = self.mortals.things()
            self.rows = rows_of(self.mortals.lab.members[2])
        self.mortals.known.add(known)

    def killed(self, making: bool, death: Death) -> bool:
        """One death. Return False if the command ended without it."""
        if not making:
            self.client(*self.commands[True])
        died = self.mortals.run(self.client, self.commands[making], self.doer, self.victim, death)
        where = f"{self.where}, {'making' if making else 'removing'}, {death}"
        for then in (making, False) if not death.gives_up else (not making, False):
            self._again(then, where)
            self.mortals.wait_for_things(self.things[then], where)
            where += ", and then removed"
        for member in self.mortals.lab.members:
            self.mortals.wait_for_rows(member, self.rows, where)
        return died

    def _done(self, making: bool) -> bool:
        status = self.kind.there(self.mortals.lab.members[0], self.doer.name)
        return status in ("Created", "Stopped") if making else not status

    def _again(self, making: bool, where: str) -> None:
        """Run the command until it has done its work; a member may still be coming back."""
        for _ in range(20):
            if self._done(making):
                return
            said = self.client.run(*self.commands[making])
            if said.returncode == 0:
                break
            time.sleep(0.5)
        wait_for(lambda: self._done(making), f"{where}: run again: {said.stderr.strip()}", timeout_s=15)


def _chosen(steps: list[str], turn: int, rng: random.Random) -> int:
    """The number of one step: kinds ("program", "file" …) take turns."""
    kinds = sorted({step.partition(":")[0] for step in steps})
    kind = kinds[turn % len(kinds)]
    return rng.choice([number for number, step in enumerate(steps, 1) if step.startswith(f"{kind}:")])


@pytest.mark.timeout(3600 if EVERY else 120)
@pytest.mark.parametrize("place", list(PLACES))
@pytest.mark.parametrize("what", list(KINDS) if EVERY else list(KINDS)[:-1])  # the last is much like the one before
def test_killed_at_a_step_and_run_again(mortals: Mortals, incus_on: Callable[..., Any], what: str, place: str) -> None:
    rounds = Rounds(mortals, incus_on(mortals.lab.members[0]), what, place)
    rounds.undisturbed()
    turn = SEED + list(KINDS).index(what) * 3 + list(PLACES).index(place)
    for making in (True, False) if EVERY else (turn % 2 == 0,):
        steps, deaths, begin = rounds.steps[making], 0, time.monotonic()
        rng = random.Random(f"{SEED} {what} {place} {making}")
        if EVERY:
            for variant in range(EVERY):
                deaths += _every(rounds, making, variant, rng)
        else:
            death = Death(_chosen(steps, turn // 2, rng), rng.random() < 0.5, rng.random() < 0.5)
            print(f"seed {SEED}: {rounds.where}, {'making' if making else 'removing'}: {death}")
            deaths += rounds.killed(making, death)
        report = f"{rounds.where}, {'making' if making else 'removing'}: {deaths} deaths, {len(steps)} steps"
        print(f"STEPS {report}, {time.monotonic() - begin:.0f} s", *steps, sep="\n   ")


def _every(rounds: Rounds, making: bool, variant: int, rng: random.Random) -> int:
    """Die at every step; return how many there were.

    The first time, deaths with a new daemon at once or later and with the command run again or given up take turns; the
    second time it is the other way round; the third time the new daemon dies as well, somewhere in its repairs.
    """
    number = 1
    while rounds.killed(
        making,
        Death(
            step=number,
            at_once=(number + variant) % 2 == 0,
            gives_up=variant < 2 and (number // 2 + variant) % 2 == 0,
            again_at=rng.randint(1, 12) if variant == 2 else 0,
        ),
    ):
        number += 1
    return number - 1


@pytest.mark.timeout(400)
def test_forty_rounds_through_the_api_leak_nothing(mortals: Mortals, incus_on: Callable[..., Any]) -> None:
    member = mortals.lab.members[1]
    incus, at_first = incus_on(member), mortals.things()
    incus("storage", "create", "loop", "btrfs")
    root = member.directory / "storage-pools/loop"

    def subvolumes() -> str:
        done = subprocess.run(
            ["btrfs", "subvolume", "list", "-o", str(root)], capture_output=True, text=True, check=True
        )
        return "\n".join(line.split(" path ")[1] for line in done.stdout.splitlines())

    post = member.client
    volumes = "/1.0/storage-pools/loop/volumes/custom"
    before, files = (things_of(member), subvolumes()), sorted(str(p) for p in root.rglob("*"))
    for number in range(42):
        if number == 30:  # the kernel removes subvolumes later (asked to write, now); only then their groups can go
            for what in ("filesystem", "subvolume"):
                subprocess.run(["btrfs", what, "sync", str(root)], check=True, capture_output=True)
        name = f"v{number % 7}"
        post.run(
            "POST", f"{volumes}?target=m2", {"name": name, "config": {"size": "10MiB"}, "content_type": "filesystem"}
        )
        post.run("POST", f"{volumes}/{name}/snapshots?target=m2", {"name": "s1"})
        post.run("POST", f"{volumes}/{name}/snapshots?target=m2", {"name": "s2"})
        post.run("DELETE", f"{volumes}/{name}/snapshots/s1?target=m2")
        post.run("DELETE", f"{volumes}/{name}?target=m2")
    assert (things_of(member), subvolumes()) == before
    assert sorted(str(p) for p in root.rglob("*")) == files
    groups = subprocess.run(["btrfs", "qgroup", "show", str(root)], capture_output=True, text=True, check=False).stdout
    assert len(groups.splitlines()) < 70  # of 126 subvolumes that have come and gone
    incus("storage", "delete", "loop")
    mortals.wait_for_things(at_first, "the pool is gone")
