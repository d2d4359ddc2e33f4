"""Changing who is a member, and who votes, while the cluster runs (CONSENSUS 3.9).

Owns the steps of a change on the leader: gate, joint entry, final entry, leaving; the configurations themselves
live in the log and are active from the moment they are appended. One change at a time, only after a commit in
the own term, and an id that has left never comes back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from incus_actors.consensus.configuration import encode_configuration, invalid_members
from incus_actors.consensus.effects import Resolve
from incus_actors.consensus.events import ChangeConfiguration
from incus_actors.consensus.node import Node
from incus_actors.consensus.quorum import is_lost
from incus_actors.consensus.types import NOBODY, Configuration, EntryKind, Member, RaftRole, Role

if TYPE_CHECKING:
    from incus_actors.consensus.leader import Leadership

QUIET_HEARTBEATS = 2  #: a spare is asked once a second, and may have been asked just before it fell silent


def change(node: Node, event: ChangeConfiguration) -> None:
    """Begin to go to `event.target`, or say why not."""
    leadership = node.leadership
    if node.role is not RaftRole.LEADER or leadership is None:
        node.emit(Resolve(event.request_id, "not_leader"))
        return
    busy = _busy(node)
    if busy:
        node.emit(Resolve(event.request_id, "busy", detail=busy))
        return
    current = node.log.configuration
    target = tuple(sorted(event.target, key=lambda member: member.id))
    invalid = invalid_members(target) or _reused(current, target)
    if invalid:
        node.emit(Resolve(event.request_id, "invalid", detail=invalid))
        return
    if target == current.old:
        node.emit(Resolve(event.request_id, "applied", node.log.configuration_index))
        return
    silent = _silent_majority(node, leadership, current, target)
    if silent:
        node.emit(Resolve(event.request_id, "busy", detail=silent))
        return
    leadership.change_request = event.request_id
    if _voters(target) == _voters(current.old):
        _append(node, Configuration(target, None, _removed(current, target)))
    else:
        _append(node, Configuration(current.old, target, current.removed))


def _busy(node: Node) -> str:
    if not node.has_own_term_commit():
        return "the leader has not committed an entry of its term yet"
    if node.log.configuration.joint or node.log.configuration_index > node.commit:
        return "another change is in flight"
    if node.leadership is not None and node.leadership.transfer is not None:
        return "leadership is being transferred"
    return ""


def _silent_majority(node: Node, leadership: Leadership, current: Configuration, target: tuple[Member, ...]) -> str:
    """3.9, rule 8, for whoever asks: the joint entry counts from its append on, so a step towards voters that do not
    answer costs the old ones their leader, and the way back. Of a newcomer nothing is known, and no evil is thought."""
    voters = _voters(target)
    if voters == _voters(current.old):
        return ""
    silent = {
        member
        for member, progress in leadership.progress.items()
        if progress.excluded
        or progress.contact_ms < node.now - node.timing.election_max_ms - QUIET_HEARTBEATS * progress.heartbeat_ms
    }
    if not is_lost((voters,), silent):
        return ""
    return f"too many of the new voters do not answer: {', '.join(map(str, sorted(voters & silent)))}"


def _reused(current: Configuration, target: tuple[Member, ...]) -> str:
    again = sorted({member.id for member in target} & set(current.removed))
    return f"member ids are never re-used: {again}" if again else ""


def _removed(current: Configuration, target: tuple[Member, ...]) -> tuple[int, ...]:
    gone = {member.id for member in current.old} - {member.id for member in target}
    return tuple(sorted(gone.union(current.removed)))


def _voters(members: tuple[Member, ...]) -> frozenset[int]:
    return frozenset(member.id for member in members if member.role is Role.VOTER)


def _append(node: Node, configuration: Configuration) -> None:
    leadership = node.leadership
    if leadership is None:
        return
    body = encode_configuration(configuration)
    node.stage_entry(node.log.make(node.term, EntryKind.CONFIG, node.wall_ms(), b"", body))
    leadership.uncommitted_bytes += len(body)
    leadership.sync_progress()


def on_commit(node: Node) -> None:
    """Commit has moved on the leader: leave a joint configuration, end a change, step down when we have left."""
    leadership = node.leadership
    if leadership is None or node.log.configuration_index > node.commit or not node.has_own_term_commit():
        return
    current = node.log.configuration
    if current.new is not None:
        _append(node, Configuration(current.new, None, _removed(current, current.new)))
        return
    if leadership.change_request is not None:
        request_id, leadership.change_request = leadership.change_request, None
        node.emit(Resolve(request_id, "applied", node.log.configuration_index))
    if not node.is_voter:
        heir = leadership.heir()
        for progress in leadership.progress.values():
            leadership.heartbeat(progress, heir)  # so that they know that it is committed
        leadership.say_goodbye("stepdown")
        node.become_follower(node.term, NOBODY, "removed")
