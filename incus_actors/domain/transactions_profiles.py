"""Builders of the transactions that change profiles.

Owns their SQL; ProfileService and ProjectService propose what these return. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from incus_actors.domain.instances import DEVICE_TYPES
from incus_actors.model.transaction import Guard, Statement, Transaction, Value

Devices = Mapping[str, Mapping[str, str]]

#: SQL for a profile's id; its parameters are (project id, name).
_ID = "(SELECT id FROM profiles WHERE project_id = ? AND name = ?)"

#: What `users_guard` compares.
USERS_SQL = "SELECT instance_id FROM instances_profiles WHERE profile_id = ? ORDER BY instance_id"


def create_profile(
    project_id: int, name: str, description: str, config: Mapping[str, str], devices: Devices
) -> Transaction:
    """A taken name is SQLite's UNIQUE error; conflict "project" if the project is gone."""
    return Transaction(
        statements=(
            Statement(
                "INSERT INTO profiles (name, description, project_id) VALUES (?, ?, ?)", (name, description, project_id)
            ),
            *_contents(project_id, name, config, devices),
        ),
        guards=(Guard("SELECT COUNT(*) FROM projects WHERE id = ?", (project_id,), ((1,),), "project"),),
        topics=("profiles",),
    )


def _contents(project_id: int, name: str, config: Mapping[str, str], devices: Devices) -> list[Statement]:
    key: tuple[Value, ...] = (project_id, name)
    statements = [
        Statement(f"INSERT INTO profiles_config (profile_id, key, value) VALUES ({_ID}, ?, ?)", (*key, k, v))
        for k, v in sorted(config.items())
    ]
    for device, options in sorted(devices.items()):
        statements.append(
            Statement(
                f"INSERT INTO profiles_devices (profile_id, name, type) VALUES ({_ID}, ?, ?)",
                (*key, device, DEVICE_TYPES[options["type"]]),
            )
        )
        statements += [
            Statement(
                "INSERT INTO profiles_devices_config (profile_device_id, key, value) VALUES"
                f" ((SELECT id FROM profiles_devices WHERE profile_id = {_ID} AND name = ?), ?, ?)",
                (*key, device, option, value),
            )
            for option, value in sorted(options.items())
            if option != "type"
        ]
    return statements


def profile_guards(profile_id: int, description: str, config: Mapping[str, str], devices: Devices) -> tuple[Guard, ...]:
    """Return guards labelled "changed" that hold while the profile is exactly this."""
    options = sorted(
        (device, option, value)
        for device, given in devices.items()
        for option, value in given.items()
        if option != "type"
    )
    kinds = sorted((device, DEVICE_TYPES[given["type"]]) for device, given in devices.items())
    return (
        Guard("SELECT description FROM profiles WHERE id = ?", (profile_id,), ((description,),), "changed"),
        Guard(
            "SELECT key, value FROM profiles_config WHERE profile_id = ? ORDER BY key",
            (profile_id,),
            tuple(sorted(config.items())),
            "changed",
        ),
        Guard(
            "SELECT name, type FROM profiles_devices WHERE profile_id = ? ORDER BY name",
            (profile_id,),
            tuple(kinds),
            "changed",
        ),
        Guard(
            "SELECT d.name, c.key, c.value FROM profiles_devices d"
            " JOIN profiles_devices_config c ON c.profile_device_id = d.id WHERE d.profile_id = ?"
            " ORDER BY d.name, c.key, c.value",
            (profile_id,),
            tuple(options),
            "changed",
        ),
    )


def users_guard(profile_id: int, instance_ids: Sequence[int]) -> Guard:
    """Return a guard labelled "changed" that holds while these instances (in order) use the profile."""
    return Guard(USERS_SQL, (profile_id,), tuple((one,) for one in instance_ids), "changed")


def replace_profile(
    profile_id: int,
    key: tuple[int, str],
    guards: tuple[Guard, ...],
    description: str,
    config: Mapping[str, str],
    devices: Devices,
) -> Transaction:
    """Give a profile new contents. `key` is (project id, name), `guards` those of `profile_guards`."""
    return Transaction(
        statements=(
            Statement("UPDATE profiles SET description = ? WHERE id = ?", (description, profile_id)),
            Statement("DELETE FROM profiles_config WHERE profile_id = ?", (profile_id,)),
            Statement("DELETE FROM profiles_devices WHERE profile_id = ?", (profile_id,)),
            *_contents(*key, config, devices),
        ),
        guards=guards,
        topics=("profiles", "instances"),
    )


def rename_profile(profile_id: int, project_id: int, old: str, new: str) -> Transaction:
    """Conflict "gone" or "exists"."""
    count = "SELECT COUNT(*) FROM profiles WHERE project_id = ? AND name = ?"
    return Transaction(
        statements=(Statement("UPDATE profiles SET name = ? WHERE id = ?", (new, profile_id)),),
        guards=(
            Guard(count, (project_id, old), ((1,),), "gone"),
            Guard(count, (project_id, new), ((0,),), "exists"),
        ),
        topics=("profiles", "instances"),
    )


def delete_profile(profile_id: int) -> Transaction:
    """Conflict "gone" or "in_use"."""
    return Transaction(
        statements=(Statement("DELETE FROM profiles WHERE id = ?", (profile_id,)),),
        guards=(
            Guard("SELECT COUNT(*) FROM profiles WHERE id = ?", (profile_id,), ((1,),), "gone"),
            Guard("SELECT COUNT(*) FROM instances_profiles WHERE profile_id = ?", (profile_id,), ((0,),), "in_use"),
        ),
        topics=("profiles",),
    )
