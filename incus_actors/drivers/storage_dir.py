"""Storage pools that are plain directories.

Owns `<dir>/storage-pools/<pool>` or the directory named by `source`, one directory per volume (path_storage.py).
Called by StorageActor; must never show a half-made volume, follow a link out of a volume or cross a mount when it
deletes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from incus_actors.drivers import commands, trees
from incus_actors.drivers.base import Availability, Config, DriverError, DriverInfo, PoolSpec
from incus_actors.drivers.path_storage import PathStorage
from incus_actors.drivers.path_trees import DIRECTORIES
from incus_actors.errors import BadRequestError

_CONFIG_KEYS = {"source", "source.wipe", "rsync.bwlimit", "rsync.compression"}


class DirStorage(PathStorage):
    """The StorageDriver "dir"."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.info = DriverInfo("dir", "1")

    def availability(self) -> Availability:
        """Return whether tar, cp and rm are here."""
        missing = commands.missing("tar", "rm", "cp", "gzip")
        if missing:
            return Availability(False, f"{', '.join(missing)} not found in PATH")
        return Availability(True)

    # --- pools ----------------------------------------------------------------------------------------------

    def validate_pool(self, pool: PoolSpec) -> None:
        """Raise BadRequestError for config that this driver does not know."""
        for key in pool.config:
            if key not in _CONFIG_KEYS and not key.startswith(("user.", "volatile.", "volume.")):
                raise BadRequestError(f'Invalid option "{key}"')
        source = pool.config.get("source", "")
        if source and (not source.startswith("/") or ".." in source.split("/")):
            raise BadRequestError("Only absolute paths are supported")

    def pool_path(self, pool: PoolSpec) -> Path:
        """Return the pool's directory."""
        source = pool.config.get("source", "")
        return Path(source) if source else self._default_path(pool)

    async def create_pool(self, pool: PoolSpec) -> Mapping[str, str]:
        """Make it; return the config as it is now (`source` filled in). Raises DriverError if not empty."""
        self.validate_pool(pool)
        path, default = self.pool_path(pool), self._default_path(pool)
        if path != default:
            if not path.is_dir():
                raise DriverError(f"Source path '{path}' doesn't exist")
            if path.resolve().is_relative_to(self._directory.resolve()):
                raise DriverError(f'Source path "{path}" is within the directory of the server')
            if any(entry.name not in DIRECTORIES for entry in path.iterdir()):  # those are of an unfinished attempt
                raise DriverError(f"Source path '{path}' isn't empty")
        self._base.mkdir(mode=0o711, parents=True, exist_ok=True)
        path.mkdir(mode=0o711, exist_ok=True)
        self._make_directories(path)
        return {**pool.config, "source": str(path)}

    async def update_pool(self, pool: PoolSpec, old: Config) -> None:
        """No key of a directory's asks for anything on the machine."""

    async def activate_pool(self, pool: PoolSpec) -> None:
        """Make the directories that a release before this one had not. Raises DriverError if the pool is gone."""
        path = self.pool_path(pool)
        if not path.is_dir():
            raise DriverError(f"Source path '{path}' doesn't exist")
        self._make_directories(path)

    async def delete_pool(self, pool: PoolSpec) -> None:
        """Remove it. Raises DriverError if volumes are left. Idempotent."""
        path = self.pool_path(pool)
        if not path.is_dir():
            return
        await self._empty_directories(pool)
        if path == self._default_path(pool):
            path.rmdir()

    # --- trees ----------------------------------------------------------------------------------------------

    async def make_tree(self, path: Path) -> None:
        """Make a directory."""
        path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        path.mkdir(mode=0o700)

    async def clone_tree(self, source: Path, target: Path, *, readonly: bool = False) -> None:
        """Copy every file; blocks are shared where the file system can."""
        options = ("--archive", "--sparse=always", "--reflink=auto", "--one-file-system", "--no-target-directory")
        await commands.run("cp", *options, "--", str(source), str(target), timeout_s=24 * 3600)

    async def drop_tree(self, path: Path) -> None:
        """Remove every file."""
        await trees.remove_tree(path)
