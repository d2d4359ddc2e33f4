"""Who and what appears in a script: members as described, their dice, requests of clients, members that have stopped.

Owns plain records; made by commands.py and world.py. Must never act.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from incus_actors.consensus.types import NOBODY, Index, MemberId, Role, Term
from incus_actors.model.features import SUPPORTED


@dataclass
class MemberSpec:
    """What the script says about a member of the beginning."""

    id: MemberId
    role: Role = Role.VOTER
    term: Term = 0
    vote: MemberId = NOBODY
    log: list[tuple[Term, str]] = field(default_factory=list)
    applied: Index = 0
    snapshot: Index = 0
    address: str = ""
    domain: str = "default"
    features: int = SUPPORTED
    down: bool = False
    amnesia: bool = False

    @property
    def last_term(self) -> Term:
        """The term of its last entry."""
        return self.log[-1][0] if self.log else 0


@dataclass
class Request:
    """Something that a client has asked one member for."""

    label: str
    member: MemberId
    kind: str
    status: str = "pending"
    index: Index = 0
    result: object = None
    detail: str = ""
    floor: Index = 0


@dataclass
class Stopped:
    """A core has asked for its process to stop."""

    member: MemberId
    kind: str
    reason: str
    line: int
    expected: bool = False


class Dice:
    """The random numbers of a member: always the same ones, so that a script can reckon with them."""

    def __init__(self, member: MemberId) -> None:
        self.member = member
        self.election: tuple[int, int, int] | None = None

    def randint(self, a: int, b: int, /) -> int:
        """Return the number at (id - 1) tenths of the range, or the election timeout that the script has set."""
        if self.election is not None and self.election[:2] == (a, b):
            return self.election[2]
        return a + (b - a) * min(self.member - 1, 10) // 10
