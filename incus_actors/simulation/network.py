"""The virtual network: one path per direction between every two members, and the links that members see.

Owns what happens to a message on its way (latency, loss, duplicates, late arrivals, cuts, clogs) and which breaks
of a link are noticed, when, and with what evidence (CONSENSUS 3.7). Must never look into a message.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from incus_actors.consensus.messages import Envelope, Propose
from incus_actors.consensus.types import MemberId
from incus_actors.simulation.plan import NetworkPlan

BUFFER = 50  #: messages that a cut path holds until it is whole again
REDIAL_US = (1_000, 30_000)
LATE_US = (20_000, 3_000_000)


class Endpoint(Protocol):
    """A member as the network sees it."""

    @property
    def running(self) -> bool:
        """Whether a process is there."""

    def receive(self, envelope: Envelope) -> None:
        """A message arrives."""

    def link_up(self, peer: MemberId) -> None:
        """Both directions work."""

    def link_down(self, peer: MemberId, evidence: str) -> None:
        """Both directions broke."""


class Clock(Protocol):
    """The part of the world that the network needs."""

    now_us: int

    def at(self, us: int, call: Callable[..., None], *values: object) -> None:
        """Call at a time."""

    def after(self, us: int, call: Callable[..., None], *values: object) -> None:
        """Call later."""


@dataclass(slots=True)
class Path:
    """From one member to another."""

    cuts: int = 0
    loss: float = 0.0
    clogged_until_us: int = 0
    last_arrival_us: int = 0
    held: list[Envelope] = field(default_factory=list)


class Network:
    """All paths. Links are known per member: `up[a, b]` is what `a` was told about `b`."""

    def __init__(self, clock: Clock, rng: random.Random, plan: NetworkPlan) -> None:
        self.clock = clock
        self.rng = rng
        self.plan = plan
        self.endpoints: dict[MemberId, Endpoint] = {}
        self.paths: dict[tuple[MemberId, MemberId], Path] = {}
        self.up: dict[tuple[MemberId, MemberId], bool] = {}
        self.sent = 0
        self.lost = 0

    def path(self, source: MemberId, destination: MemberId) -> Path:
        """Return the path from `source` to `destination`."""
        key = (source, destination)
        found = self.paths.get(key)
        if found is None:
            found = self.paths[key] = Path()
        return found

    # -- messages -------------------------------------------------------------------------------------------------

    def send(self, envelope: Envelope) -> None:
        """Put a message on its way."""
        plan, rng = self.plan, self.rng
        self.sent += 1
        path = self.path(envelope.source, envelope.destination)
        if path.cuts:
            if plan.buffered and rng.random() < plan.buffered and len(path.held) < BUFFER:
                path.held.append(envelope)
            else:
                self.lost += 1
            return
        loss = plan.loss + path.loss
        if loss and rng.random() < loss:
            self.lost += 1
            return
        self._travel(path, envelope)
        if isinstance(envelope.message, Propose):
            return  # the transport delivers at most once; everything but a refused proposal is indifferent to it
        if plan.duplicate and rng.random() < plan.duplicate:
            self._travel(path, envelope)

    def _travel(self, path: Path, envelope: Envelope) -> None:
        plan, rng, now = self.plan, self.rng, self.clock.now_us
        arrival = now + plan.delay_us + int(rng.expovariate(1.0) * plan.jitter_us)
        if plan.late and rng.random() < plan.late:
            arrival += rng.randint(*LATE_US)
        else:
            if path.clogged_until_us > arrival:
                arrival = path.clogged_until_us + rng.randint(0, 2_000)
            if plan.ordered:
                path.last_arrival_us = arrival = max(arrival, path.last_arrival_us + 1)
        self.clock.at(arrival, self._arrive, envelope)

    def _arrive(self, envelope: Envelope) -> None:
        endpoint = self.endpoints.get(envelope.destination)
        if endpoint is not None and not self.path(envelope.source, envelope.destination).cuts:
            endpoint.receive(envelope)
        else:
            self.lost += 1

    # -- cuts -----------------------------------------------------------------------------------------------------

    def cut(self, pairs: Iterable[tuple[MemberId, MemberId]]) -> None:
        """Let nothing through on these directed paths, silently. Cuts add up."""
        for source, destination in pairs:
            self.path(source, destination).cuts += 1

    def mend(self, pairs: Iterable[tuple[MemberId, MemberId]]) -> None:
        """Take one cut back; what was held arrives at once."""
        for source, destination in pairs:
            path = self.path(source, destination)
            if not path.cuts:
                continue
            path.cuts -= 1
            if not path.cuts:
                held, path.held = path.held, []
                for envelope in held:
                    self._travel(path, envelope)
                self._redial(source, destination)

    def mend_all(self) -> None:
        """Make every path whole and perfect."""
        for (source, destination), path in list(self.paths.items()):
            path.loss, path.clogged_until_us = 0.0, 0
            if path.cuts:
                path.cuts = 1
                self.mend([(source, destination)])

    def reachable(self, one: MemberId, other: MemberId) -> bool:
        """Whether both directions let something through."""
        return not self.path(one, other).cuts and not self.path(other, one).cuts

    # -- links ----------------------------------------------------------------------------------------------------

    def _redial(self, one: MemberId, other: MemberId) -> None:
        self.clock.after(self.rng.randint(*REDIAL_US), self._connect, one, other)

    def _connect(self, one: MemberId, other: MemberId) -> None:
        if not self.reachable(one, other):
            return
        if not (self.endpoints[one].running and self.endpoints[other].running):
            return
        for side, peer in ((one, other), (other, one)):
            if not self.up.get((side, peer), False):
                self.up[side, peer] = True
                self.endpoints[side].link_up(peer)

    def started(self, member: MemberId) -> None:
        """A process is there: the others dial it, it dials the others."""
        for other in self.endpoints:
            if other != member:
                self.up[member, other] = False
                self._redial(member, other)

    def died(self, member: MemberId, *, silent: bool) -> None:
        """A process has gone. `silent`: its host with it, so that no kernel says so."""
        for other in self.endpoints:
            if other != member and self.up.get((other, member), False) and not silent:
                self._break(other, member, "E2")

    def reset(self, one: MemberId, other: MemberId) -> None:
        """Somebody in between breaks the connection of two living processes."""
        for side, peer in ((one, other), (other, one)):
            if self.up.get((side, peer), False):
                self._break(side, peer, "E1")

    def _break(self, side: MemberId, peer: MemberId, evidence: str) -> None:
        if self.rng.random() < self.plan.notice_lost:
            return
        wait = 1_000 + int(self.rng.expovariate(1.0) * self.plan.notice_us) + (25_000 if evidence == "E1" else 0)
        self.clock.after(wait, self._notice, side, peer, evidence)

    def _notice(self, side: MemberId, peer: MemberId, evidence: str) -> None:
        if not self.up.get((side, peer), False) or not self.endpoints[side].running:
            return
        if evidence == "E2" and self.endpoints[peer].running:
            evidence = "E1"  # it is back already, the probe is not refused
        self.up[side, peer] = False
        self.endpoints[side].link_down(peer, evidence)
        self._redial(side, peer)
