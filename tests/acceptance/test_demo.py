"""The demo as a new user runs it: as root, without root, interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import incus_actors
from incus_actors.lab import debris

DEMO = [sys.executable, "-m", "incus_actors", "demo", "--fast"]


def facts_of(done: subprocess.CompletedProcess[str]) -> dict:
    facts = json.loads(done.stdout)
    assert done.returncode == 0, facts
    return facts


def check(facts: dict, driver: str) -> None:
    assert facts["driver"] == driver
    assert len(facts["members"]) == 3
    assert sorted(i["location"] for i in facts["instances"]) == ["m1", "m1", "m2", "m2", "m3", "m3"]
    assert all(i["status"] == "Running" for i in facts["instances"])
    assert facts["failover_ms"]["write"] > 0
    assert facts["verdict"]["lost"] == 0
    assert facts["verdict"]["acknowledged"] > 0
    assert facts["forced_clean_up"] == [], "every daemon and container ended by itself"


def test_as_root_with_real_containers(tmp_path: Path) -> None:
    data = tmp_path / "demo"
    begin = time.monotonic()
    done = subprocess.run([*DEMO, "--json", "--data", str(data)], capture_output=True, text=True, timeout=110)
    check(facts_of(done), "lxc")
    assert time.monotonic() - begin < 60
    assert not data.exists()
    assert debris.processes_of(data) == []


def reachable_for_all(paths: list[Path], spare: Path) -> list[str]:
    """Return commands for a private mount namespace in which everybody may enter these paths, whatever directory
    above them is closed: an empty, open one is put in its place, with only the path in it."""
    commands = []
    for number, path in enumerate(sorted(paths)):
        for closed in reversed([path, *path.parents]):
            if not closed.stat().st_mode & 0o001 and closed != path:
                kept = spare / str(number)
                commands += [
                    f"mkdir {kept}",
                    f"mount --bind {path} {kept}",
                    f"mount -t tmpfs -o mode=755 tmpfs {closed}",
                    f"mkdir -p {path}",
                    f"mount --bind {kept} {path}",
                ]
    return commands


def test_without_root_on_the_process_driver() -> None:
    """Interpreter, environment and clone may be in directories that only root may enter."""
    data = Path("/var/tmp") / f"demo-{os.getpid()}"  # short enough for a unix socket, and not below a 0700 directory
    data.mkdir()
    os.chown(data, 65534, 65534)
    clone = Path(incus_actors.__file__).parents[1]
    needed = [Path(sys.executable).resolve().parents[1], Path(sys.prefix), clone]
    command = " ".join([*DEMO, "--json", "--data", f"{data}/state"])
    script = [
        "set -e",
        "mount --make-rprivate /",
        *reachable_for_all(needed, data),
        f"cd {data}",
        f"exec setpriv --reuid=65534 --regid=65534 --clear-groups env HOME={data} PYTHONDONTWRITEBYTECODE=1 {command}",
    ]
    try:
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", "\n".join(script)], capture_output=True, text=True, timeout=110
        )
        assert done.stdout, done.stderr
        facts = facts_of(done)
        check(facts, "process")
        assert any("system containers need root" in step["text"] for step in facts["steps"]), "it says why"
    finally:
        debris.remove(data)


def test_interrupted_it_leaves_nothing(tmp_path: Path) -> None:
    data = tmp_path / "demo"
    process = subprocess.Popen([*DEMO, "--data", str(data)], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "instances started" in line:
            break
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    assert process.wait(timeout=60) == 130
    assert "interrupted" in rest
    assert "cleaned up" in rest
    assert not data.exists()
    assert debris.processes_of(data) == []


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("data")
    done = subprocess.run([*DEMO, "--data", str(tmp_path)], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "not a demo's" in done.stderr
    assert precious.read_text() == "data"
