"""What members ask of the leader.

Owns the messages that LeaderActor answers; services send them by `actors.leader.leader_ref`. Fields are added at the
end, with a default: members of different releases talk to each other.
"""

from __future__ import annotations

import msgspec

from incus_actors.actors.messages import remote_message


@remote_message("leader.accept")
class AcceptMember(msgspec.Struct, frozen=True, array_like=True):
    """Make a server a pending member and a spare of the log. Answered by Accepted."""

    name: str
    address: str
    core_address: str
    transport: str
    fingerprint: str
    certificate: str
    architecture: int
    schema: int
    api_extensions: int
    storage_root: str
    token_uuid: str  #: "" if its certificate is trusted already
    now: str
    member_config: tuple[tuple[str, str, str, str], ...] = ()  #: entity, name, key, value


@remote_message("leader.replace")
class ReplaceMember(msgspec.Struct, frozen=True, array_like=True):
    """Give a member a new id, in the tables and in the log. Answered by Accepted."""

    name: str
    transport: str
    schema: int
    api_extensions: int
    now: str


@remote_message("leader.accepted")
class Accepted(msgspec.Struct, frozen=True, array_like=True):
    """What the new member starts its log from."""

    member_id: int
    cluster_id: str
    epoch: int
    configuration: bytes


@remote_message("leader.remove")
class RemoveMember(msgspec.Struct, frozen=True, array_like=True):
    """Take a member out of the configuration and the database. `only_pending`: unless its join has ended."""

    member_id: int
    name: str
    only_pending: bool = False
    graceful: bool = False  #: refuse if instances or volumes are left on it


@remote_message("leader.remove_raft_node")
class RemoveRaftNode(msgspec.Struct, frozen=True, array_like=True):
    """Take a member out of the configuration only; its rows, if there are any, stay."""

    member_id: int


@remote_message("leader.move")
class MoveMember(msgspec.Struct, frozen=True, array_like=True):
    """A member listens for the others at another transport address from now on."""

    member_id: int
    transport: str


@remote_message("leader.nudge")
class Nudge(msgspec.Struct, frozen=True, array_like=True):
    """Look at roles now instead of at the next tick. Answered when that is done."""


@remote_message("leader.hand_over")
class HandOver(msgspec.Struct, frozen=True, array_like=True):
    """Make somebody else lead, because this member is about to leave for good."""


@remote_message("leader.place")
class PlaceInstance(msgspec.Struct, frozen=True, array_like=True):
    """Which of these members shall have a new instance? Answered by Placed."""

    project: str
    name: str
    members: tuple[int, ...]


@remote_message("leader.placed")
class Placed(msgspec.Struct, frozen=True, array_like=True):
    """The same members, best first; the instance counts at the first one from now on."""

    members: tuple[int, ...]
