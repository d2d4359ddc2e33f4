"""Leading: heartbeats, check-quorum, heir, transfer, and stepping down when the disk hangs.

Owns the state of one leadership, which ends with it; entered through Core.become_leader. It must never count
itself for what it has not made durable, and holds no lease: reads are confirmed by rounds (reads.py).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from incus_actors.consensus import features, replication, snapshots
from incus_actors.consensus.effects import Resolve
from incus_actors.consensus.messages import Goodbye, Heartbeat, HeartbeatResponse, TimeoutNow, WireEntry
from incus_actors.consensus.node import Node
from incus_actors.consensus.progress import Progress, ProgressState
from incus_actors.consensus.quorum import has_majority
from incus_actors.consensus.reads import ReadRounds
from incus_actors.consensus.types import NOBODY, EntryKind, Index, MemberId, Role

COMMIT_TELL_MS = 5  #: members that wait for nothing hear of a commit this much later, or with the next entries
LEAVING_MS = 2000
DISK_BAN_MS = 30_000
DISK_TRANSFER_PAUSE_MS = 5000


@dataclass(slots=True)
class Transfer:
    """A leadership transfer under way. `request_id` 0: our own idea, nobody waits."""

    request_id: int
    target: MemberId
    deadline_ms: int


class Leadership:
    """Everything that exists only while this member leads."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.progress: dict[MemberId, Progress] = {}
        self.rounds = ReadRounds(node, self)
        self.noop_index: Index = node.log.last + 1
        self.check_quorum_ms = node.now + node.timing.check_quorum_ms
        self.grace_until_ms = 0
        self.since_ms = node.now
        self.ask_ms = node.now + features.ASK_EVERY_MS
        self.transfer: Transfer | None = None
        self.next_disk_transfer_ms = 0
        self.change_request: int | None = None
        self.uncommitted_bytes = sum(
            len(e.body) for e in node.log.slice(max(node.commit + 1, node.log.first), node.log.last)
        )
        self.origins: deque[tuple[Index, MemberId]] = deque()
        self.accusers: dict[MemberId, Index] = {}
        self.diverged: dict[MemberId, Index] = {}
        self.agreed: dict[MemberId, Index] = {}
        self.wire_key: tuple[Index, Index] = (0, 0)
        self.wire: tuple[WireEntry, ...] = ()
        self.sync_progress()

    # -- members --------------------------------------------------------------------------------------------------

    def sync_progress(self) -> None:
        """Have one Progress for every other member; who left is told so for a while before it is dropped."""
        node = self.node
        members = node.log.configuration.members()
        for member, described in members.items():
            if member == node.id:
                continue
            interval = _interval(node, described.role)
            found = self.progress.get(member)
            if found is None:
                self.progress[member] = Progress(member, node.log.last, node.now, interval)
            else:
                found.heartbeat_ms = interval
                found.heartbeat_due_ms = min(found.heartbeat_due_ms, node.now + interval)
                found.leaving_until_ms = 0
        for member, found in self.progress.items():
            if member not in members and not found.leaving_until_ms:
                found.leaving_until_ms = node.now + LEAVING_MS
        self.progress = dict(sorted(self.progress.items()))
        node.wake_at(node.now)

    def _drop_left(self) -> None:
        now, node = self.node.now, self.node
        for member, found in list(self.progress.items()):
            if not found.leaving_until_ms:
                continue
            if found.leaving_until_ms <= now or found.commit_told >= node.log.configuration_index <= found.match:
                del self.progress[member]
            else:
                node.wake_at(found.leaving_until_ms)

    def has_contact(self) -> bool:
        """Whether a quorum has answered within the longest election timeout."""
        since = self.node.now - self.node.timing.election_max_ms
        heard = {member for member, progress in self.progress.items() if progress.contact_ms >= since}
        heard.add(self.node.id)
        return has_majority(self.node.voter_sets, heard)

    def welcome(self, member: MemberId) -> None:
        """A member is back, or is another process now: find out at once where its log ends."""
        progress = self.progress[member]
        if progress.state is not ProgressState.SNAPSHOT:
            progress.become_probe()
            if not progress.match:
                progress.next = self.node.log.last + 1  # nobody knows yet what it lacks; not all, as a rule
        progress.heartbeat_due_ms = self.node.now
        self.heartbeat(progress, self.heir())
        replication.send_appends(self.node, progress)

    # -- heartbeats -----------------------------------------------------------------------------------------------

    def heartbeat(self, progress: Progress, heir: MemberId) -> None:
        """Send one heartbeat now. The member caps the commit index at what it has verified."""
        node = self.node
        progress.heartbeat_due_ms = node.now + progress.heartbeat_ms
        progress.commit_told = node.commit
        node.wake_at(progress.heartbeat_due_ms)
        node.send(progress.id, Heartbeat(node.commit, self.rounds.sequence, heir, node.applied, node.digest, node.now))

    def heartbeat_voters(self) -> None:
        """Start a read round, or prove at once who leads."""
        heir = self.heir()
        voters = self.node.log.configuration.voters()
        for member, progress in self.progress.items():
            if member in voters:
                self.heartbeat(progress, heir)

    def heir(self) -> MemberId:
        """Return who should lead next: the voter with the most log, space, links, and the shortest way; one whose state
        is in question only if there is no other."""
        best: tuple[bool, bool, Index, int, float, int] | None = None
        since = self.node.now - 4 * self.node.timing.heartbeat_ms
        target = {member.id for member in self.node.log.configuration.target if member.role is Role.VOTER}
        for member, progress in self.progress.items():
            if member not in target or progress.excluded or progress.contact_ms < since:
                continue
            roomy = progress.free_kib >= self.node.limits.min_free_kib
            sound = member not in self.diverged
            rank = (sound, roomy, progress.match, len(progress.links), -progress.round_trip_ms // 5, -member)
            if best is None or rank > best:
                best = rank
        return NOBODY if best is None else -best[5]

    # -- ticking --------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Do what is due: heartbeats, check-quorum, transfer, disk, snapshots."""
        node, now = self.node, self.node.now
        eager, commit = node.timing.heartbeat_standby_ms, node.commit
        due = [
            progress
            for progress in self.progress.values()
            if now >= progress.heartbeat_due_ms
            or (progress.commit_told < commit and (progress.heartbeat_ms <= eager or progress.leaving_until_ms))
        ]
        if due:
            late_ms = now - min(progress.heartbeat_due_ms for progress in due)
            if late_ms >= 0:  # else nobody's was due: they hear of a commit
                node.measured["heartbeat_late"].add(float(late_ms))
            heir = self.heir()
            for progress in due:
                self.heartbeat(progress, heir)
                replication.probe_silent(node, progress)
        for progress in self.progress.values():
            node.wake_at(progress.heartbeat_due_ms)
            if 0 < progress.retry_ms <= now:
                progress.retry_ms = 0
                replication.send_appends(node, progress)
            elif progress.retry_ms:
                node.wake_at(progress.retry_ms)
        self._drop_left()
        snapshots.tick(node)
        if self.transfer is not None and now >= self.transfer.deadline_ms:
            self.end_transfer("timeout")
        elif self.transfer is not None:
            self.send_timeout_now()
            node.wake_at(min(self.transfer.deadline_ms, now + node.timing.heartbeat_ms))
        if now >= self.check_quorum_ms:
            self._check()
        if node.leadership is self:
            node.wake_at(self.check_quorum_ms)

    def _check(self) -> None:
        node = self.node
        self.check_quorum_ms = node.now + node.timing.check_quorum_ms
        if node.now >= self.ask_ms:
            self.ask_ms = node.now + features.ASK_EVERY_MS
            features.ask_unknown(node)
        if node.now >= self.grace_until_ms and not self.has_contact():
            node.become_follower(node.term, NOBODY, "check_quorum")
        elif self._disk_hangs():
            self.say_goodbye("stepdown")
            node.disk_ban_until_ms = node.now + DISK_BAN_MS
            node.become_follower(node.term, NOBODY, "disk")
        elif node.low_on_disk() and self.transfer is None and node.now >= self.next_disk_transfer_ms:
            self._hand_over_for_space()

    def _disk_hangs(self) -> bool:
        """hashicorp/raft #503: a leader whose disk does not answer must not keep the cluster."""
        node = self.node
        waiting = bool(self.uncommitted_bytes or len(node.proposals) or node.commit < node.log.last)
        if not node.writes or not waiting or not node.voting_peers():
            return False
        return node.now - node.writes[0].issued_ms > node.timing.hung_write_ms

    def _hand_over_for_space(self) -> None:
        node = self.node
        heir = self.progress.get(self.heir())
        if heir is None or heir.free_kib < node.limits.min_free_kib or heir.match < node.commit:
            return
        self.next_disk_transfer_ms = node.now + DISK_TRANSFER_PAUSE_MS
        self.start_transfer(0, heir.id)

    def stalled(self) -> None:
        """This process was late: say that we live before judging who answers, one window long."""
        self.grace_until_ms = self.node.now + self.node.timing.check_quorum_ms
        self.heartbeat_voters()

    # -- transfer -------------------------------------------------------------------------------------------------

    def start_transfer(self, request_id: int, target: MemberId) -> None:
        """Hand leadership to `target` (0: the heir); proposals wait meanwhile."""
        node = self.node
        target = target or self.heir()
        if self.transfer is not None:
            _resolve(node, request_id, "busy", "a transfer is under way")
            return
        targets = {member.id for member in node.log.configuration.target if member.role is Role.VOTER}
        if target == node.id or target not in targets or target not in self.progress:
            _resolve(node, request_id, "invalid", f"member {target} cannot lead")
            return
        self.transfer = Transfer(request_id, target, node.now + node.timing.transfer_ms)
        node.wake_at(self.transfer.deadline_ms)
        replication.send_appends(node, self.progress[target])
        self.send_timeout_now()

    def send_timeout_now(self) -> None:
        """Tell the target to take over once it has everything."""
        if self.transfer is None:
            return
        target = self.progress.get(self.transfer.target)
        if target is None:
            self.end_transfer("invalid")
        elif target.match == self.node.log.last:
            self.node.send(target.id, TimeoutNow(self.node.log.last, self.node.log.last_term))

    def end_transfer(self, status: str) -> None:
        """Answer whoever asked; on failure go on leading."""
        ended, self.transfer = self.transfer, None
        if ended is not None:
            _resolve(self.node, ended.request_id, status)
            if status != "applied":
                self.node.proposals.dispatch_all()

    # -- what others report -----------------------------------------------------------------------------------------

    def progressed(self, progress: Progress) -> None:
        """A member has more than before: the transfer may be ready."""
        if self.transfer is not None and self.transfer.target == progress.id:
            self.send_timeout_now()

    def committed(self, before: Index, index: Index, *, first: bool) -> None:
        """Commit has moved: tell at once who forwarded a proposal among it, the others soon."""
        node = self.node
        log = node.log
        for entry in log.entries[before + 1 - log.first : index + 1 - log.first]:
            self.uncommitted_bytes -= len(entry.body)
        told: set[MemberId] = set()
        while self.origins and self.origins[0][0] <= index:
            told.add(self.origins.popleft()[1])
        for member in sorted(told):
            if member in self.progress:
                self.heartbeat(self.progress[member], self.heir())
        node.wake_at(node.now + COMMIT_TELL_MS)
        if first:
            self.rounds.gate_opened()

    def disputed(self, member: MemberId) -> bool:
        """Whether its state differs from ours and no majority has said yet who is wrong."""
        return member in self.diverged and not self.progress[member].excluded

    @property
    def in_dispute(self) -> bool:
        """Whether anybody's state is disputed: whoever is away may be the one to decide, if it is sent entries."""
        return any(member in self.progress and self.disputed(member) for member in self.diverged)

    def compare_digest(self, progress: Progress, message: HeartbeatResponse) -> None:
        """States at equal indexes must be equal (3.11); the one that differs from a majority is damaged.

        An agreement counts only from a place at or behind the difference: one from before it says nothing about
        who has gone wrong since, and that may be this leader.
        """
        node = self.node
        ours = node.digests.get(message.applied)
        if not message.digest or ours is None:
            return
        if ours == message.digest:
            self.agreed[progress.id] = message.applied
            self.diverged.pop(progress.id, None)
            return
        if progress.id not in self.diverged:
            node.count("digest_mismatches")
        self.diverged[progress.id] = message.applied
        if has_majority(node.voter_sets, self.diverged):
            node.fatal(f"the state of this leader differs from a majority at index {message.applied}", "amnesia")
            return
        agreeing = {m for m, index in self.agreed.items() if index >= message.applied and m not in self.diverged}
        if has_majority(node.voter_sets, agreeing | {node.id}) and not progress.excluded:
            replication.exclude(node, progress, "diverged")

    def say_goodbye(self, why: str) -> None:
        """Tell everyone that this leader stops, and who should go first."""
        heir = self.heir()
        for member in self.progress:
            self.node.send(member, Goodbye(why, heir))

    def resign(self, *, moved: bool) -> None:
        """Leadership is over: whoever waited for it asks the next leader. `moved`: a later term has begun."""
        node = self.node
        self.rounds.abandon()
        if self.transfer is not None:
            self.end_transfer("applied" if moved else "timeout")
        if self.change_request is not None:
            _resolve(node, self.change_request, "unknown", "leadership was lost")
            self.change_request = None


def start(node: Node) -> None:
    """Begin to lead: a first entry of our own term at once, in parallel to disk and network."""
    leadership = Leadership(node)
    node.leadership = leadership
    node.stage_entry(node.log.make(node.term, EntryKind.NOOP, node.wall_ms(), b"", b""))
    heir = leadership.heir()
    for progress in leadership.progress.values():
        leadership.heartbeat(progress, heir)
    node.wake_at(leadership.check_quorum_ms)


def _interval(node: Node, role: Role) -> int:
    timing = node.timing
    if role is Role.VOTER:
        return timing.heartbeat_ms
    return timing.heartbeat_standby_ms if role is Role.STANDBY else timing.heartbeat_spare_ms


def _resolve(node: Node, request_id: int, status: str, detail: str = "") -> None:
    if request_id:
        node.emit(Resolve(request_id, status, detail=detail))
