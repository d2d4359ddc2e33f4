"""Compaction and transfer snapshots as files (CONSENSUS 3.10): what the core asks for, done beside the loop.

Owns `snap-*.db` (made by the backup API, shared by all receivers), `recv-*.part` (received bytes) and the switch to
a new generation of the state; called by the driver, answers it by events. Must never let the state and the log
disagree: the one commit that names the new generation is the switch, before it everything can be thrown away.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from incus_actors.consensus import effects as fx
from incus_actors.consensus import events as ev
from incus_actors.consensus import log_format as fmt
from incus_actors.consensus.apply_thread import ApplyThread
from incus_actors.consensus.driver import Driver, DriverError
from incus_actors.consensus.driver_ports import MaintenanceEffect
from incus_actors.consensus.log_files import LogFullError, sync_directory
from incus_actors.consensus.log_store import LogStore
from incus_actors.consensus.log_thread import LogThread
from incus_actors.consensus.messages import SnapshotOffer
from incus_actors.consensus.types import Configuration, Index, MemberId, SnapshotMark
from incus_actors.state.apply import Applier, is_disk_full
from incus_actors.state.position import FeatureTooNewError, Position, check_level, read_level, read_position

KEEP_S = 600.0
OLD_GENERATION_S = 5.0  #: readers on the main loop have switched by then
_DIGEST_SIZE = 32
_READ = 1 << 20


class SnapshotError(Exception):
    """A snapshot is not what it was said to be."""


@dataclass(frozen=True, slots=True)
class _Made:
    """A transfer snapshot on disk."""

    snapshot_id: str
    path: Path
    position: Position
    size: int
    digest: bytes
    configuration: Configuration
    configuration_index: Index
    made_at: float


def file_digest(path: Path) -> bytes:
    """Return the hash that an offer carries."""
    digest = blake2b(digest_size=_DIGEST_SIZE)
    with path.open("rb") as file:
        while chunk := file.read(_READ):
            digest.update(chunk)
    return digest.digest()


def sweep(directory: Path, generation: int) -> None:
    """At start-up: remove snapshots, half received ones, and generations that are not the current one."""
    current = fmt.state_name(generation)
    for path in directory.iterdir():
        base = path.name.removesuffix("-wal").removesuffix("-shm")
        stale = base.startswith("global-") and base != current
        if stale or base.startswith(("snap-", "recv-")):
            path.unlink(missing_ok=True)


def remove_database(path: Path) -> None:
    """Remove a database file with what SQLite keeps beside it."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


