"""Holds requests against the limits and restrictions of their project, before they change anything.

Owns what is compared with what; called by the services of instances, profiles and projects. The rules are
domain/project_rules.py; must never hold a rule itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from incus_actors.domain import project_rules as rules
from incus_actors.domain.instances import ProfileLayer, expand_config, expand_devices
from incus_actors.domain.project_rules import Subject
from incus_actors.errors import MemberError
from incus_actors.model.transaction import Guard
from incus_actors.state.queries import instances as queries
from incus_actors.state.queries import profiles as profile_queries
from incus_actors.state.queries import projects as project_queries
from incus_actors.state.queries import volumes as volume_queries
from incus_actors.state.queries.instances import InstanceRecord
from incus_actors.state.reader import Reader

Config = Mapping[str, str]
Devices = Mapping[str, Mapping[str, str]]


def config_of(db: Reader, project: str) -> Config:
    """Return the project's configuration, nothing for one that is gone."""
    row = project_queries.project(db, project)
    return {} if row is None else row.config


def _subject(record: InstanceRecord) -> Subject:
    return Subject(record.name, record.type, record.expanded_config, record.expanded_devices)


def check_may(db: Reader, project: str, what: str) -> None:
    """Raise ForbiddenError unless a project allows `what`: "backup" or "snapshot"."""
    rules.check_may(project, config_of(db, project), what)


def _volumes(db: Reader, project: str, *, without: int | None = None) -> list[Subject]:
    """Return the custom volumes that belong to a project itself."""
    row = project_queries.project(db, project)
    if row is None:
        return []
    found = volume_queries.volumes(db, project_ids=[row.id], type_="custom")
    return [rules.volume_subject(v.name, v.pool, v.config.get("size", "")) for v in found if v.id != without]


def disk_sizes(db: Reader, project: str) -> list[tuple[str, str]]:
    """Return pool and configured size of everything in a project that takes space."""
    present = [_subject(record) for record in queries.all_of(db, projects=[project])]
    return [rules.disk_of(subject) for subject in (*present, *_volumes(db, project))]


def hidden_pools(db: Reader, project: str) -> frozenset[str]:
    """Return the pools that a project may have nothing in, so that it isn't shown them."""
    config = config_of(db, project)
    return frozenset(
        key.removeprefix(rules.POOL_LIMIT)
        for key, value in config.items()
        if key.startswith(rules.POOL_LIMIT) and value == "0"
    )


def check_volume(
    db: Reader, project: str, new: Subject, *, changed: int | None = None, instead_of: int | None = None
) -> None:
    """Raise MemberError unless the project that owns volumes has room for a new one (`instead_of` another, by id), or for
    what the volume `changed` becomes."""
    config = config_of(db, project)
    if not _matters(config):
        return
    present = [_subject(record) for record in queries.all_of(db, projects=[project])]
    try:
        rules.check_aggregates(project, config, [*present, *_volumes(db, project, without=changed or instead_of), new])
    except MemberError as error:
        what = "creation" if changed is None else "update"
        raise MemberError(f"Failed checking if volume {what} allowed: {error}") from None


def volume_guards(db: Reader, project: str, project_id: int) -> tuple[Guard, ...]:
    """Return guards (label "changed") that hold while nobody else adds a volume to a project with limits."""
    sql = "SELECT COUNT(*) FROM storage_volumes WHERE project_id = ?"
    return _count_guards(db, project, project_id, "limits.disk", sql, "changed")


def _count_guards(db: Reader, project: str, project_id: int, limits: str, sql: str, label: str) -> tuple[Guard, ...]:
    """Return a guard that what `sql` counts of a project stays, if the project has limits that begin like that."""
    if not any(key.startswith(limits) for key in config_of(db, project)):
        return ()
    return (Guard(sql, (project_id,), ((int(db.scalar(sql, (project_id,))),),), label),)


def _matters(config: Config) -> bool:
    return rules.restricted(config) or any(key.startswith("limits.") for key in config)


