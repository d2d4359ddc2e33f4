"""Who should vote, stand by, or only follow (CONSENSUS 3.9, DESIGN D6).

Owns pure functions, called by the leader of the daemon and by the simulator's: `plan` about once a second, `without`
and `swapped` when a member leaves for good or comes back under a new id, `vote_given_away` before a planned stop; the
caller proposes what they return. It must never make the set of voters smaller because somebody is offline, and `plan`
never touches the leader's own vote.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from incus_actors.consensus.types import Configuration, Member, MemberId, Role

OFFLINE_AFTER_MS = 20_000
VOTER_OFFLINE_AFTER_MS = 5_000
HEIR_SILENT_MS = 1_000  #: a standby is heard five times as often; who may be away gets no only vote


@dataclass(frozen=True, slots=True)
class MemberHealth:
    """What the leader knows about a member: time since its last answer, how much log it lacks."""

    contact_age_ms: int
    lag: int
    caught_up: bool


def plan(
    configuration: Configuration,
    health: Mapping[MemberId, MemberHealth],
    max_voters: int,
    max_standby: int,
    *,
    leader: MemberId = 0,
    offline_after_ms: int = OFFLINE_AFTER_MS,
    voter_offline_after_ms: int = VOTER_OFFLINE_AFTER_MS,
) -> tuple[Member, ...] | None:
    """Return the members as they should be next, or None to leave them. One step at a time.

    `health` comes from the leader; a member that it does not list counts as offline. An offline voter is
    replaced after `voter_offline_after_ms` when a standby is ready, by anyone else only after
    `offline_after_ms`. `leader` never loses its vote here.
    """
    if configuration.joint:
        return None
    view = _View(configuration, health, leader, offline_after_ms, voter_offline_after_ms)
    wanted = wanted_voters(len(configuration.old), max_voters)
    for rule in (_replace_voter, _add_voters, _drop_voters):
        changes = rule(view, wanted)
        if changes and view.keeps_quorum(changes):
            return view.after(changes)
    changes = _balance_standbys(view, wanted, max_standby)
    return view.after(changes) if changes else None


def without(
    members: tuple[Member, ...],
    gone: Collection[MemberId],
    health: Mapping[MemberId, MemberHealth],
    max_voters: int,
) -> tuple[Member, ...]:
    """Return `members` without those that are `gone`; in the same step the best ready standbys get their votes, as
    many as are still wanted, so that the voter set does not shrink on the way. With no standby ready it does shrink:
    a member must be removable from a small cluster."""
    left = tuple(member for member in members if member.id not in gone)
    view = _View(Configuration(left), health)
    lost = sum(member.role is Role.VOTER for member in members) - len(view.voters)
    missing = min(lost, wanted_voters(len(left), max_voters) - len(view.voters))
    ready = tuple(member for member in view.standbys if view.ready(member))
    return view.after({member.id: Role.VOTER for member in view.best(ready, view.voters, missing)})


def swapped(
    members: tuple[Member, ...],
    burnt: MemberId,
    newcomer: Member,
    health: Mapping[MemberId, MemberHealth],
    max_voters: int,
) -> tuple[Member, ...]:
    """Return `members` with `newcomer` instead of an id that has forgotten its promises (CONSENSUS 3.5): it stands by,
    or is a spare again, and votes by the usual rule once it has the log.

    The burnt voter goes at once, also when no standby is ready to vote instead: it acknowledges nothing and votes for
    nobody, so the others can lose as many members without it as with it.
    """
    spare = any(member.id == burnt and member.role is Role.SPARE for member in members)
    stays = without(members, {burnt}, health, max_voters)
    return (*stays, replace(newcomer, role=Role.SPARE if spare else Role.STANDBY))


def vote_given_away(
    configuration: Configuration, health: Mapping[MemberId, MemberHealth], leader: MemberId
) -> tuple[Member, ...] | None:
    """Return the members with the vote of the only voter, the `leader`, given to the best ready standby: before a
    planned stop, as nobody else could go on without it. None if others vote, or nobody is ready."""
    view = _View(configuration, health, leader, voter_offline_after_ms=HEIR_SILENT_MS)
    ready = tuple(member for member in view.standbys if view.ready(member))
    if configuration.joint or [member.id for member in view.voters] != [leader] or not ready:
        return None
    return view.after({leader: Role.STANDBY, view.best(ready, (), 1)[0].id: Role.VOTER})


def leaves_a_majority(
    members: tuple[Member, ...], left: tuple[Member, ...], health: Mapping[MemberId, MemberHealth], leader: MemberId
) -> bool:
    """Return whether the voters that are `left` of `members` can go on: a majority of them answers (rule 8 of 3.9).
    The core refuses a step to others; whoever is to forget a member asks before it is forgotten elsewhere."""
    view = _View(Configuration(left), health, leader)
    return voter_ids(left) == voter_ids(members) or 2 * sum(map(view.answers, view.voters)) > len(view.voters)


def wanted_voters(members: int, max_voters: int) -> int:
    """Return how many voters are best: one of one or two members, then an odd number up to `max_voters`."""
    if members < 3:
        return 1
    most = min(members, max(3, max_voters))
    return most if most % 2 else most - 1


Changes = dict[MemberId, Role]


class _View:
    """A configuration with its health, and the questions that the rules ask."""

    def __init__(
        self,
        configuration: Configuration,
        health: Mapping[MemberId, MemberHealth],
        leader: MemberId = 0,
        offline_after_ms: int = OFFLINE_AFTER_MS,
        voter_offline_after_ms: int = VOTER_OFFLINE_AFTER_MS,
    ) -> None:
        self.members = configuration.old
        self.health = health
        self.leader = leader
        self.offline_after_ms = offline_after_ms
        self.voter_offline_after_ms = voter_offline_after_ms
        self.voters = self.having(Role.VOTER)
        self.standbys = self.having(Role.STANDBY)
        self.spares = self.having(Role.SPARE)

    def having(self, role: Role) -> tuple[Member, ...]:
        return tuple(member for member in self.members if member.role is role)

    def silent_ms(self, member: Member) -> int:
        if member.id == self.leader:
            return 0
        known = self.health.get(member.id)
        return 1 << 62 if known is None else known.contact_age_ms

    def online(self, member: Member) -> bool:
        return self.silent_ms(member) < self.offline_after_ms

    def answers(self, member: Member) -> bool:
        """Online by the strict measure that voters are held to."""
        return self.silent_ms(member) < self.voter_offline_after_ms

    def ready(self, member: Member) -> bool:
        known = self.health.get(member.id)
        return known is not None and known.caught_up and self.answers(member)

    def lag(self, member: Member) -> int:
        known = self.health.get(member.id)
        return 1 << 62 if known is None else known.lag

    def best(self, candidates: tuple[Member, ...], beside: tuple[Member, ...], count: int) -> tuple[Member, ...]:
        """Return up to `count` candidates: those in the emptiest failure domains, least behind, lowest id."""
        crowd = Counter(member.domain for member in beside)
        left, chosen = list(candidates), list[Member]()
        while left and len(chosen) < count:
            found = min(left, key=lambda member: (crowd[member.domain], self.lag(member), member.id))
            left.remove(found)
            chosen.append(found)
            crowd[found.domain] += 1
        return tuple(chosen)

    def most_redundant(self, candidates: tuple[Member, ...]) -> Member | None:
        """Return who can go best: offline first, then from the fullest domain, most behind, highest id."""
        crowd = Counter(member.domain for member in candidates)
        free = [member for member in candidates if member.id != self.leader]
        return max(
            free,
            key=lambda member: (not self.online(member), crowd[member.domain], self.lag(member), member.id),
            default=None,
        )

    def after(self, changes: Changes) -> tuple[Member, ...]:
        return tuple(replace(m, role=changes[m.id]) if m.id in changes else m for m in self.members)

    def keeps_quorum(self, changes: Changes) -> bool:
        """Whether the voters that answer are a majority before and after: else the change would never commit."""
        for members in (self.members, self.after(changes)):
            voters = [member for member in members if member.role is Role.VOTER]
            if 2 * sum(self.answers(member) for member in voters) <= len(voters):
                return False
        return True


def _replace_voter(view: _View, wanted: int) -> Changes:
    """One dead voter out and one live member in, in a single joint step; without a successor it stays."""
    if len(view.voters) > wanted:
        return {}
    silent = [m for m in view.voters if not view.answers(m) and m.id != view.leader]
    ready = tuple(m for m in view.standbys if view.ready(m))
    if not silent or not ready:
        return {}
    gone = max(silent, key=lambda member: (view.silent_ms(member), member.id))
    staying = tuple(member for member in view.voters if member.id != gone.id)
    successor = view.best(ready, staying, 1)[0]
    return {gone.id: Role.STANDBY, successor.id: Role.VOTER}


def _add_voters(view: _View, wanted: int) -> Changes:
    """More voters, but never an even number on the way: from one the next step is three."""
    ready = tuple(member for member in view.standbys if view.ready(member))
    reachable = min(wanted, len(view.voters) + len(ready))
    target = reachable if reachable % 2 else reachable - 1
    if target <= len(view.voters):
        return {}
    chosen = view.best(ready, view.voters, target - len(view.voters))
    return {member.id: Role.VOTER for member in chosen}


def _drop_voters(view: _View, wanted: int) -> Changes:
    """Fewer voters because fewer are wanted, never because one is offline."""
    if len(view.voters) <= wanted:
        return {}
    gone = view.most_redundant(view.voters)
    return {} if gone is None else {gone.id: Role.STANDBY}


def _balance_standbys(view: _View, wanted: int, max_standby: int) -> Changes:
    """Fill the standby places with who is online; who may soon vote stands by first.

    An offline standby becomes a spare (rule 4) when a spare can take its place, and not before: its place is of no use
    to anybody else, and it would cost two entries of the log, and time to be ready, once it is back.
    """
    missing_voters = max(0, wanted - len(view.voters))
    offline_voters = sum(not view.online(member) for member in view.voters)
    places = max_standby + missing_voters
    if len(view.members) == 2 or (offline_voters and not max_standby):
        places = max(places, 1)
    spares = tuple(member for member in view.spares if view.online(member))
    if len(view.standbys) < places and spares:
        chosen = view.best(spares, (*view.voters, *view.standbys), 1)[0]
        return {chosen.id: Role.STANDBY}
    dead = [member for member in view.standbys if not view.online(member)]
    if dead and spares:
        successor = view.best(spares, view.voters, 1)[0]
        return {max(dead, key=view.silent_ms).id: Role.SPARE, successor.id: Role.STANDBY}
    if len(view.standbys) > places:
        gone = view.most_redundant(view.standbys)
        return {} if gone is None else {gone.id: Role.SPARE}
    return {}


class PlanPacer:
    """Hysteresis of CONSENSUS 3.9 rule 7: voters change every 2 s at most, and not within 3 s of an election. What
    leaves them alone may change at any time."""

    CHANGE_PAUSE_MS = 2_000
    ELECTION_PAUSE_MS = 3_000

    def __init__(self) -> None:
        self._changed_ms = -self.CHANGE_PAUSE_MS

    def may_go(
        self, present: tuple[Member, ...], wanted: tuple[Member, ...], now_ms: int, leading_since_ms: int
    ) -> bool:
        """Return whether `wanted` may be proposed now."""
        if voter_ids(present) == voter_ids(wanted):
            return True
        settled = now_ms - leading_since_ms >= self.ELECTION_PAUSE_MS
        return settled and now_ms - self._changed_ms >= self.CHANGE_PAUSE_MS

    def went(self, present: tuple[Member, ...], wanted: tuple[Member, ...], now_ms: int) -> None:
        """Note that `wanted` has been proposed."""
        if voter_ids(present) != voter_ids(wanted):
            self._changed_ms = now_ms


def voter_ids(members: Collection[Member]) -> frozenset[MemberId]:
    """Return the ids of those that vote."""
    return frozenset(member.id for member in members if member.role is Role.VOTER)
