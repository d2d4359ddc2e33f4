"""What a project lets its instances be: limits, restrictions, members and groups (CONTRACT 12).

Owns the rules with Incus' texts (asked of a real 6.0.4); services/project_guard.py feeds them from the database. Pure.
A limit counts what is configured, never what is used at the moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from incus_actors.domain.instances import is_root_disk
from incus_actors.errors import ForbiddenError, MemberError
from incus_actors.model.config_values import is_true, parse_size

Config = Mapping[str, str]
Devices = Mapping[str, Mapping[str, str]]

_LOW_LEVEL: Final = frozenset(
    {
        "boot.host_shutdown_timeout",
        "linux.kernel_modules",
        "linux.kernel_modules.load",
        "raw.apparmor",
        "raw.lxc",
        "raw.seccomp",
        "security.guestapi.images",
        "security.idmap.base",
        "security.idmap.size",
    }
)
_LOW_LEVEL_VM: Final = frozenset({"boot.host_shutdown_timeout", "limits.memory.hugepages", "raw.qemu", "raw.qemu.conf"})
#: Device type → (key that restricts it, what is forbidden).
_BLOCKED: Final = {
    "gpu": ("restricted.devices.gpu", "GPU devices are forbidden"),
    "infiniband": ("restricted.devices.infiniband", "Infiniband devices are forbidden"),
    "pci": ("restricted.devices.pci", "PCI devices are forbidden"),
    "proxy": ("restricted.devices.proxy", "Proxy devices are forbidden"),
    "unix-block": ("restricted.devices.unix-block", "Unix block devices are forbidden"),
    "unix-char": ("restricted.devices.unix-char", "Unix character devices are forbidden"),
    "unix-hotplug": ("restricted.devices.unix-hotplug", "Unix hotplug devices are forbidden"),
    "usb": ("restricted.devices.usb", "USB devices are forbidden"),
}
_COUNTS: Final = {"limits.containers": "container", "limits.virtual-machines": "virtual-machine"}
AGGREGATES: Final = ("limits.cpu", "limits.disk", "limits.memory", "limits.processes")
NETWORK_NOT_ALLOWED: Final = "Network not allowed in project"
POOL_LIMIT: Final = "limits.disk.pool."  #: before the name of a pool
VOLUME: Final = "custom volume"
USAGE = "Failed getting usage of project entities: "


@dataclass(frozen=True, slots=True)
class Subject:
    """An instance as the rules see it: profiles applied, volatile keys included; or a custom volume (`volume_subject`)."""

    name: str
    type: str
    config: Config
    devices: Devices


def volume_subject(name: str, pool: str, size: str) -> Subject:
    """Return a custom volume, which counts as if it was a root disk of that size."""
    return Subject(name, VOLUME, {}, {"root": {"type": "disk", "path": "/", "pool": pool, "size": size}})


def disk_of(subject: Subject) -> tuple[str, str]:
    """Return pool and configured size ("" without) of an instance's root disk, or of a volume."""
    root = next((device for device in subject.devices.values() if is_root_disk(device)), {})
    return root.get("pool", ""), root.get("size", "")


def restricted(project: Config) -> bool:
    """Return whether the project restricts at all."""
    return is_true(project.get("restricted"))


# -- limits -----------------------------------------------------------------------------------------------------


def check_room(name: str, project: Config, present: Iterable[Subject], kind: str) -> None:
    """Raise MemberError if there is no room for one more instance of type `kind`."""
    types = [subject.type for subject in present]
    for key, counted in _COUNTS.items():
        limit = project.get(key)
        if limit and counted == kind and types.count(kind) >= int(limit):
            raise MemberError(f'Reached maximum number of instances of type "{kind}" in project "{name}"')
    limit = project.get("limits.instances")
    if limit and len(types) >= int(limit):
        raise MemberError(f'Reached maximum number of instances in project "{name}"')


def check_aggregates(name: str, project: Config, subjects: Iterable[Subject]) -> None:
    """Raise MemberError if what these instances are given together is more than the project may have."""
    everyone = list(subjects)
    for key in _limited(project):
        limit = project[key]
        try:
            total = _total(name, key, everyone)
        except MemberError as error:
            raise MemberError(f"{USAGE}{error}") from None
        if total > _parsed(key, limit):
            raise MemberError(f'Reached maximum aggregate value "{limit}" for "{key}" in project "{name}"')


def check_new_limits(name: str, old: Config, new: Config, present: Iterable[Subject]) -> None:
    """Raise MemberError if a changed limit is below what the project has already."""
    everyone = list(present)
    types = [subject.type for subject in everyone if subject.type != VOLUME]
    for key, kind in _COUNTS.items():
        limit = _changed(key, old, new)
        if limit and types.count(kind) > int(limit):
            raise MemberError(
                f'Can\'t change "{key}" in project "{name}": "{key}" is too low: there currently are'
                f' {types.count(kind)} instances of type {kind} in project "{name}"'
            )
    limit = _changed("limits.instances", old, new)
    if limit and len(types) > int(limit):
        raise MemberError(
            f'Can\'t change limits.instances in project "{name}": "limits.instances" is too low: there currently are'
            f' {len(types)} total instances in project "{name}"'
        )
    for key in AGGREGATES:  # a pool's limit may be set below, and then only keeps more from coming
        limit = _changed(key, old, new)
        if not limit:
            continue
        total = _total(name, key, everyone)
        if total > _parsed(key, limit):
            raise MemberError(f'"{key}" is too low: current total is "{_printed(key, total)}"')


