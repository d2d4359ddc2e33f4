"""Reads of profiles and of the instances that use them.

Owns the queries; services call them with a Database or a snapshot. Must never write.
"""

from __future__ import annotations

from dataclasses import dataclass

from incus_actors.domain.instances import DEVICE_NAMES
from incus_actors.domain.transactions_profiles import USERS_SQL
from incus_actors.state.reader import Reader


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """One profile with everything below it, sorted. `used_by` are (project, name) of instances."""

    id: int
    name: str
    description: str
    project_id: int
    project: str
    config: dict[str, str]
    devices: dict[str, dict[str, str]]
    used_by: tuple[tuple[str, str], ...]


_COLUMNS = (
    "SELECT f.id, f.name, f.description, f.project_id, p.name FROM profiles f JOIN projects p ON p.id = f.project_id"
)


def profiles(db: Reader, project_id: int | None = None) -> list[ProfileRow]:
    """Return the profiles of a project in order of name; of all projects (in order of project id) if it is None."""
    if project_id is None:
        return _rows(db, "", ())
    return _rows(db, "WHERE f.project_id = ?", (project_id,))


def profile(db: Reader, project_id: int, name: str) -> ProfileRow | None:
    """Return one profile of a project."""
    found = _rows(db, "WHERE f.project_id = ? AND f.name = ?", (project_id, name))
    return found[0] if found else None


@dataclass(frozen=True, slots=True)
class ProfileUser:
    """An instance that uses a profile."""

    instance_id: int
    node_id: int
    project: str
    name: str


def users(db: Reader, profile_id: int) -> list[ProfileUser]:
    """Return the instances that use a profile, in order of id."""
    rows = db.query(
        "SELECT i.id, i.node_id, p.name, i.name FROM instances_profiles u JOIN instances i ON i.id = u.instance_id"
        " JOIN projects p ON p.id = i.project_id WHERE u.profile_id = ? ORDER BY i.id",
        (profile_id,),
    )
    return [ProfileUser(*tuple(row)) for row in rows]


def user_ids(db: Reader, profile_id: int) -> list[int]:
    """Return the ids of the instances that use a profile, in order."""
    return [row[0] for row in db.query(USERS_SQL, (profile_id,))]


def _rows(db: Reader, where: str, parameters: tuple[int | str, ...]) -> list[ProfileRow]:
    below = f"profile_id IN (SELECT f.id FROM profiles f {where})"
    config: dict[int, dict[str, str]] = {}
    for row in db.query(f"SELECT profile_id, key, value FROM profiles_config WHERE {below} ORDER BY key", parameters):
        config.setdefault(row[0], {})[row[1]] = row[2]
    used: dict[int, list[tuple[str, str]]] = {}
    for row in db.query(
        "SELECT u.profile_id, p.name, i.name FROM instances_profiles u JOIN instances i ON i.id = u.instance_id"
        f" JOIN projects p ON p.id = i.project_id WHERE u.{below} ORDER BY p.name, i.name",
        parameters,
    ):
        used.setdefault(row[0], []).append((row[1], row[2]))
    devices = _devices(db, below, parameters)
    return [
        ProfileRow(
            row[0],
            row[1],
            row[2],
            row[3],
            row[4],
            config.get(row[0], {}),
            devices.get(row[0], {}),
            tuple(used.get(row[0], ())),
        )
        for row in db.query(f"{_COLUMNS} {where} ORDER BY f.project_id, f.name", parameters)
    ]


def _devices(db: Reader, below: str, parameters: tuple[int | str, ...]) -> dict[int, dict[str, dict[str, str]]]:
    found: dict[int, dict[str, dict[str, str]]] = {}
    for row in db.query(
        "SELECT d.profile_id, d.name, d.type, c.key, c.value FROM profiles_devices d"
        f" LEFT JOIN profiles_devices_config c ON c.profile_device_id = d.id WHERE d.{below} ORDER BY d.name, c.key",
        parameters,
    ):
        device = found.setdefault(row[0], {}).setdefault(row[1], {"type": DEVICE_NAMES.get(row[2], "none")})
        if row[3] is not None:
            device[row[3]] = row[4]
    return {
        owner: {name: dict(sorted(device.items())) for name, device in devices.items()}
        for owner, devices in found.items()
    }
