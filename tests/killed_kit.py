"""Daemons that die at a chosen step (acceptance/killed_daemon.py), and what such a death may have left on a machine."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from incus_actors.lab.cluster import LabCluster, wait_for
from incus_actors.lab.processes import OWN_DAEMON, LabMember

_LAUNCHER = Path(__file__).parent / "acceptance" / "killed_daemon.py"
_TABLES = ("storage_", "networks", "instances")  #: whose rows belong to what is made and removed

Things = dict[str, list[str]]


def _lines(*argv: str) -> list[str]:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()


def things_of(member: LabMember) -> Things:
    """What pools, volumes, networks and instances leave on a machine."""
    directory = str(member.directory)
    loops = [path.read_text().strip() for path in Path("/sys/block").glob("loop*/loop/backing_file")]
    pools = member.directory / "storage-pools"
    return {
        "mounts": sorted(
            line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if directory in line
        ),
        "loops": sorted(loop for loop in loops if directory in loop),
        "disks": _below(member.directory / "disks"),
        "pools": sorted(str(p.relative_to(pools)) for pattern in ("*", "*/*") for p in pools.glob(pattern)),
        "volumes": sorted(
            str(p.relative_to(pools)) for pattern in ("*/*/*", "*/*-snapshots/*/*") for p in pools.glob(pattern)
        ),
        "networks": _below(member.directory / "networks"),
        "instances": _below(member.directory / "instances"),
        "links": sorted(line.split(": ")[1].partition("@")[0] for line in _lines(*member.enter, "ip", "-o", "link")),
        "tables": sorted(_lines(*member.enter, "nft", "list", "tables")),
        "dnsmasq": sorted(command for command in _commands("dnsmasq") if directory in command),
    }


def _commands(program: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            argv = path.read_text(errors="replace").split("\0")
            if Path(argv[0]).name == program:
                found.append(" ".join(argv[1:]))
    return found


def _below(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def rows_of(member: LabMember) -> list[str]:
    """The rows of the database that belong to such things, as SQL."""
    text = member.client.get("/internal/sql?database=global")["text"]
    wanted = tuple(f"INSERT INTO {quote}{table}" for quote in ("", '"') for table in _TABLES)
    return sorted(line for line in text.splitlines() if line.startswith(wanted))


def difference(found: list[Things], expected: list[Things]) -> str:
    """What is there and should not be (+), and the other way round (-)."""
    said = []
    for number, (have, want) in enumerate(zip(found, expected, strict=True), 1):
        for kind, items in have.items():
            said += [f"m{number} +{kind} {item}" for item in items if item not in want[kind]]
            said += [f"m{number} -{kind} {item}" for item in want[kind] if item not in items]
            if sorted(items) != sorted(want[kind]) and set(items) == set(want[kind]):
                said.append(f"m{number} {kind} {items} instead of {want[kind]}")
    return "; ".join(said)


@dataclass(frozen=True)
class Death:
    """At which step a daemon dies, and what comes then."""

    step: int
    at_once: bool = True  #: a new daemon starts before the command has ended, else after it
    gives_up: bool = False  #: then the opposite is done (a half-made thing is removed, a half-removed one made)
    again_at: int = 0  #: the new daemon dies at this step of its own


@dataclass
class Mortals:
    """A cluster whose daemons can be armed: they die at a step whose number is written down before."""

    lab: LabCluster
    known: set[str] = field(default_factory=set)  #: commands that have been run
    rounds: int = 0  #: commands that were to be interrupted
    deaths: int = 0  #: of these, interrupted indeed
    _armings: int = 0

    def __post_init__(self) -> None:
        for member in self.lab.members:
            member.command = (sys.executable, str(_LAUNCHER), *OWN_DAEMON[3:])
            member.environment = {"INCUS_ACTORS_ARMED": str(self._armed(member))}
            member.directory.mkdir(mode=0o711, parents=True, exist_ok=True)

    def _armed(self, member: LabMember) -> Path:
        return member.directory.with_suffix(".armed")

    def steps(self, member: LabMember) -> list[str]:
        """The steps that were taken since it was armed last."""
        return self._armed(member).with_suffix(".armed.steps").read_text().splitlines()

    @contextmanager
    def armed(self, member: LabMember, number: int, victim: LabMember | None = None) -> Iterator[None]:
        """It dies at this step of its own (1, 2, …; 0: never, steps are only written down), or `victim` does."""
        armed = self._armed(member)
        armed.with_suffix(".armed.steps").write_text("")
        self._armings += 1
        other = "" if victim is None or victim.process is None else f" {victim.process.pid}"
        armed.with_suffix(".next").write_text(f"{number} {self._armings}{other}\n")
        armed.with_suffix(".next").rename(armed)
        try:
            yield
        finally:
            armed.unlink()

    def things(self) -> list[Things]:
        """What is on all machines."""
        return [things_of(member) for member in self.lab.members]

    def wait_for_things(self, expected: list[Things], where: str, timeout_s: float = 15) -> None:
        """Raises TimeoutError with the difference."""
        try:
            wait_for(lambda: self.things() == expected, where, timeout_s=timeout_s, every_s=0.1)
        except TimeoutError:
            raise TimeoutError(f"{where}: {difference(self.things(), expected)}") from None

    def wait_for_rows(self, member: LabMember, expected: list[str], where: str) -> None:
        """Raises TimeoutError with the difference."""
        try:
            wait_for(lambda: rows_of(member) == expected, where, timeout_s=5)
        except TimeoutError:
            raise TimeoutError(f"{where}: {sorted(set(rows_of(member)) ^ set(expected))}") from None

    def run(self, client: Any, command: list[str], doer: LabMember, victim: LabMember, death: Death) -> bool:
        """Run a command whose steps are those of `doer`; return whether `victim` died. What the command says doesn't
        count."""
        self.rounds += 1
        running = threading.Thread(target=lambda: client.run(*command, timeout=90))
        with self.armed(doer, death.step, victim):
            running.start()
            while running.is_alive() and victim.running:
                time.sleep(0.003)
            if victim.running:
                time.sleep(0.2)  # what the members do after the answer
        if victim.running:
            return False
        self.deaths += 1
        if not death.at_once:
            running.join(100)
        if death.again_at:
            self._die_again(victim, death.again_at)
        else:
            victim.start()
        running.join(100)
        assert not running.is_alive(), f"{command} still hangs"
        victim.wait_until_ready(60)
        self.lab.wait_until_healthy()
        return True

    def _die_again(self, victim: LabMember, step: int) -> None:
        """Start it, and have it die in the midst of its start and its repairs, if they have so many steps."""
        victim.kill()
        with self.armed(victim, step):
            victim.start()
            deadline = time.monotonic() + 1.5
            while victim.running and time.monotonic() < deadline:
                time.sleep(0.01)
        if not victim.running:
            victim.kill()
            victim.start()
