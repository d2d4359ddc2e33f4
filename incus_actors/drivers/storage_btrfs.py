"""Storage pools on btrfs: a loop file of ours, a block device, or a subvolume that is there already.

Owns the file system mounted at `<dir>/storage-pools/<pool>`; volumes are subvolumes, snapshots read-only ones, images
are unpacked once and cloned, sizes are quota groups. Called by StorageActor; must never format what is in use.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from pathlib import Path

from incus_actors.drivers import btrfs_tools as tools
from incus_actors.drivers import commands, loop, mounts, trees
from incus_actors.drivers.base import (
    Availability,
    Config,
    DriverError,
    DriverInfo,
    PoolSpec,
    Usage,
    VolumeSpec,
)
from incus_actors.drivers.path_storage import PathStorage
from incus_actors.drivers.path_trees import DIRECTORIES
from incus_actors.drivers.storage import RAW, TAR
from incus_actors.errors import BadRequestError
from incus_actors.model.config_values import is_true

BTRFS = "btrfs"  #: the format of streams that only btrfs understands
_OPTIONS = "user_subvol_rm_allowed"
_STALE_GROUPS = 32  #: so many may wait
_OWN_MARK = ".made-by-incus-actors"  #: in a subvolume that we made, so that we may remove it with the pool
_PROGRAMS = ("btrfs", "mkfs.btrfs", "mount", "umount", "losetup", "blkid", "tar")


class BtrfsStorage(PathStorage):
    """The StorageDriver "btrfs"."""

    caches_images = True
    stream_formats: tuple[str, ...] = (BTRFS, TAR, RAW)

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.info = DriverInfo("btrfs", "")
        self._counted: set[Path] = set()  #: pools whose quota groups are known to be on
        self._dropped: dict[Path, int] = {}  #: since stale quota groups were last removed

    def availability(self) -> Availability:
        """Return whether the programs and the kernel's part are here."""
        missing = commands.missing(*_PROGRAMS)
        if missing:
            return Availability(False, f"{', '.join(missing)} not found in PATH (Debian: btrfs-progs)")
        reason = tools.kernel_problem()
        if reason:
            return Availability(False, reason)
        self.info = DriverInfo("btrfs", tools.version())
        return Availability(True)

    def validate_pool(self, pool: PoolSpec) -> None:
        """Raise BadRequestError for a source that is no absolute path."""
        source = pool.config.get("source", "")
        if source and not tools.is_uuid(source) and (not source.startswith("/") or ".." in source.split("/")):
            raise BadRequestError("Only absolute paths are supported")

    # --- pools ----------------------------------------------------------------------------------------------

    async def create_pool(self, pool: PoolSpec) -> Mapping[str, str]:
        """Make it; return the config as it is now (`source` and `size` filled in). Raises DriverError if not empty."""
        self.validate_pool(pool)
        target = self._default_path(pool)
        source = pool.config.get("source", "")
        try:
            if self._is_on_file(pool):
                config = await self._make_on_file(pool, target)
            elif tools.is_uuid(source) or _is_device(source):
                config = await self._make_on_device(pool, target)
            else:
                config = await self._make_on_subvolume(pool, target)
        except OSError as error:
            raise DriverError(f'Failed to create storage pool "{pool.name}": {error.strerror or error}') from error
        self._make_directories(target)
        return config

    def _mount_options(self, pool: PoolSpec) -> str:
        wanted = pool.config.get("btrfs.mount_options", "")
        return f"{_OPTIONS},{wanted}" if wanted else _OPTIONS

    async def _mount(self, pool: PoolSpec, source: str, target: Path) -> None:
        target.mkdir(mode=0o711, parents=True, exist_ok=True)
        options = self._mount_options(pool)
        if source.startswith("/") and not _is_device(source):
            options = f"loop,{options}"  # the device goes with the mount, also after a crash
        try:
            await mounts.mount(source, target, "-t", "btrfs", "-o", options)
        except DriverError:
            target.rmdir()
            raise

    async def _refuse_or_clear(self, pool: PoolSpec, target: Path) -> None:
        """What is mounted there already was made by an interrupted attempt; it is taken away unless it holds volumes.

        Raises DriverError.
        """
        if mounts.mounted_at(target) is None:
            return
        left = self._left_in(target)
        if left:
            raise DriverError(f'Storage pool "{pool.name}" is not empty: {", ".join(left[:5])}')
        await mounts.unmount(target)

    async def _make_on_file(self, pool: PoolSpec, target: Path) -> dict[str, str]:
        file = self._file(pool)
        size = pool.config.get("size") or loop.default_size(self._directory)
        config = {**pool.config, "source": str(file), "size": size}
        if pool.config.get("source") and file.exists():  # made and recorded earlier
            await self.activate_pool(pool)
            return config
        if file.exists() and mounts.mounted_at(target) is None:
            await self._mount(pool, str(file), target)
        await self._refuse_or_clear(pool, target)
        file.unlink(missing_ok=True)
        half_made = self._half_made_file(pool)
        loop.make(half_made, loop.size_bytes(size))
        try:
            await commands.run("mkfs.btrfs", "-q", "-L", pool.name[:200], str(half_made))
            half_made.rename(file)
            await self._mount(pool, str(file), target)
        except BaseException as error:
            half_made.unlink(missing_ok=True)
            file.unlink(missing_ok=True)
            if isinstance(error, commands.CommandError):
                raise DriverError(f"Failed to format sparse file: {error}") from error
            raise
        return config

    async def _make_on_device(self, pool: PoolSpec, target: Path) -> dict[str, str]:
        source = pool.config["source"]
        if tools.is_uuid(source):
            await self.activate_pool(pool)
            return dict(pool.config)
        await self._refuse_or_clear(pool, target)
        if mounted := [mount.point for mount in mounts.mounts() if mount.source == str(Path(source).resolve())]:
            raise DriverError(f'Source "{source}" is in use: it is mounted at {mounted[0]}')
        found = await tools.identify(source)
        ours = found.kind == "btrfs" and found.label == pool.name[:200]
        if ours:  # by an interrupted attempt, if nothing is in it
            await self._mount(pool, source, target)
            await self._refuse_or_clear(pool, target)
        if ours or is_true(pool.config.get("source.wipe")):
            await commands.run("wipefs", "--all", source)
        elif found.kind:
            raise DriverError(f'Source "{source}" isn\'t empty (it holds {found.kind}): set source.wipe to use it')
        await commands.run("mkfs.btrfs", "-q", "-L", pool.name[:200], source)
        uuid = (await tools.identify(source)).uuid
        await self._mount(pool, source, target)
        config = {**pool.config, "source": uuid, "volatile.initial_source": source}
        config.pop("source.wipe", None)
        return config

    async def _make_on_subvolume(self, pool: PoolSpec, target: Path) -> dict[str, str]:
        source = Path(pool.config["source"])
        if source.exists() and not source.is_dir():
            raise DriverError(f'Source "{source}" is neither a block device nor a directory')
        await self._refuse_or_clear(pool, target)
        if not source.exists():
            await commands.run("btrfs", "subvolume", "create", str(source))
            (source / _OWN_MARK).touch(0o600)
        elif (kind := tools.file_system_of(source)) != "btrfs":
            raise DriverError(f"Provided path does not reside on a btrfs filesystem (detected {kind})")
        elif not tools.is_subvolume(source):
            raise DriverError(f'Source "{source}" is no btrfs subvolume')
        self._require_empty(source)
        config = {**pool.config, "source": str(source)}
        await self.activate_pool(PoolSpec(pool.name, pool.driver, config))
        return config

    def _require_empty(self, source: Path) -> None:
        """Raise DriverError unless a subvolume is empty, or holds only what an interrupted attempt has made."""
        allowed = {*DIRECTORIES, _OWN_MARK}
        strange = [entry.name for entry in source.iterdir() if entry.name not in allowed]
        if strange or self._left_in(source, images=True):
            raise DriverError(f"Source path '{source}' isn't empty")

    async def activate_pool(self, pool: PoolSpec) -> None:
        """Mount it if it isn't. Raises DriverError."""
        target = self._default_path(pool)
        source = pool.config.get("source", "") or str(self._file(pool))
        if mounts.mounted_at(target) is None and source != str(target):
            if tools.is_uuid(source):
                await self._mount(pool, f"UUID={source}", target)
            elif Path(source).is_dir():
                target.mkdir(mode=0o711, parents=True, exist_ok=True)
                await mounts.mount(source, target, "--bind")
            else:
                await self._mount(pool, source, target)
        self._make_directories(target)

    async def update_pool(self, pool: PoolSpec, old: Config) -> None:
        """Grow the loop file, take over mount options. Raises MemberError "Pool cannot be shrunk", DriverError."""
        target, file = self._default_path(pool), self._file(pool)
        size = pool.config.get("size", "")
        if size and size != old.get("size", ""):
            if not file.exists() or pool.config.get("source") != str(file):
                raise DriverError("Cannot resize non-loopback pools")
            loop.size_bytes(size)
            await loop.grow(file, loop.size_bytes(size))
            await commands.run("btrfs", "filesystem", "resize", "max", str(target))
        if pool.config.get("btrfs.mount_options", "") != old.get("btrfs.mount_options", ""):
            await commands.run("mount", "-o", f"remount,{self._mount_options(pool)}", "--", str(target))

    async def delete_pool(self, pool: PoolSpec) -> None:
        """Remove it. Raises DriverError if volumes are left. Idempotent."""
        target, file = self._default_path(pool), self._file(pool)
        source = pool.config.get("source", "") or str(file)
        mounted = mounts.mounted_at(target) is not None
        if mounted or source == str(target):
            await self._empty_directories(pool)
        if mounted:
            await mounts.unmount(target)
        if source == str(file):
            self._half_made_file(pool).unlink(missing_ok=True)
            file.unlink(missing_ok=True)
        elif not tools.is_uuid(source) and (Path(source) / _OWN_MARK).exists():
            await tools.delete_subvolume(Path(source))
        with contextlib.suppress(FileNotFoundError, OSError):
            target.rmdir()
        self._counted.discard(target)

    # --- trees ----------------------------------------------------------------------------------------------

    async def make_tree(self, path: Path) -> None:
        """Make a subvolume."""
        path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        await commands.run("btrfs", "subvolume", "create", str(path))

    async def clone_tree(self, source: Path, target: Path, *, readonly: bool = False) -> None:
        """Make a snapshot; subvolumes that an instance made inside are not part of it."""
        await commands.run("btrfs", "subvolume", "snapshot", *(["-r"] if readonly else []), str(source), str(target))

    async def settle(self, source: Path, target: Path, *, readonly: bool = False) -> None:
        """Make it read-only or writable as it is to be; the kernel moves no read-only subvolume elsewhere."""
        await self.clone_tree(source, target, readonly=readonly)
        await self.drop_tree(source)

    async def drop_tree(self, path: Path) -> None:
        """Remove a subvolume with those inside it, or a directory with subvolumes in it; from time to time the quota
        groups that such leave, which slow every write down."""
        await tools.drop(path)
        root = next((root for root in self._counted if path.is_relative_to(root)), None)
        if root is not None:
            self._dropped[root] = self._dropped.get(root, 0) + 1
            if self._dropped[root] >= _STALE_GROUPS:
                self._dropped[root] = 0
                await tools.forget_stale_groups(root)

    async def limit(self, pool: PoolSpec, path: Path, size: int) -> None:
        """Set the quota group of a subvolume; nothing is switched on before the first size.

        The pool is asked, not the subvolume: one that is over its limit refuses even to have that raised.
        """
        root = self._default_path(pool)
        if not size and not await self._counts(root):
            return
        if root not in self._counted:
            await commands.run("btrfs", "quota", "enable", str(root))
            self._counted.add(root)
        number = (await commands.run("btrfs", "inspect-internal", "rootid", str(path))).strip()
        await commands.run("btrfs", "qgroup", "limit", str(size) if size else "none", f"0/{number}", str(root))

    async def _counts(self, root: Path) -> bool:
        if root not in self._counted and await commands.run_quietly("btrfs", "qgroup", "show", str(root)):
            self._counted.add(root)
        return root in self._counted

    async def measured(self, pool: PoolSpec, path: Path) -> Usage | None:
        """Return what the quota group counts; None while quota groups are off."""
        if not await self._counts(self._default_path(pool)):
            return None
        text = await commands.run("btrfs", "qgroup", "show", "--raw", "-r", "-f", str(path))
        group = tools.parse_groups(text)
        return None if not group else Usage(used_bytes=group[0].referenced, total_bytes=group[0].limit)

    async def reconcile(self, pool: PoolSpec) -> list[str]:
        """At start: remove unfinished work, and quota groups that lost their subvolume."""
        removed = await super().reconcile(pool)
        root = self._default_path(pool)
        if mounts.mounted_at(root) is not None and await self._counts(root):
            await tools.forget_stale_groups(root)
        return removed

    # --- streams --------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def readable(self, volume: VolumeSpec, snapshot: str) -> AsyncIterator[Path]:
        """Give a snapshot: the one that is named, or one of this moment."""
        if snapshot:
            async with super().readable(volume, snapshot) as path:
                yield path
            return
        path = self.volume_path(volume)
        frozen = trees.unfinished(path.parent, trees.SENDING)
        await self.clone_tree(path, frozen, readonly=True)
        try:
            yield frozen
        finally:
            await self.drop_tree(frozen)

    async def send(
        self, volume: VolumeSpec, snapshot: str, form: str, *, parent: str = ""
    ) -> AsyncGenerator[bytes, None]:
        """Also as `btrfs send` writes it, relative to the snapshot `parent` if there is one."""
        if form != BTRFS:
            async with contextlib.aclosing(super().send(volume, snapshot, form)) as plain:
                async for chunk in plain:
                    yield chunk
            return
        async with self.readable(volume, snapshot) as path:
            relative = ["-p", str(self.snapshot_path(volume, parent))] if parent else []
            async with contextlib.aclosing(commands.output_of("btrfs", "send", "-q", *relative, str(path))) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def take_in(self, form: str, chunks: AsyncIterator[bytes], target: Path) -> None:
        """Also what `btrfs send` wrote; the parents must have come in beside it."""
        if form != BTRFS:
            await super().take_in(form, chunks, target)
            return
        before = {entry.name for entry in target.parent.iterdir()}
        await commands.feed(chunks, "btrfs", "receive", "-q", "-e", str(target.parent))
        come = [entry for entry in target.parent.iterdir() if entry.name not in before]
        if len(come) != 1:
            raise DriverError("The stream of a volume held no subvolume")
        come[0].rename(target)


def _is_device(source: str) -> bool:
    if source.startswith("/dev/"):
        return True
    try:
        return stat.S_ISBLK(Path(source).stat().st_mode)
    except OSError:
        return False
