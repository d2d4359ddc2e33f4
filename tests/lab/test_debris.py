"""The last resort takes what is ours, and only that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from incus_actors.lab import debris

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def test_daemons_of_the_directory_are_ours_and_nobody_else(tmp_path: Path) -> None:
    ours = subprocess.Popen(SLEEP, env={**os.environ, "INCUS_DIR": f"{tmp_path}/m1"})
    mentions = subprocess.Popen([*SLEEP, str(tmp_path)])
    neighbour = subprocess.Popen(SLEEP, env={**os.environ, "INCUS_DIR": f"{tmp_path}-other/m1"})
    try:
        assert debris.processes_of(tmp_path) == [ours.pid]
        assert debris.remove(tmp_path) == [f"killed process {ours.pid}"]
        assert ours.wait(timeout=10) == -9
        assert mentions.poll() is None
        assert neighbour.poll() is None
    finally:
        for process in (ours, mentions, neighbour):
            process.kill()
            process.wait()
    assert not tmp_path.exists()


def test_ancestors_are_spared() -> None:
    assert {os.getpid(), os.getppid()} <= debris.ancestors(os.getpid())


def test_directories_that_liblxc_made_go_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, run, locks = tmp_path / "lab", tmp_path / "run", tmp_path / "locks"
    (lab / "m1").mkdir(parents=True)
    monkeypatch.setattr(debris, "RUN_DIRECTORY", str(run))
    monkeypatch.setattr(debris, "LOCK_DIRECTORY", str(locks))
    for digest in debris.digests_of(lab):
        (run / digest / "c1").mkdir(parents=True)
        (locks / str(run)[1:] / digest).mkdir(parents=True)
    (run / "another").mkdir()
    assert debris.remove(lab) == []
    assert [path.name for path in run.iterdir()] == ["another"]
    assert list((locks / str(run)[1:]).iterdir()) == []
    assert not lab.exists()
