"""The network of a script: messages under way, held, cut off, and everything that was ever sent.

Owns messages between `send` and their fate; the world delivers what is selected here. Must never deliver anything
by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from incus_actors.consensus.messages import Envelope
from incus_actors.consensus.types import MemberId
from incus_actors.interaction.errors import StepFailedError
from incus_actors.interaction.patterns import Pattern, show_message

UNDER_WAY = "under way"
MOST_SENT = 50_000  #: a script that sends more than this does not end


@dataclass(slots=True, eq=False)
class Flight:
    """One message and what became of it."""

    number: int
    envelope: Envelope
    line: int
    fate: str = UNDER_WAY

    def show(self, names: Mapping[bytes, str]) -> str:
        """Return it in one line, with its number and fate."""
        return f"#{self.number} {show_message(self.envelope, names)}  ({self.fate})"


@dataclass
class Network:
    """All messages of a world, in the order in which they were sent."""

    names: Mapping[bytes, str]
    sent: list[Flight] = field(default_factory=list)
    under_way: list[Flight] = field(default_factory=list)
    holds: list[Pattern] = field(default_factory=list)
    cuts: set[tuple[MemberId, MemberId]] = field(default_factory=set)
    mark: int = 0  #: `expect sent` looks at messages from here on
    marked: int = 0  #: the line that said so; 0: none did
    line: int = 0

    def begin(self, line: int) -> None:
        """Let `expect sent` look only at what is sent from this line on."""
        self.mark, self.marked = len(self.sent), line

    def send(self, envelope: Envelope) -> None:
        """Put a message on its way; where the way is cut it is lost. Raises StepFailedError when there is no end."""
        if len(self.sent) >= MOST_SENT:
            raise StepFailedError(f"more than {MOST_SENT} messages were sent: this does not end")
        flight = Flight(len(self.sent) + 1, envelope, self.line)
        self.sent.append(flight)
        if (envelope.source, envelope.destination) in self.cuts:
            flight.fate = "lost: cut"
        else:
            self.under_way.append(flight)

    def matching(self, pattern: Pattern, *, held: bool = True) -> list[Flight]:
        """Return messages under way that match; without `held` only those that no hold keeps back."""
        return [
            flight
            for flight in self.under_way
            if pattern.matches(flight.envelope, self.names) and (held or not self.is_held(flight))
        ]

    def is_held(self, flight: Flight) -> bool:
        """Return whether a hold keeps this message back."""
        return any(hold.matches(flight.envelope, self.names) for hold in self.holds)

    def take(self, flight: Flight, fate: str) -> Envelope:
        """Remove a message from the network for good."""
        self.under_way.remove(flight)
        flight.fate = fate
        return flight.envelope

    def cut(self, source: MemberId, destination: MemberId) -> None:
        """Lose everything on one way, from now on and what is on it now."""
        self.cuts.add((source, destination))
        for flight in list(self.under_way):
            if (flight.envelope.source, flight.envelope.destination) == (source, destination):
                self.take(flight, "lost: cut")

    def last(self, count: int) -> list[str]:
        """Return the last messages that were sent, each in one line."""
        return [flight.show(self.names) for flight in self.sent[-count:]]
