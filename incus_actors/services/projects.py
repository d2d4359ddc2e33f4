"""Projects: create, show, change, rename, delete, usage (CONTRACT 12).

Owns their rules with Incus' texts; called by rest/project_routes.py. Must never delete anything that holds data.
"""

from __future__ import annotations

from collections.abc import Mapping

from incus_actors.consensus.api import Consensus
from incus_actors.domain import transactions_projects as transactions
from incus_actors.domain.project_rules import POOL_LIMIT
from incus_actors.errors import BadRequestError, ForbiddenError, MemberError, NotFoundError
from incus_actors.model import config_keys
from incus_actors.model.config_values import is_true, parse_size
from incus_actors.model.resources import NamePost, Project, ProjectPut, ProjectsPost, ProjectState, ProjectUsage
from incus_actors.services import project_guard
from incus_actors.services.proposing import (
    DuplicateError,
    Expect,
    TransactionConflictError,
    propose,
    until_unchanged,
)
from incus_actors.services.urls import url_of
from incus_actors.state.queries import instances as instance_queries
from incus_actors.state.queries import projects as queries
from incus_actors.state.queries.projects import ProjectEntity, ProjectRow
from incus_actors.state.reader import Reader

_NEW_FEATURES = ("features.images", "features.profiles", "features.storage.buckets", "features.storage.volumes")
_FEATURES = (*_NEW_FEATURES, "features.networks", "features.networks.zones")


class ProjectService:
    """Give it the Database; every call reads the latest state."""

    def __init__(self, *, consensus: Consensus, database: Reader) -> None:
        self._consensus = consensus
        self._database = database

    # -- reading ------------------------------------------------------------------------------------------------------

    def list(self) -> list[Project]:
        """Return all projects in order of name."""
        contents: dict[str, list[ProjectEntity]] = {}
        for entity in queries.entities(self._database):
            contents.setdefault(entity.project, []).append(entity)
        return [_shown(row, contents.get(row.name, [])) for row in queries.projects(self._database)]

    def get(self, name: str) -> Project:
        """Return one project. Raises NotFoundError."""
        return _shown(self._row(name), queries.entities(self._database, name))

    def state(self, name: str) -> ProjectState:
        """Return limits and usage. Raises NotFoundError."""
        row = self._row(name, "Fetch project database object: Project not found")
        records = instance_queries.all_of(self._database, projects=[name])
        kinds = [record.type for record in records]
        configs = [record.expanded_config for record in records]
        disks = project_guard.disk_sizes(self._database, name)
        networks = sum(entity.kind == "network" for entity in queries.entities(self._database, name))
        usage = {
            "containers": kinds.count("container"),
            "cpu": sum(_cpus(config.get("limits.cpu", "")) for config in configs),
            "disk": sum(_bytes(size) for _, size in disks),
            "instances": len(kinds),
            "memory": sum(_bytes(config.get("limits.memory", "")) for config in configs),
            "networks": networks,
            "processes": sum(_number(config.get("limits.processes", "")) for config in configs),
            "virtual-machines": kinds.count("virtual-machine"),
        }
        keys = {kind: f"limits.{kind}" for kind in usage}
        for key in row.config:
            if key.startswith(POOL_LIMIT):
                pool = key.removeprefix(POOL_LIMIT)
                keys[f"disk.{pool}"] = key
                usage[f"disk.{pool}"] = sum(_bytes(size) for other, size in disks if other == pool)
        return ProjectState(
            resources={
                kind: ProjectUsage(limit=_limit(row.config.get(keys[kind], "")), usage=used)
                for kind, used in sorted(usage.items())
            }
        )

    def _row(self, name: str, missing: str = "Project not found") -> ProjectRow:
        row = queries.project(self._database, name)
        if row is None:
            raise NotFoundError(missing)
        return row

    # -- writing ------------------------------------------------------------------------------------------------------

    async def create(self, post: ProjectsPost) -> None:
        """Create a project. Raises BadRequestError, MemberError (500: it exists)."""
        check_name(post.name)
        config = config_keys.without_empty(post.config)
        for feature in _NEW_FEATURES:
            config.setdefault(feature, "true")
        self._check_config(config)
        transaction = transactions.create_project(
            post.name, post.description or "", config, own_profiles=is_true(config["features.profiles"])
        )
        try:
            await propose(self._consensus, transaction)
        except DuplicateError as duplicate:
            raise MemberError(
                f'Failed creating project "{post.name}": Failed adding database record: Failed to create "projects"'
                f" entry: UNIQUE constraint failed: {duplicate.column}"
            ) from None

    async def update(self, name: str, put: ProjectPut, *, patch: bool = False, expect: Expect | None = None) -> None:
        """Replace (PUT) or merge (`patch`). Raises NotFoundError, BadRequestError, PreconditionFailedError."""

        async def attempt() -> None:
            row = self._row(name)
            if expect is not None:
                expect([row.config, row.description])
            if patch:
                config = config_keys.merged(row.config, (put.config or {}).items())
                description = row.description if put.description is None else put.description
            else:
                config = config_keys.without_empty(put.config)
                description = put.description or ""
            self._check_config(config)
            lost, changed = _feature_changes(row.config, config)
            if changed and name == queries.DEFAULT_PROJECT:
                raise BadRequestError("You can't change the features of the default project")
            if lost and not _empty(queries.entities(self._database, name)):
                raise BadRequestError(f'Project feature "{lost[0]}" cannot be disabled on non-empty projects')
            project_guard.check_project(self._database, name, row.config, config)
            profiles = is_true(config.get("features.profiles"))
            await propose(
                self._consensus,
                transactions.update_project(
                    row.id,
                    name,
                    (row.description, row.config),
                    (description, config),
                    profiles=profiles if profiles != is_true(row.config.get("features.profiles")) else None,
                    must_be_empty=bool(lost),
                ),
            )

        try:
            await until_unchanged(attempt)
        except TransactionConflictError:
            raise BadRequestError("Features cannot be disabled on non-empty projects") from None

    def _check_config(self, config: Mapping[str, str]) -> None:
        try:
            config_keys.validate_project_config(config)
        except config_keys.ConfigError as error:
            raise BadRequestError(str(error)) from None
        if is_true(config.get("restricted")) and not is_true(config.get("features.profiles")):
            raise BadRequestError("Projects without their own profiles cannot be restricted")
        for key, value in config.items():
            wrong = f'Invalid project configuration key "{key}"'
            pool = key.removeprefix(POOL_LIMIT)
            if pool != key and not self._exists("storage_pools", pool):
                raise BadRequestError(wrong)
            if key != "restricted.cluster.groups":
                continue
            for group in filter(None, (item.strip() for item in value.split(","))):
                if not self._exists("cluster_groups", group):
                    raise BadRequestError(f'{wrong} value: Cluster group "{group}" doesn\'t exist')

    def _exists(self, table: str, name: str) -> bool:
        return bool(self._database.scalar(f"SELECT COUNT(*) FROM {table} WHERE name = ?", (name,)))

    def check_rename(self, name: str, post: NamePost) -> None:
        """Raise what is known before the operation "Renaming project" starts: ForbiddenError for the default one."""
        if name == queries.DEFAULT_PROJECT:
            raise ForbiddenError("The 'default' project cannot be renamed")

    async def rename(self, name: str, post: NamePost) -> None:
        """Rename an empty project, inside the operation. Raises ApiError."""
        row = self._row(name, f'Failed loading project "{name}": Project not found')
        if queries.project(self._database, post.name) is not None:
            raise BadRequestError(f'A project named "{post.name}" already exists')
        not_empty = BadRequestError("Only empty projects can be renamed")
        if not _empty(queries.entities(self._database, name)):
            raise not_empty
        check_name(post.name)
        try:
            await propose(self._consensus, transactions.rename_project(row.id, name, post.name))
        except TransactionConflictError as conflict:
            if conflict.label == "exists":
                raise BadRequestError(f'A project named "{post.name}" already exists') from None
            if conflict.label == "gone":
                raise NotFoundError("Project not found") from None
            raise not_empty from None

    async def delete(self, name: str, *, force: bool = False) -> None:
        """Delete an empty project; `force` takes its profiles along.

        Raises ForbiddenError (default), NotFoundError, MemberError (500: not empty).
        """
        if name == queries.DEFAULT_PROJECT:
            raise ForbiddenError("The 'default' project cannot be deleted")
        row = self._row(name, f'Fetch project "{name}": Project not found')
        try:
            await propose(self._consensus, transactions.delete_project(row.id, with_profiles=force))
        except TransactionConflictError as conflict:
            if conflict.label == "gone":
                raise NotFoundError(f'Fetch project "{name}": Project not found') from None
            raise MemberError("Only empty projects can be removed.") from None


