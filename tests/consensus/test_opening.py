"""Start-up: what is mended, what is refused, what is noticed later."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from incus_actors.consensus import log_format as fmt
from incus_actors.consensus import opening
from incus_actors.consensus.lanes import NoLane
from incus_actors.consensus.last_words import HISTORY_NAME
from incus_actors.consensus.log_files import AmnesiaError, LogDamagedError
from incus_actors.consensus.opening import open_member, rewrite_if_suspect
from incus_actors.consensus.runtime import ConsensusRuntime
from incus_actors.consensus.types import Limits
from incus_actors.state.apply import Applier

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
    async with standalone(directory) as again:
        await again.read_barrier()
        assert again.database.scalar(COUNT) == 20


def settle(path: Path) -> None:
    """Move everything into the file itself: what is in the write-ahead log would hide the damage."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    assert not path.with_name(path.name + "-wal").exists()


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def lose_the_first_table(path: Path) -> None:
    """Write over the page that says how far the state has got."""
    with sqlite3.connect(path) as connection:
        root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = '_raft'").fetchone()[0]
    overwrite(path, (root - 1) * 4096, b"\xff" * 4096)


def rename_a_column(path: Path) -> None:
    """One flipped bit in the text of the schema: a column that our own statements name has gone."""
    content = path.read_bytes()
    path.write_bytes(content.replace(b"timestamp_ms", b"timestamp_mr"))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "column": rename_a_column,
    "format": lambda path: overwrite(path, 47, b"\x0c"),
    "header": lambda path: overwrite(path, 0, b"\xff" * 100),
    "page": lose_the_first_table,
    "cut off": lambda path: os.truncate(path, 5000),
    "garbage": lambda path: path.write_bytes(os.urandom(30_000)),
    "empty": lambda path: os.truncate(path, 0),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
async def test_a_state_that_can_not_be_opened_is_built_again(directory: Path, damage: Callable[[Path], object]) -> None:
    settle(directory / "global-1.db")
    damage(directory / "global-1.db")
    async with standalone(directory) as runtime:
        await runtime.read_barrier()
        assert runtime.database.scalar(COUNT) == 20
        assert not (directory / opening.STATE_SUSPECT_NAME).exists()
    async with standalone(directory) as runtime:
        await runtime.read_barrier()
        assert runtime.database.scalar(COUNT) == 20


@pytest.fixture
async def compacted(tmp_path: Path) -> Path:
    """A member whose log begins late; `older.db` beside it is the state as it was before."""
    directory = tmp_path / "database"
    limits = Limits(retained_entries=8)
    async with standalone(directory, limits=limits) as runtime:
        await applied(runtime, TABLE)
    settle(directory / "global-1.db")
    shutil.copy(directory / "global-1.db", tmp_path / "older.db")
    async with standalone(directory, limits=limits) as runtime:
        for number in range(40):
            await applied(runtime, insert(number))
        await until(lambda: runtime.status().first > 5)
    return directory


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_state_that_can_not_be_opened_behind_a_compacted_log_is_amnesia(
    compacted: Path, damage: Callable[[Path], object]
) -> None:
    settle(compacted / "global-1.db")
    damage(compacted / "global-1.db")
    with pytest.raises(AmnesiaError, match="state"):
        open_member(compacted)
    assert (compacted / fmt.AMNESIA_NAME).exists()


def test_an_older_state_behind_a_compacted_log_is_amnesia(compacted: Path) -> None:
    settle(compacted / "global-1.db")
    shutil.copy(compacted.parent / "older.db", compacted / "global-1.db")
    with pytest.raises(AmnesiaError, match="the log begins after"):
        open_member(compacted)
    assert (compacted / fmt.AMNESIA_NAME).exists()


def test_a_state_that_the_disk_does_not_give_is_no_damage(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trouble that may pass costs nobody their state."""
    before = (directory / "global-1.db").read_bytes()

    def fails(_path: Path) -> Applier:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_READ
        raise error

    monkeypatch.setattr(opening, "Applier", fails)
    with pytest.raises(sqlite3.OperationalError, match="disk I/O error"):
        open_member(directory)
    assert (directory / "global-1.db").read_bytes() == before
    assert not (directory / opening.STATE_SUSPECT_NAME).exists()


def test_a_state_that_failed_its_check_behind_a_compacted_log_is_amnesia(compacted: Path) -> None:
    opening.mark_state_suspect(compacted, "page 7 is garbage")
    with pytest.raises(AmnesiaError, match="page 7 is garbage"):
        open_member(compacted)


async def test_ballast_is_laid_where_there_is_room(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ballast = directory / fmt.BALLAST_NAME
    ballast.unlink(missing_ok=True)
    monkeypatch.setattr(opening, "BALLAST_NEEDS_KIB", 1 << 60)
    opening.lay_ballast(directory)
    assert not ballast.exists()
    monkeypatch.setattr(opening, "BALLAST_NEEDS_KIB", 0)
    opening.lay_ballast(directory)
    assert ballast.stat().st_size == opening.BALLAST_BYTES


def test_a_failure_from_the_future_is_none_of_the_last_ten_minutes(directory: Path) -> None:
    """The clock was set back since, by years if its battery is empty: to wait for that time would be to stay down."""
    (directory / fmt.SUSPECT_NAME).write_text("fsync failed\n")
    (directory / opening.REWRITTEN_NAME).touch()
    tomorrow = time.time() + 86_400
    os.utime(directory / opening.REWRITTEN_NAME, (tomorrow, tomorrow))
    assert opening.rewrite_if_suspect(directory)
