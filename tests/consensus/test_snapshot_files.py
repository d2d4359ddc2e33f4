"""Installing a snapshot on real files: a crash after any step leaves the old world or the new one (R-SNAP)."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from incus_actors.consensus import effects as fx
from incus_actors.consensus import events as ev
from incus_actors.consensus import snapshot_files
from incus_actors.consensus.apply_thread import ApplyThread
from incus_actors.consensus.bootstrap import create_standalone
from incus_actors.consensus.driver import Driver
from incus_actors.consensus.effects import WriteLog
from incus_actors.consensus.log_store import LogStore
from incus_actors.consensus.log_thread import JobDone, LogThread
from incus_actors.consensus.messages import SnapshotOffer
from incus_actors.consensus.opening import Opened, check_state, open_member
from incus_actors.consensus.snapshot_files import SnapshotFiles, file_digest
from incus_actors.consensus.types import Configuration, Entry, EntryKind, Member, Role, chain_hash
from incus_actors.state.apply import Applier
from incus_actors.state.position import read_position

from .runtime_kit import until

LAST, APPLIED, OFFERED = 10, 3, 6
CHUNK = 4096
OLD_WORLD = ("half received", "received", "verified", "renamed")
NEW_WORLD = ("in log.db", "committed", "reopened", "old file gone")


def make_member(directory: Path) -> tuple[Entry, ...]:
    """A member whose log ends at LAST and whose state has applied up to APPLIED; return all its entries."""
    create_standalone(directory, address="here")
    store = LogStore(directory)
    entries = list(store.durable_state(0).entries)
    for index in range(2, LAST + 1):
        chain = chain_hash(entries[-1].chain, 1, EntryKind.NOOP, index, b"", b"")
        entries.append(Entry(index, 1, EntryKind.NOOP, index, b"", b"", chain))
    store.write([WriteLog(1, 0, None, None, tuple(entries[1:]), 0)])
    store.close()
    applier = Applier(directory / "global-1.db")
    applier.apply(entries[:APPLIED])
    applier.close()
    return tuple(entries)


def make_snapshot(path: Path, entries: tuple[Entry, ...]) -> SnapshotOffer:
    """What a leader with these entries sends: the backup of a state that has applied up to OFFERED."""
    applier = Applier(path.with_suffix(".source"))
    applier.apply(entries[:OFFERED])
    source, copy = sqlite3.connect(applier.path), sqlite3.connect(path)
    source.backup(copy)
    position = read_position(copy)
    source.close()
    copy.close()
    applier.close()
    configuration = Configuration((Member(1, "here", Role.VOTER),))
    return SnapshotOffer(
        "6-1", OFFERED, position.term, position.chain, configuration, 1, path.stat().st_size, file_digest(path)
    )


class Heard(Driver):
    """A driver that only notes what the files answer."""

    def __init__(self) -> None:
        self.dead = False
        self.events: list[ev.Event] = []
        self.installed: list[tuple[int, int, Path]] = []

    def handle(self, event: ev.Event) -> None:
        self.events.append(event)

    def deliver(self, result: Callable[[], None]) -> None:
        result()

    def count(self, name: str, amount: int = 1) -> None:
        pass

    def snapshot_installed(self, index: int, last: int, path: Path) -> None:
        self.installed.append((index, last, path))


@dataclass
class Case:
    """A directory in which a snapshot arrives."""

    directory: Path
    snapshot: Path
    offer: SnapshotOffer
    keep: bool
    entries: tuple[Entry, ...]

    async def install(self, crash: Callable[[str], None]) -> Heard:
        """Receive and install; `crash` is called after each step, while nothing else is written."""
        opened = open_member(self.directory)
        loop = asyncio.get_running_loop()
        heard = Heard()

        def post(item: object) -> None:
            assert isinstance(item, JobDone), item
            loop.call_soon_threadsafe(item.deliver)

        log, state = LogThread(opened.store, post), ApplyThread(opened.applier, post)
        files = SnapshotFiles(self.directory, opened.state_path, 1, driver=heard, log=log, state=state)
        log.start()
        state.start()
        try:
            await self._receive(files, heard, crash)
            files.carry_out(fx.InstallSnapshot(self.offer, self.keep))
            await until(lambda: bool(heard.installed) or isinstance(heard.events[-1], ev.SnapshotFailed))
            await until(lambda: not opened.state_path.exists())
            crash("old file gone")
        finally:
            files.close()
            log.stop()
            state.stop()
            opened.store.close()
        return heard

    async def _receive(self, files: SnapshotFiles, heard: Heard, crash: Callable[[str], None]) -> None:
        content = self.snapshot.read_bytes()
        for offset in range(0, len(content), CHUNK):
            data = content[offset : offset + CHUNK]
            before = len(heard.events)
            files.carry_out(fx.StoreSnapshotChunk(self.offer, offset, data, zlib.crc32(data)))
            await until(lambda before=before: len(heard.events) > before)
            assert heard.events[-1] == ev.SnapshotChunkStored(self.offer.snapshot_id, offset + len(data))
            if offset == 0:
                crash("half received")
        crash("received")


@pytest.fixture(params=[True, False], ids=["keep the suffix", "drop the suffix"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    entries = make_member(tmp_path / "database")
    theirs = entries if request.param else make_member(tmp_path / "elsewhere")  # another history up to there
    snapshot = tmp_path / "sent.db"
    return Case(tmp_path / "database", snapshot, make_snapshot(snapshot, theirs), request.param, entries)


def crashes(case: Case, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have every step leave an image of the files beside the directory, as a process killed there does."""
    monkeypatch.setattr(snapshot_files, "OLD_GENERATION_S", 0.2)

    def crash(step: str) -> None:
        shutil.copytree(case.directory, case.directory.with_name(step))

    def also(owner: type, name: str, step: str, *, first: bool) -> None:
        original = getattr(owner, name)

        def method(self: object, *given: object) -> None:
            if first:
                crash(step)
            original(self, *given)
            if not first:
                crash(step)

        monkeypatch.setattr(owner, name, method)

    also(SnapshotFiles, "_verify", "verified", first=False)
    also(SnapshotFiles, "_commit", "renamed", first=True)
    also(LogStore, "_switch", "in log.db", first=False)  # before the witness testifies to it
    also(SnapshotFiles, "_switch", "committed", first=True)
    also(SnapshotFiles, "_switched", "reopened", first=False)
    return crash