def check_name(name: str) -> None:
    """Raise BadRequestError for what can't be a project's name."""
    if not name:
        raise BadRequestError("No name provided")
    for characters, word in (("/", "slashes"), (" ", "spaces"), ("_", "underscores"), ("'\"", "quotes")):
        if any(character in name for character in characters):
            raise BadRequestError(f"Project names may not contain {word}")
    if name == "*":
        raise BadRequestError("Reserved project name")
    if name in {".", ".."}:
        raise BadRequestError(f'Invalid project name "{name}"')


def _feature_changes(old: Mapping[str, str], new: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return (features that are lost, features that change), sorted."""
    changed = sorted(f for f in _FEATURES if is_true(old.get(f)) != is_true(new.get(f)))
    return [feature for feature in changed if is_true(old.get(feature))], changed


def _empty(contents: list[ProjectEntity]) -> bool:
    return all(entity.kind == "profile" and entity.name == "default" for entity in contents)


def _shown(row: ProjectRow, contents: list[ProjectEntity]) -> Project:
    return Project(
        config=row.config,
        description=row.description,
        name=row.name,
        used_by=sorted(_url(entity) for entity in contents),
    )


def _url(entity: ProjectEntity) -> str:
    if entity.kind == "volume":
        return url_of("storage-pools", entity.pool, "volumes", "custom", entity.name, project=entity.project)
    return url_of(f"{entity.kind}s", entity.name, project=entity.project)


def _limit(value: str) -> int:
    return _bytes(value) if value else -1


def _bytes(value: str) -> int:
    try:
        return parse_size(value)
    except ValueError:  # a percentage of a member's memory is no fixed number
        return 0


def _number(value: str) -> int:
    return int(value) if value.isascii() and value.isdigit() else 0


def _cpus(value: str) -> int:
    """Return how many CPUs "3" or "0-2,5" are."""
    if "-" not in value and "," not in value:
        return _number(value)
    count = 0
    for part in value.split(","):
        first, dash, last = part.partition("-")
        count += _number(last) - _number(first) + 1 if dash else 1
    return max(count, 0)
