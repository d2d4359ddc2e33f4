"""What strace does to a daemon, and what the record of a fault tells of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from incus_actors.lab.processes import LabMember
from incus_actors.lab.tracing import can_trace, failed_files, last_file, traced

SYNCER = """
import os, sys
with open(sys.argv[1], "wb") as file:
    sys.stdin.readline()
    for _ in range(3):
        try:
            os.fdatasync(file.fileno())
            print("done", flush=True)
        except OSError as problem:
            print(problem.strerror, flush=True)
"""
RECORD = """\
7 fdatasync(31</x/m1/database/log.db-wal>) = 0
7 fdatasync(31</x/m1/database/log.db-wal>) = -1 EIO (Input/output error) (INJECTED)
9 fsync(12</x/m1/database/log.suspect>) = -1 EIO (Input/output error) (INJECTED)
7 fdatasync(31</x/m1/database/log.db-wal>) = -1 EIO (Input/output error) (INJECTED)
9 fsync(8</x/m1/database/tail.wit> <unfinished ...>
9 +++ killed by SIGKILL +++
"""


def test_a_record_names_files() -> None:
    assert failed_files(RECORD) == ["log.db-wal", "log.suspect"]
    assert last_file(RECORD) == "tail.wit"
    assert last_file("7 +++ killed by SIGKILL +++") == "?"


@pytest.mark.real
@pytest.mark.skipif(not can_trace(), reason="needs root and strace")
@pytest.mark.parametrize(
    ("injection", "said"),
    [("error=EIO:when=1", "Input/output error\ndone\ndone\n"), ("signal=KILL:when=2", "done\n")],
)
def test_a_call_fails_once_or_is_the_last(tmp_path: Path, injection: str, said: str) -> None:
    member = LabMember("m1", tmp_path / "m1", "127.0.0.1")
    process = member.process = subprocess.Popen(
        [sys.executable, "-c", SYNCER, str(tmp_path / "file")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with traced(member, "fdatasync", injection) as record:
        until_traced(process.pid)
        assert process.communicate(b"go\n", timeout=20)[0].decode() == said
    assert last_file(record.read_text()) == "file"


def until_traced(pid: int) -> None:
    while "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text():
        continue
