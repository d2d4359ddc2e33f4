"""Reads of projects: their rows, whose objects they use, what is in them.

Owns the queries; services call them with a Database or a snapshot. Must never write.
"""

from __future__ import annotations

from dataclasses import dataclass

from incus_actors.model.config_values import is_true
from incus_actors.state.reader import Reader

DEFAULT_PROJECT = "default"


@dataclass(frozen=True, slots=True)
class ProjectRow:
    """One project; `config` sorted by key."""

    id: int
    name: str
    description: str
    config: dict[str, str]

    def has(self, feature: str) -> bool:
        """Return whether the project has objects of its own of this kind ("images", "profiles", "networks" …)."""
        return self.name == DEFAULT_PROJECT or is_true(self.config.get(f"features.{feature}"))


@dataclass(frozen=True, slots=True)
class ProjectEntity:
    """Something in a project: kind is instance, profile, image, volume or network; `pool` only for volumes."""

    kind: str
    name: str
    project: str
    pool: str = ""


def projects(db: Reader) -> list[ProjectRow]:
    """Return all projects in order of name."""
    config: dict[int, dict[str, str]] = {}
    for row in db.query("SELECT project_id, key, value FROM projects_config ORDER BY project_id, key"):
        config.setdefault(row[0], {})[row[1]] = row[2]
    return [
        ProjectRow(row[0], row[1], row[2], config.get(row[0], {}))
        for row in db.query("SELECT id, name, description FROM projects ORDER BY name")
    ]


def project(db: Reader, name: str) -> ProjectRow | None:
    """Return one project."""
    row = db.one("SELECT id, name, description FROM projects WHERE name = ?", (name,))
    if row is None:
        return None
    config = db.query("SELECT key, value FROM projects_config WHERE project_id = ? ORDER BY key", (row[0],))
    return ProjectRow(row[0], row[1], row[2], {c[0]: c[1] for c in config})


def owner_of(db: Reader, name: str, feature: str) -> ProjectRow | None:
    """Return the project whose images, profiles … a project uses: itself, or "default". None: no such project."""
    found = project(db, name)
    if found is None or found.has(feature):
        return found
    return project(db, DEFAULT_PROJECT)


_ENTITIES = (
    ("instance", "SELECT o.name, p.name, '' FROM instances o JOIN projects p ON p.id = o.project_id"),
    ("profile", "SELECT o.name, p.name, '' FROM profiles o JOIN projects p ON p.id = o.project_id"),
    ("image", "SELECT o.fingerprint, p.name, '' FROM images o JOIN projects p ON p.id = o.project_id"),
    (
        "volume",
        """SELECT o.name, p.name, s.name FROM storage_volumes o JOIN projects p ON p.id = o.project_id
        JOIN storage_pools s ON s.id = o.storage_pool_id AND o.type = 2""",
    ),
    ("network", "SELECT o.name, p.name, '' FROM networks o JOIN projects p ON p.id = o.project_id"),
)


def entities(db: Reader, name: str | None = None) -> list[ProjectEntity]:
    """Return everything that belongs to one project, or to any: instances, profiles, images, custom volumes, networks."""
    where, parameters = ("", ()) if name is None else (" WHERE p.name = ?", (name,))
    return [
        ProjectEntity(kind, row[0], row[1], row[2])
        for kind, sql in _ENTITIES
        for row in db.query(f"{sql}{where} ORDER BY 2, 1, 3", parameters)
    ]