class SnapshotFiles:
    """Implements driver.Maintenance. All methods run on the consensus loop unless they say otherwise."""

    def __init__(
        self,
        directory: Path,
        state_path: Path,
        member_id: MemberId,
        *,
        driver: Driver,
        log: LogThread,
        state: ApplyThread,
    ) -> None:
        self._directory = directory
        self._state_path = state_path
        self._member_id = member_id
        self._driver = driver
        self._log = log
        self._state = state
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(1, "consensus-files")
        self._made: _Made | None = None
        self._waiting: list[MemberId] = []
        self._first: Index = 0  #: transfer snapshots must reach at least to here
        self.closed = False

    def close(self) -> None:
        """Finish what runs; nothing is answered any more."""
        self.closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)

    def carry_out(self, effect: MaintenanceEffect) -> None:
        """Begin what the core asked for."""
        match effect:
            case fx.Compact():
                self._compact(effect.index)
            case fx.TakeSnapshot():
                self._take(effect.peer)
            case fx.ReadSnapshotChunk():
                self._read(effect)
            case fx.StoreSnapshotChunk():
                self._store(effect)
            case fx.InstallSnapshot():
                self._install(effect)

    def _answer(self, event: ev.Event) -> None:
        if not self.closed:
            self._driver.handle(event)

    def _in_pool(
        self,
        work: Callable[[], Callable[[], None]],
        failed: Callable[[str], None],
    ) -> None:
        """Run `work` on the file thread, then what it returns on the loop; troubles of files go to `failed`."""

        def run() -> None:
            try:
                deliver = work()
            except (OSError, sqlite3.Error, SnapshotError) as exc:
                reason = f"{type(exc).__name__}: {exc}"

                def deliver() -> None:
                    failed(reason)

            self._loop.call_soon_threadsafe(self._deliver, deliver)

        self._pool.submit(run)

    def _deliver(self, deliver: Callable[[], None]) -> None:
        if not self.closed and not self._driver.dead:
            self._driver.deliver(deliver)

    def begin(self, work: Callable[[], Callable[[], None]], failed: Callable[[str], None]) -> None:
        """Run other file work (start-up checks) in line with ours."""
        self._in_pool(work, failed)

    # Local compaction (R-TRUNC)

    def _compact(self, index: Index) -> None:
        def checkpoint(thread: ApplyThread) -> Callable[[], None]:
            try:
                durable = thread.applier.checkpoint()
            except sqlite3.Error as exc:
                if not is_disk_full(exc):
                    raise
                durable = 0
            return lambda: self._drop(min(index, durable))

        self._state.run_job(checkpoint)

    def _drop(self, index: Index) -> None:
        def compact(store: LogStore) -> Callable[[], None]:
            try:
                mark = store.compact(index)
            except LogFullError:
                mark = store.snapshot  # nothing is lost by keeping entries
            return lambda: self._compacted(mark)

        self._log.run_job(compact)

    def _compacted(self, mark: SnapshotMark) -> None:
        self._driver.count("compactions")
        self._first = mark.index
        self._answer(ev.Compacted(mark.index))

    # Sending

    def _take(self, peer: MemberId) -> None:
        made = self._made
        if made is not None and made.position.index >= self._first and time.monotonic() - made.made_at < KEEP_S:
            self._ready(peer, made)
            return
        self._waiting.append(peer)
        if len(self._waiting) == 1:
            source = self._state_path
            self._in_pool(lambda: self._back_up(source), self._not_taken)

    def _back_up(self, source: Path) -> Callable[[], None]:
        """On the file thread: copy the state as of one moment, durably."""
        building = self._directory / "snap-building.db"
        remove_database(building)
        reader = sqlite3.connect(f"file:{source}?mode=ro", uri=True, isolation_level=None)
        writer = sqlite3.connect(building, isolation_level=None)
        try:
            reader.execute("BEGIN")
            position = read_position(reader)  # the backup goes on in this read transaction
            reader.backup(writer)
        finally:
            writer.close()
            reader.close()
        with building.open("rb") as file:
            os.fsync(file.fileno())
        digest = file_digest(building)
        path = self._directory / f"snap-{position.index}-{position.term}.db"
        building.rename(path)
        sync_directory(self._directory)
        size = path.stat().st_size
        return lambda: self._describe(path, position, size, digest)

    def _describe(self, path: Path, position: Position, size: int, digest: bytes) -> None:
        def find(store: LogStore) -> Callable[[], None]:
            index, configuration = store.configuration_at(position.index)
            snapshot_id = f"{position.index}-{position.term}-{digest[:6].hex()}"
            made = _Made(snapshot_id, path, position, size, digest, configuration, index, time.monotonic())
            return lambda: self._taken(made)

        self._log.run_job(find)

    def _taken(self, made: _Made) -> None:
        previous, self._made = self._made, made
        if previous is not None and previous.path != made.path:
            previous.path.unlink(missing_ok=True)
        self._driver.count("snapshots_taken")
        waiting, self._waiting = self._waiting, []
        for peer in waiting:
            self._ready(peer, made)

    def _not_taken(self, reason: str) -> None:
        waiting, self._waiting = self._waiting, []
        for peer in waiting:
            self._answer(ev.SnapshotFailed(peer, "", reason))

    def _ready(self, peer: MemberId, made: _Made) -> None:
        self._answer(
            ev.SnapshotReady(
                peer,
                made.snapshot_id,
                made.position.index,
                made.position.term,
                made.position.chain,
                made.configuration,
                made.configuration_index,
                made.size,
                made.digest,
            )
        )

    def _read(self, effect: fx.ReadSnapshotChunk) -> None:
        made = self._made
        if made is None or made.snapshot_id != effect.snapshot_id:
            self._answer(ev.SnapshotFailed(effect.peer, effect.snapshot_id, "gone"))
            return

        def read() -> Callable[[], None]:
            with made.path.open("rb") as file:
                data = os.pread(file.fileno(), effect.length, effect.offset)
            event = ev.SnapshotChunkRead(effect.peer, effect.snapshot_id, effect.offset, data, zlib.crc32(data))
            return lambda: self._answer(event)

        self._in_pool(read, lambda why: self._answer(ev.SnapshotFailed(effect.peer, effect.snapshot_id, why)))

    # Receiving

    def _part(self, offer: SnapshotOffer) -> Path:
        """The file of an offer. Its id comes from another member, so it is not used as a name."""
        return self._directory / f"recv-{blake2b(offer.snapshot_id.encode(), digest_size=8).hexdigest()}.part"

    def _store(self, effect: fx.StoreSnapshotChunk) -> None:
        offer = effect.offer

        def store() -> Callable[[], None]:
            if zlib.crc32(effect.data) != effect.crc:
                raise SnapshotError(f"chunk at {effect.offset} is damaged")
            path = self._part(offer)
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if effect.offset == 0 else 0)
            descriptor = os.open(path, flags, 0o600)
            try:
                os.pwrite(descriptor, effect.data, effect.offset)
            finally:
                os.close(descriptor)
            event = ev.SnapshotChunkStored(offer.snapshot_id, effect.offset + len(effect.data))
            return lambda: self._answer(event)

        self._in_pool(store, lambda why: self._install_failed(offer, why))

    def _install_failed(self, offer: SnapshotOffer, reason: str) -> None:
        self._part(offer).unlink(missing_ok=True)
        self._driver.count("snapshot_install_failed")
        self._answer(ev.SnapshotFailed(self._member_id, offer.snapshot_id, reason))

    # Installing (R-SNAP): verified file, durable name, one commit in log.db, then readers and writer switch

    def _install(self, effect: fx.InstallSnapshot) -> None:
        offer = effect.offer
        current = int(self._state_path.stem.removeprefix("global-"))
        generation, target = current + 1, self._directory / fmt.state_name(current + 1)

        def prepare() -> Callable[[], None]:
            try:
                self._verify(offer)
            except FeatureTooNewError as exc:  # to receive it again would change nothing
                reason = str(exc)
                return lambda: self._driver.die(reason, "fatal")
            remove_database(target)
            self._part(offer).rename(target)
            sync_directory(self._directory)
            return lambda: self._commit(effect, generation, target)

        self._in_pool(prepare, lambda why: self._install_failed(offer, why))

    def _verify(self, offer: SnapshotOffer) -> None:
        """On the file thread: make the received file durable and see that it is what was offered."""
        path = self._part(offer)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        if path.stat().st_size != offer.size or file_digest(path) != offer.digest:
            raise SnapshotError("the received file is not the offered one")
        connection = sqlite3.connect(f"file:{path}?immutable=1", uri=True)
        try:
            checked = connection.execute("PRAGMA quick_check").fetchone()[0]
            position, level = read_position(connection), read_level(connection)
        finally:
            connection.close()
        if checked != "ok":
            raise SnapshotError(f"the received file is damaged: {checked}")
        if (position.index, position.term, position.chain) != (offer.index, offer.term, offer.chain):
            raise SnapshotError(f"the received file has applied {position.index}, the offer says {offer.index}")
        check_level(level)

    def _commit(self, effect: fx.InstallSnapshot, generation: int, target: Path) -> None:
        offer = effect.offer
        mark = SnapshotMark(offer.index, offer.term, offer.chain, offer.configuration, offer.configuration_index)

        def install(store: LogStore) -> Callable[[], None]:
            try:
                store.install(mark, generation, keep_suffix=effect.keep_suffix)
            except LogFullError as exc:
                reason = str(exc)
                return lambda: self._install_failed(offer, reason)
            last = store.last_index
            return lambda: self._switch(offer, target, last)

        self._log.run_job(install)

    def _switch(self, offer: SnapshotOffer, target: Path, last: Index) -> None:
        def reopen(thread: ApplyThread) -> Callable[[], None]:
            previous, thread.applier = thread.applier, Applier(target)
            previous.close()
            digest = thread.applier.position.digest
            return lambda: self._switched(offer, target, last, digest)

        self._state.run_job(reopen)

    def _switched(self, offer: SnapshotOffer, target: Path, last: Index, digest: bytes) -> None:
        if target == self._state_path:
            raise DriverError(f"generation {target.name} is installed twice")
        previous, self._state_path = self._state_path, target
        self._made = None
        self._first = offer.index
        self._driver.snapshot_installed(offer.index, last, target)
        self._answer(ev.SnapshotInstalled(offer.snapshot_id, offer.index, digest))
        self._loop.call_later(OLD_GENERATION_S, self._forget_generation, previous)

    def _forget_generation(self, path: Path) -> None:
        if not self.closed:
            self._pool.submit(remove_database, path)
