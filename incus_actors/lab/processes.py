"""Daemons as child processes: start, kill, stop, and leave nothing behind.

Owns the processes that it starts and their state directories; called by demo, benchmarks and tests.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from incus_actors.lab import debris
from incus_actors.lab.client import UnixClient

_LOG = ("--log-format", "text", "--verbose")
OWN_DAEMON = (sys.executable, "-m", "incus_actors.cli.daemon", *_LOG)
CLOCK_DAEMON = (sys.executable, "-m", "incus_actors.lab.clock_daemon", *_LOG)  #: with a clock that can be set


@dataclass
class LabMember:
    """One member: a directory, an address and a process that may be running."""

    name: str
    directory: Path
    address: str
    port: int = 8443
    enter: list[str] = field(default_factory=list)  #: command prefix, such as a network namespace
    command: tuple[str, ...] = OWN_DAEMON
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def https_address(self) -> str:
        """host:port of this member's API."""
        return f"{self.address}:{self.port}"

    @property
    def client(self) -> UnixClient:
        """A client of this member's unix socket."""
        return UnixClient(self.directory / "unix.socket")

    @property
    def log(self) -> Path:
        """Where standard error of every start is appended."""
        return self.directory.with_suffix(".log")

    def start(self) -> None:
        """Start the daemon in a session of its own; does not wait."""
        self.directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        own = {"INCUS_DIR": str(self.directory), debris.LAB_VARIABLE: str(self.directory)}
        environment = {**os.environ, **own, **self.environment}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.enter, *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def wait_until_ready(self, timeout_s: float = 30.0) -> float:
        """Return the seconds until it answered. Raises RuntimeError with the end of its log if it died."""
        begin = time.monotonic()
        while True:
            try:
                self.client.wait_until_ready(timeout_s=0.5)
            except TimeoutError:
                if self.process is not None and self.process.poll() is not None:
                    raise RuntimeError(
                        f"{self.name} ended with {self.process.returncode}:\n{self.log_tail()}"
                    ) from None
                if time.monotonic() - begin > timeout_s:
                    raise
            else:
                return time.monotonic() - begin

    def log_tail(self, lines: int = 30) -> str:
        """Return the last lines of the log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self.process is not None and self.process.poll() is None

    def kill(self) -> int:
        """SIGKILL, now; return the monotonic time in ns right after the signal."""
        assert self.process is not None
        self.process.kill()
        moment = time.monotonic_ns()
        self.process.wait(timeout=30)
        return moment

    def signal(self, number: signal.Signals) -> None:
        """Send a signal such as SIGSTOP."""
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self, timeout_s: float = 30.0) -> int | None:
        """SIGTERM and wait for a clean end; SIGKILL after `timeout_s`. Return the exit code."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(timeout=30)
        return self.process.returncode
