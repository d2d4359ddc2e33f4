"""log.db: what survives, what is noticed, what is refused."""

from __future__ import annotations

import errno
import os
import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from incus_actors.consensus import log_format as fmt
from incus_actors.consensus.bootstrap import (
    NotEmptyError,
    create_joiner,
    create_standalone,
    exists,
    finish_replacement,
    replace_database,
)
from incus_actors.consensus.effects import WriteLog
from incus_actors.consensus.log_files import AmnesiaError, LogDamagedError, LogFullError, LogIOError, LogLockedError
from incus_actors.consensus.log_store import LogStore
from incus_actors.consensus.types import (
    Configuration,
    Entry,
    EntryKind,
    HardState,
    Index,
    Member,
    Role,
    SnapshotMark,
    chain_hash,
)
from incus_actors.consensus.witness import Witness

OTHERS = Configuration((Member(1, "a", Role.VOTER),))


def after(chain: bytes, index: Index, count: int, *, term: int = 1, size: int = 10) -> tuple[Entry, ...]:
    entries = []
    for number in range(index, index + count):
        body = bytes([number % 256]) * size
        chain = chain_hash(chain, term, EntryKind.SQL, number, b"", body)
        entries.append(Entry(number, term, EntryKind.SQL, number, b"", body, chain))
    return tuple(entries)


class Log:
    """A store under test that numbers its writes."""

    def __init__(self, directory: Path) -> None:
        self.store = LogStore(directory)
        self.state = self.store.durable_state(0)
        self.entries = list(self.state.entries)
        self.write_id = 0

    def write(self, *entries: Entry, truncate: Index | None = None, hard: HardState | None = None) -> None:
        self.write_id += 1
        self.store.write([WriteLog(self.write_id, 0, hard, truncate, entries, 0)])
        if truncate is not None:
            self.entries = [e for e in self.entries if e.index < truncate]
        self.entries += entries

    def grow(self, count: int, *, term: int = 1, size: int = 10) -> None:
        last = self.entries[-1]
        self.write(*after(last.chain, last.index + 1, count, term=term, size=size))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    create_standalone(tmp_path / "database", address="here")
    return tmp_path / "database"


def reopened(directory: Path) -> tuple[Entry, ...]:
    store = LogStore(directory)
    try:
        return store.durable_state(0).entries
    finally:
        store.close()


def change_meta(directory: Path, sql: str, *parameters: int | bytes | str) -> None:
    connection = sqlite3.connect(directory / "log.db")
    assert connection.execute(sql, parameters).rowcount == 1
    connection.commit()
    connection.close()


def crash(directory: Path, log: Log) -> Path:
    """What a killed process leaves: the files as they are, without a clean close."""
    copy = crash_image(directory)
    log.store.close()
    return copy


def crash_image(directory: Path) -> Path:
    copy = directory.with_name("crashed")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(directory, copy)
    return copy


def test_a_standalone_log_begins_with_its_configuration(directory: Path) -> None:
    store = LogStore(directory)
    state = store.durable_state(0)
    store.close()
    assert (state.member_id, state.epoch, state.hard) == (1, 1, HardState(1, 0))
    assert [(e.index, e.term, e.kind) for e in state.entries] == [(1, 1, EntryKind.CONFIG)]
    assert state.incarnation != 0
    with pytest.raises(NotEmptyError):
        create_standalone(directory, address="again")


def test_writes_survive_a_crash(directory: Path) -> None:
    log = Log(directory)
    log.grow(5)
    log.write(hard=HardState(4, 2))
    copy = crash(directory, log)
    store = LogStore(copy)
    assert store.durable_state(0).entries == tuple(log.entries)
    assert store.hard == HardState(4, 2)
    store.close()


def test_truncation_and_a_crash_right_after_it_are_no_amnesia(directory: Path) -> None:
    log = Log(directory)
    log.grow(10)
    kept = log.entries[4]
    log.write(*after(kept.chain, 6, 2, term=2), truncate=6, hard=HardState(2, 0))
    copy = crash(directory, log)
    assert [e.term for e in reopened(copy)] == [1, 1, 1, 1, 1, 2, 2]


