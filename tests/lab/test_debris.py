"""The last resort takes what is ours, and only that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from incus_actors.lab import debris

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def test_what_a_lab_started_is_taken_and_nothing_of_a_user_who_works_there(tmp_path: Path) -> None:
    user = {"INCUS_DIR": f"{tmp_path}/m1"}
    lab = subprocess.Popen(SLEEP, env={**os.environ, **user, debris.LAB_VARIABLE: f"{tmp_path}/m1"})
    by_hand = subprocess.Popen([*SLEEP, debris.DAEMON.decode()], env={**os.environ, **user})
    others = [
        subprocess.Popen(SLEEP, env={**os.environ, **user}),  # `demo --end | tail` where INCUS_DIR is exported
        subprocess.Popen([*SLEEP, str(tmp_path)]),
        subprocess.Popen(SLEEP, env={**os.environ, debris.LAB_VARIABLE: f"{tmp_path}-other/m1"}),
        subprocess.Popen([*SLEEP, debris.DAEMON.decode()], env={**os.environ, "INCUS_DIR": f"{tmp_path}-other/m1"}),
    ]
    try:
        assert sorted(debris.processes_of(tmp_path)) == sorted([lab.pid, by_hand.pid])
        assert debris.daemons_of(tmp_path) == [by_hand.pid]
        assert sorted(debris.remove(tmp_path)) == sorted(f"killed process {p.pid}" for p in (lab, by_hand))
        assert [process.wait(timeout=10) for process in (lab, by_hand)] == [-9, -9]
        assert [process.poll() for process in others] == [None] * len(others)
    finally:
        for process in (lab, by_hand, *others):
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
