"""Start-up: what is mended, what is refused, what is noticed later."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

import pytest

from incus_actors.consensus import log_format as fmt
from incus_actors.consensus import opening
from incus_actors.consensus.lanes import NoLane
from incus_actors.consensus.last_words import HISTORY_NAME
from incus_actors.consensus.log_store import AmnesiaError, LogDamagedError
from incus_actors.consensus.opening import open_member, rewrite_if_suspect
from incus_actors.consensus.runtime import ConsensusRuntime
from incus_actors.consensus.types import Limits

from .runtime_kit import TABLE, applied, insert, standalone, until

COUNT = "SELECT COUNT(*) FROM t"


@pytest.fixture
async def directory(tmp_path: Path) -> Path:
    async with standalone(tmp_path / "database") as runtime:
        await applied(runtime, TABLE)
        for number in range(20):
            await applied(runtime, insert(number))
    return tmp_path / "database"


async def test_a_suspect_log_is_rewritten_before_it_is_trusted(directory: Path) -> None:
    (directory / fmt.SUSPECT_NAME).write_text("fsync failed")
    before = (directory / fmt.LOG_NAME).stat().st_ino
    async with standalone(directory) as runtime:
        await runtime.read_barrier()
        assert runtime.database.scalar(COUNT) == 20
    assert (directory / fmt.LOG_NAME).stat().st_ino != before
    assert not (directory / fmt.SUSPECT_NAME).exists()


def test_a_disk_that_fails_twice_keeps_the_member_down(directory: Path) -> None:
    (directory / fmt.SUSPECT_NAME).write_text("fsync failed")
    assert rewrite_if_suspect(directory)
    (directory / fmt.SUSPECT_NAME).write_text("fsync failed again")
    with pytest.raises(LogDamagedError, match="twice within ten minutes"):
        open_member(directory)
    long_ago = time.time() - opening.STAY_DOWN_S - 1
    os.utime(directory / opening.REWRITTEN_NAME, (long_ago, long_ago))
    assert rewrite_if_suspect(directory)
    assert not rewrite_if_suspect(directory)


def test_a_suspect_log_that_is_damaged_is_amnesia(directory: Path) -> None:
    (directory / fmt.SUSPECT_NAME).write_text("fsync failed")
    with sqlite3.connect(directory / fmt.LOG_NAME) as connection:
        connection.execute("UPDATE entries SET body = x'00' WHERE idx = 5")
    with pytest.raises(AmnesiaError, match="entry 5 is damaged"):
        open_member(directory)
    assert (directory / fmt.AMNESIA_NAME).exists()


async def test_a_damaged_state_stops_the_member_and_is_built_again(directory: Path) -> None:
    state = directory / "global-1.db"
    with sqlite3.connect(state) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 't'").fetchone()[0]
    with state.open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\xff" * 4096)
    reasons: list[str] = []
    runtime = ConsensusRuntime(directory, NoLane, realtime=False, on_fatal=reasons.append)
    await runtime.start()
    await until(lambda: bool(reasons))
    await runtime.stop()
    assert "global-1.db" in reasons[0]
    assert "stopped: " in (directory / HISTORY_NAME).read_text()
    (directory / opening.STATE_SUSPECT_NAME).touch()  # reading may have failed before the check did
    async with standalone(directory) as again:
        await again.read_barrier()
        assert again.database.scalar(COUNT) == 20


async def test_a_damaged_state_behind_a_compacted_log_is_amnesia(tmp_path: Path) -> None:
    directory = tmp_path / "database"
    async with standalone(directory, limits=Limits(retained_entries=8)) as runtime:
        await applied(runtime, TABLE)
        for number in range(40):
            await applied(runtime, insert(number))
        await until(lambda: runtime.status().first > 1)
    opening.mark_state_suspect(directory, "page 7 is garbage")
    with pytest.raises(AmnesiaError, match="page 7 is garbage"):
        open_member(directory)


async def test_ballast_is_laid_where_there_is_room(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ballast = directory / fmt.BALLAST_NAME
    ballast.unlink(missing_ok=True)
    monkeypatch.setattr(opening, "BALLAST_NEEDS_KIB", 1 << 60)
    opening.lay_ballast(directory)
    assert not ballast.exists()
    monkeypatch.setattr(opening, "BALLAST_NEEDS_KIB", 0)
    opening.lay_ballast(directory)
    assert ballast.stat().st_size == opening.BALLAST_BYTES
