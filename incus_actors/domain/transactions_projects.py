"""Builders of the transactions that change projects.

Owns their SQL; ProjectService proposes what these return. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

from incus_actors.model.transaction import Guard, Statement, Transaction

_ID = "(SELECT id FROM projects WHERE name = ?)"


def _default_profile(project: str) -> Statement:
    return Statement(
        f"INSERT INTO profiles (name, description, project_id) VALUES ('default', ?, {_ID})",
        (f"Default Incus profile for project {project}", project),
    )


def _config(name: str, config: Mapping[str, str]) -> list[Statement]:
    return [
        Statement(f"INSERT INTO projects_config (project_id, key, value) VALUES ({_ID}, ?, ?)", (name, key, value))
        for key, value in sorted(config.items())
    ]


def create_project(name: str, description: str, config: Mapping[str, str], *, own_profiles: bool) -> Transaction:
    """A taken name is SQLite's UNIQUE error. `own_profiles` gives it a profile "default"."""
    statements = [
        Statement("INSERT INTO projects (name, description) VALUES (?, ?)", (name, description)),
        *_config(name, config),
    ]
    if own_profiles:
        statements.append(_default_profile(name))
    return Transaction(tuple(statements), topics=("projects", "profiles"))


def _unchanged(project_id: int, description: str, config: Mapping[str, str]) -> tuple[Guard, ...]:
    return (
        Guard("SELECT description FROM projects WHERE id = ?", (project_id,), ((description,),), "changed"),
        Guard(
            "SELECT key, value FROM projects_config WHERE project_id = ? ORDER BY key",
            (project_id,),
            tuple(sorted(config.items())),
            "changed",
        ),
    )


def _empty(project_id: int) -> tuple[Guard, ...]:
    """Guards labelled "not_empty": nothing is in it but a profile "default"."""
    tables = (
        ("instances", ""),
        ("images", ""),
        ("storage_volumes", ""),
        ("networks", ""),
        ("profiles", " AND name <> 'default'"),
    )
    return tuple(
        Guard(f"SELECT COUNT(*) FROM {table} WHERE project_id = ?{but}", (project_id,), ((0,),), "not_empty")
        for table, but in tables
    )


def update_project(
    project_id: int,
    name: str,
    old: tuple[str, Mapping[str, str]],
    new: tuple[str, Mapping[str, str]],
    *,
    profiles: bool | None = None,
    must_be_empty: bool = False,
) -> Transaction:
    """Give a project new (description, config). Conflict "changed" if it is not `old`, or "not_empty".

    `profiles` True makes its own profile "default", False removes it, None leaves it.
    """
    statements = [
        Statement("UPDATE projects SET description = ? WHERE id = ?", (new[0], project_id)),
        Statement("DELETE FROM projects_config WHERE project_id = ?", (project_id,)),
        *_config(name, new[1]),
    ]
    if profiles:
        statements.append(_default_profile(name))
    elif profiles is False:
        statements.append(
            Statement("DELETE FROM profiles WHERE project_id = ? AND name = 'default'", (project_id,)),
        )
    guards = _unchanged(project_id, *old)
    return Transaction(
        statements=tuple(statements),
        guards=guards + _empty(project_id) if must_be_empty else guards,
        topics=("projects", "profiles"),
    )


def rename_project(project_id: int, old: str, new: str) -> Transaction:
    """Conflict "gone", "exists" or "not_empty"."""
    count = "SELECT COUNT(*) FROM projects WHERE name = ?"
    return Transaction(
        statements=(Statement("UPDATE projects SET name = ? WHERE id = ?", (new, project_id)),),
        guards=(
            Guard(count, (old,), ((1,),), "gone"),
            Guard(count, (new,), ((0,),), "exists"),
            *_empty(project_id),
        ),
        topics=("projects", "profiles"),
    )


def delete_project(project_id: int, *, with_profiles: bool = False) -> Transaction:
    """Conflict "gone" or "not_empty"; `with_profiles` takes profiles along, but never what holds data."""
    guards = [guard for guard in _empty(project_id) if not (with_profiles and "FROM profiles" in guard.sql)]
    return Transaction(
        statements=(Statement("DELETE FROM projects WHERE id = ?", (project_id,)),),
        guards=(Guard("SELECT COUNT(*) FROM projects WHERE id = ?", (project_id,), ((1,),), "gone"), *guards),
        topics=("projects", "profiles", "certificates"),
    )
