"""Rules about members: what they are shown as, and which changes to them are allowed (CONTRACT 5.1, 5.2).

Owns pure functions; services/members.py asks them. Must never read a clock or a database: everything is a parameter.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from incus_actors.errors import BadRequestError, MemberError
from incus_actors.model.cluster import ClusterMemberPut


class MemberState(IntEnum):
    """`nodes.state`."""

    CREATED = 0
    PENDING = 1
    EVACUATED = 2


#: Roles an operator may give; the numbers are those of `nodes_roles.role`.
ASSIGNABLE_ROLES = {"event-hub": 1, "ovn-chassis": 2}
ROLE_NAMES = {number: name for name, number in ASSIGNABLE_ROLES.items()}
_DERIVED_ROLES = frozenset({"database-leader", "database-standby"})
_SCHEDULER_VALUES = frozenset({"", "all", "manual", "group"})


@dataclass(frozen=True, slots=True)
class Sighting:
    """When a member was last heard of: `age_s` by our monotonic clock, `wall_ns` by our wall clock (to show)."""

    age_s: float
    wall_ns: int


@dataclass(frozen=True, slots=True)
class MemberFacts:
    """What the database knows of one member."""

    id: int
    name: str
    address: str
    description: str = ""
    state: int = MemberState.CREATED
    architecture: int = 2
    failure_domain: str = "default"
    roles: tuple[str, ...] = ()  #: assigned by hand
    config: Mapping[str, str] = field(default_factory=dict)
    groups: tuple[str, ...] = ("default",)

    @property
    def pending(self) -> bool:
        """Accepted, but not a member yet: shown nowhere."""
        return self.state == MemberState.PENDING


def shown_roles(
    member_id: int, assigned: Sequence[str], raft_roles: Mapping[int, str], leader: int
) -> tuple[list[str], bool]:
    """Return the roles a user sees and whether the member stores the database.

    `raft_roles` maps ids to voter, standby or spare as the live configuration has them.
    """
    roles = list(assigned)
    stored = raft_roles.get(member_id, "spare")
    if stored == "voter" and member_id == leader:
        roles.append("database-leader")
    if stored == "voter":
        roles.append("database")
    elif stored == "standby":
        roles.append("database-standby")
    return roles, stored in ("voter", "standby")


def shown_status(
    version: tuple[int, int], state: int, sighting: Sighting, threshold_s: float, newest: tuple[int, int]
) -> tuple[str, str]:
    """Return status and message; the first rule that fits wins. `version`: the (schema, api_extensions) that it runs;
    `newest`: the highest that any member does."""
    if state == MemberState.EVACUATED:
        return "Evacuated", "Unavailable due to maintenance"
    if sighting.age_s > threshold_s:
        age = go_duration(int(sighting.age_s * 1e9))
        return "Offline", f"No heartbeat for {age} ({go_time(sighting.wall_ns)})"
    if version < newest:
        return "Blocked", "Needs updating to newer version"
    return "Online", "Fully operational"


def check_member_put(put: ClusterMemberPut, *, stores_as_voter: bool, groups: Collection[str]) -> None:
    """Raise what Incus says about a bad PUT of a member. `groups`: those that exist.

    Raises BadRequestError, MemberError (500, as Incus).
    """
    roles = put.roles or []
    if stores_as_voter and "database" not in roles:
        raise BadRequestError('The "database" role cannot be dropped at this time')
    if not stores_as_voter and "database" in roles:
        raise BadRequestError('The "database" role cannot be added at this time')
    for role in roles:
        if role != "database" and role not in _DERIVED_ROLES and role not in ASSIGNABLE_ROLES:
            raise MemberError(f'Update roles: Invalid cluster role "{role}"')
    if not put.groups:
        raise BadRequestError("Cluster members need to belong to at least one group")
    for group in put.groups:
        if group not in groups:
            raise MemberError(f'Failed to load cluster group IDs: Cluster group "{group}" not found')
    check_member_config(put.config or {})


def check_member_config(config: Mapping[str, str]) -> None:
    """Raise MemberError (500, as Incus) for an unknown key or a bad value; empty values mean unset."""
    for key, value in config.items():
        if key.startswith("user."):
            continue
        if key != "scheduler.instance":
            raise MemberError(f'Invalid cluster configuration key "{key}"')
        if value not in _SCHEDULER_VALUES:
            raise MemberError('Invalid cluster configuration key "scheduler.instance" value')


def assigned_roles(roles: Sequence[str] | None) -> list[int]:
    """Return the numbers of the roles in the list that an operator assigns; derived ones are ignored."""
    return sorted({ASSIGNABLE_ROLES[role] for role in roles or () if role in ASSIGNABLE_ROLES})


def check_group_name(name: str) -> None:
    """Raise BadRequestError for a bad cluster group name."""
    if not name:
        raise BadRequestError("No name provided")
    for what, chars in (("slashes", "/"), ("spaces", " "), ("underscores", "_"), ("quotes", "'\"")):
        if any(char in name for char in chars):
            raise BadRequestError(f"Cluster group names may not contain {what}")
    if name in (".", "..") or "*" in name:
        raise BadRequestError(f'Invalid cluster group name "{name}"')


_DURATION = re.compile(r"(\d+)\s*([a-zA-Z]+)")
_UNITS_S = {"S": 1, "M": 60, "H": 3600, "d": 86400, "w": 7 * 86400, "m": 30 * 86400, "y": 365 * 86400}


def expiry_seconds(text: str) -> int | None:
    """Return the seconds in "3H" or "1d 12H" (cluster.join_token_expiry); None for "" (never).

    A month counts as 30 days, a year as 365. Raises BadRequestError.
    """
    if not text.strip():
        return None
    total = 0
    for part in text.split():
        found = _DURATION.fullmatch(part)
        if found is None or found[2] not in _UNITS_S:
            raise BadRequestError(f"Invalid expiry expression: {text}")
        total += int(found[1]) * _UNITS_S[found[2]]
    return total


def go_duration(nanoseconds: int) -> str:
    """Return a duration as Go prints it: 20.371673507s, 1m5s, 2h0m0.5s, 350ms."""
    if nanoseconds == 0:
        return "0s"
    if nanoseconds < 1_000_000_000:
        for unit, size in (("ms", 1_000_000), ("µs", 1000), ("ns", 1)):
            if nanoseconds >= size:
                return _trimmed(nanoseconds // size, nanoseconds % size, len(str(size)) - 1) + unit
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    text = _trimmed(seconds, fraction, 9) + "s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text


def _trimmed(whole: int, fraction: int, digits: int) -> str:
    decimals = f"{fraction:0{digits}d}".rstrip("0") if digits and fraction else ""
    return f"{whole}.{decimals}" if decimals else str(whole)


def go_time(wall_ns: int) -> str:
    """Return a time as Go prints it: 2026-11-21 01:21:57.198958978 +0000 UTC."""
    seconds, fraction = divmod(wall_ns, 1_000_000_000)
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    decimals = f"{fraction:09d}".rstrip("0")
    return f"{moment:%Y-%m-%d %H:%M:%S}{'.' if decimals else ''}{decimals} +0000 UTC"


def rfc3339(wall_ns: int) -> str:
    """Return a time as Go's JSON has it: 2026-11-21T04:08:05.353477295Z."""
    seconds, fraction = divmod(wall_ns, 1_000_000_000)
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    decimals = f"{fraction:09d}".rstrip("0")
    return f"{moment:%Y-%m-%dT%H:%M:%S}{'.' if decimals else ''}{decimals}Z"


def parse_rfc3339_ns(text: str) -> int:
    """Return the Unix time in nanoseconds of what `rfc3339` wrote. Raises ValueError."""
    main, _, decimals = text.removesuffix("Z").partition(".")
    moment = datetime.datetime.strptime(main, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=datetime.UTC)
    return int(moment.timestamp()) * 1_000_000_000 + int(decimals.ljust(9, "0")[:9] or "0")
