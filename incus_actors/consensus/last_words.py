"""What a member leaves behind when consensus stops: the history of its last events and word for the next start.

Called by driver.py on the consensus thread and by opening.py. Must never raise: it is called when something is wrong
already.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from incus_actors.consensus import events as ev
from incus_actors.consensus.history import Heard, History
from incus_actors.consensus.history_file import encode_history
from incus_actors.consensus.log_files import sync_directory

log = logging.getLogger(__name__)

HISTORY_NAME = "consensus-history.txt"  #: what the core heard before it stopped for good, for people
REPLAY_NAME = "consensus-history.msgpack"  #: the same for `incus-actors simulate --history`


def superseded_text(reason: str) -> str:
    """Return what an operator reads, from the core's "own epoch, their epoch, who said so"."""
    own, other, source = (*reason.split(), "?", "?", "?")[:3]
    return (
        f"This server is of epoch {own} of its cluster, which was recovered without it: member {source} is of epoch "
        f"{other}. To go on as a member of the recovered cluster, stop this daemon and run "
        '"incus-actorsd cluster rejoin" (the present database is kept aside)'
    )


def leave_word(path: Path, text: str) -> None:
    """Leave word for the next start; a disk that can't take it has been reported before."""
    try:
        with path.open("w") as file:
            file.write(f"{text}\n")
            file.flush()
            os.fsync(file.fileno())
        sync_directory(path.parent)
    except OSError as exc:
        log.error("%s can't be written: %s", path, exc)


def write_history(directory: Path, history: History, reason: str) -> None:
    """Write down what the core heard, to be read and to be replayed."""
    lines = [_line(heard) for heard in history.all()]
    try:
        (directory / HISTORY_NAME).write_text("\n".join([*lines, f"stopped: {reason}", ""]))
        _write_private(directory / REPLAY_NAME, encode_history(reason, *history.replayable()))
    except (OSError, TypeError, ValueError) as exc:  # also what can't be encoded: the reason to stop counts more
        log.error("the history can't be written: %s", exc)


def _line(heard: Heard) -> str:
    event = heard.event
    if isinstance(event, ev.Receive):
        envelope = event.envelope
        name = type(envelope.message).__name__
        return f"{heard.now_ms} {name} from {envelope.source} in term {envelope.term}"
    return f"{heard.now_ms} {type(event).__name__}"


def _write_private(path: Path, data: bytes) -> None:
    """Entries may hold secrets: only our own user may read them."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(data)