def check_creation(db: Reader, project: str, new: Subject, given: Config) -> None:
    """Raise MemberError (500 with Incus' texts) unless the project has room for `new` and allows what it is.

    `given`: the keys of the request itself.
    """
    config = config_of(db, project)
    if not _matters(config):
        return
    present = [_subject(record) for record in queries.all_of(db, projects=[project]) if record.name != new.name]
    rules.check_room(project, config, present, new.type)
    rules.check_given(project, config, new, given)
    try:
        rules.check_restrictions(project, config, new)
        rules.check_aggregates(project, config, [*present, *_volumes(db, project), new])
    except MemberError as error:
        raise MemberError(f"Failed checking if instance creation allowed: {error}") from None


def room_guards(db: Reader, project: str, project_id: int) -> tuple[Guard, ...]:
    """Return guards (label "room") that hold while nobody else adds an instance to a project with limits."""
    sql = "SELECT COUNT(*) FROM instances WHERE project_id = ?"
    return _count_guards(db, project, project_id, "limits.", sql, "room")


def check_update(db: Reader, record: InstanceRecord, config: Config, devices: Devices) -> None:
    """Raise MemberError unless the project allows an instance to become this (expanded)."""
    project = config_of(db, record.project)
    if not _matters(project):
        return
    changed = Subject(record.name, record.type, config, devices)
    others = [_subject(one) for one in queries.all_of(db, projects=[record.project]) if one.id != record.id]
    others += _volumes(db, record.project)
    _check_changed("instance", record.project, project, [changed], others)


def check_profile(db: Reader, profile_id: int, layer: ProfileLayer) -> None:
    """Raise MemberError unless every project allows its instances what the profile would make of them."""
    users: dict[str, set[str]] = {}
    for project, name in queries.using_profile(db, profile_id):
        users.setdefault(project, set()).add(name)
    for project, names in sorted(users.items()):
        config = config_of(db, project)
        if not _matters(config):
            continue
        records = queries.all_of(db, projects=[project])
        changed = [_with_layer(db, record, profile_id, layer) for record in records if record.name in names]
        others = [_subject(record) for record in records if record.name not in names]
        others += _volumes(db, project)
        _check_changed("profile", project, config, changed, others)


def check_profile_itself(db: Reader, project: str, layer: ProfileLayer, *, creating: bool = False) -> None:
    """Raise MemberError if a restricted project forbids what is in a profile of its own."""
    config = config_of(db, project)
    try:
        rules.check_restrictions(project, config, Subject(layer.name, "profile", layer.config, layer.devices))
    except MemberError as error:
        raise MemberError(
            f"Failed checking if profile {'creation' if creating else 'update'} allowed: {error}"
        ) from None


def _with_layer(db: Reader, record: InstanceRecord, profile_id: int, layer: ProfileLayer) -> Subject:
    ids = queries.profile_ids(db, record.project, record.profiles)
    layers = queries.profile_layers(db, ids.values())
    layers[profile_id] = layer
    applied = [layers[ids[name]] for name in record.profiles]
    return Subject(
        record.name, record.type, expand_config(applied, record.config), expand_devices(applied, record.devices)
    )


def _check_changed(
    what: str, name: str, project: Config, changed: Iterable[Subject], others: Iterable[Subject]
) -> None:
    subjects = list(changed)
    try:
        for subject in subjects:
            rules.check_restrictions(name, project, subject)
        rules.check_aggregates(name, project, [*subjects, *others])
    except MemberError as error:
        raise MemberError(f"Failed checking if {what} update allowed: {error}") from None


def check_project(db: Reader, name: str, old: Config, new: Config) -> None:
    """Raise MemberError if what is in the project does not fit its new configuration."""
    if not _matters(new):
        return
    present = [_subject(record) for record in queries.all_of(db, projects=[name])]
    rules.check_new_limits(name, old, new, [*present, *_volumes(db, name)])
    keys = sorted(
        key for key in old.keys() | new.keys() if key.startswith("restricted") and old.get(key) != new.get(key)
    )
    if not keys:
        return
    for subject in [*present, *_profiles(db, name)]:
        try:
            rules.check_restrictions(name, new, subject)
        except MemberError as error:
            raise MemberError(f'Conflict detected when changing "{keys[0]}" in project "{name}": {error}') from None


def _profiles(db: Reader, project: str) -> list[Subject]:
    """Return the profiles of a project's own."""
    row = project_queries.project(db, project)
    found = [] if row is None else profile_queries.profiles(db, row.id)
    return [Subject(profile.name, "profile", profile.config, profile.devices) for profile in found]
