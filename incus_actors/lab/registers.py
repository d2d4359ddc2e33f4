"""Clients that read, write and compare-and-set registers through all members, and the history they leave.

A register is the description of a profile: read linearizably, written blindly, or written with If-Match. Owns the client
threads and their history; chaos.py runs them, a checker judges them. Must never call something failed that may have
happened.
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass

from incus_actors.lab.client import RequestFailedError
from incus_actors.lab.processes import LabMember

UNKNOWN_NS = -1
#: refusals that come before anything was proposed (CONTRACT 18)
NOTHING_HAPPENED = ("Failed to begin transaction", "Daemon is starting up", "Daemon not ready", "Shutting down")
MAYBE = "outcome is not known"
MOST_UNKNOWN = 10  #: of one register: each may take effect at any later time, which makes judging it hard


@dataclass(frozen=True, slots=True)
class Operation:
    """One call. `end_ns` UNKNOWN_NS: nobody can tell whether it took effect. A failed one is not recorded.

    `kind`: "read" (`result`), "write" (`value`), "cas" (`expected`, `value`; `result` whether it took place).
    """

    register: str
    kind: str
    through: str
    start_ns: int
    end_ns: int
    value: str | None = None
    expected: str | None = None
    result: str | bool | None = None


class Registers:
    """The names in use at present; replaced as they get old. Any thread."""

    def __init__(self, members: list[LabMember], rng: random.Random, *, count: int = 3, life: int = 150) -> None:
        self.members = list(members)
        self._inside: dict[str, int] = {}
        self._rng = rng
        self._count = count
        self._life = life
        self._lock = threading.Lock()
        self._made = 0
        self._current: list[str] = []
        self._used: dict[str, int] = {}
        self._unknown: dict[str, int] = {}
        self.all: list[str] = []

    def pick(self) -> str | None:
        """Return a register to use now, None if one has to be made first (`make`)."""
        with self._lock:
            if len(self._current) < self._count:
                return None
            name = self._rng.choice(self._current)
            self._used[name] = self._used.get(name, 0) + 1
            if self._used[name] >= self._life or self._unknown.get(name, 0) >= MOST_UNKNOWN:
                self._current.remove(name)
            return name

    def make(self, member: LabMember, timeout_s: float) -> None:
        """Create one more, through `member`. Raises what the client raises; a name is never tried twice."""
        with self._lock:
            self._made += 1
            name = f"register-{self._made}"
        member.client.request("POST", "/1.0/profiles", {"name": name, "config": {}, "devices": {}}, timeout_s=timeout_s)
        with self._lock:
            self._current.append(name)
            self.all.append(name)

    def unclear(self, name: str) -> None:
        """Note an operation whose outcome is not known."""
        with self._lock:
            self._unknown[name] = self._unknown.get(name, 0) + 1

    def enter(self) -> tuple[LabMember, float]:
        """Return a member to ask and a number from 0 to 1; `leave` must follow."""
        with self._lock:
            member = self._rng.choice(self.members)
            self._inside[member.name] = self._inside.get(member.name, 0) + 1
            return member, self._rng.random()

    def leave(self, member: LabMember) -> None:
        """A call through this member has ended."""
        with self._lock:
            self._inside[member.name] -= 1

    def retire(self, member: LabMember) -> None:
        """Ask this member no more, and wait for the calls through it: it is about to be another server."""
        with self._lock:
            self.members.remove(member)
        while self._inside.get(member.name):
            time.sleep(0.02)

    def readmit(self, member: LabMember) -> None:
        """Ask it again."""
        with self._lock:
            self.members.append(member)


class RegisterClient(threading.Thread):
    """Calls one operation after the other until told to finish."""

    def __init__(self, number: int, registers: Registers, *, timeout_s: float = 5.0, pause_s: float = 0.02) -> None:
        super().__init__(name=f"register-client-{number}", daemon=True)
        self.number = number
        self.registers = registers
        self.timeout_s = timeout_s
        self.pause_s = pause_s
        self.history: list[Operation] = []
        self.failures: dict[str, int] = {}
        self._next = 0
        self._stop_requested = threading.Event()

    def run(self) -> None:
        """Call until `finish`."""
        while not self._stop_requested.wait(self.pause_s):
            member, draw = self.registers.enter()
            try:
                name = self.registers.pick()
                if name is None:
                    self.registers.make(member, self.timeout_s)
                elif draw < 0.4:
                    self._read(member, name)
                elif draw < 0.75:
                    self._write(member, name)
                else:
                    self._compare_and_set(member, name)
            except (OSError, RequestFailedError, ValueError) as problem:
                text = f"{type(problem).__name__}: {problem}"[:160]
                self.failures[text] = self.failures.get(text, 0) + 1
            finally:
                self.registers.leave(member)

    def finish(self) -> list[Operation]:
        """Stop after the call in flight; return the history."""
        self._stop_requested.set()
        self.join(self.timeout_s * 4)
        return self.history

    def _value(self) -> str:
        self._next += 1
        return f"{self.number}-{self._next}"

    def _read(self, member: LabMember, name: str) -> str:
        start = time.monotonic_ns()
        found, etag = member.client.exchange("GET", f"/1.0/profiles/{name}", timeout_s=self.timeout_s)
        value = found["description"] or None
        self.history.append(Operation(name, "read", member.name, start, time.monotonic_ns(), result=value))
        return etag

    def _write(self, member: LabMember, name: str) -> None:
        value = self._value()
        start = time.monotonic_ns()
        self._change(member, Operation(name, "write", member.name, start, UNKNOWN_NS, value=value))

    def _compare_and_set(self, member: LabMember, name: str) -> None:
        etag = self._read(member, name)
        expected = self.history[-1].result
        start = time.monotonic_ns()
        assert expected is None or isinstance(expected, str)
        attempt = Operation(name, "cas", member.name, start, UNKNOWN_NS, value=self._value(), expected=expected)
        self._change(member, attempt, etag)

    def _change(self, member: LabMember, attempt: Operation, etag: str = "") -> None:
        path = f"/1.0/profiles/{attempt.register}"
        try:
            member.client.exchange(
                "PATCH", path, {"description": attempt.value}, if_match=etag, timeout_s=self.timeout_s
            )
            self._record(attempt, True)
        except RequestFailedError as problem:
            if etag and problem.status == 412:
                self._record(attempt, False)
                return
            if not happened_not(problem):
                self._record_unknown(attempt)
            raise
        except (ConnectionRefusedError, FileNotFoundError):
            raise  # nobody was there to take it
        except (OSError, ValueError):
            self._record_unknown(attempt)
            raise

    def _record(self, attempt: Operation, result: bool) -> None:
        self.history.append(
            Operation(
                attempt.register,
                attempt.kind,
                attempt.through,
                attempt.start_ns,
                time.monotonic_ns(),
                attempt.value,
                attempt.expected,
                result,
            )
        )

    def _record_unknown(self, attempt: Operation) -> None:
        self.history.append(attempt)
        self.registers.unclear(attempt.register)


def happened_not(problem: RequestFailedError) -> bool:
    """Whether a refusal says for sure that nothing was changed."""
    text = str(problem)
    if MAYBE in text or "no answer in time" in text:
        return False
    return 400 <= problem.status < 500 or text.startswith(NOTHING_HAPPENED)
