from __future__ import annotations

import os
import signal
import subprocess
import time

from incus_actors.drivers import processes
from incus_actors.drivers.processes import ProcessIdentity


def test_identity_survives_reuse_of_a_pid() -> None:
    me = processes.identity_of(os.getpid())
    assert me is not None
    assert me.alive()
    assert abs(me.started_at - time.time()) < 3600
    assert not ProcessIdentity(me.pid, me.start_ticks - 1).alive()
    assert processes.identity_of(4_000_000) is None


def test_a_zombie_is_dead() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert processes.identity_of(child.pid) is None
    child.wait()


def test_signals_that_a_process_takes() -> None:
    child = subprocess.Popen(["sh", "-c", "trap 'exit 3' PWR; echo up; sleep 60 & wait"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    assert processes.catches_signal(child.pid, signal.SIGPWR)
    assert not processes.catches_signal(child.pid, signal.SIGUSR1)
    assert not processes.blocks_signal(child.pid, signal.SIGPWR)
    assert "trap" in processes.command_line(child.pid)
    child.send_signal(signal.SIGPWR)
    assert child.wait() == 3
    child.stdout.close()


def test_facts() -> None:
    assert processes.memory_total_bytes() > 1 << 20
    assert processes.online_cpus()
    assert len(processes.boot_id()) == 36
    assert processes.pid_inside(os.getpid())[0] == os.getpid()
    assert processes.status_field(4_000_000, "Uid") == ""
