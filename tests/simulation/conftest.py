"""The seeds of CI run beside the other tests from the beginning, at the lowest priority, on what those leave idle."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

SEEDS = int(os.environ.get("INCUS_ACTORS_SEEDS", "2000"))
FIRST = int(os.environ.get("INCUS_ACTORS_FIRST_SEED", "0"))


class SeedRun:
    """One process that runs all seeds; it has a report when it has ended."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="seeds-")
        self.report = Path(self._directory.name) / "report.json"
        command = ["nice", "-n", "19", sys.executable, "-m", "incus_actors", "simulate"]
        self.process = subprocess.Popen(
            [*command, "--seeds", str(SEEDS), "--first", str(FIRST), "--no-shrink", "--json", str(self.report)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def close(self) -> None:
        """End it, whether it is ready or not."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, 9)
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._directory.cleanup()


_RUN = pytest.StashKey[SeedRun]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin as soon as it is known that they are wanted."""
    if any(item.path.name == "test_seeds.py" for item in session.items) and not session.config.option.collectonly:
        session.config.stash[_RUN] = SeedRun()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leave no process behind."""
    run = session.config.stash.get(_RUN, None)
    if run is not None:
        run.close()


@pytest.fixture
def seed_run(request: pytest.FixtureRequest) -> SeedRun:
    """The run that has begun."""
    return request.config.stash[_RUN]
