"""What InstanceActors are asked to do; nearly all local, because an instance's requests go to the member that has it.

Owns only data. Used by the instance service, InstancesSupervisor and InstanceActor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from incus_actors.actors.messages import remote_message
from incus_actors.domain.transactions_instances import InstanceChange
from incus_actors.drivers.base import Progress
from incus_actors.drivers.images import ImageFiles
from incus_actors.model.transaction import Guard

FOLLOW_S: Final = 20.0  #: so long an instance may take to follow a profile before the change is answered without it


@dataclass(frozen=True, slots=True)
class Create:
    """Make the volume of an instance whose row is there ("creating"), then start it if asked to.

    Any failure before the start removes files and row again.
    """

    image: ImageFiles
    start: bool
    progress: Progress | None = None
    caller: Any = None


@dataclass(frozen=True, slots=True)
class Start:
    """Start it."""

    caller: Any = None


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop it: `force` kills, else `timeout_s` (-1: the driver's default). `keep_power`: the daemon shuts down, so
    it is to be started again with the next daemon."""

    force: bool = False
    timeout_s: float = -1
    caller: Any = None
    keep_power: bool = False


@dataclass(frozen=True, slots=True)
class Restart:
    """Stop as `Stop` does, then start."""

    force: bool = False
    timeout_s: float = -1
    caller: Any = None


@dataclass(frozen=True, slots=True)
class Freeze:
    """Suspend (`frozen`) or resume."""

    frozen: bool
    caller: Any = None


@dataclass(frozen=True, slots=True)
class Update:
    """Replace what a user may change; running instances take over new limits at once.

    `config` and `devices` are what the change makes of the instance with its profiles applied.
    """

    change: InstanceChange
    config: Mapping[str, str]
    devices: Mapping[str, Mapping[str, str]]
    guards: Sequence[Guard] = ()
    caller: Any = None


@dataclass(frozen=True, slots=True)
class Rename:
    """Give a stopped instance another name."""

    name: str
    caller: Any = None


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a stopped instance."""

    caller: Any = None


@dataclass(frozen=True, slots=True)
class Repair:
    """Finish what a crash interrupted: an instance in a phase goes away for good."""


@dataclass(frozen=True, slots=True)
class ProfilesChanged:
    """Some profile was changed: a running instance takes over new limits and devices.

    Answer: why one of the `devices`, which have changed, could not be taken over; "" if all could.
    """

    devices: Sequence[str] = ()


@remote_message("instances.follow_profile")
class FollowProfile(msgspec.Struct, frozen=True, array_like=True):
    """These instances of a member take over a profile of which these devices have changed.

    Answer: [[instance id, why it could not], …].
    """

    instance_ids: list[int]
    devices: list[str]


@dataclass(frozen=True, slots=True)
class Exited:
    """It ended by itself."""

    init_pid: int