def _limited(project: Config) -> list[str]:
    """Return the keys of what a project limits all together."""
    return [
        *filter(project.get, AGGREGATES),
        *sorted(key for key in project if key.startswith(POOL_LIMIT) and project[key]),
    ]


def _is_size(key: str) -> bool:
    return key in ("limits.memory", "limits.disk") or key.startswith(POOL_LIMIT)


def _changed(key: str, old: Config, new: Config) -> str:
    return "" if old.get(key) == new.get(key) else new.get(key, "")


def _total(project: str, key: str, subjects: Iterable[Subject]) -> int:
    total, of_disks = 0, key == "limits.disk" or key.startswith(POOL_LIMIT)
    for subject in subjects:
        if of_disks:
            pool, size = disk_of(subject)
            if key.startswith(POOL_LIMIT) and pool != key.removeprefix(POOL_LIMIT):
                continue
            value, missing = size or None, '"size" config set on the root device'
        elif subject.type == VOLUME:
            continue
        else:
            value, missing = subject.config.get(key), f'"{key}" config,'
        if not value and subject.type == VOLUME:
            raise MemberError(f'Custom volume "{subject.name}" in project "{project}" has no "size" config set')
        if not value:
            raise MemberError(
                f'Instance "{subject.name}" in project "{project}" has no {missing} either directly or via a profile'
            )
        try:
            total += _parsed(key, value)
        except ValueError:
            raise MemberError(f'Failed parsing "{key}" for instance "{subject.name}" in project "{project}"') from None
    return total


def _parsed(key: str, value: str) -> int:
    """Raises ValueError for what is no fixed number: a percentage of memory, a set of CPUs."""
    return parse_size(value) if _is_size(key) else int(value)


def _printed(key: str, total: int) -> str:
    if not _is_size(key):
        return str(total)
    size = float(total)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if size < 1024 or unit == "PiB":
            break
        size /= 1024
    return f"{total}B" if unit == "B" else f"{size:.1f}{unit}"


# -- restrictions -----------------------------------------------------------------------------------------------


def check_given(name: str, project: Config, subject: Subject, given: Config) -> None:
    """Raise MemberError for keys that a request itself may not set in a restricted project."""
    if not restricted(project):
        return
    for key in sorted(given):
        if key.startswith("volatile."):
            raise MemberError(f'Setting "{key}" on {_noun(subject)} "{subject.name}" in project "{name}" is forbidden')


def check_restrictions(name: str, project: Config, subject: Subject) -> None:
    """Raise MemberError for what a restricted project forbids its instances (or its profiles)."""
    if not restricted(project):
        return
    for key, value in sorted(subject.config.items()):
        _check_key(name, project, subject, key, value)
    for device_name, device in sorted(subject.devices.items()):
        problem = _device_problem(project, device)
        if problem:
            raise MemberError(
                f'Invalid device "{device_name}" on {_noun(subject)} "{subject.name}" of project "{name}": {problem}'
            )


def _noun(subject: Subject) -> str:
    return subject.type


def _check_key(name: str, project: Config, subject: Subject, key: str, value: str) -> None:
    where = f'on {_noun(subject)} "{subject.name}" of project "{name}"'
    container = subject.type != "virtual-machine"
    if key == "raw.idmap" and container:
        for number, line in enumerate(filter(None, (part.strip() for part in value.splitlines()))):
            if not _idmap_allowed(project, line):
                raise MemberError(f'Use of low-level "raw.idmap" element {number} {where} is forbidden')
        return
    level = "restricted.containers.lowlevel" if container else "restricted.virtual-machines.lowlevel"
    if key in (_LOW_LEVEL if container else _LOW_LEVEL_VM):
        if project.get(level) != "allow":
            raise MemberError(f'Use of low-level config "{key}" {where} is forbidden')
        return
    problem = _value_problem(project, key, value) if container else ""
    if problem:
        raise MemberError(f'Invalid value "{value}" for config "{key}" {where}: {problem}')


def _value_problem(project: Config, key: str, value: str) -> str:
    privilege = project.get("restricted.containers.privilege") or "unprivileged"
    if key == "security.privileged" and is_true(value) and privilege != "allow":
        return "Privileged containers are forbidden"
    if key == "security.idmap.isolated" and not is_true(value) and privilege == "isolated":
        return "Non-isolated containers are forbidden"
    if key == "security.nesting" and is_true(value) and project.get("restricted.containers.nesting") != "allow":
        return "Container nesting is forbidden"
    if key.startswith("security.syscalls.intercept.") and is_true(value):
        interception = project.get("restricted.containers.interception") or "block"
        if interception == "block" or (interception == "allow" and key == "security.syscalls.intercept.mount"):
            return "Container syscall interception is forbidden"
    return ""