def test_the_witness_is_lowered_durably_before_a_truncation(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash between the lowering and the commit leaves the old log, which the lowered witness accepts."""
    log = Log(directory)
    log.grow(10)

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("power cut")

    monkeypatch.setattr(log.store, "_truncate", fail)
    with pytest.raises(LogIOError):
        log.write(truncate=6)
    copy = crash(directory, log)
    assert len(reopened(copy)) == 11


def test_a_dropped_tail_of_the_write_ahead_log_is_noticed(directory: Path) -> None:
    log = Log(directory)
    log.grow(3)
    short = (directory / "log.db-wal").stat().st_size
    log.grow(3)
    copy = crash(directory, log)
    wal = copy / "log.db-wal"
    with wal.open("r+b") as file:
        file.truncate(short)
    with pytest.raises(AmnesiaError, match="ends at 4, but 7 was durable once"):
        LogStore(copy)


def test_a_bit_flip_in_the_write_ahead_log_is_noticed(directory: Path) -> None:
    log = Log(directory)
    log.grow(3)
    log.grow(3)
    copy = crash(directory, log)
    wal = copy / "log.db-wal"
    data = bytearray(wal.read_bytes())
    data[-200] ^= 1
    wal.write_bytes(data)
    with pytest.raises(AmnesiaError, match="was durable once"):
        LogStore(copy)


def test_a_vote_that_was_rolled_back_is_noticed(directory: Path) -> None:
    log = Log(directory)
    log.write(hard=HardState(5, 2))
    short = (directory / "log.db-wal").stat().st_size
    log.write(hard=HardState(6, 3))
    copy = crash(directory, log)
    with (copy / "log.db-wal").open("r+b") as file:
        file.truncate(short)
    with pytest.raises(AmnesiaError, match="term 5, but 6 was durable once"):
        LogStore(copy)


def no_space(*_: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_witness_without_space_lags_until_there_is_some(
    directory: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing in place takes new blocks on some file systems. The batch is durable by then, so it counts."""
    log = Log(directory)
    log.grow(1)
    log.store.sync_witness()
    monkeypatch.setattr(os, call, no_space)
    log.grow(3)
    log.store.sync_witness()
    assert log.store.witness_lagged() > 0
    assert not log.store.failed
    lagging = crash_image(directory)
    assert len(reopened(lagging)) == 5
    monkeypatch.undo()
    log.store.sync_witness()
    copy = crash(directory, log)
    witness = Witness(copy / fmt.WITNESS_NAME)
    assert witness.last is not None
    assert witness.last.index == 5
    witness.close()


def test_a_sync_of_the_witness_that_failed_is_not_believed_the_next_time(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed fsync the page counts as clean: the next fsync alone would say "done" without writing it."""
    log = Log(directory)
    log.grow(1)
    monkeypatch.setattr(os, "fsync", no_space)
    log.store.sync_witness()
    monkeypatch.undo()
    calls: list[str] = []
    pwrite, fsync = os.pwrite, os.fsync
    monkeypatch.setattr(os, "pwrite", lambda *given: calls.append("pwrite") or pwrite(*given))
    monkeypatch.setattr(os, "fsync", lambda *given: calls.append("fsync") or fsync(*given))
    log.store.sync_witness()
    assert "pwrite" in calls
    assert calls[-1] == "fsync"
    log.store.close()


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_truncation_waits_until_the_witness_is_lowered(
    directory: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(directory)
    log.grow(10)
    kept = log.entries[4]
    new = after(kept.chain, 6, 2, term=2)
    monkeypatch.setattr(os, call, no_space)
    for _ in range(2):
        with pytest.raises(LogFullError, match=r"tail\.wit"):
            log.write(*new, truncate=6, hard=HardState(2, 0))
    mark = SnapshotMark(4, 1, b"another!", OTHERS, 2)
    with pytest.raises(LogFullError, match=r"tail\.wit"):
        log.store.install(mark, 2, keep_suffix=False)
    assert not log.store.failed
    assert len(reopened(crash_image(directory))) == 11
    monkeypatch.undo()
    log.write(*new, truncate=6, hard=HardState(2, 0))
    copy = crash(directory, log)
    assert [e.term for e in reopened(copy)] == [1, 1, 1, 1, 1, 2, 2]


def test_a_witness_that_fails_otherwise_stops_everything(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    log = Log(directory)
    monkeypatch.setattr(os, "pwrite", fails)
    with pytest.raises(OSError, match="Input/output error"):
        log.grow(1)
    assert log.store.witness_lagged() == 0
    monkeypatch.undo()
    monkeypatch.setattr(os, "fsync", fails)
    log.store._testify()
    with pytest.raises(OSError, match="Input/output error"):
        log.store.close()
    monkeypatch.undo()
    again = Log(directory)  # it was released all the same
    again.grow(1)
    again.store.failed = True
    monkeypatch.setattr(os, "fsync", fails)
    again.store.close()  # the failure was reported when it happened
    monkeypatch.undo()
    LogStore(directory).close()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("UPDATE entries SET body = x'00' WHERE idx = 3", "entry 3 is damaged"),
        ("DELETE FROM entries WHERE idx = 3", "entry 3 is missing"),
        ("DELETE FROM entries WHERE idx > 3", "ends at 3, but 6 was durable"),
        ("UPDATE entries SET kind = 99 WHERE idx = 3", "entry 3 is damaged"),
        ("UPDATE hard SET vote = 3", "term and vote in log.db is damaged"),
        ("DELETE FROM hard", "term and vote in log.db is damaged"),
        ("DELETE FROM configs", "recorded differently"),
        ("INSERT INTO configs VALUES (5, 1, x'00')", "not in the log"),
    ],
)
def test_damage_is_never_repaired_silently(directory: Path, damage: str, message: str) -> None:
    log = Log(directory)
    log.grow(5)
    log.store.close()
    connection = sqlite3.connect(directory / "log.db")
    connection.execute(damage)
    connection.commit()
    connection.close()
    with pytest.raises(AmnesiaError, match=message):
        LogStore(directory)


def test_a_missing_or_garbled_witness_is_amnesia(directory: Path) -> None:
    log = Log(directory)
    log.grow(1)
    log.store.close()
    witness = directory / fmt.WITNESS_NAME
    saved = witness.read_bytes()
    witness.write_bytes(b"\0" * 128)
    with pytest.raises(AmnesiaError, match=r"tail\.wit is damaged"):
        LogStore(directory)
    witness.unlink()
    with pytest.raises(AmnesiaError, match="missing"):
        LogStore(directory)
    witness.write_bytes(saved)
    assert len(reopened(directory)) == 2


def test_one_torn_slot_of_the_witness_leaves_the_other(directory: Path) -> None:
    log = Log(directory)
    log.grow(1)
    log.grow(1)
    log.store.close()
    witness = directory / fmt.WITNESS_NAME
    data = bytearray(witness.read_bytes())
    data[3] ^= 0xFF
    witness.write_bytes(data)
    assert len(reopened(directory)) == 3


def test_the_state_must_fit_the_log(directory: Path) -> None:
    store = LogStore(directory)
    with pytest.raises(AmnesiaError, match="applied 9, but the log ends at 1"):
        store.durable_state(9)
    store.close()


def test_a_second_opener_is_refused(directory: Path) -> None:
    store = LogStore(directory)
    with pytest.raises(LogLockedError):
        LogStore(directory)
    store.close()
    LogStore(directory).close()


def test_a_newer_format_and_an_empty_directory_are_refused(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(LogDamagedError, match="no database"):
        LogStore(tmp_path)
    connection = sqlite3.connect(directory / "log.db")
    connection.execute("UPDATE meta SET value = 2 WHERE key = 'format'")
    connection.commit()
    connection.close()
    with pytest.raises(LogDamagedError, match="format 2"):
        LogStore(directory)


def test_a_log_that_is_no_database_any_more_is_amnesia(directory: Path) -> None:
    (directory / "log.db").write_bytes(b"garbage" * 1000)
    with pytest.raises(AmnesiaError, match="can't be read: file is not a database"):
        LogStore(directory)


@pytest.mark.parametrize("table", ["meta", "hard", "entries", "configs"])
def test_a_damaged_page_of_the_log_is_amnesia(directory: Path, table: str) -> None:
    path = directory / "log.db"
    connection = sqlite3.connect(path)
    root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()[0]
    connection.close()
    with path.open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\xff" * 4096)
    with pytest.raises(AmnesiaError, match="can't be read: database disk image is malformed"):
        LogStore(directory)


def test_no_flipped_bit_of_the_log_is_left_to_an_operator(directory: Path) -> None:
    """Each is amnesia, which mends itself, or hits bytes that mean nothing: never a member that just stays down."""
    log = Log(directory)
    log.grow(5)
    log.store.close()
    before = reopened(directory)
    path = directory / "log.db"
    content = path.read_bytes()
    rng = random.Random(7)
    amnesia = 0
    for bit in [*range(0, 800, 7), *(rng.randrange(len(content) * 8) for _ in range(100))]:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert reopened(directory) == before
        except AmnesiaError:
            amnesia += 1
    assert amnesia > 20


@pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_BUSY])
def test_a_log_that_the_disk_does_not_give_is_no_amnesia(
    directory: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_path: Path) -> sqlite3.Connection:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = code
        raise error

    monkeypatch.setattr(fmt, "open_connection", fails)
    with pytest.raises(LogDamagedError, match="can't be read: disk I/O error") as caught:
        LogStore(directory)
    assert not isinstance(caught.value, AmnesiaError)


IDENTITIES = [("member_id", 3), ("epoch", 2), ("cluster_id", b"d" * 16), ("state_gen", 2), ("snap_config_idx", 1)]


@pytest.mark.parametrize(("key", "value"), IDENTITIES)
def test_a_changed_identity_is_amnesia(directory: Path, key: str, value: int | bytes) -> None:
    change_meta(directory, "UPDATE meta SET value = ? WHERE key = ?", value, key)
    with pytest.raises(AmnesiaError, match=r"what log\.db says about itself is damaged"):
        LogStore(directory)


def test_the_seal_of_an_identity_follows_every_change_that_is_meant(directory: Path) -> None:
    log = Log(directory)
    log.grow(5)  # with a new commit index, which the seal leaves out
    log.store.compact(3)
    log.store.begin_epoch(2, HardState(5, 0), after(log.store.last_chain, 7, 1, term=5), ())
    log.store.install(SnapshotMark(9, 5, b"another!", OTHERS, 2), 2, keep_suffix=False)
    log.store.close()
    store = LogStore(directory)
    assert (store.epoch, store.generation, store.snapshot.index) == (2, 2, 9)
    store.close()


def test_a_log_of_an_earlier_release_gets_its_seal_when_it_is_opened(directory: Path) -> None:
    change_meta(directory, "DELETE FROM meta WHERE key = 'seal'")
    LogStore(directory).close()
    change_meta(directory, "UPDATE meta SET value = 3 WHERE key = 'member_id'")
    with pytest.raises(AmnesiaError, match=r"what log\.db says about itself is damaged"):
        LogStore(directory)


def test_a_full_disk_is_a_clean_rollback(directory: Path) -> None:
    log = Log(directory)
    pages = log.store._db.execute("PRAGMA page_count").fetchone()[0]
    log.store._db.execute(f"PRAGMA max_page_count={pages + 2}")
    last = log.entries[-1]
    big = after(last.chain, last.index + 1, 3, size=50_000)
    with pytest.raises(LogFullError):
        log.write(*big)
    assert not log.store.failed
    log.store._db.execute("PRAGMA max_page_count=100000")
    log.write(*big)
    log.store.close()
    assert len(reopened(directory)) == 4


def test_after_an_error_nothing_is_written_any_more(directory: Path) -> None:
    log = Log(directory)
    last = log.entries[-1]
    with pytest.raises(LogIOError, match="can't follow"):
        log.write(*after(last.chain, 7, 1))
    with pytest.raises(LogIOError, match="earlier write failed"):
        log.grow(1)
    log.store.close()


def test_compaction_moves_the_begin_and_keeps_the_configuration(directory: Path) -> None:
    log = Log(directory)
    log.grow(10)
    mark = log.store.compact(6)
    assert (mark.index, mark.configuration_index) == (6, 1)
    assert mark.configuration.old[0].address == "here"
    assert log.store.compact(3) == mark
    log.grow(1)
    log.store.close()
    store = LogStore(directory)
    with pytest.raises(LogDamagedError, match="begins after 6"):
        store.durable_state(5)
    assert [e.index for e in store.durable_state(6).entries] == [7, 8, 9, 10, 11, 12]
    store.close()


@pytest.mark.parametrize("same", [True, False])
def test_an_installed_snapshot_keeps_only_a_suffix_that_follows_it(directory: Path, same: bool) -> None:
    log = Log(directory)
    log.grow(5)
    entry = log.entries[3]
    mark = SnapshotMark(4, entry.term, entry.chain if same else b"another!", OTHERS, 2)
    log.store.install(mark, 2, keep_suffix=True)
    copy = crash(directory, log)
    store = LogStore(copy)
    assert store.generation == 2
    assert store.snapshot == mark
    assert [e.index for e in store.durable_state(4).entries] == ([5, 6] if same else [])
    store.close()


def test_an_install_that_fails_leaves_the_old_world(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(directory)
    log.grow(5)

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("power cut")

    monkeypatch.setattr(fmt, "write_meta", fail)
    with pytest.raises(LogIOError):
        log.store.install(SnapshotMark(4, 1, b"another!", OTHERS, 2), 2, keep_suffix=True)
    monkeypatch.undo()
    copy = crash(directory, log)
    assert len(reopened(copy)) == 6


def test_a_joiner_knows_the_cluster_and_is_no_voter(tmp_path: Path) -> None:
    directory = tmp_path / "database"
    with pytest.raises(ValueError, match="must not join as a voter"):
        create_joiner(directory, cluster_id=b"c" * 16, epoch=3, member_id=1, configuration=OTHERS)
    create_joiner(directory, cluster_id=b"c" * 16, epoch=3, member_id=4, configuration=OTHERS)
    store = LogStore(directory)
    state = store.durable_state(0)
    store.close()
    assert (state.cluster_id, state.epoch, state.member_id, state.entries) == (b"c" * 16, 3, 4, ())
    assert state.snapshot.configuration == OTHERS


def replace(directory: Path) -> Path:
    return replace_database(directory, cluster_id=b"c" * 16, epoch=1, member_id=4, configuration=OTHERS)


def member_of(directory: Path) -> int:
    store = LogStore(directory)
    try:
        return store.member_id
    finally:
        store.close()


def test_a_database_is_replaced_and_the_old_one_kept_aside(directory: Path) -> None:
    (directory / "local.db").write_text("mine alone")
    aside = replace(directory)
    assert member_of(directory) == 4
    assert member_of(aside) == 1
    assert (directory / "local.db").read_text() == "mine alone"


def test_a_database_in_use_is_not_replaced(directory: Path) -> None:
    store = LogStore(directory)
    with pytest.raises(LogLockedError):
        replace(directory)
    store.close()
    assert member_of(directory) == 1


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_crash_while_replacing_leaves_one_of_the_two(
    directory: Path, renames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power is cut after so many renames; the next start finishes what was decided."""
    done = 0
    rename = Path.rename

    def cut(self: Path, target: Path) -> Path:
        nonlocal done
        if done == renames:
            raise OSError("power cut")
        done += 1
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", cut)
    with pytest.raises(OSError, match="power cut"):
        replace(directory)
    monkeypatch.undo()
    assert exists(directory)
    assert member_of(directory) == (1 if renames == 0 else 4)
    assert finish_replacement(directory) is None


def test_a_creation_that_was_cut_short_is_started_over(tmp_path: Path) -> None:
    directory = tmp_path / "database"
    directory.mkdir()
    fmt.open_connection(directory / "log.db").close()
    create_standalone(directory, address="here")
    assert member_of(directory) == 1


def test_a_state_without_a_log_is_never_a_fresh_member(tmp_path: Path) -> None:
    directory = tmp_path / "database"
    directory.mkdir()
    (directory / "global-1.db").write_bytes(b"")
    with pytest.raises(NotEmptyError, match="lost its log"):
        create_standalone(directory, address="here")
