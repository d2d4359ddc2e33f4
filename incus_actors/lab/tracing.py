"""Strace beside a daemon: a system call of it fails, or is its last one.

Owns the tracer and its record; called by faults. Must never leave a daemon traced: every call of it would be slow.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from incus_actors.lab.processes import LabMember


def can_trace() -> bool:
    """Whether this machine has strace, and we may use it."""
    return os.geteuid() == 0 and shutil.which("strace") is not None


@contextmanager
def traced(member: LabMember, calls: str, injection: str) -> Iterator[Path]:
    """Trace these system calls of a running daemon and tamper with them (as `strace -e inject=`); give the record's path."""
    assert member.process is not None
    record = member.directory.with_suffix(".strace")
    record.unlink(missing_ok=True)
    options = ["-e", f"trace={calls}", "-e", f"inject={calls}:{injection}"]
    tracer = subprocess.Popen(
        ["strace", "-f", "-y", "-p", str(member.process.pid), "-o", str(record), *options],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield record
    finally:
        tracer.terminate()  # it lets go of the daemon, if that still lives
        tracer.wait(timeout=10)


def failed_files(record: str) -> list[str]:
    """Return the names of the files whose calls were made to fail, each once, by the record."""
    found = re.finditer(r"^\d+ +\w+\(\d+<([^>]*)>.*\(INJECTED\)$", record, re.MULTILINE)
    return list(dict.fromkeys(Path(match[1]).name for match in found))


def last_file(record: str) -> str:
    """Return the name of the file (or the kind of socket) of the last call that was begun; "?" if there was none."""
    found = re.findall(r"^\d+ +\w+\(\d+<([^>]*)>", record, re.MULTILINE)
    return Path(found[-1]).name if found else "?"