def _idmap_allowed(project: Config, line: str) -> bool:
    """Whether "both 1000 5" maps only host ids that the project owns."""
    fields = line.split()
    if len(fields) != 3 or fields[0] not in ("both", "uid", "gid"):
        return False
    wanted = _range(fields[1])
    kinds = ("uid", "gid") if fields[0] == "both" else (fields[0],)
    return wanted is not None and all(
        any(
            own is not None and own[0] <= wanted[0] and wanted[1] <= own[1]
            for own in map(_range, filter(None, project.get(f"restricted.idmap.{kind}", "").split(",")))
        )
        for kind in kinds
    )


def _range(text: str) -> tuple[int, int] | None:
    first, dash, last = text.strip().partition("-")
    if not first.isdigit() or (dash and not last.isdigit()):
        return None
    return int(first), int(last) if dash else int(first)


def _device_problem(project: Config, device: Mapping[str, str]) -> str:
    kind = device.get("type", "")
    if kind in _BLOCKED:
        key, text = _BLOCKED[kind]
        return "" if project.get(key) == "allow" else text
    check = _DEVICE_RULES.get(kind)
    return check(project, device) if check is not None else ""


def _nic_problem(project: Config, device: Mapping[str, str]) -> str:
    rule = project.get("restricted.devices.nic") or "managed"
    if rule == "block":
        return "Network devices are forbidden"
    if rule == "managed" and not device.get("network"):
        return "Only managed network devices are allowed"
    network, accessible = device.get("network") or device.get("parent", ""), _accessible(project)
    return NETWORK_NOT_ALLOWED if network and accessible is not None and network not in accessible else ""


def _accessible(project: Config) -> frozenset[str] | None:
    """Return the networks that a restricted project names; None: it names none."""
    value = project.get("restricted.networks.access", "")
    return frozenset(name.strip() for name in value.split(",")) if value else None


def network_allowed(project: Config, network: str, *, managed: bool) -> bool:
    """Return whether a project may see a network, or an interface of the host that is none."""
    if not restricted(project):
        return True
    rule = project.get("restricted.devices.nic") or "managed"
    if rule == "block" or (rule == "managed" and not managed):
        return False
    accessible = _accessible(project)
    return accessible is None or network in accessible


def _disk_problem(project: Config, device: Mapping[str, str]) -> str:
    if is_root_disk(device):
        return ""
    rule = project.get("restricted.devices.disk") or "managed"
    if rule == "block":
        return "Disk devices are forbidden"
    if device.get("pool"):
        return ""
    if rule == "managed":
        return "Attaching disks not backed by a pool is forbidden"
    source = device.get("source", "")
    allowed = [path.strip().rstrip("/") for path in project.get("restricted.devices.disk.paths", "").split(",")]
    if not any(allowed) or any(path and (source == path or source.startswith(f"{path}/")) for path in allowed):
        return "" if ".." not in source.split("/") else f'Disk source path "{source}" not allowed'
    return f'Disk source path "{source}" not allowed'


_DEVICE_RULES: Final[dict[str, Callable[[Config, Mapping[str, str]], str]]] = {
    "disk": _disk_problem,
    "nic": _nic_problem,
}


def check_may(project_name: str, project: Config, what: str) -> None:
    """Raise ForbiddenError unless a restricted project allows `what`: "backup" or "snapshot"."""
    if restricted(project) and project.get(f"restricted.{what}s") != "allow":
        raise ForbiddenError(f'Project "{project_name}" doesn\'t allow for {what} creation')


# -- members and groups -----------------------------------------------------------------------------------------


def allowed_groups(project: Config) -> frozenset[str] | None:
    """Return the cluster groups that a restricted project may use; None: all of them."""
    if not restricted(project):
        return None
    groups = frozenset(
        filter(None, (group.strip() for group in project.get("restricted.cluster.groups", "").split(",")))
    )
    return groups or None


def check_target(project: Config, target: str, groups_of_member: Iterable[str]) -> None:
    """Raise ForbiddenError if the project may not name this target ("m1" or "@group", "" is no target)."""
    allowed = allowed_groups(project)
    if target.startswith("@"):
        if allowed is not None and target[1:] not in allowed:
            raise ForbiddenError(f'Project isn\'t allowed to use this cluster group: "{target[1:]}"')
        return
    if not target or not restricted(project):
        return
    if project.get("restricted.cluster.target") != "allow":
        raise ForbiddenError("This project doesn't allow cluster member targeting")
    if allowed is not None and not allowed & frozenset(groups_of_member):
        raise ForbiddenError(f'Project isn\'t allowed to use this cluster member: "{target}"')
