"""What a member leaves behind when consensus stops: the history of its last events and word for the next start.

Called by driver.py on the consensus thread and by opening.py. Must never raise: it is called when something is wrong
already.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from incus_actors.consensus.log_store import sync_directory

log = logging.getLogger(__name__)

HISTORY_NAME = "consensus-history.txt"  #: what the core heard before it stopped for good


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


def write_history(directory: Path, events: Iterable[tuple[int, str, int, int]], reason: str) -> None:
    """Write down what the core heard: (ms, what, from whom, in which term)."""
    lines = [
        f"{now_ms} {name}" + (f" from {source} in term {term}" if source else "")
        for now_ms, name, source, term in events
    ]
    try:
        (directory / HISTORY_NAME).write_text("\n".join([*lines, f"stopped: {reason}", ""]))
    except OSError as exc:
        log.error("the history can't be written: %s", exc)
