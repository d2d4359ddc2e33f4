"""Backups of custom volumes: made, listed, exported, removed, and volumes made of them or of ISO images (CONTRACT 13).

Owns their rules with Incus' texts and the files below `<dir>/backups/custom`; called by rest/volume_backup_routes.py
on the member that has the volume. An archive is one that a real Incus takes, and the other way round.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from incus_actors.actors.storage_messages import ReceiveVolume
from incus_actors.domain import transactions_volumes as transactions
from incus_actors.domain.transactions_volumes import NewBackup, NewSnapshot
from incus_actors.drivers import backup_files
from incus_actors.drivers.backup_files import Archive, FileItem, TreeItem
from incus_actors.drivers.path_storage import tar_of
from incus_actors.drivers.raw_stream import read_disk
from incus_actors.drivers.storage import BACKUP, RAW, TAR, backup_prefix
from incus_actors.errors import ApiError, BadRequestError, ConflictError, MemberError, NotFoundError
from incus_actors.model import config_keys
from incus_actors.model.volumes import Backup, BackupsPost, VolumesPost
from incus_actors.services import project_guard
from incus_actors.services.proposing import DuplicateError, TransactionConflictError, propose
from incus_actors.services.volume_backup_index import BackupIndex, dump_index, load_index
from incus_actors.services.volume_rules import check_name
from incus_actors.services.volume_snapshots import ZERO_TIME, check_snapshot_name, normal_time
from incus_actors.services.volume_tools import NOT_FOUND, VolumeAddress, VolumeTools
from incus_actors.services.volumes import VolumeService
from incus_actors.state.queries import volumes as queries
from incus_actors.state.queries.volumes import BackupRow, SnapshotRow, VolumeRow

BACKUP_NOT_FOUND = "Storage volume backup not found"
RESTORE = "Create custom volume from backup: "
FROM_ISO = "Failed creating custom volume from ISO: "
CREATE = "Create volume backup: Backup create: "
Opened = tuple[str, AsyncIterator[bytes]]


@dataclass(frozen=True, slots=True)
class _Work:
    """A backup that is being made."""

    row: VolumeRow
    snapshots: tuple[SnapshotRow, ...]
    post: BackupsPost


class VolumeBackupService:
    """`algorithm` gives the server's `backups.compression_algorithm`."""

    def __init__(self, tools: VolumeTools, volumes: VolumeService, algorithm: Callable[[], str]) -> None:
        self._tools = tools
        self._volumes = volumes
        self._algorithm = algorithm
        self._base = tools.host.directory / "backups" / "custom"

    # --- reading --------------------------------------------------------------------------------------------

    def all_of(self, address: VolumeAddress) -> list[Backup]:
        """Return the backups of a volume."""
        return [_shown(row) for row in self._rows(self._tools.find(address))]

    def get(self, address: VolumeAddress, name: str) -> Backup:
        """Return one backup. Raises NotFoundError."""
        return _shown(self._find(self._tools.find(address), name))

    def _rows(self, row: VolumeRow) -> list[BackupRow]:
        return queries.backups(self._tools.host.database(), row.id)

    def _find(self, row: VolumeRow, name: str) -> BackupRow:
        for found in self._rows(row):
            if found.name == name:
                return found
        raise NotFoundError(BACKUP_NOT_FOUND)

    def file(self, address: VolumeAddress, name: str, caller: Any = None) -> Path:
        """Return the archive of a backup of this member. Raises NotFoundError."""
        row = self._tools.find_here(address)
        self._find(row, name)
        path = self._path(row, name)
        if not path.is_file():
            raise NotFoundError(BACKUP_NOT_FOUND)
        self._tools.lifecycle("storage-volume-backup-retrieved", row, caller, suffix=f"/backups/{name}")
        return path

    def _path(self, row: VolumeRow, name: str) -> Path:
        # By row id: the volume may get another name, and no name of a user's becomes a path.
        return self._base / str(row.id) / name

    def _make_base(self) -> None:
        for directory in (self._base.parent, self._base):
            directory.mkdir(mode=0o700, exist_ok=True)

    # --- making ---------------------------------------------------------------------------------------------

    def check_new(self, address: VolumeAddress, post: BackupsPost) -> None:
        """Fill in a name; raise what is wrong before the operation begins."""
        row = self._tools.find_here(address)
        project_guard.check_may(self._tools.host.database(), address.project, "backup")
        taken = {backup.name for backup in self._rows(row)}
        if not post.name:
            number = 0
            while f"backup{number}" in taken:
                number += 1
            post.name = f"backup{number}"
        if "/" in post.name:
            raise BadRequestError("Backup names may not contain slashes")
        check_snapshot_name(post.name)
        if post.name in taken:
            raise ConflictError(f'Backup "{post.name}" already exists')
        backup_files.compressor(post.compression_algorithm or self._algorithm())
        if post.expires_at is not None:
            post.expires_at = normal_time(post.expires_at)

    async def create(self, address: VolumeAddress, post: BackupsPost, caller: Any = None) -> None:
        """Make the archive. Raises MemberError, DriverError."""
        tools = self._tools
        row = tools.find_here(address)
        if row.content == "iso":
            raise MemberError(f'{CREATE}Volume of content type "iso" cannot be backed up')
        expires_at = post.expires_at or ""
        new = NewBackup(
            post.name,
            tools.host.now(),
            "" if expires_at == ZERO_TIME else expires_at,
            post.volume_only,
            post.optimized_storage,
        )
        try:
            await propose(tools.host.consensus(), transactions.create_backup(row.id, tools.host.member_id(), new))
        except DuplicateError:
            raise ConflictError(f'Backup "{post.name}" already exists') from None
        except TransactionConflictError:
            raise NotFoundError(NOT_FOUND) from None
        found = tools.snapshots(row)
        kept = () if post.volume_only else tuple(snapshot for snapshot in found if not snapshot.phase)
        try:
            await self._write(_Work(row, kept, post))
        except BaseException:
            await tools.propose(transactions.delete_backup(row.id, post.name))
            raise
        tools.lifecycle("storage-volume-backup-created", row, caller, suffix=f"/backups/{post.name}")

    async def _write(self, work: _Work) -> None:
        row, post = work.row, work.post
        driver = self._tools.driver(row)
        form = driver.stream_formats[0]
        optimized = post.optimized_storage and form not in (TAR, RAW)
        index = await asyncio.to_thread(dump_index, row, work.snapshots, optimized=optimized)
        path = self._path(row, post.name)
        self._make_base()
        path.parent.mkdir(mode=0o700, exist_ok=True)
        items: list[FileItem | TreeItem] = [FileItem(backup_files.INDEX, len(index), backup_files.bytes_of(index))]
        async with contextlib.AsyncExitStack() as held:
            if optimized:
                items += await self._spooled(work, form, path, held)
            elif row.content == "block":
                items += [await self._disk(work, snapshot.name, held) for snapshot in work.snapshots]
                items.append(await self._disk(work, "", held))
            else:
                for name in (*(snapshot.name for snapshot in work.snapshots), ""):
                    tree = await held.enter_async_context(driver.readable(self._tools.spec(row), name))
                    items.append(TreeItem(tar_of(tree, prefix=backup_prefix(name))))
            await backup_files.write_archive(path, items, post.compression_algorithm or self._algorithm())

    async def _disk(self, work: _Work, snapshot: str, held: contextlib.AsyncExitStack) -> FileItem:
        """Return a disk as one file of the archive."""
        driver, volume = self._tools.driver(work.row), self._tools.spec(work.row)
        directory = await held.enter_async_context(driver.readable(volume, snapshot))
        path = directory if directory.is_file() or directory.is_block_device() else directory / "root.img"
        size = await asyncio.to_thread(_size_of, path)
        return FileItem(f"{backup_prefix(snapshot)}.img", size, backup_files.plain_file(path))

    async def _spooled(
        self, work: _Work, form: str, path: Path, held: contextlib.AsyncExitStack
    ) -> list[FileItem | TreeItem]:
        """Write each stream of the driver's own format into a file first: an archive needs its size."""
        driver, volume = self._tools.driver(work.row), self._tools.spec(work.row)
        items: list[FileItem | TreeItem] = []
        parent = ""
        for number, name in enumerate((*(snapshot.name for snapshot in work.snapshots), "")):
            spool = path.with_name(f"{path.name}.new.{number}")
            held.callback(spool.unlink, missing_ok=True)
            await _save(driver.send(volume, name, form, parent=parent), spool)
            items.append(FileItem(f"{backup_prefix(name)}.bin", spool.stat().st_size, backup_files.plain_file(spool)))
            parent = name
        return items

    # --- changing and removing ------------------------------------------------------------------------------

    async def rename(self, address: VolumeAddress, name: str, new: str, caller: Any = None) -> None:
        """Give a backup another name. Raises NotFoundError, BadRequestError, ConflictError."""
        if "/" in new:
            raise BadRequestError("Backup names may not contain slashes")
        check_snapshot_name(new)
        row = self._tools.find_here(address)
        self._find(row, name)
        old_path, new_path = self._path(row, name), self._path(row, new)
        if new_path.exists() or any(backup.name == new for backup in self._rows(row)):
            raise ConflictError(f'Backup "{new}" already exists')
        old_path.rename(new_path)
        try:
            await self._tools.propose(transactions.rename_backup(row.id, name, new))
        except BaseException:
            new_path.rename(old_path)
            raise
        self._tools.lifecycle("storage-volume-backup-renamed", row, caller, suffix=f"/backups/{new}")

    async def delete(self, address: VolumeAddress, name: str, caller: Any = None) -> None:
        """Remove a backup. Raises NotFoundError."""
        row = self._tools.find_here(address)
        self._find(row, name)
        await self.drop(row.id, name)
        self._tools.lifecycle("storage-volume-backup-deleted", row, caller, suffix=f"/backups/{name}")

    async def drop(self, volume_id: int, name: str) -> None:
        """Remove file and row of a backup of this member. Raises ApiError, OSError."""
        directory = self._base / str(volume_id)
        await asyncio.to_thread((directory / name).unlink, missing_ok=True)
        with contextlib.suppress(OSError):
            directory.rmdir()
        await self._tools.propose(transactions.delete_backup(volume_id, name))

    async def reconcile(self) -> None:
        """After a start: files and rows that lost each other, and unfinished files, go. Raises ApiError, OSError."""
        tools = self._tools
        rows = queries.volumes(tools.host.database(), type_="custom", node_id=tools.host.member_id())
        wanted = {str(row.id): {backup.name for backup in self._rows(row)} for row in rows}
        for row in rows:
            for backup in self._rows(row):
                if not self._path(row, backup.name).is_file():
                    await self.drop(row.id, backup.name)
        for directory in self._base.iterdir() if self._base.is_dir() else ():
            for path in directory.iterdir() if directory.is_dir() else (directory,):
                if path.name not in wanted.get(directory.name, ()):
                    path.unlink()
            if directory.is_dir() and directory.name not in wanted:
                directory.rmdir()

    # --- volumes out of archives ----------------------------------------------------------------------------

    async def save_upload(self, chunks: AsyncIterator[bytes]) -> Path:
        """Write an upload into a file; whoever gets it removes it. Raises OSError, and what `chunks` raises."""
        self._make_base()
        path = self._base / f"upload-{self._tools.host.clock_ns()}"
        try:
            await _save(chunks, path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path

    async def import_backup(self, pool: str, project: str, name: str, upload: Path, caller: Any = None) -> None:
        """Make a volume of an archive; `name` "" takes the one inside. Raises what the operation shows."""
        archive = Archive(upload)
        index = await asyncio.to_thread(load_index, await archive.index())
        driver = self._tools.pool(pool).driver
        if index.optimized and index.backend != driver:
            raise BadRequestError(
                f'Optimized backup storage driver "{index.backend}" differs from the target storage pool driver'
                f' "{driver}"'
            )
        post = VolumesPost(
            name=name or index.name,
            config=_fitting(index.config, driver, index.content),
            description=index.description,
        )
        check_name(post.name)
        row = await self._new_row(pool, project, post, index.content)
        try:
            form = driver if index.optimized else BACKUP if index.content == "filesystem" else RAW
            await self._tools.ask(ReceiveVolume(self._tools.spec(row), form, _items(archive, index)))
            for snapshot in index.snapshots:
                kept = _fitting(snapshot.config, driver, index.content)
                new = NewSnapshot(snapshot.name, snapshot.description, snapshot.created_at, snapshot.expires_at, kept)
                await self._tools.propose(
                    transactions.create_snapshot(row.id, self._tools.host.member_id(), new, phase="")
                )
            await self._volumes.finish(row)
        except BaseException:
            await self._tools.take_back(row)
            raise
        self._tools.created(row, caller)

    async def import_iso(self, pool: str, project: str, name: str, upload: Path, caller: Any = None) -> None:
        """Make an ISO volume of a file. Raises what the operation shows."""
        size = upload.stat().st_size
        if not size:
            raise MemberError("Size cannot be zero")
        try:
            row = await self._volumes.new_row(pool, project, VolumesPost(name=name, config={"size": str(size)}), "iso")
        except ConflictError:
            raise ConflictError(f"{FROM_ISO}Cannot create volume, already exists on target storage") from None
        except ApiError as error:
            raise type(error)(f"{FROM_ISO}{error}") from None
        try:
            await self._tools.ask(ReceiveVolume(self._tools.spec(row), RAW, _only(read_disk(upload))))
            await self._volumes.finish(row)
        except BaseException:
            await self._tools.take_back(row)
            raise
        self._tools.created(row, caller)

    async def _new_row(self, pool: str, project: str, post: VolumesPost, content: str) -> VolumeRow:
        try:
            return await self._volumes.new_row(pool, project, post, content)
        except ConflictError:
            raise ConflictError(f'{RESTORE}Volume "{post.name}" already exists in pool "{pool}"') from None
        except ApiError as error:
            raise type(error)(f"{RESTORE}{error}") from None


def _fitting(config: Mapping[str, str], driver: str, content: str) -> dict[str, str]:
    return {
        key: value
        for key, value in config.items()
        if config_keys.volume_key_fits(key, driver, content) and not key.startswith("volatile.")
    }


async def _items(archive: Archive, index: BackupIndex) -> AsyncIterator[Opened]:
    for name in (*(snapshot.name for snapshot in index.snapshots), ""):
        if index.optimized:
            chunks = archive.member(f"{backup_prefix(name)}.bin")
        elif index.content == "filesystem":
            chunks = archive.whole()
        else:
            chunks = archive.disk(f"{backup_prefix(name)}.img")
        async with contextlib.aclosing(chunks):
            yield name, chunks


async def _only(chunks: AsyncGenerator[bytes, None]) -> AsyncIterator[Opened]:
    async with contextlib.aclosing(chunks):
        yield "", chunks


async def _save(chunks: AsyncIterator[bytes], path: Path) -> None:
    file = await asyncio.to_thread(path.open, "xb")
    try:
        async for chunk in chunks:
            await asyncio.to_thread(file.write, chunk)
    finally:
        file.close()


def _size_of(path: Path) -> int:
    with path.open("rb") as file:
        return file.seek(0, 2)


def _shown(row: BackupRow) -> Backup:
    return Backup(
        name=row.name,
        created_at=row.created_at,
        expires_at=row.expires_at or ZERO_TIME,
        volume_only=row.volume_only,
        optimized_storage=row.optimized,
    )
