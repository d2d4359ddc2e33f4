"""The real daemon, which kills itself with SIGKILL right before (or right after) the N-th step of what it does.

A step is an effect that outlives the process: a file or directory that is made, written, renamed or removed (outside
the database's own directory), a program that is started, a request to a helper, a signal, a proposal. They are seen from
outside of the product: by an audit hook of the interpreter and by wrapping four functions.

$INCUS_ACTORS_ARMED names a file "N ID [PID]": while it exists, steps are counted from its appearance (and listed in a
file of the same name with ".steps"), and the N-th is the end of this daemon, or of another one (PID); 0 only counts.
Nothing has to be started anew for that: the file is looked for at each step.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from incus_actors.consensus.runtime import ConsensusRuntime
from incus_actors.drivers.child import Child, Conversation, Field

ARMED = "INCUS_ACTORS_ARMED"
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_ONLY_LOOKING = ("list", "show", "--probe", "--version")  #: such a word among a program's first: it changes nothing
_PATHS = {
    "os.mkdir": "mkdir",
    "os.remove": "unlink",
    "os.rename": "rename",
    "os.rmdir": "rmdir",
    "os.symlink": "symlink",
    "os.link": "link",
    "os.chmod": "chmod",
    "os.chown": "chown",
    "os.truncate": "truncate",
    "os.setxattr": "setxattr",
}


def looks_only(argv: Sequence[str]) -> bool:
    """Whether a program changes nothing."""
    return any(word in _ONLY_LOOKING for word in argv[1:4])


class Steps:
    """Counts steps while it is armed."""

    def __init__(self, armed: Path, directory: Path) -> None:
        self._armed = str(armed)
        self._listed = os.open(f"{armed}.steps", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._directory = f"{directory}/"
        self._ignored = tuple(f"{directory}/{name}" for name in ("database", "logs", "unix.socket"))
        self._count, self._order, self._turn = 0, "", threading.Lock()

    def take(self, what: str) -> None:
        """One step is about to be taken, or (programs, proposals) has just been."""
        with self._turn:
            order = self._read()
            if order != self._order:
                self._order, self._count = order, 0
            if not order:
                return
            self._count += 1
            os.write(self._listed, f"{what}\n".encode(errors="replace"))
            number, _, *other = map(int, order.split())
            if self._count == number:
                os.kill(other[0] if other else os.getpid(), signal.SIGKILL)

    def _read(self) -> str:
        try:
            file = os.open(self._armed, os.O_RDONLY)
        except OSError:
            return ""
        try:
            return os.read(file, 100).decode()
        finally:
            os.close(file)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """What the interpreter tells about itself, before it does it."""
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITES and not isinstance(path, int):
                self._path("write", path)
        elif event in _PATHS:
            self._path(_PATHS[event], arguments[0])
        elif event == "subprocess.Popen":
            words = [self._short(os.fsdecode(word)) for word in arguments[1]]
            if not looks_only(words):
                self.take(f"program: {' '.join(words)[:90]}")

    def _path(self, what: str, path: object) -> None:
        text = f"descriptor {path}" if isinstance(path, int) else os.fsdecode(path)  # type: ignore[arg-type]
        if text.startswith((*self._ignored, "/dev/", "/proc/self/")):
            return
        if text.startswith("/") and what != "write" and os.path.lexists(text) == (what == "mkdir"):
            return  # made already, or gone already: nothing changes
        self.take(f"file: {what} {self._short(text)}")

    def _short(self, text: str) -> str:
        return text.replace(self._directory, "")


def _wrap_helpers_and_signals() -> None:
    send, send_signal = Conversation.send, signal.pidfd_send_signal

    @functools.wraps(send)
    def sending(self: Conversation, fields: Iterable[Field]) -> None:
        fields = list(fields)
        STEPS.take(f"helper: {' '.join(map(str, fields[0]))}"[:60])
        send(self, fields)
        STEPS.take(f"asked: {' '.join(map(str, fields[0]))}"[:60])

    @functools.wraps(send_signal)
    def signalling(process: int, number: int, *rest: Any) -> None:
        STEPS.take(f"signal: {number}")
        send_signal(process, number, *rest)

    Conversation.send = sending  # type: ignore[method-assign]
    signal.pidfd_send_signal = signalling


def _wrap_proposals() -> None:
    propose = ConsensusRuntime.propose

    @functools.wraps(propose)
    async def wrapped(self: ConsensusRuntime, transaction: Any, **named: Any) -> Any:
        what = " ".join(statement.sql for statement in transaction.statements[:1])[:60]
        STEPS.take(f"proposal: {what}")
        outcome = await propose(self, transaction, **named)
        STEPS.take(f"proposed: {what}")
        return outcome

    ConsensusRuntime.propose = wrapped  # type: ignore[method-assign]


def _wrap_programs() -> None:
    begin = Child.__init__

    @functools.wraps(begin)
    def wrapped(self: Child, argv: Any, **named: Any) -> None:
        begin(self, argv, **named)
        if not looks_only(argv):
            STEPS.take(f"begun: {' '.join(Path(word).name for word in argv)[:90]}")

    Child.__init__ = wrapped  # type: ignore[method-assign]


def install() -> None:
    """See steps from now on."""
    sys.addaudithook(STEPS.audit)
    _wrap_helpers_and_signals()
    _wrap_proposals()
    _wrap_programs()


STEPS = Steps(Path(os.environ[ARMED]), Path(os.environ["INCUS_DIR"]))

if __name__ == "__main__":
    from incus_actors.cli.daemon import main

    install()
    main()