def close(opened: Opened) -> None:
    opened.applier.close()
    opened.store.close()


@pytest.mark.parametrize("step", OLD_WORLD)
async def test_a_crash_before_the_commit_leaves_the_old_world(
    case: Case, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await case.install(crashes(case, monkeypatch))
    monkeypatch.undo()
    monkeypatch.setattr(snapshot_files, "OLD_GENERATION_S", 0.2)
    case.directory = case.directory.with_name(step)
    opened = open_member(case.directory)
    assert (opened.store.generation, opened.durable.snapshot.index) == (1, 0)
    assert opened.durable.entries == case.entries
    assert opened.applier.position.index == opened.durable.applied == APPLIED
    close(opened)
    left = {path.name.partition("-")[0] for path in case.directory.iterdir()} & {"recv", "snap"}
    assert (left, (case.directory / "global-2.db").exists()) == (set(), False)
    await case.install(lambda _: None)  # and the snapshot can come again
    assert_new_world(case)


@pytest.mark.parametrize("step", NEW_WORLD)
async def test_a_crash_after_the_commit_leaves_the_new_world(
    case: Case, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = await case.install(crashes(case, monkeypatch))
    last = LAST if case.keep else OFFERED
    assert heard.installed == [(OFFERED, last, case.directory / "global-2.db")]
    assert isinstance(heard.events[-1], ev.SnapshotInstalled)
    case.directory = case.directory.with_name(step)
    assert_new_world(case)


def assert_new_world(case: Case) -> None:
    opened = open_member(case.directory)
    mark = opened.durable.snapshot
    assert (opened.store.generation, mark.index, mark.chain) == (2, OFFERED, case.offer.chain)
    assert opened.durable.entries == (case.entries[OFFERED:] if case.keep else ())
    position = opened.applier.position
    assert (position.index, position.chain, opened.durable.applied) == (OFFERED, case.offer.chain, OFFERED)
    assert check_state(opened.state_path) == ""
    assert not (case.directory / "global-1.db").exists()
    close(opened)


async def test_a_snapshot_that_is_damaged_on_the_way_changes_nothing(case: Case) -> None:
    content = bytearray(case.snapshot.read_bytes())
    content[-100] ^= 1
    case.snapshot.write_bytes(content)
    opened = open_member(case.directory)
    heard = Heard()
    log = LogThread(opened.store, lambda item: pytest.fail(str(item)))
    state = ApplyThread(opened.applier, lambda item: pytest.fail(str(item)))
    files = SnapshotFiles(case.directory, opened.state_path, 1, driver=heard, log=log, state=state)
    await case._receive(files, heard, lambda _: None)
    files.carry_out(fx.InstallSnapshot(case.offer, case.keep))
    await until(lambda: isinstance(heard.events[-1], ev.SnapshotFailed))
    files.close()
    close(opened)
    assert heard.events[-1] == ev.SnapshotFailed(
        1, case.offer.snapshot_id, "SnapshotError: the received file is not the offered one"
    )
    opened = open_member(case.directory)
    assert opened.durable.entries == case.entries
    close(opened)
