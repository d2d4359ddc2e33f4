"""Forgetting a leader on evidence from one's own links: the fast path of CONSENSUS 3.7, rules F1 to F8.

Owns the evidence, the budgets and the pre-votes that are held while we look; called by the dispatcher and by
voting.py. It must never touch term, vote or log: forgetting changes what we will grant, never what we promised.
"""

from __future__ import annotations

from collections import deque

from incus_actors.consensus.messages import Envelope, Goodbye, Hello
from incus_actors.consensus.node import NEVER, Node
from incus_actors.consensus.types import NOBODY, MemberId, RaftRole

CERTAIN = "E3"
BUDGET_PER_INCARNATION = 2
BUDGET_PER_MINUTE = 4
MINUTE_MS = 60_000


class Suspicion:
    """What one member thinks of its leader's health, beside the election timer."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.forgotten: MemberId = NOBODY
        self.why = "timeout"
        self.held: dict[MemberId, tuple[Envelope, int]] = {}
        self._spent: dict[tuple[MemberId, int], int] = {}
        self._recent: deque[tuple[int, MemberId]] = deque()  #: when, and whom we forgot

    # -- evidence -------------------------------------------------------------------------------------------------

    def link_down(self, peer: MemberId, evidence: str) -> None:
        """Both links to `peer` broke. E0 (one link only) proves nothing."""
        if evidence == "E0":
            return
        self.node.links[peer] = False
        if peer == self.node.leader:
            self.forget(evidence)

    def hello(self, envelope: Envelope, message: Hello, *, changed: bool) -> None:
        """A new incarnation under the leader's id proves that the process that led is gone (E3); an answer from
        the same one proves that it is alive, and settles the pre-votes that waited for it (F2)."""
        node = self.node
        if changed:
            # The process that we forgot had really gone: that campaign was no false alarm and costs nothing.
            self._recent = deque(spent for spent in self._recent if spent[1] != envelope.source)
        if envelope.source != node.leader:
            return
        if changed:
            self.forget(CERTAIN)
        elif message.answer and self.held:
            self.settle()

    def goodbye(self, envelope: Envelope, message: Goodbye) -> None:
        """The leader says that it stops (E3). It may name who should go first."""
        if envelope.source == self.node.leader and envelope.term >= self.node.term:
            if message.heir != NOBODY:
                self.node.heir = message.heir
            self.forget(CERTAIN)

    # -- F1, F5 ---------------------------------------------------------------------------------------------------

    def forget(self, evidence: str) -> bool:
        """F1: stop believing in the present leader and campaign soon, the heir at once; F5: within the budget."""
        node = self.node
        if node.role is not RaftRole.FOLLOWER or node.leader in (NOBODY, node.id):
            return False
        if node.is_voter and not self._within_budget(evidence):
            node.count("fast_path_over_budget")
            return False
        self.forgotten = node.leader
        heir = node.heir == node.id
        self.why = "heir" if heir else "lost"
        node.leader = NOBODY
        node.count("leader_forgotten", evidence=evidence)
        node.role_changed("forgot")
        delay = 0 if heir else node.rng.randint(*node.timing.forget_jitter_ms)
        node.set_election_deadline(min(node.election_deadline_ms, node.now + delay))
        self.settle()
        return True

    def _within_budget(self, evidence: str) -> bool:
        if evidence == CERTAIN:
            return True
        node = self.node
        key = (node.leader, node.incarnations.get(node.leader, 0))
        while self._recent and self._recent[0][0] <= node.now - MINUTE_MS:
            self._recent.popleft()
        if self._spent.get(key, 0) >= BUDGET_PER_INCARNATION or len(self._recent) >= BUDGET_PER_MINUTE:
            return False
        self._spent = {key: self._spent.get(key, 0) + 1}
        self._recent.append((node.now, node.leader))
        return True

    def spent(self) -> int:
        """Return how many campaigns of the fast path count against the budget of this minute (F5)."""
        return sum(1 for at_ms, _ in self._recent if at_ms > self.node.now - MINUTE_MS)

    def found_leader(self) -> None:
        """F6: somebody leads; whatever we suspected is over, and who asked meanwhile hears so."""
        self.forgotten = NOBODY
        self.why = "timeout"
        if self.held:
            self.settle()

    # -- F2 -------------------------------------------------------------------------------------------------------

    def look(self, envelope: Envelope) -> None:
        """F2: a peer says that our leader is lost. Only our own links can make us believe it: forget now when
        they are down too, else ask the leader and answer when it does, or in 30 ms."""
        node = self.node
        if not node.link_up(node.leader) and self.forget("E1"):
            self.node_answers(envelope)
            return
        self.held[envelope.source] = (envelope, node.now + node.timing.prevote_hold_ms)
        node.wake_at(node.now + node.timing.prevote_hold_ms)
        node.send(node.leader, greeting(node))

    def settle(self) -> None:
        """Answer every pre-vote that we hold, by what we believe now."""
        held, self.held = self.held, {}
        for source in sorted(held):
            self.node_answers(held[source][0])

    def node_answers(self, envelope: Envelope) -> None:
        """Answer one pre-vote without looking again."""
        from incus_actors.consensus.voting import answer_prevote

        answer_prevote(self.node, envelope, look=False)

    def tick(self) -> None:
        """Answer what has been held long enough."""
        now = self.node.now
        for source in sorted(self.held):
            envelope, until = self.held[source]
            if until <= now:
                del self.held[source]
                self.node_answers(envelope)
            else:
                self.node.wake_at(until)


def greeting(node: Node, *, answer: bool = False) -> Hello:
    """Return a Hello that says where this member's log ends. It doubles as the ping of F2."""
    return Hello(1, 1, node.log.last, node.log.last_term, node.commit, answer, node.sqlite_version, node.features)


class StallForgiveness:
    """Our own stall says nothing about the leader (CONSENSUS 3.8): it does not count towards the election
    timeout, up to 2 s in any 10 s, so that a permanently starved member still campaigns some day."""

    WINDOW_MS = 10_000
    MOST_MS = 2_000

    def __init__(self) -> None:
        self._since = -NEVER
        self._given = 0

    def take(self, now_ms: int, stalled_ms: int) -> int:
        """Return how many milliseconds of a stall are forgiven."""
        if now_ms - self._since >= self.WINDOW_MS:
            self._since, self._given = now_ms, 0
        given = max(0, min(stalled_ms, self.MOST_MS - self._given))
        self._given += given
        return given
