"""What a joining server must remember, so that a kill at any line leaves either the old server or the new member.

Owns `$INCUS_DIR/join.json` and what happens to the old database, which `consensus.bootstrap.replace_database` moves
aside. JoinService writes it, the daemon calls `recover` before it opens the database. Must never delete the old
database before the join has ended.

Phases: "switching" – the old database may be aside, the cluster may know us as pending: a crash undoes it here
(the leader drops the pending member). "confirming" – we may have been confirmed: a crash goes on, never back.
"rejoining" – a member that lost its database waits for that of the cluster (rejoin.py): a crash goes on.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from incus_actors.security import certificates

Phase = Literal["none", "switching", "confirming", "rejoining"]


@dataclass(frozen=True, slots=True)
class JoinJournal:
    """The journal of one state directory. All methods are small file operations; they raise OSError."""

    directory: Path

    @property
    def _file(self) -> Path:
        return self.directory / "join.json"

    @property
    def _database(self) -> Path:
        return self.directory / "database"

    def phase(self) -> Phase:
        """Return how far a join has come that did not end."""
        try:
            phase = json.loads(self._file.read_text()).get("phase")
        except FileNotFoundError:
            return "none"
        except (ValueError, AttributeError):  # replaced in one step, so this is somebody's hand: don't go on from it
            return "switching"
        if phase in ("confirming", "rejoining"):
            found: Phase = phase
            return found
        return "switching"

    def write(self, phase: Literal["switching", "confirming", "rejoining"], member_id: int) -> None:
        """Make the phase durable."""
        temporary = self._file.with_suffix(".tmp")
        with temporary.open("w") as file:
            json.dump({"phase": phase, "member_id": member_id}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._file)
        _sync(self.directory)

    def put_back(self) -> None:
        """Put the old database in place again (the consensus runtime is stopped), from wherever the replacement or
        an earlier `put_back` was interrupted."""
        shutil.rmtree(self._database.with_name("database.new"), ignore_errors=True)
        asides = self._asides()
        if asides:
            failed = self._database.with_name("database.failed-join")
            shutil.rmtree(failed, ignore_errors=True)
            if self._database.exists():
                self._database.replace(failed)
            asides[-1].replace(self._database)
            _sync(self.directory)
        shutil.rmtree(self._database.with_name("database.failed-join"), ignore_errors=True)

    def finish(self) -> None:
        """The join has ended, or was undone: forget the old database and the journal, in this order."""
        for aside in self._asides():
            shutil.rmtree(aside)
        self._file.unlink(missing_ok=True)
        _sync(self.directory)

    def _asides(self) -> list[Path]:
        """What `replace_database` moved away, oldest first."""
        return sorted(self.directory.glob("database.old-*"))


def recover(directory: Path) -> Phase:
    """Call before the database is opened: undo a join that was killed before it could have been confirmed.

    Returns "switching" if it undid one (this is a standalone server again), "confirming" if JoinService.resume()
    must be awaited once the daemon runs, "rejoining" if rejoin.until_known() must, "none" otherwise. Raises OSError.
    """
    journal = JoinJournal(directory)
    phase = journal.phase()
    if phase == "switching":
        journal.put_back()
        certificates.remove_pair(directory, certificates.CLUSTER)
        journal.finish()
    return phase


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
