"""Real daemons for the CLI's tests: a standing cluster to compare on, fresh servers to configure."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pexpect
import pytest

from incus_actors.lab.cluster import LabCluster
from incus_actors.lab.processes import LabMember

OURS = (sys.executable, "-m", "incus_actors.cli.main")


def _listen_to_interrupts() -> None:
    """Ctrl-C reaches a child also where the tests themselves run in the background of a shell."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def on_terminal(shell: Shell, *arguments: str, timeout: float, columns: int) -> pexpect.spawn[str]:
    """Return our CLI, running on a terminal of its own beside a member."""
    command = [*shell.member.enter, *OURS, *arguments]
    child = pexpect.spawn(
        command[0],
        command[1:],
        env=shell.environment,
        encoding="utf8",
        timeout=timeout,
        dimensions=(50, columns),
        preexec_fn=_listen_to_interrupts,
    )
    child.delaybeforesend = None
    return child


@dataclass
class Shell:
    """Runs our CLI, or the stock client, beside one member."""

    member: LabMember
    configuration: Path

    @property
    def environment(self) -> dict[str, str]:
        """Variables under which both reach this member."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("INCUS_")}
        return {**kept, "INCUS_DIR": str(self.member.directory), "INCUS_CONF": str(self.configuration), "TERM": "dumb"}

    def run(
        self, *arguments: str, text: str = "", timeout: float = 60, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run our CLI in the member's namespace, whatever it says."""
        return self._run((*self.member.enter, *OURS), arguments, text, timeout, environment)

    def stock(
        self, *arguments: str, text: str = "", timeout: float = 60, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run the stock client likewise."""
        return self._run((*self.member.enter, "incus"), arguments, text, timeout, environment)

    def _run(
        self,
        program: tuple[str, ...],
        arguments: tuple[str, ...],
        text: str,
        timeout: float,
        environment: dict[str, str],
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*program, *arguments],
            env={**self.environment, **environment},
            input=text,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def __call__(self, *arguments: str, text: str = "", timeout: float = 60) -> str:
        """Run our CLI; it must succeed. Return what it printed."""
        done = self.run(*arguments, text=text, timeout=timeout)
        assert done.returncode == 0, f"{' '.join(arguments)}: {done.stderr}{done.stdout}\n{self.member.log_tail(15)}"
        return done.stdout


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What needs the standing cluster is real."""
    for item in items:
        if {"cluster", "fresh"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.real)


@pytest.fixture(scope="session")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration directory of the stock client, past its first-run hint."""
    directory = tmp_path_factory.mktemp("conf")
    (directory / "config.yml").write_text(
        "default-remote: local\nremotes:\n  local:\n    addr: unix://\n    protocol: incus\n    public: false\n"
    )
    return directory


@pytest.fixture(scope="session")
def cluster(configuration: Path) -> Iterator[list[Shell]]:
    """Three members; tests may change what they put back."""
    if shutil.which("incus") is None:
        pytest.skip("no stock incus client: tools/install-incus-client")
    lab = LabCluster.in_namespaces(3, prefix="fcl")
    try:
        lab.form()
        lab.wait_until_healthy()
        yield [Shell(member, configuration) for member in lab.members]
    finally:
        lab.destroy()


@pytest.fixture
def fresh(configuration: Path) -> Iterator[Callable[[int], list[Shell]]]:
    """Makes started servers that nobody has configured, in namespaces of one network."""
    labs: list[LabCluster] = []

    def make(count: int) -> list[Shell]:
        lab = LabCluster.in_namespaces(count, prefix="ffr")
        labs.append(lab)
        for member in lab.members:
            member.start()
        for member in lab.members:
            member.wait_until_ready(30)
        return [Shell(member, configuration) for member in lab.members]

    try:
        yield make
    finally:
        for lab in labs:
            lab.destroy()
